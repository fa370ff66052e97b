"""Runs attempts: coroutines on the event loop, plain functions in threads, process=True tasks in child processes.

    start ──▶ waiting (for a thread or a process) ──▶ running ──▶ ended, reported once
                      └────────── stop(reason) ──────────┘

An attempt that is stopped gets CancelledError. A coroutine has `cleanup` seconds to end; a thread has none, because nothing can end it.
What is still running then is abandoned: its outcome is reported, it no longer counts as work, and too many of them make the worker
unhealthy. Time limits are checked by one scan every TICK seconds over what is running, which costs an attempt nothing; only a limit
below a second gets a timer of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.clock import Clock
from ziggurat.errors import DefinitionError, PayloadTooLarge, UnknownName
from ziggurat.program.context import attempting
from ziggurat.program.options import Retry
from ziggurat.program.registry import Registry
from ziggurat.records import WIRE_VERSION, Delivery, Message, Outcome, Progress
from ziggurat.telemetry import events
from ziggurat.workers import tracing
from ziggurat.workers.attempt import Attempt, StopReason
from ziggurat.workers.carrying import Carrier
from ziggurat.workers.children import Bootstrap, ChildPool
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.threads import Threads

#: Seconds between two looks at what is running.
TICK = 0.1
#: An attempt that has run so many seconds is worth telling watchers about; shorter ones are told by their outcome.
ANNOUNCE_AFTER = 0.05

#: Whether another attempt can help: it may mend what went wrong around the task, or not, or the task's `Retry` decides.
Retryable = bool | None
_MAY_MEND: Retryable = True
_FINAL: Retryable = False
_AS_THE_TASK_SAYS: Retryable = None

Report = Callable[[Attempt, Outcome | None], None]


class Prepared:
    """A task looked up and made ready once, for all its attempts."""

    __slots__ = ("arguments", "fn", "kind", "result", "retry", "task")

    def __init__(self, task: Any) -> None:
        self.task = task
        self.fn: Callable[..., Any] = task.fn
        self.kind = "coroutine" if task.is_async else "process" if task.process else "thread"
        self.retry: Retry = task.options_.retry
        self.arguments = task.arguments.decode
        self.result = task.result.encode


class Limits(Struct, frozen=True, kw_only=True):
    """How much runs at a time, and how patiently."""

    #: Plain functions that run at a time, each in a thread.
    threads: int = 64
    #: process=True tasks that run at a time, each in a child process.
    processes: int = 2
    #: Seconds that a stopped coroutine may take for its `finally` blocks.
    cleanup: float = 10.0
    #: Largest result in bytes.
    largest_result: int = 8 * 1024 * 1024


class _Slots:
    """Admits so many attempts of one kind at a time, the rest in their order."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy = 0
        self.waiting: deque[tuple[Attempt, Prepared]] = deque()


