"""Whether the program as it is still fits a recorded history: a replay that nothing comes of."""

from __future__ import annotations

from msgspec import Raw

from ziggurat.artifacts import Payloads
from ziggurat.errors import NotDurable, ZigguratError
from ziggurat.orchestrator.embedded import guard
from ziggurat.orchestrator.embedded.execution import INFORMATIVE, Execution, Mismatch
from ziggurat.orchestrator.embedded.surgery import current_generation
from ziggurat.orchestrator.recording import Recording
from ziggurat.program.registry import Registry
from ziggurat.records import Event


def replay(recording: Recording, registry: Registry, payloads: Payloads) -> str:
    """Return how the program contradicts the history, as a sentence without its end, or "" if it fits."""
    run, events = recording.run, current_generation(recording.events)
    try:
        workflow = registry.workflow(run.workflow, run.entry)
        if wrong := guard.forbidden_names(workflow.fn):
            return wrong.rstrip(".")
    except ZigguratError as error:
        return str(error).rstrip(".")
    execution = Execution(
        workflow,
        run,
        base=events[0].seq - 1 if events else 0,
        passed=max((e.requested for e in events if e.step), default=0) if len(events) > 1 else 0,
        patches=[e.name for e in events if e.kind == "patched"],
        suggest_at=len(events) + 1,
        payloads=payloads,
        show=_show_nothing,
    )
    guard.install()
    try:
        _apply(execution, events)
        finished = execution.finished
        if finished is not None and finished.status == "parked":
            return finished.reason.rstrip(".")
        return _ends_alike(execution, events)
    except (Mismatch, ZigguratError, NotDurable) as error:
        return str(error).rstrip(".")
    finally:
        guard.uninstall()
        execution.discard()


def _apply(execution: Execution, events: list[Event]) -> None:
    ended = False
    for index, event in enumerate(events):
        if event.kind in INFORMATIVE:
            execution.applied = event.seq
            execution.note(event)
        elif ended:
            execution.come_late(event)
        else:
            execution.apply(event)
            ended = execution.finished is not None
            if ended:
                execution.check_end(events[index + 1 :])


def _ends_alike(execution: Execution, events: list[Event]) -> str:
    """Return what is wrong if a run that ended then would go on now."""
    ends = {"run_completed": "completed", "run_failed": "failed"}
    end = next((ends[e.kind] for e in reversed(events) if e.kind in ends), "")
    if end and execution.finished is None:
        waits = ", ".join(f"step {s.number} ({s.kind} {s.name!r})" for s in list(execution.steps.values())[:5])
        return f"the history ends as {end}, but the program now waits for {waits or 'something that is not recorded'}"
    return ""


def _show_nothing(kind: str, data: bytes | Raw) -> None:
    """What a replay emits was seen when it was live."""
