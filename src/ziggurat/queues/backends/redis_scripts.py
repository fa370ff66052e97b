"""The Lua scripts of the Redis queue, one for each verb, as the server wants them.

`common.lua` explains the keys and the states of a message; it is put before every script. A script runs atomically, so a fence and what
it guards are one step. Those that free memory, and those that a worker needs to get there, may run when the server is out of memory: only
taking in new messages is refused then.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib.resources import files

from msgspec import Struct

#: Scripts that store more than they remove, so a server that is out of memory refuses them.
_GROWING = frozenset({"send", "publish"})
NAMES = (
    "ack",
    "announce",
    "bring_back",
    "cancel",
    "cancellations",
    "dead",
    "depth",
    "extend",
    "missing",
    "outcomes",
    "pass_on",
    "progress",
    "publish",
    "receive",
    "release",
    "send",
    "settle",
    "tick",
    "workers",
)


class Script(Struct, frozen=True):
    """A script's text and the name under which a server that has seen it knows it."""

    text: str
    sha: str


@cache
def load(*, xackdel: bool) -> dict[str, Script]:
    """Return all scripts by name, for a server that has the command XACKDEL (Redis 8.2) or not."""
    folder = files(__package__) / "redis_lua"
    common = (folder / "common.lua").read_text(encoding="utf-8")
    scripts = {}
    for name in NAMES:
        flags = "" if name in _GROWING else " flags=allow-oom"
        body = (folder / f"{name}.lua").read_text(encoding="utf-8")
        text = f"#!lua{flags}\nlocal HAS_XACKDEL = {'true' if xackdel else 'false'}\n{common}\n{body}"
        scripts[name] = Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())
    return scripts
