"""The limit store of any number of machines: one script inside Redis (or Valkey), by the server's clock.

All keys carry one hash tag, so that a Cluster keeps them in one slot and the script sees all of them. Numbers live for a month after
their last use; a server that loses them begins with full buckets, and with what histories say was spent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

import msgspec

from ziggurat.clock import Clock
from ziggurat.inference.backends.redis_client import RedisClient
from ziggurat.inference.limits import interface as limits
from ziggurat.inference.limits.book import SLOT_WAIT
from ziggurat.inference.limits.interface import (
    LEASE,
    Answer,
    Beat,
    Held,
    Hold,
    Levels,
    LimitStore,
    Load,
    Request,
    StoreDown,
    Take,
    Taken,
    Wanted,
    used_lately,
)

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
        self._what = what
        self._clock = clock
        self._client = RedisClient(url, what, self._down)
        self._script = (files(__package__) / "limits.lua").read_text(encoding="utf-8")
        self._sha = sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._base = f"{{{self._client.address.prefix}:limits}}"

    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        moment = repr(self._clock.time()) if self._clock is not None else ""
        body = json.dumps([{"verb": type(r).__name__, **_plain(r)} for r in requests])
        answers = self._client.ask(lambda client: self._call(client, _CONSTANTS, holder, moment, body))
        return [_answer(request, raw) for request, raw in zip(requests, answers, strict=True)]

    def look(self, wanted: Wanted) -> Levels:
        # On a Cluster a pipeline holds commands on keys only, so the server is not asked for its time: ours is near enough to look by.
        now = self._clock.time() if self._clock is not None else time.time()
        return self._client.ask(lambda client: _levels(wanted, self._pipe(client, wanted).execute(), now))

    def _pipe(self, client: Any, wanted: Wanted) -> Any:
        pipe, base = client.pipeline(transaction=False), self._base
        pipe.zrangebyscore(f"{base}:holders", "-inf", "+inf", withscores=True)
        pipe.hgetall(f"{base}:loads")
        for key in wanted.flows:
            pipe.hmget(f"{base}:flow:{key}", "level", "at", "minute", "used", "before")
        for key in wanted.slots:
            pipe.hgetall(f"{base}:slots:{key}")
        for key in wanted.purses:
            pipe.hmget(f"{base}:purse:{key}", "spent", "reserved")
        for gate in wanted.gates:
            pipe.get(f"{base}:cool:{gate}")
        return pipe

    def purse(self, key: str) -> tuple[float, float]:
        spent, reserved = self._client.ask(lambda client: client.hmget(f"{self._base}:purse:{key}", "spent", "reserved"))
        return float(spent or 0.0), float(reserved or 0.0)

    def close(self) -> None:
        self._client.close()

    def _call(self, client: Any, *arguments: str) -> list[bytes]:
        try:
            answers: list[bytes] = client.execute_command("EVALSHA", self._sha, 1, self._base, *arguments)
        except self._client.redis.exceptions.NoScriptError:
            answers = client.execute_command("EVAL", self._script, 1, self._base, *arguments)
        return answers

    def _down(self, said: str) -> StoreDown:
        return StoreDown(f"The limit store at {self._client.address} cannot be used ({said}). Start it, or correct {self._what}.")


def _levels(wanted: Wanted, answers: list[Any], now: float) -> Levels:
    """Return what a pipeline of reads came to, in the order of `RedisStore.look`."""
    came = iter(answers)
    alive = {name.decode() for name, at in next(came) if now - at <= LEASE}
    loads = {name.decode(): _decode_loads(text) for name, text in next(came).items()}
    flows: dict[str, tuple[float, float]] = {}
    for key, (rate, burst) in wanted.flows.items():
        level, at, minute, used, before = (float(value or 0) for value in next(came))
        if at:
            there = min(burst, level + max(0.0, now - at) * rate)
            flows[key] = (there, used_lately(int(minute), used, before, now))
    slots = {
        key: sum(int(n) for name, n in found.items() if name[:2] == b"h:" and name[2:].decode() in alive)
        for key in wanted.slots
        if (found := next(came))
    }
    purses = {key: (float(found[0]), float(found[1] or 0)) for key in wanted.purses if (found := next(came))[0] is not None}
    cooling = {gate: float(until) - now for gate in wanted.gates if (until := next(came)) is not None}
    return Levels(
        flows=flows,
        slots=slots,
        purses=purses,
        cooling={gate: left for gate, left in cooling.items() if left > 0},
        loads={name: told for name, told in loads.items() if name in alive},
    )


_decode_loads = msgspec.json.Decoder(list[Load]).decode


def _plain(request: Request) -> dict[str, Any]:
    if isinstance(request, Beat):
        # As text: Lua would write an empty table in another way than it read it.
        return {"loads": msgspec.json.encode(request.loads).decode() if request.loads else ""}
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
