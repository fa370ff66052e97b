"""The book of model switches in Redis: one key, changed by compare-and-set."""

from __future__ import annotations

import msgspec

from ziggurat.errors import LayerUnreachable
from ziggurat.inference.backends.redis_client import RedisClient
from ziggurat.inference.switches import Book, SwitchStore

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
        self._what = what
        self._client = RedisClient(url, what, self._down)
        self._key = f"{{{self._client.address.prefix}:models}}"

    def read(self) -> Book:
        data = self._client.ask(lambda client: client.get(self._key))
        try:
            return msgspec.json.decode(data, type=Book) if data else Book()
        except msgspec.MsgspecError as error:
            raise self._down(f"the key {self._key} holds something else: {error}") from error

    def write(self, book: Book, over: int) -> bool:
        data = msgspec.json.encode(book)
        return bool(self._client.ask(lambda client: client.eval(_WRITE, 1, self._key, str(over), data)))

    def close(self) -> None:
        self._client.close()

    def _down(self, said: str) -> LayerUnreachable:
        return LayerUnreachable(
            f"The model switches in Redis at {self._client.address} ({self._what}) cannot be reached: {said}."
        )
