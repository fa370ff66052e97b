"""One run on a workflow worker: Temporal's activations in, commands out, our program in between.

    activation ─▶ jobs ─▶ Events ─▶ Execution.apply ─▶ steps asked for, steps dropped, an end ─▶ commands ─▶ completion

The program runs on the same deterministic loop, under the same guard, with the same step numbers as on the embedded engine; Temporal's
own asyncio loop for Python workflows takes no part. So what a program does here is what it does there, and a history of either can be read
as the same `Event`s: `translate.py` makes from Temporal's history the events that this machine made of the activations, at the same
positions. Whatever decides something here must therefore follow from the activations alone.

A run is parked in one of two ways. What a mended program may decide otherwise (it contradicts its history, it read the clock, its module
is gone) fails the workflow task, which leaves no command in the history; Temporal tries it again, now and then, and `resume` at once. A
spent budget follows from the history, so the machine holds the run until the signal RESUME, as it does for a pause until that ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace
from temporalio.bridge.proto.activity_result.activity_result_pb2 import ActivityResolution
from temporalio.bridge.proto.child_workflow.child_workflow_pb2 import ChildWorkflowResult
from temporalio.bridge.proto.workflow_activation.workflow_activation_pb2 import (
    InitializeWorkflow,
    SignalWorkflow,
    WorkflowActivation,
    WorkflowActivationJob,
)
from temporalio.bridge.proto.workflow_commands.workflow_commands_pb2 import WorkflowCommand
from temporalio.bridge.proto.workflow_completion.workflow_completion_pb2 import WorkflowActivationCompletion

from ziggurat.artifacts import is_sealed
from ziggurat.errors import ZigguratError
from ziggurat.orchestrator.embedded.dispatch import attempt_message
from ziggurat.orchestrator.embedded.execution import INFORMATIVE, Mismatch
from ziggurat.orchestrator.embedded.guard import forbidden_names
from ziggurat.orchestrator.embedded.steps import Finished, Step
from ziggurat.orchestrator.embedded.telling import Telling
from ziggurat.orchestrator.embedded.watching import Watchers
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.answers import answer, fail_task, refuse_update
from ziggurat.orchestrator.temporal.commands import (
    cancel_attempt,
    cancel_child,
    cancel_timer,
    schedule_attempt,
    start_child,
    start_timer,
    step_info,
)
from ziggurat.orchestrator.temporal.endings import end_commands
from ziggurat.orchestrator.temporal.program import Parked, Program, Surroundings
from ziggurat.orchestrator.temporal.purse import Purse
from ziggurat.orchestrator.temporal.telling import (
    attempt_fields,
    child_fields,
    limit_text,
    new_run_record,
    spent_text,
)
from ziggurat.orchestrator.temporal.told import Told
from ziggurat.orchestrator.temporal.verdict import BUDGET_EXCEEDED, completed_outcome, detail_of, failed_outcome, judge
from ziggurat.orchestrator.temporal.wire import Held, Origin
from ziggurat.records import ErrorInfo, Event, Message, Run
from ziggurat.telemetry import events

_telling = Telling(Watchers())


class Machine:
    """One run in the memory of a workflow worker. `activate` is called by one thread at a time."""

    def __init__(self, surroundings: Surroundings, workflow_id: str, workflow_type: str) -> None:
        self._around = surroundings
        self._place = surroundings.place
        self._id, self._type = workflow_id, workflow_type
        self._commands: Any = []
        self.run = Run(id=workflow_id, workflow=workflow_type, status="running")
        self.origin = Origin()
        self._program: Program | None = None
        self._seq = 0
        self._now = 0.0
        self._early_patches: set[str] = set()
        #: Steps of attempts that Temporal has, by the number of their command; and the other way round.
        self._attempts: dict[int, tuple[Step, Message]] = {}
        self._attempt_of: dict[int, int] = {}
        self._next_attempt = 0
        #: Steps that wait for their next attempt, by the number of the timer; and those whose timer fired while the run was held.
        self._retries: dict[int, Step] = {}
        self._retry_of: dict[int, int] = {}
        self._overdue: list[Step] = []
        self._next_retry = wire.RETRY_TIMERS
        self._children: dict[int, Step] = {}
        self._cancelled_children: set[int] = set()
        self._held = Held()
        self._told = Told(self.origin)
        self._ended = self._given_up = False
        self._purse = Purse()

    # -- the worker's side ----------------------------------------------------------------------------------------

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        """Handle an activation; never raises."""
        completion = WorkflowActivationCompletion(run_id=act.run_id)
        completion.successful.SetInParent()
        self._commands = completion.successful.commands
        try:
            self._handle(act)
        except Parked as parked:
            self._around.parked(self._id, str(parked))
            fail_task(completion, str(parked), wire.PARKED)
        except Exception as error:
            events.RUN_LEFT(trace_of=True, run=self._id)
            fail_task(completion, f"{type(error).__name__}: {error}", type(error).__name__)
        return completion

    def discard(self) -> None:
        """Free the program without letting it act."""
        program, self._program = self._program, None
        if program is not None:
            program.discard()

    def _handle(self, act: WorkflowActivation) -> None:
        jobs = list(act.jobs)
        if any(job.HasField("remove_from_cache") for job in jobs):
            self.discard()
            return
        queries = [job.query_workflow for job in jobs if job.HasField("query_workflow")]
        if queries:
            self._commands.extend(answer(query, self._program, self._seq) for query in queries)
            return
        self._now = max(self._now, act.timestamp.ToNanoseconds() / 1e9)
        for job in jobs:
            if job.HasField("notify_has_patch"):
                self._learn_patch(job.notify_has_patch.patch_id)
        if self._program is not None:
            self._program.replaying = act.is_replaying
            self._program.continue_suggested = act.continue_as_new_suggested
        self._apply_all(jobs, act.is_replaying)
        if self._program is not None:
            self._close_activation()

    def _apply_all(self, jobs: list[WorkflowActivationJob], replaying: bool) -> None:
        """Apply jobs in an order that a reader of the history can repeat: the start, then signals, then all else as it came."""
        for job in jobs:
            if job.HasField("initialize_workflow"):
                self._initialize(job.initialize_workflow, replaying)
        for job in jobs:
            if job.HasField("signal_workflow"):
                self._signal(job.signal_workflow)
            elif job.HasField("do_update"):
                self._commands.append(refuse_update(job.do_update.protocol_instance_id))
        for job in jobs:
            if job.HasField("cancel_workflow"):
                self._cancel(job.cancel_workflow.reason)
            elif job.HasField("resolve_activity"):
                self._resolve_attempt(job.resolve_activity.seq, job.resolve_activity.result)
            elif job.HasField("fire_timer"):
                self._fire(job.fire_timer.seq)
            elif job.HasField("resolve_child_workflow_execution_start"):
                start = job.resolve_child_workflow_execution_start
                if start.HasField("failed"):
                    self._refuse_child(start.seq)
            elif job.HasField("resolve_child_workflow_execution"):
                done = job.resolve_child_workflow_execution
                self._resolve_child(done.seq, done.result)

    def _cancel(self, reason: str) -> None:
        if self._held.status == "paused":
            self._resume(None)
        self._record("cancel_requested", detail=reason)
        # A parked program cannot be run to clean up, so it ends as it stands.
        self._given_up = self._held.status == "parked"

    # -- the start ------------------------------------------------------------------------------------------------

    def _initialize(self, init: InitializeWorkflow, replaying: bool) -> None:
        second = wire.nth(init.arguments, 1)
        try:
            origin = wire.read_origin(second, self._id, self._around.payloads) if second is not None else Origin()
        except ZigguratError as error:
            raise Parked(str(error)) from error
        about = wire.with_moment(origin.about, init.search_attributes.indexed_fields)
        self.origin = origin = origin if about is origin.about else replace(origin, about=about)
        self.run = new_run_record(self._id, self._type, self._arguments(init, about), origin, self._now)
        if init.HasField("parent_workflow_info") and not self.run.parent:
            self.run = replace(self.run, parent=init.parent_workflow_info.workflow_id)
        self._purse.above = about.budgets
        self._told = Told(origin)
        self._seq = origin.base
        try:
            workflow = self._around.registry.workflow(self._type, self.run.entry)
        except ZigguratError as error:
            raise Parked(str(error)) from error
        if wrong := forbidden_names(workflow.fn):
            raise Parked(wrong)
        kept = origin.events
        run_id = self.run.id
        show = self._around.show
        self._program = Program(
            workflow,
            self.run,
            base=origin.base,
            passed=0,
            patches=[*self._early_patches, *(e.name for e in kept if e.kind == "patched")],
            suggest_at=self._around.history_suggest,
            show=lambda kind, data: show(run_id, kind, data),
            payloads=self._around.payloads,
        )
        if not kept:
            self._program.replaying = replaying
            self._record("run_started", detail=self.run.entry)
            return
        self._take_over(kept, self._program)
        self._program.replaying = replaying
        self._harvest()

    def _arguments(self, init: InitializeWorkflow, about: wire.About) -> Raw:
        given = wire.raw_of(wire.nth(init.arguments, 0))
        if not about.sealed_for or not is_sealed(given):
            return given
        try:
            return Raw(self._around.payloads.rebind(given, about.sealed_for, self._id))
        except ZigguratError as error:
            raise Parked(str(error)) from error

    def _take_over(self, kept: list[Event], program: Program) -> None:
        """Apply the recorded events that the run starts from, then note where they came from."""
        ended = False
        for index, event in enumerate(kept):
            if event.usage is not None:
                self.run = replace(self.run, usage=self.run.usage + event.usage)
            self._seq = event.seq
            if event.kind in INFORMATIVE:
                program.applied = event.seq
                program.note(event)
            elif ended:
                program.come_late(event)
            else:
                self._apply(event, program)
                ended = program.finished is not None
                if ended:
                    self._check_end(kept[index + 1 :], program)

    @staticmethod
    def _check_end(rest: Iterable[Event], program: Program) -> None:
        try:
            program.check_end(rest)
        except Mismatch as mismatch:
            raise Parked(str(mismatch)) from mismatch

    def _learn_patch(self, patch: str) -> None:
        self._early_patches.add(patch)
        if self._program is not None:
            self._program.learn_patch(patch)

    # -- what happened --------------------------------------------------------------------------------------------

    def _record(self, kind: Any, **fields: Any) -> None:
        """Make the run's next event, apply it, and carry out what the program then asks for."""
        program = self._program
        if program is None:
            return
        self._seq += 1
        event = Event(seq=self._seq, kind=kind, at=self._now, **fields)
        self._tell(event, program)
        if event.usage is not None:
            self.run = replace(self.run, usage=self.run.usage + event.usage)
        if kind in INFORMATIVE:
            program.applied = event.seq
        elif program.finished is not None:
            program.come_late(event)
        else:
            self._apply(event, program)
        self._harvest()

    def _tell(self, event: Event, program: Program) -> None:
        """Tell of what happens, and not of what is replayed, as metrics and as spans."""
        if program.replaying:
            return
        step = program.steps.get(event.step) if event.step and not event.requested_at else None
        _telling.event(self.run, replace(event, requested_at=step.requested_at) if step is not None else event)

    def _apply(self, event: Event, program: Program) -> None:
        try:
            program.apply(event)
        except (Mismatch, ZigguratError) as error:
            raise Parked(str(error)) from error

    def _signal(self, job: SignalWorkflow) -> None:
        value = wire.raw_of(wire.nth(job.input, 0))
        if job.signal_name == wire.PAUSE:
            if not self._held.status:
                self._held = Held("paused", msgspec.json.decode(value) or "paused by hand")
                self._record("run_paused", detail=self._held.reason)
        elif job.signal_name == wire.RESUME:
            self._resume(msgspec.json.decode(value, type=wire.Resume | None))
        elif job.signal_name == wire.PARK:
            self._park(msgspec.json.decode(value, type=wire.Park))
        else:
            second = wire.nth(job.input, 1)
            signal_id = msgspec.json.decode(second.data, type=str) if second is not None else ""
            if signal_id and self._program is not None and self._program.has_seen_signal(signal_id):
                return
            self._record("signal_received", name=job.signal_name, result=value, detail=signal_id)

    def _resume(self, asked: wire.Resume | None) -> None:
        if asked is not None and asked.budget_usd is not None:
            self.run = replace(self.run, budget_usd=asked.budget_usd)
            # Whoever resumes a child run with a budget gives it one of its own.
            self._purse.above = ()
        elif asked is not None and asked.budgets:
            self._purse.above = asked.budgets
        if self._held.status:
            if self._held.budget:
                self._commands.extend(self._purse.tell_children(self.run, self._living_children()))
            self._held = Held()
            overdue, self._overdue = self._overdue, []
            for step in overdue:
                self._send_attempt(step)
            self._record("run_resumed")

    def _park(self, asked: wire.Park) -> None:
        """Hold the run for a budget that a call met, its own or a child run's, unless the budget was raised since."""
        if self._purse.is_old(self.run, asked.budgets):
            self._commands.extend(self._purse.tell_children(self.run, self._living_children()))
        elif not self._held.status:
            self._held = Held("parked", asked.reason, asked.budget)
            self._commands.extend(self._purse.tell_parent(self.run, asked))

    def _living_children(self) -> list[str]:
        return [step.child for number, step in self._children.items() if number not in self._cancelled_children]

    def _resolve_attempt(self, seq: int, result: ActivityResolution) -> None:
        step, message = self._attempts.pop(seq)
        if self._attempt_of.get(step.number) == seq:
            del self._attempt_of[step.number]
        if result.HasField("cancelled"):
            return  # We asked for it, and have forgotten the step.
        if result.HasField("completed"):
            outcome = completed_outcome(message, result.completed.result if result.completed.HasField("result") else None)
        else:
            outcome = failed_outcome(message, result.failed.failure)
        verdict = judge(message, step_info(step), outcome, self._now)
        fields = attempt_fields(step_info(step), message, outcome, step.waiting)
        if verdict.kind != "attempt_failed":
            detail = outcome.status if verdict.kind == "step_failed" else ""
            self._record(verdict.kind, result=outcome.result, detail=detail, **fields)
            return
        step.failed(verdict.counts, verdict.retry_at, outcome.heartbeat)
        step.ended(detail_of(outcome), outcome.error, fields["calls"])
        self._record("attempt_failed", retry_at=verdict.retry_at, detail=detail_of(outcome), result=outcome.heartbeat, **fields)
        if outcome.error is not None and outcome.error.type == BUDGET_EXCEEDED:
            self._park(wire.Park(outcome.error.message, outcome.error.budget, message.budgets))
        program = self._program
        if program is not None and program.finished is None and program.steps.get(step.number) is step:
            self._wait_to_retry(step)

    def _wait_to_retry(self, step: Step) -> None:
        delay = (step.retry_at or 0.0) - self._now
        if delay <= 0 and not self._held.status:
            self._send_attempt(step)
            return
        self._next_retry += 1
        self._retries[self._next_retry] = step
        self._retry_of[step.number] = self._next_retry
        self._commands.append(start_timer(self._next_retry, delay))

    def _fire(self, seq: int) -> None:
        if seq > wire.RETRY_TIMERS:
            step = self._retries.pop(seq, None)
            if step is not None:
                self._retry_of.pop(step.number, None)
                if self._held.status:
                    self._overdue.append(step)
                else:
                    self._send_attempt(step)
            return
        self._record("timer_fired", step=seq, step_kind="timer", name="sleep")

    def _refuse_child(self, seq: int) -> None:
        step = self._children.pop(seq)
        text = f"The child run of {step.name!r} was not started: the id {step.child!r} belongs to another run."
        error = ErrorInfo(type="ziggurat.errors.Conflict", message=text)
        self._record("step_failed", step=seq, step_kind="child", name=step.name, error=error)

    def _resolve_child(self, seq: int, result: ChildWorkflowResult) -> None:
        step = self._children.pop(seq, None)
        if step is None or (result.HasField("cancelled") and seq in self._cancelled_children):
            return  # Our own cancellation, or one whose start was refused.
        usage, fields = child_fields(step.child, result)
        found = fields.get("result")
        if found is not None and is_sealed(found):
            try:
                fields["result"] = Raw(self._around.payloads.rebind(found, step.child, self.run.id))
            except ZigguratError as error:
                raise Parked(str(error)) from error
        self._record(step=seq, step_kind="child", name=step.name, usage=usage if usage.calls else None, **fields)

    # -- what the program asks for --------------------------------------------------------------------------------

    def _harvest(self) -> None:
        program = self._program
        if program is None:
            return
        if program.dropped:
            dropped, program.dropped = program.dropped, []
            for step in dropped:
                self._drop(step, program)
        if program.finished is None and program.requests and not self._held.status:
            requests, program.requests = program.requests, []
            for index, step in enumerate(requests):
                if program.steps.get(step.number) is not step:
                    continue
                if step.kind == "task" and self._purse.is_spent(self.run):
                    program.requests = requests[index:]
                    self._held = Held("parked", spent_text(self.run), f"run:{self.run.id}")
                    break
                self._carry_out(step)

    def _carry_out(self, step: Step) -> None:
        if step.kind == "task":
            if step.retry_at is not None and step.retry_at > self._now:
                self._wait_to_retry(step)
            else:
                self._send_attempt(step)
        elif step.kind == "timer":
            step.dispatched = True
            self._commands.append(start_timer(step.number, step.due - self._now))
        elif step.kind == "child":
            step.dispatched = True
            self._children[step.number] = step
            kept = self.origin.children.get(step.child)
            self._commands.append(start_child(step, self.run, kept, self._now, self._place, self._purse.allowances(self.run)))

    def _send_attempt(self, step: Step) -> None:
        program = self._program
        if program is None or program.steps.get(step.number) is not step:
            return
        self._next_attempt += 1
        step.retry_at, step.dispatched, step.sent_at = None, True, self._now
        message = attempt_message(self.run, step, step.payload, self._now, self._purse.allowances(self.run))
        self._attempts[self._next_attempt] = step, message
        self._attempt_of[step.number] = self._next_attempt
        # That it is eager is no part of the history, so this moment may decide it.
        self._commands.append(
            schedule_attempt(self._next_attempt, message, step_info(step), self._place, eager=self._around.hungry())
        )

    def _drop(self, step: Step, program: Program) -> None:
        self._around.tell_dropped(self.run, step, program.replaying)
        if program.finished is not None:
            return  # The run's end ends its attempts and timers, and deals with children as they were told.
        if step.kind == "task":
            attempt, retry = self._attempt_of.pop(step.number, None), self._retry_of.pop(step.number, None)
            if attempt is not None:
                self._commands.append(cancel_attempt(attempt))
            elif retry is not None:
                self._commands.append(cancel_timer(retry))
                del self._retries[retry]
        elif step.kind == "timer" and step.dispatched:
            self._commands.append(cancel_timer(step.number))
        elif step.kind == "child" and step.dispatched and step.options.on_parent_end == "cancel":
            self._cancelled_children.add(step.number)
            self._commands.append(cancel_child(step.number, self.run))

    # -- the end of an activation -----------------------------------------------------------------------------------

    def _close_activation(self) -> None:
        """Write down what the activation changed, and the end of the run if it came to one."""
        program = self._program
        assert program is not None
        for patch in program.new_patches:
            command = WorkflowCommand()
            command.set_patch_marker.patch_id = patch
            self._commands.append(command)
            self._seq += 1
        program.new_patches = []
        finished = program.finished
        if finished is not None and finished.status == "parked":
            raise Parked(finished.reason)
        if program.length >= self._around.history_limit and finished is None:
            raise Parked(limit_text(program.length, self._around.history_limit))
        if self._held.status == "parked" and self._held != self._told.held:
            self._seq += 1  # The event run_parked, which a reader finds in the memo's change.
            if not program.replaying:
                self._around.parked(self._id, self._held.reason)
        self._commands.extend(self._told.changes(self._held, program.state, self.run.usage.cost_usd))
        if self._given_up and finished is None:
            finished = Finished("cancelled")
        if finished is not None and (not self._held.status or self._given_up) and not self._ended:
            self._ended = True
            if finished.status != "continued":
                kind: Any = f"run_{finished.status}"
                self._tell(Event(seq=self._seq + 1, kind=kind, at=self._now, error=finished.error), program)
            self._commands.extend(end_commands(finished, self.run, program, self._seq, self._place, self._purse.above))
