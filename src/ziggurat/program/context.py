"""What surrounds the code that is running: a run, a task's attempt, or nothing.

The program asks `current_run()` or `current_attempt()`; engines and workers put themselves there through `enter_run` and
`attempting`. Two context variables, so that nothing is global and every asyncio task inherits its own surroundings.
"""

from __future__ import annotations

import asyncio
import random as _random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from msgspec import Raw, Struct

from ziggurat.artifacts import Surroundings, ask_surroundings
from ziggurat.program.options import RunOptions, TaskOptions
from ziggurat.records import PRIORITY_NORMAL, Allowance, CallRecord
from ziggurat.telemetry.tracing import Live


class RunInfo(Struct, frozen=True, kw_only=True):
    """The run that the code is part of."""

    id: str
    workflow: str
    namespace: str = "default"
    #: Counts up with every continue_as_new.
    generation: int = 0
    parent: str = ""
    tags: dict[str, str] = {}
    #: Events recorded so far; past `history_limit` the run is parked, so continue as new before.
    history_events: int = 0
    #: True once the history is long enough that `continue_as_new` is advised.
    continue_as_new_suggested: bool = False
    #: True while recorded history is applied again after a crash or an eviction.
    replaying: bool = False


class TaskInfo(Struct, frozen=True, kw_only=True):
    """The attempt that the code is part of."""

    task: str
    run: str = ""
    workflow: str = ""
    #: The tenant that the run belongs to.
    namespace: str = "default"
    step: int = 0
    #: From 1.
    attempt: int = 1
    #: Stable over all attempts of the step: pass it on as an idempotency key to whatever must happen once.
    idempotency_key: str = ""
    #: The moment (seconds since the epoch) after which the attempt is pointless.
    deadline: float | None = None
    #: How many attempts right before this one ended only to wait for a model's answer: they are one with it.
    deferred: int = 0
    #: 1 (served most often) to 5: also the priority of the attempt's model calls.
    priority: int = PRIORITY_NORMAL
    #: The budgets that the attempt's model calls draw on.
    budgets: tuple[Allowance, ...] = ()


class RunContext(ABC):
    """The engine's side of a run. Every method that returns a future makes one durable step."""

    @abstractmethod
    def info(self) -> RunInfo:
        """Describe the run as it stands."""

    @abstractmethod
    def time(self) -> float:
        """Return the deterministic time: that of the last event applied."""

    @abstractmethod
    def random(self) -> _random.Random:
        """Return the run's own generator, seeded by its id and generation."""

    @abstractmethod
    def call_task(self, name: str, payload: bytes, options: TaskOptions, bound: dict[str, str]) -> asyncio.Future[Any]:
        """Ask for one task; the future holds the result's JSON. `bound` holds the keys made from the arguments."""

    @abstractmethod
    def start_child(self, workflow: str, entry: str, payload: bytes, options: RunOptions) -> asyncio.Future[Any]:
        """Start a child run and wait for it; the future holds the result's JSON."""

    @abstractmethod
    def wait_signal(self, name: str) -> asyncio.Future[Any]:
        """Wait for the next signal of that name; the future holds its JSON."""

    @abstractmethod
    def patched(self, patch: str) -> bool:
        """Say whether this run executes the code behind the patch."""

    @abstractmethod
    def emit(self, kind: str, data: bytes) -> None:
        """Show JSON to watchers, unless replaying."""

    @abstractmethod
    def set_state(self, data: bytes) -> None:
        """Make JSON readable from outside as the run's state."""


class AttemptContext(ABC):
    """The worker's side of an attempt. Its methods may be called from the attempt's thread."""

    info: TaskInfo
    #: The span of the attempt, which is the current one for the code that runs; None while nothing traces.
    trace: Live | None = None
    #: A model call was made whose answer is not in the journal, so that making the attempt again would buy it again.
    unkept: bool = False

    @abstractmethod
    def heartbeat(self, details: bytes | None) -> None:
        """Say that the attempt is alive, and keep details for the next one. Raises CancelledError once cancelled."""

    @abstractmethod
    def last_heartbeat(self) -> Raw | None:
        """Return the details that the last attempt left."""

    @abstractmethod
    def emit(self, kind: str, data: bytes) -> None:
        """Show JSON to watchers of the run."""

    @abstractmethod
    def record_call(self, call: CallRecord) -> None:
        """Add a model call to the attempt's account."""

    @property
    def placing(self) -> list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]:
        """Model calls that may wait: each is set once it is put where it waits."""
        found: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = self.__dict__.setdefault("_placing", [])
        return found

    def asked(self, digest: str) -> int:
        """Note that the attempt asks this of a model, and return how often it did before."""
        counts: dict[str, int] = self.__dict__.setdefault("_asked", {})
        before = counts.get(digest, 0)
        counts[digest] = before + 1
        return before


_run: ContextVar[RunContext | None] = ContextVar("ziggurat_run", default=None)
_attempt: ContextVar[AttemptContext | None] = ContextVar("ziggurat_attempt", default=None)


def current_run() -> RunContext | None:
    """Return the run that the calling code is part of, or None outside of workflows."""
    return _run.get()


def current_attempt() -> AttemptContext | None:
    """Return the attempt that the calling code is part of, or None outside of tasks."""
    return _attempt.get()


def enter_run(run: RunContext) -> None:
    """Make the calling context, which an engine made for it, part of a run for good."""
    _run.set(run)


@contextmanager
def attempting(attempt: AttemptContext) -> Iterator[None]:
    """Make code in this block, and the asyncio tasks and threads that it starts, part of an attempt, and of no run."""
    run_token, token = _run.set(None), _attempt.set(attempt)
    trace = attempt.trace
    span = trace.enter() if trace is not None else None
    try:
        yield
    finally:
        if trace is not None:
            trace.leave(span)
        _attempt.reset(token)
        _run.reset(run_token)


def _surroundings() -> Surroundings:
    """Tell artifacts where the code that calls them is."""
    attempt = _attempt.get()
    return Surroundings(_run.get() is not None, attempt.info.idempotency_key if attempt is not None else "")


ask_surroundings(_surroundings)
