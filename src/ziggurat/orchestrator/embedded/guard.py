"""Catches what a workflow must not do: read the clock, roll dice, open files and sockets, start threads.

Three nets, each for what the others cannot see. The loop refuses what goes through asyncio (`loop.py`). While an engine is open, the
functions of `time`, `random` and `uuid` that give another answer each time are replaced by ones that first ask whether a workflow is
calling. And an audit hook (PEP 578) sees files, sockets, subprocesses and threads. `datetime.now()` is out of reach of all three, since
the class is immutable; @workflow looks for it in the function's code when a run starts (`forbidden_names`).

All of them ask `current run's loop is running in this thread`, so tasks, libraries and other threads never notice. Logging, imports and
traceback formatting read clocks and files for their own ends and are let through.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from ziggurat.errors import NotDurable
from ziggurat.orchestrator.embedded.loop import RunLoop

_RIGHT_WAY = {
    "time": "ziggurat.now().timestamp()",
    "random": "ziggurat.random",
    "uuid": "ziggurat.uuid4()",
    "sleep": "`await asyncio.sleep(seconds)`",
    "task": "a task: `await my_task(...)` runs it on a worker and records its result",
}

#: (module, attribute, the right way). `time.monotonic` and `perf_counter` are left: libraries measure with them all the time, and a
#: difference of two readings seldom decides anything.
_PATCHED: tuple[tuple[Any, str, str], ...] = (
    (time, "time", "time"),
    (time, "time_ns", "time"),
    (time, "sleep", "sleep"),
    (uuid, "uuid1", "uuid"),
    (uuid, "uuid4", "uuid"),
    (os, "urandom", "random"),
    # Before Python 3.12 no audit event tells of a thread.
    (threading.Thread, "start", "task"),
    # Every function of the module is a method of one hidden generator; seed and setstate would disturb other people's.
    *((random, name, "random") for name in sorted(random.__all__) if name[0].islower()),
)

#: Modules that read clocks and files on their own account while a workflow's code is on the stack.
_EXEMPT = frozenset(
    {"logging", "importlib", "linecache", "traceback", "tokenize", "warnings", "pydantic", "msgspec", "encodings", "ziggurat"}
)

#: The frames below a workflow's own.
_DRIVERS = frozenset({"ziggurat.orchestrator.embedded.loop", "ziggurat.orchestrator.embedded.execution"})

_AUDITED = {
    "open": "opened a file",
    "os.listdir": "listed a folder",
    "os.scandir": "listed a folder",
    "os.remove": "deleted a file",
    "os.rename": "renamed a file",
    "os.mkdir": "made a folder",
    "os.system": "ran a command",
    "os.exec": "ran a command",
    "os.fork": "forked the process",
    "os.posix_spawn": "ran a command",
    "subprocess.Popen": "ran a command",
    "socket.__new__": "opened a socket",
    "socket.connect": "opened a connection",
    "socket.getaddrinfo": "looked up a host",
    "sqlite3.connect": "opened a database",
    "_thread.start_new_thread": "started a thread",
    "_thread.start_joinable_thread": "started a thread",
    "urllib.Request": "made an HTTP request",
    "time.sleep": "blocked with time.sleep",
}

_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep

_originals: list[tuple[Any, str, Any]] = []
_users = 0
_hooked = False


def install() -> None:
    """Put the nets up. Counted: they come down when every engine that installed them has uninstalled."""
    global _users, _hooked
    _users += 1
    if _users > 1:
        return
    for module, name, way in _PATCHED:
        original = getattr(module, name)
        _originals.append((module, name, original))
        setattr(module, name, _guarded(original, f"{module.__name__}.{name}", _RIGHT_WAY[way]))
    _originals.append((asyncio, "as_completed", asyncio.as_completed))
    asyncio.as_completed = _ordered_as_completed(asyncio.as_completed)
    _originals.append((asyncio.tasks, "_GatheringFuture", _GatheringFuture))
    asyncio.tasks._GatheringFuture = _OrderedGatheringFuture  # type: ignore[attr-defined]
    if not _hooked:
        # An audit hook cannot be removed; it asks `_users` first.
        sys.addaudithook(_audit)
        _hooked = True


def uninstall() -> None:
    """Take the nets down again."""
    global _users
    _users -= 1
    if _users == 0:
        while _originals:
            module, name, original = _originals.pop()
            setattr(module, name, original)


def _guarded(original: Callable[..., Any], what: str, way: str) -> Callable[..., Any]:
    get_loop = asyncio._get_running_loop

    def guarded(*args: Any, **kwargs: Any) -> Any:
        loop = get_loop()
        if type(loop) is RunLoop and not loop.closing and not _is_exempt(sys._getframe(1)):
            _refuse(loop, f"called {what}()", way)
        return original(*args, **kwargs)

    guarded.__name__ = getattr(original, "__name__", what)
    guarded.__doc__ = getattr(original, "__doc__", None)
    guarded.__wrapped__ = original  # type: ignore[attr-defined]
    return guarded


def _ordered_as_completed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Give as_completed tasks in the caller's order: it would make a set of the bare coroutines, in the order of their addresses."""

    def as_completed(fs: Iterable[Any], *, timeout: float | None = None) -> Any:
        loop = asyncio._get_running_loop()
        if type(loop) is RunLoop:
            fs = [asyncio.ensure_future(f, loop=loop) for f in fs]
        return original(fs, timeout=timeout)

    as_completed.__doc__ = original.__doc__
    as_completed.__wrapped__ = original  # type: ignore[attr-defined]
    return as_completed


