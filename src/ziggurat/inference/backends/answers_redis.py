"""Answers in Redis, each a key that expires by itself."""

from __future__ import annotations

from ziggurat.errors import LayerUnreachable
from ziggurat.inference.answers import AnswerStore
from ziggurat.inference.backends.redis_client import RedisClient


class RedisAnswers(AnswerStore):
    """Answers in the Redis of the queue. Raises MissingExtra, SettingsError.

    Args:
        url: as for the queue; the option `prefix` names the keys.
        what: the setting that holds the URL.
    """

    def __init__(self, url: str, what: str) -> None:
        self._what = what
        self._client = RedisClient(url, what, self._down)

    def get(self, key: str) -> bytes | None:
        found: bytes | None = self._client.ask(lambda client: client.get(self._name(key)))
        return found

    def put(self, key: str, data: bytes, ttl: float) -> None:
        self._client.ask(lambda client: client.set(self._name(key), data, px=max(1, int(ttl * 1000))))

    def close(self) -> None:
        self._client.close()

    def _name(self, key: str) -> str:
        return f"{self._client.address.prefix}:answer:{key}"

    def _down(self, said: str) -> LayerUnreachable:
        return LayerUnreachable(f"The answers in Redis at {self._client.address} cannot be reached ({said}); see {self._what}.")
