"""Batches and their lines in Redis.

    {prefix:batches}:doc:KEY      a hash: version, group, data; expires when it may be forgotten
    {prefix:batches}:group:NAME   the keys of a group by their places

All keys carry one hash tag, so that a Cluster keeps them in one slot and the script sees all of them.
"""

from __future__ import annotations

from typing import Any

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import LayerUnreachable
from ziggurat.inference.backends.redis_client import RedisClient
from ziggurat.inference.batches.interface import Doc, Shelf

#: One change of one document: KEYS are the document and the group's prefix; an empty ARGV[2] removes it.
_CHANGE = """
local held = redis.call('HMGET', KEYS[1], 'version', 'group')
local version, group = tonumber(held[1] or 0), held[2] or ''
if version ~= tonumber(ARGV[1]) then return 0 end
if group ~= '' and group ~= ARGV[3] then redis.call('ZREM', KEYS[2] .. group, ARGV[5]) end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) return 1 end
redis.call('HSET', KEYS[1], 'version', version + 1, 'group', ARGV[3], 'data', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
if ARGV[3] ~= '' then
  redis.call('ZADD', KEYS[2] .. ARGV[3], ARGV[4], ARGV[5])
  redis.call('PEXPIRE', KEYS[2] .. ARGV[3], ARGV[6])
end
return 1
"""


class RedisShelf(Shelf):
    """A shelf in the Redis of the queue. Raises MissingExtra, SettingsError.

    Args:
        url: as for the queue; the option `prefix` names the keys.
        what: the setting that holds the URL.
    """

    def __init__(self, url: str, what: str, clock: Clock | None = None) -> None:
        self._what, self._clock = what, clock or SystemClock()
        self._client = RedisClient(url, what, self._down)
        self._base = f"{{{self._client.address.prefix}:batches}}"

    def get(self, key: str) -> Doc | None:
        version, data = self._client.ask(lambda client: client.hmget(self._doc(key), "version", "data"))
        return Doc(key, int(version), data) if version is not None else None

    def put(self, key: str, data: bytes, *, version: int, group: str, at: float, until: float) -> bool:
        return self._change(key, version, data, group, at, max(1, int((until - self._clock.time()) * 1000)))

    def delete(self, key: str, version: int) -> bool:
        return self._change(key, version, b"", "", 0.0, 1)

    def group(self, group: str, limit: int) -> list[Doc]:
        def read(client: Any) -> list[Doc]:
            names = [name.decode() for name in client.zrange(f"{self._base}:group:{group}", 0, limit - 1)]
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.hmget(self._doc(name), "version", "data")
            # One that expired is still named here.
            return [Doc(name, int(v), data) for name, (v, data) in zip(names, pipe.execute(), strict=True) if v is not None]

        found: list[Doc] = self._client.ask(read) if group else []
        return found

    def count(self, group: str) -> tuple[int, float]:
        name = f"{self._base}:group:{group}"
        count, first = self._client.ask(lambda client: (client.zcard(name), client.zrange(name, 0, 0, withscores=True)))
        return int(count), float(first[0][1]) if first else 0.0

    def close(self) -> None:
        self._client.close()

    def _doc(self, key: str) -> str:
        return f"{self._base}:doc:{key}"

    def _change(self, key: str, version: int, data: bytes, group: str, at: float, ttl_ms: int) -> bool:
        keys = (self._doc(key), f"{self._base}:group:")
        return bool(self._client.ask(lambda client: client.eval(_CHANGE, 2, *keys, version, data, group, repr(at), key, ttl_ms)))

    def _down(self, said: str) -> LayerUnreachable:
        return LayerUnreachable(f"The batches in Redis at {self._client.address} cannot be reached ({said}); see {self._what}.")
