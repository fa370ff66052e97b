"""One attempt of a task: what the running code may ask and say, and what the attempt comes to.

Life cycle: an attempt is made from a delivery, waits for a thread or a process if it needs one, runs, and ends once, with an outcome or
(lease lost, worker draining) without one. `stop_reason` says that somebody wants it to end early; the code learns of it by
CancelledError, thrown into a coroutine by the event loop and into a thread by its next `heartbeat()`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import INLINE, Payloads, is_sealed
from ziggurat.clock import Clock
from ziggurat.errors import ContinueAsNew
from ziggurat.program.context import AttemptContext, TaskInfo
from ziggurat.program.deferring import DEFERRED, deferral_in, deferral_info
from ziggurat.program.failures import describe
from ziggurat.program.options import Retry, type_name
from ziggurat.records import CallRecord, Delivery, ErrorInfo, Outcome, OutcomeStatus, Progress, outcome_of

#: Why an attempt is made to end early. "cancel" and "timeout" have an outcome of that name. "lost": the lease is someone else's, so
#: the outcome would be refused. "drain": the worker ends, and the message goes back unharmed.
StopReason = Literal["", "cancel", "timeout", "lost", "drain"]

#: Bytes of one emitted value; a larger one is refused, because progress is for watching and not for carrying results.
EMIT_LIMIT = 1024 * 1024


class Attempt(AttemptContext):
    """One attempt. The methods of AttemptContext may be called from any thread, everything else from the event loop."""

    def __init__(
        self,
        delivery: Delivery,
        worker: str,
        clock: Clock,
        show: Callable[[Progress], None],
        kind: str = "coroutine",
        payloads: Payloads = INLINE,
    ) -> None:
        message = delivery.message
        self.delivery = delivery
        self.message = message
        self.worker = worker
        #: "coroutine", "thread" or "process".
        self.kind = kind
        self.info = TaskInfo(
            task=message.task,
            run=message.run,
            workflow=message.workflow,
            namespace=message.lane.namespace,
            step=message.step,
            attempt=message.attempt,
            idempotency_key=f"{message.run}~{message.generation}.{message.step}" if message.run else message.id,
            deadline=message.deadline,
            deferred=message.deferred,
            priority=message.lane.priority,
            budgets=message.budgets,
        )
        self._clock = clock
        #: As `Delivery.held_until`, moved on by every renewal.
        self.held_until = delivery.held_until
        self._show = show
        self._payloads = payloads
        #: The arguments as JSON, for an attempt that runs in a child process.
        self.arguments = message.payload
        #: Wall-clock time of the start; 0 while it waits for a thread or a process.
        self.started_at = 0.0
        #: Monotonic time at which the attempt has run too long, and the sentence that says so.
        self.expires = float("inf")
        self.expiry_text = ""
        self.beat_at = 0.0
        self.beat_limit = message.heartbeat_timeout or float("inf")
        #: The newest heartbeat's details, and whether the queue does not have them yet.
        self.details: bytes | None = None
        self.beat_dirty = False
        self.calls: list[CallRecord] = []
        self.stop_reason: StopReason = ""
        self.stop_text = ""
        #: Monotonic time after which a coroutine that ignores its cancellation is abandoned.
        self.give_up_at = float("inf")
        #: Whether watchers were told that it began.
        self.announced = False
        #: True once it has ended as far as the queue is concerned; its code may still be running.
        self.done = False
        self.task: asyncio.Task[None] | None = None
        self._offset = itertools.count(1)

    @property
    def lease_over(self) -> bool:
        """True once the lease may be someone else's, as in a process that was frozen: what has not begun must not begin.

        Asks the machine's clock, whatever clock the worker goes by: that the process stood still is nothing that a test's clock knows.
        """
        return time.monotonic() >= self.held_until

    def now(self) -> float:
        """Return the wall-clock time."""
        return self._clock.time()

    def begin(self) -> None:
        """Start the clocks. The limit is the attempt's timeout or the deadline, whichever is nearer."""
        message = self.message
        now = self._clock.monotonic()
        self.started_at = self._clock.time()
        self.beat_at = now
        if message.timeout is not None:
            self.expires = now + message.timeout
            self.expiry_text = f"The task {message.task!r} did not end within its timeout of {message.timeout:g} s."
        if message.deadline is not None and now + (message.deadline - self.started_at) < self.expires:
            self.expires = now + (message.deadline - self.started_at)
            self.expiry_text = f"The task {message.task!r} was not done at its deadline."

    # -- what the running code calls -----------------------------------------------------------------------------

    def heartbeat(self, details: bytes | None) -> None:
        if self.stop_reason:
            raise asyncio.CancelledError(self.stop_text)
        self.beat_at = self._clock.monotonic()
        if details is not None:
            self.details = self._payloads.seal_inline(details, self.message.run)
            self.beat_dirty = True

    def last_heartbeat(self) -> Raw | None:
        left = self._left()
        return Raw(self._payloads.open_now(left, self.message.run)) if left is not None and is_sealed(left) else left

    def _left(self) -> Raw | None:
        return self.delivery.heartbeat if self.delivery.heartbeat is not None else self.message.heartbeat

    def emit(self, kind: str, data: bytes) -> None:
        if not self.message.run or self.done:
            return
        if len(data) > EMIT_LIMIT:
            data = msgspec.json.encode(f"An emitted value of {len(data):,} bytes is not shown; the limit is {EMIT_LIMIT:,}.")
        self._show(self.progress(kind, self._payloads.seal_inline(data, self.message.run)))

    def record_call(self, call: CallRecord) -> None:
        # In this order a thread that runs on past its outcome can tell a call twice, but never lose it; its id is billed once.
        self.calls.append(call)
        if self.done:
            self.show_calls([call])

    def show_calls(self, calls: list[CallRecord]) -> None:
        """Tell of paid calls that no outcome carries, in the only way that is left: progress of kind "calls"."""
        if self.message.run:
            self._show(self.progress("calls", msgspec.json.encode(calls)))

    def progress(self, kind: str, data: bytes) -> Progress:
        """Return something to show to watchers of the run, numbered in order."""
        message = self.message
        return Progress(
            run=message.run,
            kind=kind,
            step=message.step,
            attempt=message.attempt,
            delivery=self.delivery.epoch,
            offset=next(self._offset),
            at=self._clock.time(),
            data=Raw(data),
        )

    # -- what it came to -----------------------------------------------------------------------------------------

    def outcome(self, status: OutcomeStatus, *, result: Raw | None = None, error: ErrorInfo | None = None) -> Outcome:
        """End the attempt and return its outcome, with everything that was paid for."""
        self.done = True
        message = self.message
        heartbeat: Raw | None = None
        if status != "completed":
            heartbeat = Raw(self.details) if self.details is not None else self._left()
        return outcome_of(
            message,
            status,
            result=result,
            error=error,
            calls=self.calls.copy(),
            heartbeat=heartbeat,
            worker=self.worker,
            started_at=self.started_at,
            ended_at=self._clock.time(),
        )

    def failed(self, error: BaseException, retry: Retry | None, retryable: bool | None = None) -> Outcome:
        """Return the outcome of an attempt whose code raised; whether another may help is for `retry` to say if `retryable` is None."""
        info = explain(error, self.message.task, retry)
        keep = retryable is None or info.type == DEFERRED
        return self.outcome("failed", error=info if keep else replace(info, retryable=bool(retryable)))

    def stopped(self, error: BaseException | None = None) -> Outcome | None:
        """End an attempt that was made to; return its outcome if it has one. `error` is what its code raised then."""
        if self.stop_reason not in ("cancel", "timeout"):
            self.done = True
            if self.calls:
                self.show_calls(self.calls.copy())
            return None
        late = self.message.deadline is not None and self._clock.time() >= self.message.deadline
        info = ErrorInfo(
            type="asyncio.CancelledError" if self.stop_reason == "cancel" else "TimeoutError",
            message=self.stop_text,
            traceback=explain(error, self.message.task).traceback if error is not None else "",
            retryable=self.stop_reason == "timeout" and not late,
        )
        return self.outcome("cancelled" if self.stop_reason == "cancel" else "timeout", error=info)


