"""What a program says to its engine beside calling tasks: signals, time, chance, progress, state.

Every function works outside a run too, with the plain meaning, so that programs can be tested without an engine.
"""

from __future__ import annotations

import asyncio
import random as _random
import time as _time
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar, cast, overload

import msgspec

from ziggurat.codec import Codec
from ziggurat.errors import ConfigurationError, ContinueAsNew, SignalTimeout
from ziggurat.program.context import RunInfo, TaskInfo, current_attempt, current_run
from ziggurat.units import Duration, seconds

T = TypeVar("T")

#: Signals that a unit test has laid out for workflows that it calls directly; `ziggurat.testing.signals` fills it.
waiting_signals: ContextVar[dict[str, list[Any]] | None] = ContextVar("ziggurat_signals", default=None)

_codecs: dict[Any, Codec[Any]] = {}
#: What type each signal has, by (workflow, signal), of those that were waited for in this process; the newest of them.
_awaited: dict[tuple[str, str], Codec[Any]] = {}
_AWAITED_MAX = 10_000


@overload
async def signal(name: str, type: type[T], *, timeout: Duration | None = None) -> T: ...
@overload
async def signal(name: str, type: Any = Any, *, timeout: Duration | None = None) -> Any: ...
async def signal(name: str, type: Any = Any, *, timeout: Duration | None = None) -> Any:
    """Wait for a signal and return its validated value; signals of one name are taken in the order in which they came.

    Args:
        name: what the sender calls it.
        type: the type of its value.
        timeout: how long to wait, such as "3d"; None waits for ever.

    Raises SignalTimeout when none came in time. Outside a run there is nobody to send one: it takes what
    `ziggurat.testing.signals` laid out, or raises ConfigurationError.
    """
    codec = _codec(type, f"The signal {name!r}")
    run = current_run()
    if run is None:
        laid_out = waiting_signals.get() or {}
        if laid_out.get(name):
            return codec.decode(codec.encode(laid_out[name].pop(0)))
        if timeout is not None and waiting_signals.get() is not None:
            raise SignalTimeout(f"No signal {name!r} was laid out, so it timed out.")
        raise ConfigurationError(
            f"The signal {name!r} is waited for outside a run. Start the workflow through a client, or in a test lay the signal out "
            f"with `with ziggurat.testing.signals({name}=...)`."
        )
    _note_awaited(run.info().workflow, name, codec)
    waiting = run.wait_signal(name)
    if timeout is None:
        return codec.decode(await waiting)
    limit = seconds(timeout, what=f"timeout of the signal {name!r}")
    try:
        async with asyncio.timeout(limit):
            return codec.decode(await waiting)
    except TimeoutError:
        raise SignalTimeout(f"No signal {name!r} came within {timeout}.") from None


def _note_awaited(workflow: str, name: str, codec: Codec[Any]) -> None:
    if _awaited.get((workflow, name)) is not codec:
        _awaited[workflow, name] = codec
        if len(_awaited) > _AWAITED_MAX:
            del _awaited[next(iter(_awaited))]


def awaited_type(workflow: str, name: str) -> Codec[Any] | None:
    """Return the codec of a signal's value, or None if no run of that workflow has waited for it in this process."""
    return _awaited.get((workflow, name))


def now() -> datetime:
    """Return the current time in UTC; inside a run the recorded time, the same in every replay."""
    run = current_run()
    return datetime.fromtimestamp(run.time() if run is not None else _time.time(), UTC)


def uuid4() -> uuid.UUID:
    """Return a random UUID; inside a run the same one in every replay."""
    run = current_run()
    return uuid.UUID(int=run.random().getrandbits(128), version=4) if run is not None else uuid.uuid4()


class _Random:
    """The twin of the `random` module: `random()` is a float in [0, 1), `random.choice(...)` and the rest work too.

    Inside a run the numbers come from the run's own generator and are the same in every replay.
    """

    def __call__(self) -> float:
        return self._generator().random()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("seed", "setstate"):
            raise AttributeError(f"ziggurat.random has no {name!r}; a run's generator is seeded by its id.")
        return getattr(self._generator(), name)

    @staticmethod
    def _generator() -> _random.Random:
        run = current_run()
        return run.random() if run is not None else cast(_random.Random, _random)


random = _Random()


def patched(patch: str) -> bool:
    """Say whether to run the changed code: `if patched("v2-prompt"): new() else: old()`.

    Runs that passed this point before the change keep to the old branch in every replay; all others take the new one, and remember it.
    Outside a run it is True.
    """
    run = current_run()
    return run.patched(patch) if run is not None else True


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """End this generation of the run and start the next with these arguments and an empty history; the id stays.

    For workflows that loop for ever. Raises a control-flow exception, so nothing after it runs.
    """
    raise ContinueAsNew(b"", args, kwargs)


def emit(value: Any, kind: str = "emit") -> None:
    """Show a JSON value to whoever watches the run: progress, a partial answer, a number. It is not recorded and may be lost."""
    data = msgspec.json.encode(value)
    run, attempt = current_run(), current_attempt()
    if run is not None:
        run.emit(kind, data)
    elif attempt is not None:
        attempt.emit(kind, data)


def state(**values: Any) -> None:
    """Set the run's state, JSON that anyone may read from outside with `handle.state()` or `ziggurat show`.

    Each call replaces the whole. Outside a run nothing happens.
    """
    run = current_run()
    if run is not None:
        run.set_state(msgspec.json.encode(values))


def run_info() -> RunInfo:
    """Describe the run that the calling workflow is. Raises ConfigurationError outside a workflow's run."""
    run = current_run()
    if run is None:
        raise ConfigurationError("run_info() was called outside a run; inside a task use task_info().")
    return run.info()


def task_info() -> TaskInfo:
    """Describe the attempt that the calling task is. Raises ConfigurationError outside a worker's attempt."""
    attempt = current_attempt()
    if attempt is None:
        raise ConfigurationError("task_info() was called outside a task that a worker runs.")
    return attempt.info


def heartbeat(details: Any = None) -> None:
    """Say that this attempt is alive, and leave details that the next attempt finds with `last_heartbeat()`.

    Cheap enough for every loop pass: what goes over the wire is throttled. In a thread it raises asyncio.CancelledError once the
    attempt is cancelled or out of time, which is how a plain function learns of it. Outside an attempt nothing happens.
    """
    attempt = current_attempt()
    if attempt is not None:
        attempt.heartbeat(msgspec.json.encode(details) if details is not None else None)


def last_heartbeat(type: Any = Any) -> Any:
    """Return the details that the last attempt of this step left, validated as `type`, or None if there are none."""
    attempt = current_attempt()
    left = attempt.last_heartbeat() if attempt is not None else None
    return None if left is None else _codec(type, "The heartbeat's details").decode(left)


def _codec(type_: Any, what: str) -> Codec[Any]:
    key = (type_, what)
    codec = _codecs.get(key)
    if codec is None:
        codec = _codecs[key] = Codec(type_, what)
    return codec
