"""Answers in Redis, each a key that expires by itself."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from ziggurat.errors import LayerUnreachable
from ziggurat.inference.answers import AnswerStore
from ziggurat.inference.backends.limits_redis import connect, import_redis
from ziggurat.settings.redis_url import read_url


class RedisAnswers(AnswerStore):
    """Answers in the Redis of the queue. Raises MissingExtra, SettingsError.

    Args:
        url: as for the queue; the option `prefix` names the keys.
        what: the setting that holds the URL.
    """

    def __init__(self, url: str, what: str) -> None:
        self._address = read_url(url, what)
        self._what = what
        self._redis = import_redis()
        self._lock = threading.Lock()
        self._client: Any = None

    def get(self, key: str) -> bytes | None:
        found: bytes | None = self._ask(lambda client: client.get(self._name(key)))
        return found

    def put(self, key: str, data: bytes, ttl: float) -> None:
        self._ask(lambda client: client.set(self._name(key), data, px=max(1, int(ttl * 1000))))

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(self._redis.RedisError, OSError):
                client.close()

    def _name(self, key: str) -> str:
        return f"{self._address.prefix}:answer:{key}"

    def _ask(self, verb: Any) -> Any:
        try:
            with self._lock:
                if self._client is None:
                    self._client = connect(self._address)
                client = self._client
            return verb(client)
        except (self._redis.RedisError, OSError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LayerUnreachable(
                f"The answers in Redis at {self._address} cannot be reached ({said}); see {self._what}."
            ) from error
