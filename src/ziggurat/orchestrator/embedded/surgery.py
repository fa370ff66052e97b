"""Histories cut and joined, purely: what a fork keeps, what a retry takes up again, what a continued run starts from.

The rule behind all three: an event may stay if the step that it settles was asked for before the cut, because the program, replayed
without what was cut, asks for that step at the same number again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.errors import Conflict
from ziggurat.orchestrator.embedded.execution import INFORMATIVE, Execution, Mismatch
from ziggurat.orchestrator.embedded.stowing import Stowing
from ziggurat.records import Event, Run


def current_generation(events: Sequence[Event]) -> list[Event]:
    """Return the events of the generation that a run is in: those after the last `run_continued`."""
    for index in range(len(events) - 1, -1, -1):
        if events[index].kind == "run_continued":
            return list(events[index + 1 :])
    return list(events)


def asked_at(workflow: Any, run: Run, events: Sequence[Event], step: int, payloads: Payloads = INLINE) -> int | None:
    """Return the position in the history at which the program asks for a step, found by replaying it; None if it never does.

    A signal's event does not name the step that took it, so only the program can tell which signals came before that step.
    """
    events = current_generation(events)
    base = events[0].seq - 1 if events else 0
    patches = [e.name for e in events if e.kind == "patched"]
    execution = Execution(
        workflow, run, base=base, passed=0, patches=patches, suggest_at=0, show=lambda kind, data: None, payloads=payloads
    )
    try:
        for event in events:
            if event.kind not in INFORMATIVE:
                execution.apply(event)
                if execution.asked >= step:
                    return event.seq
        return None
    except Mismatch:
        return None
    finally:
        execution.discard()


def fork_events(events: Sequence[Event], step: int, asked: int | None = None) -> list[Event]:
    """Return what a fork before `step` keeps of a history. Raises Conflict if the history never came to that step.

    Every settled step with a smaller number stays, wherever it stands; signals and other events without a step stay if they came
    before the step was asked for: at `asked`, where `asked_at` could tell.
    """
    events = current_generation(events)
    reached = max((e.step for e in events), default=0)
    if step < 1 or (step > reached + 1 and asked is None):
        raise Conflict(f"The history has steps 1 to {reached}; it cannot be forked before step {step}.")
    if asked is None:
        asked = next((e.requested for e in events if e.step == step), None)
    if asked is None:
        later = [e.requested for e in events if e.step > step]
        asked = min(later) if later else (events[-1].seq if events else 0)
    kept: list[Event] = []
    for event in events:
        if event.kind == "patched":
            # Its place says when it was written down, not when it was decided, and a patch that is never reached changes nothing.
            keep = True
        elif event.kind in INFORMATIVE:
            keep = event.kind == "attempt_failed" and 0 < event.step < step
        elif event.step:
            keep = event.step < step
        else:
            keep = event.seq <= asked and event.kind != "cancel_requested"
        if keep:
            # What the prefix consumed was paid by the run that it came from.
            kept.append(replace(event, usage=None, calls=[], result=event.result if event.kind != "run_started" else None))
    return kept


def retry_events(run: Run, events: Sequence[Event]) -> list[Event]:
    """Return a failed run's history without its failure.

    Where a step's failure ended the run, that failure becomes an attempt that failed, and what was asked for after it goes; other
    successes, already paid for, stay. Where the workflow itself raised, only the end is taken back: mended code goes on from there.
    """
    past = list(events[: len(events) - len(current_generation(events))])
    current = current_generation(events)
    cut = _fatal_event(run, current)
    kept: list[Event] = []
    for event in current:
        if event.kind in ("run_failed", "run_cancelled"):
            continue
        if event.kind == "patched":
            kept.append(event)
            continue
        if cut is not None and event.seq == cut.seq:
            kept.append(replace(event, kind="attempt_failed", retry_at=None))
        elif cut is not None and event.seq > cut.seq:
            asked_before = event.step and event.requested < cut.seq
            if (asked_before and event.kind != "step_failed") or event.kind in ("signal_received", "run_retried"):
                kept.append(event)
        else:
            kept.append(event)
    return past + kept


def _fatal_event(run: Run, events: Sequence[Event]) -> Event | None:
    """Return the step failure that ended a run: the one its error names, else the last one."""
    error = run.error
    failures = [e for e in events if e.kind == "step_failed"]
    if error is None or not failures:
        return None
    if error.step is not None:
        return next((e for e in reversed(failures) if e.step == error.step), None)
    if error.run_id:
        return next((e for e in reversed(failures) if e.step_kind == "child"), None)
    return None


def rebound(events: Sequence[Event], stowing: Stowing, run: str, to: str) -> list[Event]:
    """Return a run's events as those of another, with their payloads sealed for that one."""
    return [
        replace(e, result=stowing.rebound(e.result, run, to), input=stowing.rebound(e.input, run, to))
        if e.result or e.input
        else e
        for e in events
    ]
