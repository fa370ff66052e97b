"""The book of model switches in Redis: one key, changed by compare-and-set."""

from __future__ import annotations

from typing import Any

import msgspec

from ziggurat.errors import LayerUnreachable
from ziggurat.inference.backends.limits_redis import connect, import_redis
from ziggurat.inference.switches import Book, SwitchStore
from ziggurat.settings.redis_url import read_url

#: Writes the book if its version is the expected one: KEYS the book, ARGV the expected version, the book.
_WRITE = """
local old = redis.call('GET', KEYS[1])
local version = old and (cjson.decode(old).version or 0) or 0
if version ~= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class RedisSwitches(SwitchStore):
    """The book in Redis. Raises MissingExtra, SettingsError.

    Args:
        url: as for the queue; the option `prefix` names the key.
        what: the setting that holds the URL.
    """

    def __init__(self, url: str, what: str) -> None:
        self._address = read_url(url, what)
        self._what = what
        self._key = f"{{{self._address.prefix}:models}}"
        self._redis = import_redis()
        self._client: Any = None

    def read(self) -> Book:
        data = self._ask(lambda client: client.get(self._key))
        return msgspec.json.decode(data, type=Book) if data else Book()

    def write(self, book: Book, over: int) -> bool:
        return bool(self._ask(lambda client: client.eval(_WRITE, 1, self._key, str(over), msgspec.json.encode(book))))

    def _ask(self, verb: Any) -> Any:
        try:
            if self._client is None:
                self._client = connect(self._address)
            return verb(self._client)
        except (self._redis.RedisError, OSError, msgspec.MsgspecError) as error:
            text = f"The model switches in Redis at {self._address} ({self._what}) cannot be reached: {error}."
            raise LayerUnreachable(text) from error

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            client.close()
