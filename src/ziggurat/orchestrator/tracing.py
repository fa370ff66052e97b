"""Runs and steps as spans: whichever engine keeps the runs tells of them in the same form.

    run analyze                  one for each run; of a run that was retried, one for each time it was taken up
      step classify              from the moment it was asked for until its outcome was recorded; "sent" is when its message was made
        queue default            told by the worker: from the sending to the start
        attempt classify         told by the worker; a second one where the first failed, or its worker died
      child summarize
        run summarize            a child run is part of its parent's trace

A run that a traced caller started has a trace of its own, linked to the caller's: it may go on for days after the caller's span ended. Only
what was just recorded is told, never what is replayed.
"""

from __future__ import annotations

from ziggurat.records import Event, Run
from ziggurat.telemetry import tracing
from ziggurat.telemetry.ids import TRACEPARENT, Place, parse, span_id, trace_id

_STEPS = frozenset({"step_completed", "step_failed", "timer_fired"})
_ENDS = frozenset({"run_completed", "run_failed", "run_cancelled"})


def place_of_run(run: Run) -> Place:
    """Return the place of a run's span. Tracing must be on."""
    trace, _, sampled = _root(run)
    return _place(run, trace, sampled)


def place_of_step(run: Run, step: int) -> Place:
    """Return the place of a step's span. A retried run asks for its steps anew, in another epoch."""
    trace, _, sampled = _root(run)
    return _step_place(run, step, trace, sampled)


def carried(run: Run, step: int) -> dict[str, str]:
    """Return what the message of a step's attempt carries, so that the worker's spans are the step's; nothing while tracing is off."""
    return {} if tracing.current is None else {TRACEPARENT: place_of_step(run, step).header()}


def passed_on(run: Run, step: int) -> str:
    """Return what a child run is started with; empty while tracing is off."""
    return "" if tracing.current is None else place_of_step(run, step).header()


def tell(run: Run, event: Event) -> None:
    """Tell of an event that is on the disk, if it is the end of a run or of a step. Tracing must be on."""
    kind = event.kind
    step = kind in _STEPS
    if not step and kind not in _ENDS and kind != "run_parked":
        return
    trace, given, sampled = _root(run)
    if not sampled:
        return
    place = _place(run, trace, sampled)
    if step:
        _tell_step(run, event, _step_place(run, event.step, trace, sampled), place)
    elif kind == "run_parked":
        # The run may be resumed, so its own span comes later; that it stopped here, and why, is worth a moment of its own.
        _emit(run, "parked", place._replace(span=0), event.at, event.at, {"ziggurat.status": "parked"}, "parked", place)
    else:
        _tell_run(run, event, place, given)


def _root(run: Run) -> tuple[int, Place | None, bool]:
    """Return a run's trace, the span of its parent or of the caller that started it, and whether it is recorded."""
    given = parse(run.trace) if run.trace else None
    if given is not None and run.parent:
        return given.trace, given, given.sampled
    trace = trace_id(run.id, run.created_at)
    return trace, given, tracing.current is not None and tracing.current.samples(trace)


def _place(run: Run, trace: int, sampled: bool) -> Place:
    # Counts how often the run was taken up after a failure: the epoch counts that, and every continue_as_new.
    return Place(trace, span_id(trace, run.id, "run", run.epoch - run.generation), sampled)


def _step_place(run: Run, step: int, trace: int, sampled: bool) -> Place:
    # Of a trace that nobody records, any id will do.
    return Place(trace, span_id(trace, run.id, run.epoch, step) if sampled else (trace & 0xFFFF_FFFF_FFFF_FFFF) or 1, sampled)


def _tell_run(run: Run, event: Event, place: Place, given: Place | None) -> None:
    links: list[Place] = []
    if run.epoch > run.generation:
        parent: Place | None = place._replace(span=span_id(place.trace, run.id, "run", 0))
    else:
        parent = given if run.parent else None
        links = [given] if given is not None and not run.parent else []
    attributes: dict[str, tracing.Attribute] = {"ziggurat.status": event.kind.removeprefix("run_"), "ziggurat.events": event.seq}
    if run.usage.calls:
        attributes["ziggurat.cost_usd"] = run.usage.cost_usd
    if run.forked_from:
        attributes["ziggurat.forked_from"] = run.forked_from
    for tag, value in run.tags.items():
        attributes[f"ziggurat.tag.{tag}"] = value
    _emit(run, f"run {run.workflow}", place, run.created_at, event.at, attributes, _why(event), parent, links)


def _tell_step(run: Run, event: Event, place: Place, within: Place) -> None:
    attributes: dict[str, tracing.Attribute] = {
        "ziggurat.step": event.step,
        "ziggurat.step.kind": event.step_kind,
        "ziggurat.status": "failed" if event.kind == "step_failed" else "completed",
    }
    moments = {}
    if event.step_kind == "task":
        attributes["ziggurat.task"] = event.name
        attributes["ziggurat.attempt"] = event.attempt
        if event.worker:
            attributes["ziggurat.worker"] = event.worker
        if event.sent_at:
            moments["sent"] = event.sent_at
    name = "timer" if event.step_kind == "timer" else f"{'step' if event.step_kind == 'task' else event.step_kind} {event.name}"
    start = event.requested_at or event.at
    _emit(run, name, place, start, event.at, attributes, _why(event), within, (), moments)


def _emit(
    run: Run,
    name: str,
    place: Place,
    start: float,
    end: float,
    attributes: dict[str, tracing.Attribute],
    error: str | None,
    parent: Place | None = None,
    links: tuple[Place, ...] | list[Place] = (),
    moments: dict[str, float] | None = None,
) -> None:
    if tracing.current is not None:
        attributes |= {"ziggurat.run": run.id, "ziggurat.workflow": run.workflow, "ziggurat.namespace": run.namespace}
        tracing.current.emit(
            name,
            place=place,
            parent=parent,
            start=start,
            end=end,
            attributes=attributes,
            error=error,
            links=links,
            moments=moments,
        )


def _why(event: Event) -> str | None:
    if event.kind == "run_cancelled":
        return "cancelled"
    if event.kind not in ("run_failed", "step_failed"):
        return None
    return tracing.reason(event.error.type, event.error.message) if event.error is not None else "failed"
