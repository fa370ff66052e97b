"""The child's side of a process=True task: `python -m ziggurat.workers.child_main`, started by `ChildPool`, never by people.

The protocol has the file descriptors of standard input and output to itself; a task that prints, prints to standard error, and one that
reads standard input finds it empty. The task runs in the main thread, so that signals and native libraries behave; a second thread
reads what the parent sends, and ends the process when the parent is gone.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import runpy
import signal
import sys
import threading
import time
from queue import SimpleQueue
from types import FrameType
from typing import Any

import msgspec
from msgspec import Raw

from ziggurat.errors import ConfigurationError, ZigguratError
from ziggurat.program.context import AttemptContext, attempting
from ziggurat.program.registry import Registry, import_module
from ziggurat.records import CallRecord
from ziggurat.telemetry import tracing
from ziggurat.telemetry.ids import parse
from ziggurat.workers.attempt import EMIT_LIMIT, explain
from ziggurat.workers.children import RunTask, Said, Start

#: Name under which the parent's script is run here; `if __name__ == "__main__":` keeps its main part out.
MAIN = "__ziggurat_main__"
#: Shortest time between two heartbeats on the wire, in seconds; a task may call more often.
BEAT_INTERVAL = 0.05


class Wire:
    """Lines to the parent. Whole lines, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._lock = threading.Lock()

    def say(self, said: Said) -> None:
        """Send one line. A parent that is gone ends the process."""
        line = memoryview(msgspec.json.encode(said) + b"\n")
        with self._lock:
            try:
                while line:
                    line = line[self._file.write(line) :]
            except BrokenPipeError:
                os._exit(0)

    def forget(self) -> None:
        """Close the descriptor in a process that the task forked: the parent must see the end of the pipe when the child ends."""
        os.close(self._file.fileno())


class ChildAttempt(AttemptContext):
    """The attempt as the task in the child sees it: everything goes up the wire."""

    def __init__(self, run: RunTask, wire: Wire) -> None:
        self.info = run.info
        place = parse(run.trace) if run.trace and tracing.current is not None else None
        self.trace = tracing.current.resume(place) if tracing.current is not None and place is not None else None
        self._heartbeat = run.heartbeat
        self._wire = wire
        self._said_at = 0.0
        self._unsaid: bytes | None = None

    def heartbeat(self, details: bytes | None) -> None:
        self._unsaid = details if details is not None else self._unsaid or b"null"
        if time.monotonic() - self._said_at >= BEAT_INTERVAL:
            self.say_heartbeat()

    def say_heartbeat(self) -> None:
        """Send the newest heartbeat that was held back, if there is one."""
        if self._unsaid is not None:
            unsaid, self._unsaid, self._said_at = self._unsaid, None, time.monotonic()
            self._wire.say(Said(beat=Raw(unsaid)))

    def last_heartbeat(self) -> Raw | None:
        return self._heartbeat

    def emit(self, kind: str, data: bytes) -> None:
        if len(data) > EMIT_LIMIT:
            data = msgspec.json.encode(f"An emitted value of {len(data):,} bytes is not shown; the limit is {EMIT_LIMIT:,}.")
        self._wire.say(Said(emit=(kind, Raw(data))))

    def record_call(self, call: CallRecord) -> None:
        self._wire.say(Said(call=call))


class Ended(SystemExit):
    """Raised in the main thread by SIGTERM, so that a task's `finally` blocks run."""


def main() -> None:
    """Serve the parent until it closes the pipe."""
    wire, lines = _take_descriptors()
    start = msgspec.json.decode(lines.get() or b"{}", type=Start)
    _die_with(start.parent)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        registry = _make_ready(start)
    except ZigguratError as error:
        wire.say(Said(unusable=str(error)))
        return
    except Exception as error:
        wire.say(Said(unusable=f"{type(error).__name__}: {error}."))
        return
    wire.say(Said(ready=True))
    while (line := lines.get()) is not None:
        run = msgspec.json.decode(line, type=RunTask)
        wire.say(_attempt(run, start, registry, wire))


def _take_descriptors() -> tuple[Wire, SimpleQueue[bytes | None]]:
    """Move the pipes away from descriptors 0 and 1, and start to read."""
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    wire = Wire(outgoing)
    os.register_at_fork(after_in_child=wire.forget)
    lines: SimpleQueue[bytes | None] = SimpleQueue()
    threading.Thread(target=_read, args=(incoming, lines), name="ziggurat-parent", daemon=True).start()
    return wire, lines


def _read(descriptor: int, lines: SimpleQueue[bytes | None]) -> None:
    with os.fdopen(descriptor, "rb") as parent:
        for line in parent:
            lines.put(line)
    # The parent closed the pipe or died. An idle child ends in order; one that is inside a task has nobody to tell its result to.
    lines.put(None)
    if _busy.is_set():
        os._exit(0)


_busy = threading.Event()


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux: prctl(2), PR_SET_PDEATHSIG). Elsewhere the pipe's end does."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # It died before we asked.


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Ended(0)


def _make_ready(start: Start) -> Registry:
    """Import the app and call its hook. Raises whatever that raises."""
    bootstrap = start.bootstrap
    sys.path[:] = [*start.path, *(entry for entry in sys.path if entry not in start.path)]
    if bootstrap.memory_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (bootstrap.memory_limit, bootstrap.memory_limit))
    registry = Registry(bootstrap.modules)
    if bootstrap.call:
        module, _, name = bootstrap.call.partition(":")
        getattr(import_module(module), name)(bootstrap.config)
    return registry


def _attempt(run: RunTask, start: Start, registry: Registry, wire: Wire) -> Said:
    """Run one task and return the last line about it."""
    phase, task, attempt = "find", None, ChildAttempt(run, wire)
    _busy.set()
    try:
        task = _find(run, start, registry)
        phase = "decode"
        args, kwargs = task.arguments.decode(run.payload)
        phase = "run"
        with attempting(attempt):
            value = task.fn(*args, **kwargs)
        if inspect.isawaitable(value):
            raise ConfigurationError(f"The task {run.task!r} returned a coroutine; a process=True task is a plain function.")
        phase = "encode"
        return Said(result=Raw(task.result.encode(value)))
    except Ended:
        raise
    except BaseException as error:
        info = explain(error, run.task, task.options_.retry if task is not None else None)
        # Another attempt cannot mend arguments or a result that do not fit; it may find the task on another worker.
        retryable = info.retryable and phase in ("find", "run")
        return Said(error=msgspec.structs.replace(info, retryable=retryable))
    finally:
        attempt.say_heartbeat()
        _busy.clear()
        _flush()


def _find(run: RunTask, start: Start, registry: Registry) -> Any:
    """Return the task, importing the module that defines it. Raises ConfigurationError."""
    name = run.module
    if name == "__main__":
        if start.main_module:
            import_module(start.main_module)
            return registry.task(run.task)
        if not start.main_file:
            raise ConfigurationError(
                f"The task {run.task!r} is defined in an interactive session, where a child process cannot find it; put it in a file."
            )
        if MAIN not in sys.modules:
            sys.modules[MAIN] = module = type(sys)(MAIN)
            module.__dict__.update(runpy.run_path(start.main_file, run_name=MAIN))
    elif name not in sys.modules:
        import_module(name)
    return registry.task(run.task)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


if __name__ == "__main__":
    main()
