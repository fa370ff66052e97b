"""What a run's program has asked for and how its run ended: the records that an execution and the engine share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Raw, Struct

from ziggurat.orchestrator.embedded.loop import RunFuture, RunLoop, RunTimer
from ziggurat.program.deferring import DETAIL, Waiting
from ziggurat.records import CallRecord, ErrorInfo

#: Shared by all steps that never waited, which are nearly all of them; never changed.
NEVER_WAITED = Waiting()

StepKind = Literal["task", "timer", "signal", "child"]


class Step:
    """One durable operation that the program has asked for and that is not recorded yet."""

    __slots__ = (
        "attempt",
        "bound",
        "child",
        "dispatched",
        "due",
        "entry",
        "failures",
        "future",
        "heartbeat",
        "kind",
        "name",
        "number",
        "options",
        "payload",
        "requested",
        "requested_at",
        "retry_at",
        "sent_at",
        "settled",
        "started_at",
        "timer",
        "waiting",
    )

    def __init__(self, number: int, kind: StepKind, name: str, requested: int, requested_at: float) -> None:
        self.number, self.kind, self.name = number, kind, name
        #: The history's length and the time when it was asked for.
        self.requested, self.requested_at = requested, requested_at
        self.payload = b""
        self.options: Any = None
        self.bound: dict[str, str] = {}
        self.entry = self.child = ""
        self.future: asyncio.Future[Any] | None = None
        self.timer: RunTimer | None = None
        #: When a timer fires.
        self.due = 0.0
        #: The attempt that is under way or next, and how many failed since the step, or the run, was last taken up.
        self.attempt = 1
        self.failures = 0
        self.retry_at: float | None = None
        self.sent_at = 0.0
        self.started_at: float | None = None
        self.heartbeat: Raw | None = None
        #: An attempt is on the queue, or the child was started.
        self.dispatched = False
        #: What is known of attempts that ended to wait for a model's answer.
        self.waiting = NEVER_WAITED
        #: Its event is on the way to the disk; later outcomes are dropped.
        self.settled = False

    def failed(self, counts: bool, retry_at: float | None, heartbeat: Raw | None) -> None:
        """Take in that an attempt came to nothing and that another is due then; `counts` says whether it was the task's failure."""
        self.attempt, self.failures = self.attempt + 1, self.failures + counts
        self.retry_at, self.heartbeat, self.dispatched = retry_at, heartbeat, False

    def ended(self, detail: str, error: ErrorInfo | None, calls: list[CallRecord]) -> None:
        """Take in an attempt that came to nothing: to a failure, or only to a wait for a model's answer."""
        if self.waiting is NEVER_WAITED and detail == DETAIL:
            self.waiting = Waiting()
        if self.waiting is not NEVER_WAITED:
            self.waiting.ended(detail, error, calls)

    def __repr__(self) -> str:
        return f"<step {self.number} {self.kind} {self.name!r}>"


class StepFuture(RunFuture):
    """The future that the program awaits for a step; cancelling it drops the step."""

    def __init__(self, step: Step, loop: RunLoop, drop: Callable[[Step], None]) -> None:
        super().__init__(loop=loop)
        self._step, self._drop = step, drop

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._drop(self._step)
        return cancelled


class Finished(Struct, frozen=True):
    """How a generation of a run ended. For "continued" the result holds the next generation's arguments."""

    status: Literal["completed", "failed", "cancelled", "continued", "parked"]
    result: Raw | None = None
    error: ErrorInfo | None = None
    reason: str = ""
    #: True once the result is sealed for the run.
    sealed: bool = False
