"""A run that is in memory: its record, its execution, and what is on the way to the disk."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ziggurat.inference.ledger import Attribution
from ziggurat.orchestrator.embedded.execution import Execution
from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.records import Awaited, CallRecord, Event, Run, StepView, Usage


class Resident:
    """One run in memory. `run` is its record as of now; the file's row may lag behind in `wake_at` and usage, never in events."""

    __slots__ = (
        "arriving",
        "asked_to_stop",
        "at",
        "execution",
        "finishing",
        "key",
        "next_seq",
        "paused",
        "row_state",
        "row_status",
        "row_wake",
        "run",
        "stalled",
        "storing",
        "writes",
    )

    def __init__(self, key: int, run: Run, next_seq: int) -> None:
        self.key, self.run, self.next_seq = key, run, next_seq
        self.execution: Execution | None = None
        #: Events handed to the writer and not yet committed.
        self.writes = 0
        #: Those of them that a next generation must not lose: signals and the wish to cancel.
        self.arriving: list[Event] = []
        #: The time of the last event; the next is never earlier.
        self.at = run.created_at
        #: What the row in the file says.
        self.row_status: str = run.status
        self.row_wake, self.row_state = run.wake_at, run.state
        self.paused = run.status == "paused"
        #: The end is on the way to the disk; nothing more is recorded.
        self.finishing = False
        #: What the program ended with is being stored; its end waits for that.
        self.storing = False
        #: The artifact store cannot be used now, and the program needs it: it is built again from the history a little later.
        self.stalled = False
        #: Its history has the wish to cancel, whether or not its program is in memory.
        self.asked_to_stop = False

    def knows_signal(self, signal_id: str) -> bool:
        """Say whether a signal of that id has come already."""
        if any(event.detail == signal_id for event in self.arriving if event.kind == "signal_received"):
            return True
        return self.execution is not None and self.execution.has_seen_signal(signal_id)

    @property
    def cancelling(self) -> bool:
        """True once the run was asked to stop."""
        if self.asked_to_stop or any(event.kind == "cancel_requested" for event in self.arriving):
            return True
        return self.execution is not None and self.execution.cancel_requested

    def step(self, number: int) -> Step | None:
        """Return a step that is asked for and not settled."""
        return self.execution.steps.get(number) if self.execution is not None else None


def rest_of(execution: Execution) -> dict[str, Any] | None:
    """Return the fields of a run that only waits: status, next timer, and what it waits for; None for one with a task under way."""
    wake: float | None = None
    signals: list[Awaited] = []
    children = answers = timers = 0
    for step in execution.steps.values():
        if step.kind == "task":
            if not step.waiting.count or step.retry_at is None:
                return None
            wake = step.retry_at if wake is None else min(wake, step.retry_at)
            answers += 1
        elif step.kind == "timer":
            timers += 1
            wake = step.due if wake is None else min(wake, step.due)
        elif step.kind == "signal":
            signals.append(Awaited(step.number, step.name, step.requested_at))
        else:
            children += 1
    parts: list[str] = []
    if signals:
        parts.append(f"the signal{'s' if len(signals) > 1 else ''} {', '.join(sorted({one.signal for one in signals}))}")
    if children:
        parts.append(f"{children} child run{'s' if children > 1 else ''}")
    if answers:
        parts.append(f"{answers} answer{'s' if answers > 1 else ''} of models")
    if timers:
        parts.append("a timer")
    reason = "waits for " + " and ".join(parts) if parts else ""
    return {"status": "waiting", "wake_at": wake, "reason": reason, "awaits": signals}


def attribution(run: Run, step: int, attempt: int) -> Attribution:
    """Return on whose behalf calls of a step are made."""
    return Attribution(namespace=run.namespace, workflow=run.workflow, run=run.id, step=step, attempt=attempt)


def usage_of(calls: list[CallRecord]) -> Usage | None:
    """Return the sum of what calls consumed, or None for no calls."""
    if not calls:
        return None
    total = Usage()
    for call in calls:
        total = total + call.usage
    return total


def total_usage(carried: Usage, events: list[Event]) -> Usage:
    """Return what a run has consumed: what earlier generations and cut histories did, and what these events record."""
    for event in events:
        if event.usage is not None:
            carried = carried + event.usage
    return carried


def step_views(events: list[Event], execution: Execution | None) -> list[StepView]:
    """Return a run's steps as people look at them: settled ones from the history, open ones from the execution."""
    views: dict[int, StepView] = {}
    failed: dict[int, int] = {}
    for event in events:
        if event.kind == "attempt_failed":
            failed[event.step] = event.attempt
        elif event.step and event.kind in ("step_completed", "step_failed", "timer_fired"):
            views[event.step] = StepView(
                step=event.step,
                kind=event.step_kind,
                name=event.name,
                status="failed" if event.kind == "step_failed" else "completed",
                attempt=max(1, event.attempt),
                requested_at=event.requested_at,
                started_at=event.started_at or event.requested_at or None,
                ended_at=event.at,
                usage=event.usage or Usage(),
                error=event.error,
                detail=event.detail,
            )
    for step in execution.steps.values() if execution is not None else ():
        views[step.number] = open_view(step)
    return [views[number] for number in sorted(views)]


def open_view(step: Step) -> StepView:
    """Return a step that is under way as people look at it."""
    if step.kind != "task":
        status = "waiting"
    elif step.retry_at is not None:
        status = "waiting" if step.waiting.count else "retrying"
    else:
        status = "running" if step.started_at is not None else "scheduled"
    view = StepView(
        step=step.number,
        kind=step.kind,
        name=step.name,
        status=status,  # type: ignore[arg-type]
        attempt=step.attempt,
        requested_at=step.requested_at,
        started_at=step.started_at,
        detail=step.child or step.waiting.why,
    )
    return replace(view, ended_at=step.due) if step.kind == "timer" else view
