"""One run in memory: a workflow's coroutine on its deterministic loop, driven by events.

An `Execution` does no I/O. `apply(event)` moves the time, hands the event to what waits for it, and runs the program until it waits again;
then `requests` holds the steps that it newly asked for, `dropped` those that it no longer wants, and `finished` says if and how it ended.
Live and replayed runs take the same path, so a replay is correct by construction: the engine applies the recorded events, and only
then looks at what is still asked for.

    program ── await task() ──▶ Step in `steps` and `requests` ──▶ engine: send, outcome, record Event ──▶ apply ──▶ Step.future
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Raw

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.errors import ArtifactsUnreachable, ContinueAsNew, InvalidData, NotDurable, TaskError, ZigguratError
from ziggurat.orchestrator.embedded.loop import RunLoop, RunTimer
from ziggurat.orchestrator.embedded.steps import Finished, Step, StepFuture, StepKind
from ziggurat.program.context import RunContext, RunInfo, enter_run
from ziggurat.program.failures import child_error, describe, task_error
from ziggurat.program.options import RunOptions, TaskOptions
from ziggurat.records import ErrorInfo, Event, EventKind, Outcome, Run

#: Kinds of events that only inform; they are not applied to the program.
INFORMATIVE = frozenset(
    {"attempt_failed", "patched", "run_failed", "run_completed", "run_cancelled", "run_parked", "run_paused", "run_resumed"}
    | {"run_retried", "run_forked", "run_continued", "calls_recorded"}
)

#: Ends of attempts that are no failures of the task: its worker was ended, its budget, or it waits for a model's answer.
NO_FAILURES = frozenset({"cancelled", "budget", "deferred"})

#: Ids of signals that a run remembers when it continues as new.
SIGNAL_IDS_KEPT = 1_000


class Mismatch(Exception):
    """The program asked for something else than its history says. The text shows both."""


class Execution(RunContext):
    """A run's program in memory.

    Args:
        workflow: the definition to run.
        run: the run as recorded; its payload holds the arguments.
        patches: names of the patches that the history has recorded.
        passed: position in the history up to which the program is known to have run before, with whatever code it had then.
        base: position of the last event before this generation's.
        suggest_at: number of events from which `continue_as_new` is suggested.
        payloads: opens what the history hands to the program, and seals its state.
        show: called with (kind, JSON) for every `emit` of the live program.
    """

    def __init__(
        self,
        workflow: Any,
        run: Run,
        *,
        base: int,
        patches: Iterable[str],
        passed: int,
        suggest_at: int,
        show: Callable[[str, bytes], None],
        payloads: Payloads = INLINE,
    ) -> None:
        self.workflow, self.run, self._payloads = workflow, run, payloads
        make: Any = RunLoop  # typeshed calls the methods that are set after the class statement abstract
        self.loop: RunLoop = make(run.seed or run.id, self._start_timer, self._stop_timer)
        self.steps: dict[int, Step] = {}
        self.requests: list[Step] = []
        self.dropped: list[Step] = []
        self.finished: Finished | None = None
        self.replaying = True
        #: Position of the last event applied.
        self.applied = self._base = base
        self.state: Raw | None = run.state
        self.new_patches: list[str] = []
        self._known_patches = set(patches)
        self._decided: dict[str, bool] = {}
        # A step asked for at a position shows that the program ran that far, and so does the row of a run that rested there.
        self._passed = max(passed, run.events)
        self._mailboxes: dict[str, deque[bytes]] = {}
        self._waiters: dict[str, deque[Step]] = {}
        #: Ordered, so that the oldest can be forgotten.
        self._signal_ids: dict[str, None] = {}
        self.cancel_requested = False
        self._late_cancel: Event | None = None
        #: Steps that the program has asked for.
        self.asked = 0
        self._random: random.Random | None = None
        #: Why the program could not be given a payload that it asked for; passes with time.
        self._unreachable: ArtifactsUnreachable | None = None
        self._suggest_at, self._show = suggest_at, show
        self._main: asyncio.Task[Any] | None = None
        #: Steps that were asked for and then dropped by the program: their late events are no mismatch.
        self._gone: dict[int, tuple[str, str]] = {}

    # -- driving --------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Apply one event and run the program until it waits again. Raises Mismatch, or ZigguratError if a payload cannot
        be had now; then the execution must be discarded.
        """
        self.applied = event.seq
        self.loop.advance(event.at)
        kind = event.kind
        if kind == "step_completed" or kind == "step_failed":
            self._settle(event)
        elif kind == "timer_fired":
            step = self._take(event)
            if step is not None and step.timer is not None:
                self.loop.fire(step.timer)
        elif kind == "signal_received":
            self._deliver(event.name, bytes(event.result or b"null"), event.detail)
        elif kind == "run_started":
            self._begin(event)
        elif kind == "cancel_requested":
            self.cancel_requested = True
            if self._main is not None:
                self._main.cancel(event.detail or None)
        else:
            return
        self._drain()
        if self._unreachable is not None:
            raise self._unreachable

    def note(self, event: Event) -> None:
        """Take in an event that only informs, when a history is read again: attempts used up stay used up."""
        step = self.steps.get(event.step)
        if event.kind == "attempt_failed" and step is not None:
            step.attempt = event.attempt + 1
            step.failures += event.detail not in NO_FAILURES
            step.retry_at, step.heartbeat = event.retry_at, event.result
            step.ended(event.detail, event.error, event.calls)
        elif event.kind == "run_retried":
            for step in self.steps.values():
                step.failures, step.retry_at = 0, None

    def check_end(self, recorded: Iterable[Event]) -> None:
        """Raise Mismatch if the program ended although the history holds a step that it has not asked for.

        Steps that it had asked for are no mismatch: their events were on the way to the disk when the program ended.
        """
        if self.finished is not None and self.finished.status == "parked":
            return  # It came no further because of what it found here, which is not what the history says.
        for event in recorded:
            if event.kind in INFORMATIVE or not event.step:
                continue
            step = self.steps.get(event.step)
            asked = (step.kind, step.name) if step is not None else self._gone.get(event.step)
            if asked != (event.step_kind, event.name):
                raise Mismatch(
                    f"the history records step {event.step}, {event.step_kind} {event.name!r}, but the program ended before asking for it"
                )

    @property
    def length(self) -> int:
        """The number of events of this generation's history."""
        return self.applied - self._base

    def discard(self) -> None:
        """Free the program without letting it act. The history has all that is needed to build it again."""
        self.loop.discard()
        self._main = None
        for step in self.steps.values():
            step.future = step.timer = None
        self.steps, self._waiters = {}, {}

    def come_late(self, event: Event) -> None:
        """Take in an event that reached the disk after the one with which the program ended: a next generation must not lose it."""
        self.applied = event.seq
        if event.kind == "signal_received":
            if self._is_new(event.detail):
                self._mailboxes.setdefault(event.name, deque()).append(bytes(event.result or b"null"))
        elif event.kind == "cancel_requested":
            self._late_cancel = event

    def unclaimed(self) -> list[tuple[EventKind, str, Raw | None]]:
        """Return what passes on to the next generation, as (kind, name, payload): signals that were not taken, a late cancellation."""
        left: list[tuple[EventKind, str, Raw | None]] = [
            ("signal_received", name, Raw(payload)) for name, box in self._mailboxes.items() for payload in box
        ]
        if self._late_cancel is not None:
            left.append(("cancel_requested", "", None))
        return left

    def signal_ids(self) -> Raw | None:
        """Return the ids of the newest signals as JSON: the next generation ignores them when they come again."""
        return Raw(msgspec.json.encode([*self._signal_ids][-SIGNAL_IDS_KEPT:])) if self._signal_ids else None

    def has_seen_signal(self, signal_id: str) -> bool:
        """Say whether a signal of that id was received in this generation."""
        return signal_id in self._signal_ids

    def drop(self, step: Step) -> None:
        """The program no longer wants a step."""
        if self.steps.pop(step.number, None) is None or self.loop.closing:
            return
        self._gone[step.number] = (step.kind, step.name)
        if step.kind == "signal":
            waiters = self._waiters.get(step.name)
            if waiters is not None and step in waiters:
                waiters.remove(step)
        self.dropped.append(step)

    # -- what programs ask for (RunContext) -------------------------------------------------------------------------

    def info(self) -> RunInfo:
        run = self.run
        return RunInfo(
            id=run.id,
            workflow=run.workflow,
            namespace=run.namespace,
            generation=run.generation,
            parent=run.parent,
            tags=run.tags,
            history_events=self.length,
            continue_as_new_suggested=self.length >= self._suggest_at,
            replaying=self.replaying,
        )

    def time(self) -> float:
        return self.loop.time()

    def random(self) -> random.Random:
        if self._random is None:
            # Seeding with a string hashes it with SHA-512, the same on every platform and version (random.seed, version 2).
            self._random = random.Random(f"{self.run.seed or self.run.id}/{self.run.generation}")
        return self._random

    def call_task(self, name: str, payload: bytes, options: TaskOptions, bound: dict[str, str]) -> asyncio.Future[Any]:
        step = self._request("task", name)
        step.payload, step.options, step.bound = payload, self.workflow.options_.placed(options), bound
        return step.future  # type: ignore[return-value]

    def start_child(self, workflow: str, entry: str, payload: bytes, options: RunOptions) -> asyncio.Future[Any]:
        step = self._request("child", workflow)
        step.payload, step.options, step.entry = payload, options, entry
        generation = f"{self.run.generation}." if self.run.generation else ""
        step.child = options.id or f"{self.run.id}/{generation}{step.number}"
        return step.future  # type: ignore[return-value]

    def wait_signal(self, name: str) -> asyncio.Future[Any]:
        step = self._request("signal", name)
        box = self._mailboxes.get(name)
        if box:
            self.steps.pop(step.number)
            self._gone[step.number] = ("signal", name)
            self.requests.remove(step)
            step.future.set_result(self._open_inside(box.popleft()))  # type: ignore[union-attr]
        else:
            self._waiters.setdefault(name, deque()).append(step)
        return step.future  # type: ignore[return-value]

    def patched(self, patch: str) -> bool:
        decided = self._decided.get(patch)
        if decided is None:
            # A new patch is recorded before any step is carried out that was asked for at the same position or later. So if there is
            # such a step in the history and no such patch, the program passed here with the code before the change.
            decided = patch in self._known_patches or self.applied > self._passed
            self._decided[patch] = decided
            if decided and patch not in self._known_patches:
                self._known_patches.add(patch)
                self.new_patches.append(patch)
        return decided

    def emit(self, kind: str, data: bytes) -> None:
        if not self.replaying and not self.loop.closing:
            self._show(kind, data)

    def set_state(self, data: bytes) -> None:
        if not self.loop.closing:
            self.state = Raw(self._payloads.seal_inline(data, self.run.id))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _request(self, kind: StepKind, name: str) -> Step:
        if self.loop.closing:
            # A `finally` block of a program that is being freed awaits a step. Nothing may come of it; GeneratorExit ends it quietly.
            raise GeneratorExit
        self.asked += 1
        step = Step(self.asked, kind, name, self.applied, self.loop.time())
        step.future = StepFuture(step, self.loop, self.drop)
        self.steps[step.number] = step
        self.requests.append(step)
        return step

    def _start_timer(self, timer: RunTimer) -> None:
        self.asked += 1
        step = Step(self.asked, "timer", "sleep", self.applied, self.loop.time())
        step.timer, timer.step = timer, step
        step.due = timer.when()
        self.steps[step.number] = step
        self.requests.append(step)

    def _stop_timer(self, timer: RunTimer) -> None:
        self.drop(timer.step)

    def _begin(self, event: Event) -> None:
        if event.result is not None:
            self._signal_ids = dict.fromkeys(msgspec.json.decode(event.result, type=list[str]))
        (context := contextvars.Context()).run(enter_run, self)
        self._main = self.loop.create_task(self._run_workflow(), name=self.run.id, context=context)

    async def _run_workflow(self) -> bytes:
        payload = self._open_inside(self.run.payload)
        try:
            args, kwargs = self.workflow.arguments.decode(payload)
        except InvalidData as error:
            raise NotDurable(f"{error} Bring the old parameters back, or fork the run with other input.") from error
        result = await self.workflow.fn(*args, **kwargs)
        encoded: bytes = self.workflow.result.encode(result)
        return encoded

    def _drain(self) -> None:
        while True:
            try:
                self.loop.drain()
                break
            except NotDurable as error:
                self.loop.lost_error = error
                break
            except SystemExit:
                # asyncio lets it through. It is the run's failure, which its task holds, and not the end of everyone's process.
                continue
        lost = self.loop.lost_error
        if isinstance(lost, NotDurable):
            self.finished = Finished("parked", reason=str(lost))
        elif self._main is not None and self._main.done():
            self._finish(self._main)

    def _finish(self, main: asyncio.Task[Any]) -> None:
        if main.cancelled():
            self.finished = self._cancelled()
            return
        error = main.exception()
        if error is None:
            self.finished = Finished("completed", result=Raw(main.result()))
        elif isinstance(error, NotDurable):
            self.finished = Finished("parked", reason=str(error))
        elif isinstance(error, ContinueAsNew):
            try:
                payload = self.workflow.arguments.encode(error.args_, error.kwargs)
                self.finished = Finished("continued", result=Raw(payload))
            except ZigguratError as misfit:
                self.finished = Finished("failed", error=describe(misfit))
        else:
            self.finished = Finished("failed", error=describe(error))

    def _cancelled(self) -> Finished:
        if self.cancel_requested:
            return Finished("cancelled")
        return Finished(
            "failed",
            error=ErrorInfo(
                type="asyncio.exceptions.CancelledError",
                message="The workflow ended with CancelledError though nobody cancelled the run; it cancelled itself.",
            ),
        )

    def _settle(self, event: Event) -> None:
        step = self._take(event)
        if step is None or step.future is None or step.future.done():
            return
        if event.kind == "step_completed":
            step.future.set_result(self._open(event.result) if event.result is not None else b"null")
        elif step.kind == "child":
            step.future.set_exception(child_error(step.child, step.name, event.error, event.detail or "failed"))
        else:
            step.future.set_exception(self._failure(event))

    @staticmethod
    def _failure(event: Event) -> TaskError:
        status: Any = event.detail or "failed"
        return task_error(
            Outcome(message="", task=event.name, status=status, step=event.step, attempt=event.attempt, error=event.error)
        )

    def _take(self, event: Event) -> Step | None:
        """Remove and return the step that an event settles; None if the program had dropped it. Raises Mismatch."""
        step = self.steps.get(event.step)
        if step is None:
            gone = self._gone.get(event.step)
            if gone is None:
                raise Mismatch(
                    f"the history records step {event.step}, {event.step_kind} {event.name!r}, but the program did not ask for it; "
                    f"{self._outlook()}"
                )
            if gone != (event.step_kind, event.name):
                raise Mismatch(_differs(event, *gone))
            return None
        if step.kind != event.step_kind or step.name != event.name:
            raise Mismatch(_differs(event, step.kind, step.name))
        del self.steps[event.step]
        return step

    def _open(self, data: bytes | Raw) -> bytes:
        """Return what the history hands to the program, as JSON. Raises ZigguratError if it cannot be had now."""
        return self._payloads.open_now(data, self.run.id)

    def _open_inside(self, data: bytes | Raw) -> bytes:
        """As `_open`, where the program itself asks: it must not see what is no business of its own, so that parks the run."""
        try:
            return self._open(data)
        except ZigguratError as error:
            if isinstance(error, ArtifactsUnreachable):
                self._unreachable = error
            raise NotDurable(str(error)) from error

    def _outlook(self) -> str:
        if self.finished is not None or (self._main is not None and self._main.done()):
            return "it has ended"
        waits = ", ".join(f"step {s.number} ({s.kind} {s.name!r})" for s in list(self.steps.values())[:5])
        return f"it waits for {waits}" if waits else "it waits for nothing that is recorded"

    def _is_new(self, signal_id: str) -> bool:
        """Note a signal's id, and say whether it had not been seen before."""
        if not signal_id:
            return True
        known = len(self._signal_ids)
        self._signal_ids[signal_id] = None
        return len(self._signal_ids) > known

    def _deliver(self, name: str, payload: bytes, signal_id: str) -> None:
        if not self._is_new(signal_id):
            return
        waiters = self._waiters.get(name)
        while waiters:
            step = waiters.popleft()
            if step.future is not None and not step.future.done():
                self.steps.pop(step.number, None)
                self._gone[step.number] = ("signal", name)
                step.future.set_result(self._open(payload))
                return
        self._mailboxes.setdefault(name, deque()).append(payload)


def _differs(event: Event, kind: str, name: str) -> str:
    return (
        f"at step {event.step} the history records {event.step_kind} {event.name!r}, but the program now asks for {kind} {name!r}"
    )


def contradiction(run: Run, mismatch: Mismatch) -> str:
    """Return why a run is parked whose code no longer fits its history."""
    return (
        f"The code of {run.workflow!r} no longer fits this run's history: {mismatch}. "
        "Bring the old code back and put the change behind patched(), or fork the run before that step."
    )