_GatheringFuture: Any = asyncio.tasks._GatheringFuture  # type: ignore[attr-defined]


class _OrderedGatheringFuture(_GatheringFuture):  # type: ignore[misc]
    """What `gather` returns, with a hash that is the same in every replay; `asyncio.wait` keeps those that it is given in a set."""

    def __init__(self, children: Any, *, loop: Any) -> None:
        super().__init__(children, loop=loop)
        self._number = loop.next_number() if type(loop) is RunLoop else object.__hash__(self)

    def __hash__(self) -> int:
        return self._number


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in _AUDITED and _users:
        loop = asyncio._get_running_loop()
        if type(loop) is RunLoop and not loop.closing and not _is_exempt(sys._getframe(1)):
            detail = f" ({args[0]!r})" if event in ("open", "os.listdir") and args else ""
            _refuse(loop, _AUDITED[event] + detail, _RIGHT_WAY["sleep" if event == "time.sleep" else "task"])


def _is_exempt(frame: types.FrameType | None) -> bool:
    """Say whether a trusted module stands between the call and the engine's drain."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name in _DRIVERS:
            return False
        # ziggurat.program stands between a workflow and the tasks that it awaits; what it calls itself is the engine's.
        if name.partition(".")[0] in _EXEMPT and not name.startswith("ziggurat.program"):
            return True
        frame = frame.f_back
    return True


def _refuse(loop: RunLoop, did: str, way: str) -> None:
    where = _place(sys._getframe(2))
    error = NotDurable(f"The workflow {did} at {where}, which a replay cannot repeat. Use {way}.")
    loop.lost_error = loop.lost_error or error
    raise error


def _place(frame: types.FrameType | None) -> str:
    """Return the file and line in the workflow's code, or in a library that it called, from which the standard library was entered."""
    while frame is not None:
        file = frame.f_code.co_filename
        standard = file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file
        if not standard and not frame.f_globals.get("__name__", "").startswith("ziggurat.orchestrator"):
            return f"{os.path.basename(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place"


def _imported_by_name(value: Any) -> tuple[str, str] | None:
    """Return the name and the right way of a guarded function that a module holds under a name of its own."""
    for (module, name, way), (_, _, original) in zip(_PATCHED, _originals, strict=False):
        if value is original:
            return f"{module.__name__}.{name}", _RIGHT_WAY[way]
    if value is getattr(asyncio.as_completed, "__wrapped__", None) and value is not None:
        return "as_completed", "asyncio.as_completed(...), under its full name, whose order is the same in every replay"
    return None


@functools.lru_cache(maxsize=4096)
def forbidden_names(fn: Callable[..., Any]) -> str:
    """Return a sentence about the first call in a workflow's own code that no net can catch at run time, or "".

    Finds `datetime.now`, `datetime.utcnow`, `datetime.today` and `date.today`, also in nested functions, and what was imported by name,
    as in `from time import time`, before the nets were up.
    """
    import dis
    from datetime import date, datetime

    codes = [fn.__code__]
    names = fn.__globals__
    while codes:
        code = codes.pop()
        codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
        chain: list[Any] = []
        line = code.co_firstlineno
        for instruction in dis.get_instructions(code):
            line = getattr(instruction.positions, "lineno", None) or line
            if instruction.opname == "LOAD_GLOBAL":
                chain = [names.get(instruction.argval)]
                if (known := _imported_by_name(chain[0])) is not None:
                    place = f"{os.path.basename(code.co_filename)}:{line}"
                    return f"The workflow calls {known[0]}() at {place}, which a replay cannot repeat. Use {known[1]}."
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
                owner = chain[-1]
                if instruction.argval in ("now", "utcnow", "today") and owner in (datetime, date):
                    place = f"{os.path.basename(code.co_filename)}:{line}"
                    return (
                        f"The workflow calls {owner.__name__}.{instruction.argval}() at {place}, which a replay cannot repeat. "
                        "Use ziggurat.now()."
                    )
                chain.append(getattr(owner, instruction.argval, None) if isinstance(owner, types.ModuleType) else None)
            elif instruction.opname not in ("PUSH_NULL", "CACHE"):
                chain = []
    return ""
