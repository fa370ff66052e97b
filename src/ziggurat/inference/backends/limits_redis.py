"""The limit store of any number of machines: one script inside Redis (or Valkey), by the server's clock.

All keys carry one hash tag, so that a Cluster keeps them in one slot and the script sees all of them. Numbers live for a month after
their last use; a server that loses them begins with full buckets, and with what histories say was spent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

import msgspec

from ziggurat.clock import Clock
from ziggurat.inference.backends.redis_client import RedisClient
from ziggurat.inference.limits import interface as limits
from ziggurat.inference.limits.book import SLOT_WAIT
from ziggurat.inference.limits.interface import Answer, Held, Hold, LimitStore, Request, StoreDown, Take, Taken

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
