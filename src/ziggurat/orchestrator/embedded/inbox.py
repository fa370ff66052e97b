"""What comes to a run from outside its program: outcomes of attempts, moments, and news that the queue lost a message.

Each is checked against the steps that the run waits for, turned into an event, and recorded; what does not fit is dropped.
"""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from ziggurat.clock import Clock
from ziggurat.inference.ledger import call_row
from ziggurat.orchestrator.embedded.dispatch import Dispatcher
from ziggurat.orchestrator.embedded.driver import Driver
from ziggurat.orchestrator.embedded.options import EngineOptions
from ziggurat.orchestrator.embedded.resident import Resident, attribution, usage_of
from ziggurat.orchestrator.embedded.spending import BUDGET_EXCEEDED
from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.orchestrator.embedded.store import BURY, letter_row
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.orchestrator.retry import next_attempt
from ziggurat.program.deferring import DETAIL, due_again, is_deferred
from ziggurat.records import CallRecord, DeadLetter, ErrorInfo, Event, Outcome, Progress, RunEvent
from ziggurat.telemetry import events

#: Ids of calls kept in memory, to know those again whose record is on its way to the disk.
_CALLS_REMEMBERED = 10_000
_decode_calls = msgspec.json.Decoder(list[CallRecord]).decode


class Inbox:
    """Turns what comes from outside into events.

    Args:
        driver: where runs are found and events recorded.
        dispatcher: the hand on the queue.
        options, clock: as for the engine.
    """

    def __init__(self, driver: Driver, dispatcher: Dispatcher, options: EngineOptions, clock: Clock) -> None:
        self.driver, self.dispatcher, self.options, self.clock = driver, dispatcher, options, clock
        self._chance = random.Random(options.seed)
        self._recent_calls: deque[str] = deque(maxlen=_CALLS_REMEMBERED)

    def take(self, outcomes: list[Outcome]) -> None:
        """Record outcomes that came from the queue."""
        for outcome in outcomes:
            try:
                self._take(outcome)
            except Exception:
                # It is not acknowledged, so it comes again.
                events.OUTCOME_LEFT(trace_of=True, message=outcome.message, run=outcome.run, task=outcome.task)

    def _take(self, outcome: Outcome) -> None:
        if outcome.run in self.driver.parked:
            self._take_parked(outcome)
            return
        resident = self.driver.resident(outcome.run)
        if resident is not None and resident.stalled:
            self.driver.stowing.after(resident, partial(self._take, outcome))
            return
        step = resident.step(outcome.step) if resident is not None else None
        if (
            resident is None
            or step is None
            or step.kind != "task"
            or step.settled
            or resident.finishing
            or outcome.generation != resident.run.epoch
        ):
            self._drop(outcome)
        elif step.name != outcome.task:
            # Before its code was changed, the program asked for another task here. With another attempt, ours is not taken for it.
            self._drop(outcome)
            if outcome.attempt == step.attempt and step.dispatched:
                step.attempt += 1
                self.dispatcher.send(resident.run, step)
        else:
            self._take_expected(resident, step, outcome)

    def _take_expected(self, resident: Resident, step: Step, outcome: Outcome) -> None:
        if outcome.status == "completed":
            # The first valid outcome wins, of whichever attempt: it was paid for.
            if outcome.attempt != step.attempt:
                self.dispatcher.cancel(resident.run, step)
            self._settle(resident, step, outcome, "step_completed")
        elif outcome.attempt != step.attempt:
            self._drop(outcome)
        else:
            self._failed(resident, step, outcome)

    def _take_parked(self, outcome: Outcome) -> None:
        """Record what an attempt of a parked run came to: it was paid for, and the mended program will want it."""
        resident, steps = self.driver.parked[outcome.run]
        step = steps.get(outcome.step)
        if (
            step is None
            or step.settled
            or step.name != outcome.task
            or outcome.status != "completed"
            or outcome.generation != resident.run.epoch
        ):
            self._drop(outcome)
        else:
            self._settle(resident, step, outcome, "step_completed")

    def _drop(self, outcome: Outcome) -> None:
        """Let an outcome go that nobody waits for. Its model calls were paid for, so they are recorded all the same."""
        self._record_calls(outcome.run, outcome.step, outcome.attempt, outcome.calls)
        self.dispatcher.ack(outcome)

    def _settle(self, resident: Resident, step: Step, outcome: Outcome, kind: str) -> None:
        step.settled = True
        payload, payloads = step.payload, self.driver.stowing.payloads
        event = self._outcome_event(
            resident,
            step,
            outcome,
            kind,
            result=outcome.result,
            input=Raw(payloads.seal_inline(payload, resident.run.id)) if len(payload) <= self.options.keep_input else None,
            detail=outcome.status if kind == "step_failed" else "",
        )
        buried = [(BURY, self._letter(resident, step, outcome, event.at))] if outcome.status == "dead" else None
        self.driver.record(resident, event, partial(self.dispatcher.ack, outcome), buried)

    def _letter(self, resident: Resident, step: Step, outcome: Outcome, now: float) -> tuple[Any, ...]:
        payload = self.driver.stowing.payloads.seal_small(step.payload, resident.run.id)
        if payload is None:
            payload = msgspec.json.encode({"omitted": f"{len(step.payload):,} bytes of arguments"})
        message = self.dispatcher.message(resident.run, step, payload)
        reason = outcome.error.message if outcome.error is not None else "The queue gave it up."
        return letter_row(DeadLetter(id=outcome.message, message=message, reason=reason, deliveries=0, died_at=now))

    def _failed(self, resident: Resident, step: Step, outcome: Outcome) -> None:
        now = self.clock.time()
        step.dispatched = False
        over = outcome.error if outcome.error is not None and outcome.error.type == BUDGET_EXCEEDED else None
        deadline = step.requested_at + step.options.deadline if step.options.deadline is not None else None
        due: float | None
        if waits := is_deferred(outcome):
            due = due_again(outcome, now, deadline)
        elif outcome.status == "cancelled" or over is not None:
            # Nobody here cancelled it: a worker was ended before its time. That is no failure of the task's, nor is a spent budget.
            due = now
        else:
            step.failures += 1
            due = None
            if outcome.status != "dead":
                due = next_attempt(step.options.retry, step.failures, outcome.error, now, deadline, self._chance)
        if due is None:
            self._settle(resident, step, outcome, "step_failed")
            return
        event = self._outcome_event(
            resident,
            step,
            outcome,
            "attempt_failed",
            retry_at=due,
            detail=DETAIL if waits else outcome.status if over is None else "budget",
            result=outcome.heartbeat,
        )
        step.attempt += 1
        step.retry_at, step.heartbeat = due, outcome.heartbeat
        step.ended(event.detail, event.error, event.calls)
        self.driver.record(resident, event, partial(self.dispatcher.ack, outcome))
        if over is not None and not self.driver.spending.is_old(outcome):
            self.driver.spending.park(resident, over)
            return
        self.driver.timers.add(due, resident.run.id, step.number)
        self.driver.watchers.step(resident.run, step)

    def _outcome_event(self, resident: Resident, step: Step, outcome: Outcome, kind: str, **fields: Any) -> Event:
        calls = step.waiting.fresh(outcome.calls)
        usage = usage_of(calls)
        self._recent_calls.extend(call.id for call in calls)
        self.driver.spending.add(resident.run, calls)
        if usage is not None:
            resident.run = replace(resident.run, usage=resident.run.usage + usage)
        return self.driver.event(
            resident,
            kind,
            step=step.number,
            step_kind="task",
            name=step.name,
            attempt=outcome.attempt,
            requested=step.requested,
            requested_at=step.requested_at,
            sent_at=outcome.sent_at,
            started_at=outcome.started_at,
            ended_at=outcome.ended_at,
            error=outcome.error,
            usage=usage,
            calls=calls,
            worker=outcome.worker,
            **fields,
        )

    def due(self, run_id: str, number: int) -> None:
        """A moment has come that a run waits for: step `number`, or whichever are due if it is 0."""
        resident = self.driver.resident(run_id)
        if resident is not None and resident.stalled:
            self.driver.stowing.after(resident, partial(self.due, run_id, number))
        if resident is None or resident.execution is None or resident.paused or resident.finishing:
            return
        now = self.clock.time()
        steps = resident.execution.steps
        found = [steps[number]] if number in steps else [] if number else sorted(steps.values(), key=lambda s: (s.due, s.number))
        for step in found:
            if step.settled:
                continue
            if step.kind == "timer" and step.due <= now:
                step.settled = True
                event = self.driver.event(
                    resident,
                    "timer_fired",
                    step=step.number,
                    step_kind="timer",
                    name=step.name,
                    requested=step.requested,
                    requested_at=step.requested_at,
                )
                self.driver.record(resident, event)
            elif step.kind == "task":
                self._due_task(resident, step, now)

    def _due_task(self, resident: Resident, step: Step, now: float) -> None:
        deadline = step.options.deadline
        if deadline is not None and step.requested_at + deadline <= now:
            self.dispatcher.cancel(resident.run, step)
            info = ErrorInfo(
                type="ziggurat.errors.TaskTimeout",
                message=f"The task {step.name!r} did not end within its deadline of {deadline:g} s (attempt {step.attempt}).",
                retryable=False,
            )
            outcome = Outcome(
                message="",
                task=step.name,
                status="timeout",
                run=resident.run.id,
                step=step.number,
                attempt=step.attempt,
                error=info,
            )
            self._settle(resident, step, outcome, "step_failed")
        elif step.retry_at is not None and step.retry_at <= now:
            self.dispatcher.send(resident.run, step)
            if deadline is not None:
                self.driver.timers.add(step.requested_at + deadline, resident.run.id, step.number)

    def resend(self, lost: dict[str, str]) -> None:
        """Send again what the queue has lost: message ids and their runs."""
        for message, run_id in lost.items():
            self.dispatcher.in_flight.pop(message, None)
            resident = self.driver.resident(run_id)
            number = int(message.rpartition("~")[2].split(".")[1])
            step = resident.step(number) if resident is not None else None
            if resident is not None and step is not None and step.kind == "task" and not step.settled and step.retry_at is None:
                self.dispatcher.send(resident.run, step)

    def progress(self, items: list[Progress]) -> None:
        """Show what workers published."""
        watchers = self.driver.watchers
        for item in items:
            if item.kind == "calls":
                try:
                    self._record_calls(item.run, item.step, item.attempt, _decode_calls(item.data))
                except msgspec.MsgspecError:
                    events.CALLS_UNREADABLE(run=item.run)
                continue
            resident = self.driver.residents.get(item.run)
            if item.kind == "started" and resident is not None:
                step = resident.step(item.step)
                if step is not None and step.attempt == item.attempt:
                    step.started_at = item.at
                    watchers.step(resident.run, step)
            elif item.run in watchers:
                watchers.tell(RunEvent(run=item.run, kind="progress", progress=self.driver.stowing.opened(item)))

    def _record_calls(self, run_id: str, step: int, attempt: int, calls: list[CallRecord]) -> None:
        """Record model calls that no recorded outcome carries: they were paid for. Those that are known already change nothing."""
        if not calls:
            return
        known = self.driver.reader.known_calls([call.id for call in calls]).union(self._recent_calls)
        fresh = [call for call in calls if call.id not in known]
        if not fresh:
            return
        self._recent_calls.extend(call.id for call in fresh)
        parked = self.driver.parked.get(run_id)
        resident = parked[0] if parked is not None else self.driver.resident(run_id)
        usage = usage_of(fresh)
        if resident is not None and (parked is not None or not resident.finishing) and usage is not None:
            resident.run = replace(resident.run, usage=resident.run.usage + usage)
            event = self.driver.event(
                resident, "calls_recorded", step=step, step_kind="task", attempt=attempt, usage=usage, calls=fresh
            )
            self.driver.record(resident, event)
        elif (row := self.driver.reader.run(run_id)) is not None:
            # Its history is closed, but a bill is a bill.
            by = attribution(row[1], step, attempt)
            self.driver.write(Write(calls=[call_row(call, by) for call in fresh]))
        if resident is not None:
            self.driver.spending.add(resident.run, fresh)