class Executor:
    """Runs attempts and reports what each came to, exactly once, on the event loop.

    Args:
        worker: the name that outcomes carry.
        show: takes progress; called from any thread.
        payloads: the seam through which arguments and results pass.
    """

    def __init__(
        self,
        registry: Registry,
        worker: str,
        limits: Limits,
        clock: Clock,
        show: Callable[[Progress], None],
        children: ChildPool,
        payloads: Payloads = INLINE,
    ) -> None:
        self._carrier = Carrier(payloads)
        self._registry = registry
        self._worker = worker
        self._limits = limits
        self._clock = clock
        self._show = show
        self._children = children
        self._threads = Threads(f"ziggurat-{worker}")
        self._slots = {"thread": _Slots(limits.threads), "process": _Slots(limits.processes)}
        self._prepared: dict[str, Prepared] = {}
        self._report: dict[Attempt, Report] = {}
        self._ticker: asyncio.TimerHandle | None = None
        #: Attempts that have a report to make, those that wait included.
        self.running = self._report.keys()
        #: Attempts whose outcome was reported while their code runs on.
        self.abandoned: set[Attempt] = set()
        self._stop_watching = clock.watch(self._look)
        self._announcement = msgspec.json.encode({"worker": worker})

    # -- starting ------------------------------------------------------------------------------------------------

    def prepare(self, message: Message) -> Prepared:
        """Return the message's task made ready. Raises ConfigurationError if this worker cannot run it, but another might."""
        if message.version > WIRE_VERSION:
            raise UnknownName(
                f"The message {message.id} of the task {message.task!r} is of version {message.version}, and this worker reads up to "
                f"{WIRE_VERSION}. Update the worker."
            )
        found = self._registry.task(message.task)
        prepared = Prepared(found)
        self._prepared[message.task] = prepared
        return prepared

    def start(self, delivery: Delivery, report: Report) -> Attempt:
        """Begin an attempt; `report` is called once it has ended. Raises ConfigurationError as `prepare` does."""
        message = delivery.message
        prepared = self._prepared.get(message.task)
        if prepared is None or message.version != WIRE_VERSION:
            prepared = self.prepare(message)
        self._carrier.check(message)
        attempt = Attempt(delivery, self._worker, self._clock, self._show, prepared.kind, self._carrier.payloads)
        self._report[attempt] = report
        if message.deadline is not None and self._clock.time() >= message.deadline:
            late = self._clock.time() - message.deadline
            attempt.stop_reason = "timeout"
            attempt.stop_text = (
                f"The deadline of the task {message.task!r} had passed {late:.1f} s before the attempt could start."
            )
            asyncio.get_running_loop().call_soon(self._end_stopped, attempt)
        else:
            self._admit(attempt, prepared)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(TICK, self._tick)
        return attempt

    def _admit(self, attempt: Attempt, prepared: Prepared) -> None:
        if prepared.kind == "coroutine":
            self._begin(attempt, prepared)
            return
        slots = self._slots[prepared.kind]
        if slots.busy < slots.limit:
            slots.busy += 1
            self._begin(attempt, prepared)
        else:
            slots.waiting.append((attempt, prepared))

    def _leave(self, kind: str) -> None:
        """Give a slot to the next attempt that waits and still wants it."""
        slots = self._slots[kind]
        slots.busy -= 1
        while slots.waiting and slots.busy < slots.limit:
            attempt, prepared = slots.waiting.popleft()
            if attempt in self._report:
                slots.busy += 1
                self._begin(attempt, prepared)

    def _begin(self, attempt: Attempt, prepared: Prepared) -> None:
        loop = asyncio.get_running_loop()
        if prepared.kind == "process":
            attempt.task = loop.create_task(self._run_in_child(attempt, prepared))
            return
        self._start_clocks(attempt)
        if prepared.kind == "coroutine":
            attempt.task = loop.create_task(self._run_coroutine(attempt, prepared))
        else:
            surroundings = contextvars.copy_context()
            self._threads.submit(lambda: surroundings.run(self._run_in_thread, attempt, prepared, loop))

    def _start_clocks(self, attempt: Attempt) -> None:
        attempt.begin()
        tracing.begun(attempt)
        if attempt.expires - attempt.beat_at < 1.0 or attempt.beat_limit < 1.0:
            self._check_exactly(attempt)

    # -- running -------------------------------------------------------------------------------------------------

    async def _run_coroutine(self, attempt: Attempt, prepared: Prepared) -> None:
        if attempt.lease_over:
            self._end_unbegun(attempt)
            return
        message, retryable = attempt.message, _MAY_MEND
        try:
            with attempting(attempt):
                payload = await self._carrier.open(message)
                retryable = _FINAL
                args, kwargs = prepared.arguments(payload)
                retryable = _AS_THE_TASK_SAYS
                value = await prepared.fn(*args, **kwargs)
                retryable = _FINAL
                data = prepared.result(value)
                retryable = _MAY_MEND
                result = await self._carrier.seal(message, data)
                retryable = _FINAL
                self._check_size(prepared, result)
        except BaseException as error:
            if _thrown_away(attempt, error):
                raise
            self._end_failed(attempt, prepared, error, retryable)
        else:
            self._end_completed(attempt, result)

    async def _run_in_child(self, attempt: Attempt, prepared: Prepared) -> None:
        if attempt.lease_over:
            self._end_unbegun(attempt)
            self._leave("process")
            return
        outcome: Outcome | None = None
        message, retryable = attempt.message, _MAY_MEND
        try:
            attempt.arguments = Raw(await self._carrier.open(message))
            retryable = _AS_THE_TASK_SAYS
            outcome = await self._children.run(attempt, prepared.task, lambda: self._start_clocks(attempt))
            if outcome.result is not None:
                retryable = _MAY_MEND
                result = await self._carrier.seal(message, bytes(outcome.result))
                retryable = _FINAL
                self._check_size(prepared, result)
                outcome = replace(outcome, result=result)
        except BaseException as error:
            if _thrown_away(attempt, error):
                raise
            self._end_failed(attempt, prepared, error, _FINAL if isinstance(error, DefinitionError) else retryable)
        else:
            self._end(attempt, outcome)
        self._leave("process")

    def _run_in_thread(self, attempt: Attempt, prepared: Prepared, loop: asyncio.AbstractEventLoop) -> None:
        """Run a plain function. Called in a thread; everything is decoded and encoded here too, off the event loop."""
        if attempt.done:
            _call_in(loop, self._came_back, attempt)
            return
        if attempt.lease_over:
            _call_in(loop, self._thread_unbegun, attempt)
            return
        message, retryable = attempt.message, _MAY_MEND
        try:
            with attempting(attempt):
                payload = self._carrier.open_now(message)
                retryable = _FINAL
                args, kwargs = prepared.arguments(payload)
                retryable = _AS_THE_TASK_SAYS
                value = prepared.fn(*args, **kwargs)
                retryable = _FINAL
                data = prepared.result(value)
                retryable = _MAY_MEND
                result = self._carrier.seal_now(message, data)
                retryable = _FINAL
                self._check_size(prepared, result)
        except BaseException as error:
            _call_in(loop, self._thread_failed, attempt, prepared, error, retryable)
        else:
            _call_in(loop, self._thread_completed, attempt, result)

    def _thread_unbegun(self, attempt: Attempt) -> None:
        if not self._came_back(attempt):
            self._end_unbegun(attempt)
            self._leave("thread")

    def _thread_completed(self, attempt: Attempt, result: Raw) -> None:
        if not self._came_back(attempt):
            self._end_completed(attempt, result)
            self._leave("thread")

    def _thread_failed(self, attempt: Attempt, prepared: Prepared, error: BaseException, retryable: Retryable) -> None:
        if not self._came_back(attempt):
            self._end_failed(attempt, prepared, error, retryable)
            self._leave("thread")

    def _check_size(self, prepared: Prepared, result: Raw) -> None:
        if len(result) > self._limits.largest_result:
            raise PayloadTooLarge(
                f"The result of the task {prepared.task.name!r} is {len(result):,} bytes of JSON, over the queue's limit of "
                f"{self._limits.largest_result:,}; store the bulk as an artifact or a file and return a reference."
            )

    # -- ending --------------------------------------------------------------------------------------------------

    def _end(self, attempt: Attempt, outcome: Outcome | None) -> None:
        report = self._report.pop(attempt, None)
        if report is not None:
            attempt.done = True
            tracing.ended(attempt, outcome)
            report(attempt, outcome)

    def _end_completed(self, attempt: Attempt, result: Raw) -> None:
        """Report a result. One that came although the attempt was stopped counts: the work is done and paid for."""
        if attempt not in self._report:
            self._came_back(attempt)
        elif attempt.stop_reason == "lost":
            self._end_stopped(attempt)
        else:
            self._end(attempt, attempt.outcome("completed", result=result))

    def _end_failed(self, attempt: Attempt, prepared: Prepared, error: BaseException, retryable: Retryable) -> None:
        if attempt not in self._report:
            self._came_back(attempt)
        elif attempt.stop_reason:
            self._end_stopped(attempt, error)
        else:
            self._end(attempt, attempt.failed(error, prepared.retry, retryable))

    def _end_unbegun(self, attempt: Attempt) -> None:
        """Drop an attempt whose lease ran out before its code began: another worker may have run it, and its step be recorded."""
        attempt.stop_reason, attempt.stop_text = "lost", "The lease of this attempt ran out before it began."
        message = attempt.message
        events.LEASE_RAN_OUT(message=message.id, task=message.task, run=message.run, step=message.step)
        self._end_stopped(attempt)

    def _end_stopped(self, attempt: Attempt, error: BaseException | None = None) -> None:
        if attempt in self._report:
            self._end(attempt, attempt.stopped(error))

    def _came_back(self, attempt: Attempt) -> bool:
        """Say whether this is the end of an attempt that had been given up, and if so forget it."""
        was = attempt in self.abandoned
        self.abandoned.discard(attempt)
        return was

    def stop(self, attempt: Attempt, reason: StopReason, text: str) -> None:
        """Make an attempt end early. An attempt that is ending already only ever changes its reason to "lost"."""
        if attempt not in self._report or (attempt.stop_reason and reason != "lost"):
            return
        first = not attempt.stop_reason
        attempt.stop_reason, attempt.stop_text = reason, text
        if attempt.task is None and not attempt.started_at:
            self._end_stopped(attempt)
        elif attempt.task is None:
            self._abandon(attempt)
            self._leave("thread")
        elif inspect.getcoroutinestate(cast(Any, attempt.task.get_coro())) == inspect.CORO_CREATED:
            # Cancelled before its first step, a coroutine never runs, and so could not report its own end.
            attempt.task.cancel(text)
            self._end_stopped(attempt)
            if attempt.kind == "process":
                self._leave("process")
        elif first:
            attempt.give_up_at = self._clock.monotonic() + self._limits.cleanup
            attempt.task.cancel(text)

    def _abandon(self, attempt: Attempt) -> None:
        self.abandoned.add(attempt)
        where = "a thread, which nothing can stop" if attempt.task is None else "a coroutine that ignores its cancellation"
        message, number = attempt.message, len(self.abandoned)
        events.ATTEMPT_ABANDONED(
            task=message.task,
            run=message.run or "-",
            where=where,
            attempt=message.attempt,
            reason=attempt.stop_reason,
            abandoned=number,
            step=message.step,
        )
        self._end_stopped(attempt)
        if attempt.task is not None:
            attempt.task.cancel(attempt.stop_text)

    # -- looking after -------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Look at all that is running, and again in TICK seconds while anything is."""
        self._ticker = asyncio.get_running_loop().call_later(TICK, self._tick) if self._report else None
        self._look()

    def _look(self) -> None:
        now = self._clock.time()
        for attempt in list(self._report):
            self._check(attempt)
            if not attempt.announced and attempt.started_at and now - attempt.started_at >= ANNOUNCE_AFTER and not attempt.done:
                attempt.announced = True
                if attempt.message.run:
                    self._show(attempt.progress("started", self._announcement))

    def _check(self, attempt: Attempt) -> None:
        """Stop an attempt that is out of time, and give up one that does not stop."""
        if attempt.done:
            return
        now = self._clock.monotonic()
        task = attempt.message.task
        if attempt.stop_reason:
            if now >= attempt.give_up_at:
                self._abandon(attempt)
        elif not attempt.started_at:
            deadline = attempt.message.deadline
            if deadline is not None and self._clock.time() >= deadline:
                self.stop(attempt, "timeout", f"The deadline of the task {task!r} passed while it waited for a free worker slot.")
        elif now >= attempt.expires:
            self.stop(attempt, "timeout", attempt.expiry_text)
        elif now - attempt.beat_at >= attempt.beat_limit:
            text = f"The task {task!r} sent no heartbeat for {attempt.beat_limit:g} s, its heartbeat timeout."
            self.stop(attempt, "timeout", text)

    def _check_exactly(self, attempt: Attempt) -> None:
        """Check an attempt whose limits are nearer than the scan is exact, and again when its next limit is due."""
        self._check(attempt)
        if not attempt.done and not attempt.stop_reason:
            left = min(attempt.expires, attempt.beat_at + attempt.beat_limit) - self._clock.monotonic()
            if left < 1.0 or attempt.beat_limit < 1.0:
                # A millisecond more, so that the clock is past the limit when the timer fires.
                asyncio.get_running_loop().call_later(max(left, 0.0) + 0.001, self._check_exactly, attempt)

    async def close(self) -> None:
        """End the child processes and the spare threads. Attempts must have ended before."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        self._stop_watching()
        self._threads.close()
        await self._children.close()


def _thrown_away(attempt: Attempt, error: BaseException) -> bool:
    """Say whether the interpreter discards the coroutine of an attempt, as after the loop has ended: nobody is left to tell."""
    if not isinstance(error, GeneratorExit) or attempt.task is None:
        return False
    try:
        return asyncio.get_running_loop() is not attempt.task.get_loop()
    except RuntimeError:
        return True


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """Call a function on a loop from a thread, unless the loop has ended."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        events.LATE_THREAD(process=os.getpid())


def make_executor(
    registry: Registry,
    worker: str,
    options: WorkerOptions,
    clock: Clock,
    show: Callable[[Progress], None],
    *,
    bootstrap: Bootstrap | None,
    largest_result: int,
    payloads: Payloads,
) -> Executor:
    """Return the executor of a worker with these options."""
    bootstrap = bootstrap or Bootstrap(modules=registry.modules)
    bootstrap = replace(bootstrap, memory_limit=bootstrap.memory_limit or options.process_memory)
    children = ChildPool(bootstrap, tasks_each=options.tasks_per_process)
    limits = Limits(
        threads=options.threads or options.concurrency,
        processes=options.processes or os.cpu_count() or 1,
        cleanup=options.cleanup,
        largest_result=largest_result,
    )
    return Executor(registry, worker, limits, clock, show, children, payloads)