def explain(error: BaseException, task: str, retry: Retry | None = None) -> ErrorInfo:
    """Describe what a task's code raised, however hostile: an exit, a cancellation of itself, an exception that cannot be printed."""
    if (deferral := deferral_in(error)) is not None:
        return deferral_info(deferral)
    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
        error.__traceback__ = error.__traceback__.tb_next  # The first frame is the worker's own.
    try:
        info = describe(error, retry)
    except Exception:
        # str() or repr() of the exception raised in turn.
        text = "".join(traceback.format_tb(error.__traceback__))
        info = ErrorInfo(
            type=type_name(type(error)), message=f"{type(error).__name__}, whose text cannot be read", traceback=text
        )
    if isinstance(error, SystemExit):
        info = replace(info, message=f"The task {task!r} called sys.exit({'' if error.code is None else repr(error.code)}).")
    elif isinstance(error, asyncio.CancelledError):
        info = replace(info, type="asyncio.CancelledError", message=f"The task {task!r} was cancelled by its own code.")
    elif isinstance(error, ContinueAsNew):
        info = replace(info, message=f"The task {task!r} called continue_as_new(), which only a workflow can.", retryable=False)
    elif not isinstance(error, Exception):
        info = replace(info, message=f"The task {task!r} raised {type(error).__name__}: {info.message}")
    # Lone surrogates, as in undecodable file names, are not JSON.
    return replace(info, message=_printable(info.message), traceback=_printable(info.traceback))


def without_payload(outcome: Outcome, error: ErrorInfo) -> Outcome:
    """Return a failed outcome in place of one that the queue cannot carry; what was paid for stays on it."""
    return replace(outcome, status="failed", result=None, heartbeat=None, error=error)


def _printable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text
