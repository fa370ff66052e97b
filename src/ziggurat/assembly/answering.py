"""From settings to the store of answers that need not be bought twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ziggurat.artifacts import Payloads
from ziggurat.assembly.backends import load_backend
from ziggurat.assembly.secrets import plain
from ziggurat.inference.answers import Answers, AnswerStore
from ziggurat.settings import Settings

ANSWER_STORES: Mapping[str, str] = {
    "sqlite": "ziggurat.inference.backends.answers_sqlite:SqliteAnswers",
    "redis": "ziggurat.inference.backends.answers_redis:RedisAnswers",
}


def build_answers(settings: Settings, payloads: Payloads) -> Answers:
    """Return what recalls and keeps answers; it reaches as far as the queue does. Raises MissingExtra, SettingsError."""
    wanted, queue = settings.inference.answers, settings.queue
    if queue.backend == "redis":
        store = cast(AnswerStore, load_backend("answers", "redis", ANSWER_STORES)(plain(queue.url), "queue.url"))
    else:
        store = cast(AnswerStore, load_backend("answers", "sqlite", ANSWER_STORES)(settings.resolve(wanted.path)))
    return Answers(store, payloads, journal=wanted.journal)
