"""The limit store of any number of machines: one script inside Redis (or Valkey), by the server's clock.

All keys carry one hash tag, so that a Cluster keeps them in one slot and the script sees all of them. Numbers live for a month after
their last use; a server that loses them begins with full buckets, and with what histories say was spent.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

import msgspec

from ziggurat.clock import Clock
from ziggurat.errors import MissingExtra
from ziggurat.inference.limits import interface as limits
from ziggurat.inference.limits.book import SLOT_WAIT
from ziggurat.inference.limits.interface import Answer, Held, Hold, LimitStore, Request, StoreDown, Take, Taken
from ziggurat.settings.redis_url import Address, read_url

#: Seconds until a connection or an answer must be there: calls wait for it.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 1.0, 2.0
_CONSTANTS = json.dumps(
    {
        "lease": limits.LEASE,
        "lookahead": limits.LOOKAHEAD,
        "reserve": limits.RESERVE,
        "remembered": limits.REMEMBERED,
        "kept": limits.KEPT,
        "slot_wait": SLOT_WAIT,
    }
)


class RedisStore(LimitStore):
    """A store in Redis.

    Args:
        url: as for the queue, see `ziggurat.settings.redis_url`; the option `prefix` names the keys.
        clock: for tests; the server's clock otherwise.
        what: the setting that holds the URL.

    Raises MissingExtra, SettingsError.
    """

    def __init__(self, url: str, clock: Clock | None = None, what: str = "inference.limits.store") -> None:
        self._address = read_url(url, what)
        self._what = what
        self._clock = clock
        self._client: Any = None
        self._script = (files(__package__) / "limits.lua").read_text(encoding="utf-8")
        self._sha = sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._base = f"{{{self._address.prefix}:limits}}"
        self._redis = import_redis()

    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        moment = repr(self._clock.time()) if self._clock is not None else ""
        body = json.dumps([{"verb": type(r).__name__, **_plain(r)} for r in requests])
        answers = self._call(_CONSTANTS, holder, moment, body)
        return [_answer(request, raw) for request, raw in zip(requests, answers, strict=True)]

    def purse(self, key: str) -> tuple[float, float]:
        try:
            spent, reserved = self._connected().hmget(f"{self._base}:purse:{key}", "spent", "reserved")
        except (self._redis.RedisError, OSError) as error:
            raise self._down(error) from error
        return float(spent or 0.0), float(reserved or 0.0)

    def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            with contextlib.suppress(self._redis.RedisError, OSError):
                client.close()

    def _call(self, *arguments: str) -> list[bytes]:
        try:
            client = self._connected()
            try:
                answers: list[bytes] = client.execute_command("EVALSHA", self._sha, 1, self._base, *arguments)
            except self._redis.exceptions.NoScriptError:
                answers = client.execute_command("EVAL", self._script, 1, self._base, *arguments)
            return answers
        except (self._redis.RedisError, OSError) as error:
            self.close()
            raise self._down(error) from error

    def _connected(self) -> Any:
        if self._client is None:
            self._client = connect(self._address)
        return self._client

    def _down(self, error: Exception) -> StoreDown:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return StoreDown(f"The limit store at {self._address} cannot be used ({said}). Start it, or correct {self._what}.")


def connect(address: Address) -> Any:
    """Return a client of a Redis for use from threads, that neither retries nor waits long. Raises redis.RedisError, OSError."""
    redis = import_redis()
    options = dict(
        address.common,
        protocol=2,
        retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_timeout=ANSWER_TIMEOUT,
    )
    if address.path:
        return redis.Redis(unix_socket_path=address.path, **options)
    if address.is_sentinel:
        waits = {"socket_connect_timeout": CONNECT_TIMEOUT, "socket_timeout": ANSWER_TIMEOUT}
        sentinels = redis.sentinel.Sentinel(list(address.nodes), sentinel_kwargs=dict(address.sentinel, **waits))
        return sentinels.master_for(address.service, **options)
    if address.is_cluster:
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.nodes]
        options.pop("retry")
        return redis.cluster.RedisCluster(startup_nodes=nodes, **options)
    host, port = address.nodes[0]
    return redis.Redis(host=host, port=port, **options)


def _plain(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(request)
    return found


def _answer(request: Request, raw: bytes) -> Answer:
    if isinstance(request, Take):
        return _taken(raw)
    return _held(raw) if isinstance(request, Hold) else None


_decode_held = msgspec.json.Decoder(Held).decode


def _held(raw: bytes) -> Held:
    return _decode_held(raw)


def _taken(raw: bytes) -> Taken:
    found = msgspec.json.decode(raw)
    # Lua writes an empty table as an object.
    flows, slots = found.pop("flows", None) or (), found.pop("slots", None) or ()
    return Taken(**found, flows=tuple(float(x) for x in flows), slots=tuple(int(x) for x in slots))


def import_redis() -> Any:
    try:
        redis = importlib.import_module("redis")
        importlib.import_module("redis.retry")
        for module in ("backoff", "sentinel", "cluster"):
            importlib.import_module(f"redis.{module}")
    except ImportError as error:
        raise MissingExtra("The limit store in Redis", "redis") from error
    return redis
