"""From settings to the limit store that processes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ziggurat.assembly.backends import load_backend
from ziggurat.assembly.secrets import plain
from ziggurat.clock import Clock
from ziggurat.inference.interface import Limits
from ziggurat.inference.limits.interface import LimitStore
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.settings import Settings
from ziggurat.settings.limits import LimitSettings

LIMIT_STORES: Mapping[str, str] = {
    "process": "ziggurat.inference.limits.process:ProcessStore",
    "sqlite": "ziggurat.inference.backends.limits_sqlite:SqliteStore",
    "redis": "ziggurat.inference.backends.limits_redis:RedisStore",
}


def build_keeper(settings: Settings, clock: Clock | None = None) -> Keeper:
    """Return the way to the configured limit store. Raises ConfigurationError, MissingExtra."""
    return Keeper(build_limit_store(settings), clock)


def build_limit_store(settings: Settings) -> LimitStore:
    """Return the configured limit store; without a setting, one that reaches as far as the queue does.

    Raises ConfigurationError, MissingExtra.
    """
    wanted = plain(settings.inference.limits.store)
    if wanted in ("", "process", "sqlite"):
        queue = settings.queue
        if not wanted and queue.backend == "redis":
            return cast(LimitStore, load_backend("limit store", "redis", LIMIT_STORES)(plain(queue.url), what="queue.url"))
        name = wanted or ("process" if queue.backend == "memory" else "sqlite")
        made = load_backend("limit store", name, LIMIT_STORES)
        return cast(LimitStore, made() if name == "process" else made(settings.resolve(settings.inference.limits.path)))
    if "://" in wanted:
        return cast(LimitStore, load_backend("limit store", "redis", LIMIT_STORES)(wanted))
    return cast(LimitStore, load_backend("limit store", wanted, LIMIT_STORES)(settings))


def limits_of(wanted: LimitSettings) -> Limits:
    """Return limits as the gates take them."""
    return Limits(**wanted.model_dump())
