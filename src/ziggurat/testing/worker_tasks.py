"""Tasks that behave in every way a worker must survive; the worker suite sends them, and child processes import them from here."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import ziggurat.program.primitives as program
from ziggurat.program.context import current_attempt
from ziggurat.program.definitions import task
from ziggurat.program.options import Retry
from ziggurat.records import CallRecord, Usage


class Point(BaseModel):
    """A typed argument."""

    x: int
    y: int


class Refused(Exception):
    """A failure that another attempt cannot mend."""


class Gates:
    """Events that tasks of this process set and wait for, by name, so that tests need no sleep."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, threading.Event] = {}

    def __getitem__(self, name: str) -> threading.Event:
        with self._lock:
            return self._events.setdefault(name, threading.Event())

    def open_all(self) -> None:
        """Set every event, so that nobody is left waiting, and forget them."""
        with self._lock:
            for event in self._events.values():
                event.set()
            self._events.clear()

    async def passed(self, name: str, timeout: float = 30.0) -> None:
        """Wait until an event is set. Raises TimeoutError."""
        event = self[name]
        deadline = time.monotonic() + timeout
        while not event.is_set():
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nothing set the gate {name!r} within {timeout:g} s.")
            await asyncio.sleep(0.002)


gates = Gates()

A_CALL = CallRecord(
    id="call-1",
    model="fast",
    endpoint="here",
    upstream="tiny",
    usage=Usage(calls=1, input_tokens=7, output_tokens=5, cost_usd=0.25),
)


def _pay(id_: str = "call-1") -> None:
    attempt = current_attempt()
    assert attempt is not None
    attempt.record_call(CallRecord(id=id_, model="fast", endpoint="here", upstream="tiny", usage=A_CALL.usage))


# -- what goes well --------------------------------------------------------------------------------------------------


@task(name="suite.add")
async def add(a: int, b: int) -> int:
    return a + b


@task(name="suite.move")
def move(point: Point, by: int = 1) -> Point:
    return Point(x=point.x + by, y=point.y + by)


@task(name="suite.where")
def where() -> dict[str, Any]:
    """Say where it runs, and as what."""
    info = program.task_info()
    return {
        "pid": os.getpid(),
        "thread": threading.current_thread() is not threading.main_thread(),
        "key": info.idempotency_key,
        "attempt": info.attempt,
    }


@task(name="suite.hold")
async def hold(name: str, pay: bool = False) -> str:
    """Set the gate NAME.in, and return when NAME.out is set. Sets NAME.cancelled if it is cancelled."""
    if pay:
        _pay(f"call-{name}")
    gates[f"{name}.in"].set()
    try:
        await gates.passed(f"{name}.out", 60.0)
    except asyncio.CancelledError:
        gates[f"{name}.cancelled"].set()
        raise
    return name


@task(name="suite.hold_thread")
def hold_thread(name: str, pay: bool = False) -> str:
    """As `hold`, in a thread, which nothing can interrupt."""
    if pay:
        _pay(f"call-{name}")
    gates[f"{name}.in"].set()
    gates[f"{name}.out"].wait(60.0)
    gates[f"{name}.done"].set()
    return name


@task(name="suite.hold_file")
def hold_file(path: str) -> int:
    """Make the file PATH.in, and return this process's id once there is a file PATH.out. For workers in other processes."""
    Path(f"{path}.in").touch()
    while not Path(f"{path}.out").exists():
        time.sleep(0.005)
    return os.getpid()


@task(name="suite.stray_exit")
async def stray_exit() -> None:
    """Exit in an asyncio task of its own, which asyncio lets out of the event loop."""
    await asyncio.create_task(_exit_soon())


async def _exit_soon() -> None:
    await asyncio.sleep(0.001)
    sys.exit(4)


@task(name="suite.talk")
async def talk(words: list[str]) -> int:
    for word in words:
        program.emit(word)
    return len(words)


@task(name="suite.beat")
async def beat(name: str, details: int) -> int:
    """Leave details, and fail; the next attempt returns what it found."""
    found: int | None = program.last_heartbeat(int)
    if found is not None:
        return found
    program.heartbeat(details)
    raise RuntimeError(f"{name} failed after its heartbeat")


@task(name="suite.beat_and_hold")
async def beat_and_hold(name: str, details: int) -> int:
    """Leave details and wait at the gate NAME.out; a later delivery returns what it found."""
    found: int | None = program.last_heartbeat(int)
    if found is not None:
        return found
    program.heartbeat(details)
    gates[f"{name}.in"].set()
    await gates.passed(f"{name}.out", 60.0)
    return details


@task(name="suite.beat_thread")
def beat_thread(name: str) -> str:
    """Call heartbeat() until it raises, and say so through the gate NAME.cancelled."""
    gates[f"{name}.in"].set()
    try:
        while True:
            program.heartbeat()
            time.sleep(0.002)
    except asyncio.CancelledError:
        gates[f"{name}.cancelled"].set()
        raise


# -- what fails ------------------------------------------------------------------------------------------------------


@task(name="suite.fail", retry=Retry(non_retryable=[Refused]))
async def fail(kind: str) -> None:
    """Raise, in the way that `kind` names."""
    _pay()
    if kind == "value":
        raise ValueError("three is not even")
    if kind == "refused":
        raise Refused("never")
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "generator":
        raise GeneratorExit
    if kind == "stop":
        raise StopAsyncIteration
    if kind == "cancel":
        raise asyncio.CancelledError
    if kind == "unprintable":
        raise _Unprintable
    if kind == "surrogate":
        raise ValueError("a file named \udcff")
    if kind == "group":
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@task(name="suite.fail_thread")
def fail_thread(kind: str) -> None:
    if kind == "exit":
        sys.exit("bye")
    if kind == "stop":
        raise StopIteration
    raise ValueError(kind)


@task(name="suite.wrong_result")
async def wrong_result() -> int:
    return "not a number"  # type: ignore[return-value]


@task(name="suite.unserialisable")
async def unserialisable() -> Any:
    return object()


@task(name="suite.stubborn")
async def stubborn(name: str) -> str:
    """Ignore every cancellation until the gate NAME.out is set."""
    gates[f"{name}.in"].set()
    while True:
        try:
            await gates.passed(f"{name}.out", 60.0)
            return name
        except asyncio.CancelledError:
            gates[f"{name}.cancelled"].set()


@task(name="suite.big")
async def big(size: int) -> str:
    return "x" * size


# -- in a process of its own -----------------------------------------------------------------------------------------


@task(name="suite.child", process=True)
def child(kind: str, number: int = 0) -> Any:
    """Behave in a child process in the way that `kind` names."""
    if kind == "add":
        return number + 1
    if kind == "pid":
        return os.getpid()
    if kind == "talk":
        sys.stdout.write("a task may print\n")
        sys.stdout.flush()
        program.emit({"number": number})
        _pay()
        program.heartbeat({"at": number})
        return sys.stdin.read()
    if kind == "found":
        return program.last_heartbeat()
    if kind == "value":
        _pay()
        raise ValueError("three is not even")
    if kind == "exit":
        sys.exit(number)
    if kind == "result":
        return object()
    return _die(kind, number)


def _die(kind: str, number: int) -> Any:
    """Come to harm, and take only the own process along."""
    if kind == "_exit":
        _pay()
        os._exit(number)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "abort":
        os.abort()
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "loop":
        while True:
            pass
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1.0)
    if kind == "memory":
        return len(bytearray(number))
    if kind == "noise":
        return "x" * number
    raise ValueError(kind)
