"""Parents and children: starting a child run for a step, and recording in the parent what became of it.

A child's id follows from its parent's id and the step's number, so a parent that is replayed asks for the same child again; it then finds
it running, or ended, and never starts it twice. The event that ends a child and the one that tells its parent are one write.
"""

from __future__ import annotations

from functools import partial

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.orchestrator.embedded.driver import Driver
from ziggurat.orchestrator.embedded.newborn import new_run
from ziggurat.orchestrator.embedded.resident import Resident
from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.orchestrator.embedded.store import event_row, run_row
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.orchestrator.tracing import passed_on
from ziggurat.records import ENDED, ErrorInfo, Event, Run, StartRequest


class Family:
    """What the driver needs to know of parents and children (`kin.Kin`)."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def begin_child(self, parent: Resident, step: Step) -> None:
        """Start the child run that a step asks for, or record its result if it has ended already, before a crash."""
        driver = self._driver
        living = driver.residents.get(step.child)
        row = driver.reader.run(step.child) if living is None else None
        child = living.run if living is not None else row[1] if row is not None else None
        if child is None:
            self._seal_and_start(parent, step)
        elif child.parent != parent.run.id:
            self._refuse(parent, step, f"the id {step.child!r} belongs to another run")
        elif child.workflow != step.name:
            self._refuse(parent, step, f"the id {step.child!r} belongs to a run of {child.workflow!r}")
        elif living is None and child.status in ENDED:
            driver.record(parent, self._event(parent, step, child))
        elif living is not None and living.finishing:
            # Its end is on the way to the disk, and the parent had no program that it could be told to.
            driver.when_stopped(step.child, lambda _: self._look_again(parent.run.id, step.number))

    def _look_again(self, run: str, number: int) -> None:
        """Record the end of a child in a parent that could not be told; one that was evicted meanwhile asks by itself when it is loaded."""
        parent = self._driver.resident(run)
        step = parent.step(number) if parent is not None else None
        if parent is not None and step is not None and not step.settled:
            self.begin_child(parent, step)

    def _seal_and_start(self, parent: Resident, step: Step) -> None:
        stowing = self._driver.stowing
        small = stowing.payloads.seal_small(step.payload, step.child)
        if small is not None:
            self._start(parent, step, small)
        else:
            stowing.store(parent, step.payload, step.child, partial(self._stored, parent, step))

    def _stored(self, parent: Resident, step: Step, payload: bytes) -> None:
        """The arguments of a child are stored; start it, unless the program dropped it meanwhile or another step started it."""
        if parent.step(step.number) is step:
            if step.child in self._driver.residents or self._driver.reader.run(step.child) is not None:
                self.begin_child(parent, step)
            else:
                self._start(parent, step, payload)

    def _start(self, parent: Resident, step: Step, payload: bytes) -> None:
        options, run = step.options, parent.run
        request = StartRequest(
            workflow=step.name,
            payload=Raw(payload),
            id=step.child,
            namespace=run.namespace,
            entry=step.entry,
            tags=options.tags,
            priority=options.priority or run.priority,
            budget_usd=options.budget,
            trace=passed_on(run, step.number),
        )
        _, write = self._driver.admit(new_run(request, self._driver.clock.time(), run.id, step.number))
        self._driver.write(write)

    def _refuse(self, parent: Resident, step: Step, why: str) -> None:
        step.settled = True
        error = ErrorInfo(type="ziggurat.errors.Conflict", message=f"The child run of {step.name!r} was not started: {why}.")
        event = self._driver.event(
            parent, "step_failed", step=step.number, step_kind="child", name=step.name, requested=step.requested, error=error
        )
        self._driver.record(parent, event)

    def tell_parent(self, child: Run, write: Write) -> None:
        """Add to the write that ends a child what its parent records of it, so that neither can be lost without the other."""
        if not child.parent:
            return
        driver = self._driver
        parent = driver.resident(child.parent)
        steps = self._waiting(parent, child) if parent is not None and not parent.finishing else []
        if parent is None or not steps:
            return
        events = [self._event(parent, step, child) for step in steps]
        write.events.extend([event_row(parent.key, event) for event in events])
        if parent.row_status == "waiting":
            parent.run = replace(parent.run, status="running", wake_at=None, reason="")
            write.runs.append(driver.row(parent))
        parent.writes += len(events)
        done = write.done

        def both() -> None:
            if done is not None:
                done()
            for event in events:
                driver.recorded(parent, event, None)

        write.done = both

    @staticmethod
    def _waiting(parent: Resident, child: Run) -> list[Step]:
        """Return the steps that wait for a child: the one that started it, or, if the program gave it an id, all that named that id."""
        step = parent.step(child.parent_step)
        if step is not None and step.child == child.id and not step.options.id:
            return [] if step.settled else [step]
        execution = parent.execution
        return [s for s in execution.steps.values() if s.child == child.id and not s.settled] if execution is not None else []

    def cancel_child(self, run_id: str, reason: str) -> None:
        """Ask a child run to stop, once: a parent that is replayed drops its step again, and must not disturb the clean-up."""
        driver = self._driver
        child = driver.resident(run_id)
        if child is not None:
            if not child.finishing and not child.cancelling:
                driver.record(child, driver.event(child, "cancel_requested", detail=reason))
            return
        row = driver.reader.run(run_id)
        if row is not None and row[1].status == "parked":
            driver.write(self.end_parked(*row, reason))

    def end_parked(self, key: int, run: Run, reason: str) -> Write:
        """Return the write that ends a parked run as cancelled. Its program cannot be run to clean up, so it ends as it stands."""
        driver = self._driver
        last = driver.reader.events(key)[-1]
        parked = driver.parked.pop(run.id, None)
        # Outcomes that came for the parked run may still be on the way to the disk.
        seq = parked[0].next_seq if parked is not None else last.seq + 1
        event = Event(seq=seq, kind="run_cancelled", at=max(last.at, driver.clock.time()), detail=reason)
        ended = replace(run, status="cancelled", reason=reason, ended_at=event.at, events=event.seq)

        def on_disk() -> None:
            driver.telling.event(ended, event)
            self._tell_again(ended)

        write = Write([event_row(key, event)], [run_row(key, ended)], done=on_disk)
        self.tell_parent(ended, write)
        return write

    def _tell_again(self, child: Run) -> None:
        """Tell a parent that was being loaded when a parked child of its was ended, and saw the child as it was before."""
        parent = self._driver.resident(child.parent) if child.parent else None
        if parent is not None:
            for step in self._waiting(parent, child):
                self.begin_child(parent, step)

    def _event(self, parent: Resident, step: Step, child: Run) -> Event:
        step.settled = True
        usage = child.usage
        parent.run = replace(parent.run, usage=parent.run.usage + usage)
        return self._driver.event(
            parent,
            "step_completed" if child.status == "completed" else "step_failed",
            step=step.number,
            step_kind="child",
            name=step.name,
            requested=step.requested,
            requested_at=step.requested_at,
            started_at=child.started_at or 0.0,
            ended_at=child.ended_at or 0.0,
            result=self._driver.stowing.rebound(child.result, child.id, parent.run.id),
            error=child.error,
            usage=usage if usage.calls else None,
            detail=child.status if child.status != "completed" else child.id,
        )
