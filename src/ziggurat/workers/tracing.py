"""Attempts as spans: the wait on the queue before one, and the attempt itself, inside which the task's own spans nest."""

from __future__ import annotations

from ziggurat.program.deferring import is_deferred
from ziggurat.records import Message, Outcome
from ziggurat.telemetry import tracing
from ziggurat.telemetry.ids import TRACEPARENT, Place, parse
from ziggurat.workers.attempt import Attempt


def begun(attempt: Attempt) -> None:
    """Begin an attempt's span. Called when it starts to run; does nothing while tracing is off."""
    current = tracing.current
    if current is None:
        return
    message, start = attempt.message, attempt.started_at
    attributes = _attributes(attempt)
    parent = parse(message.trace[TRACEPARENT]) if TRACEPARENT in message.trace else None
    if parent is not None and message.sent_at:
        queue = message.lane.queue
        place = Place(parent.trace, 0, parent.sampled)
        sent = min(message.sent_at, start)
        current.emit(
            f"queue {queue}",
            place=place,
            parent=parent,
            start=sent,
            end=start,
            attributes=_queued(message, attempt),
            kind="consumer",
        )
    attempt.trace = current.begin(f"attempt {message.task}", parent=parent, start=start, attributes=attributes, kind="consumer")


def ended(attempt: Attempt, outcome: Outcome | None) -> None:
    """End an attempt's span. Without an outcome it was given up: its lease is lost, or the worker drains."""
    span = attempt.trace
    if span is None:
        return
    attempt.trace = None
    if outcome is None:
        span.set({"ziggurat.status": attempt.stop_reason or "dropped"})
        span.end(attempt.now(), attempt.stop_reason or "dropped")
        return
    span.set({"ziggurat.status": outcome.status})
    error = None
    if is_deferred(outcome):
        span.set({"ziggurat.status": "deferred"})
    elif outcome.status != "completed":
        error = tracing.reason(outcome.error.type, outcome.error.message) if outcome.error is not None else outcome.status
        span.set({"error.type": outcome.error.type if outcome.error is not None else outcome.status})
    span.end(outcome.ended_at, error)


def _attributes(attempt: Attempt) -> dict[str, tracing.Attribute]:
    message = attempt.message
    attributes: dict[str, tracing.Attribute] = {
        "ziggurat.task": message.task,
        "ziggurat.attempt": message.attempt,
        "ziggurat.delivery": attempt.delivery.epoch,
        "ziggurat.worker": attempt.worker,
        "ziggurat.queue": message.lane.queue,
        "ziggurat.kind": attempt.kind,
    }
    if message.run:
        attributes |= {"ziggurat.run": message.run, "ziggurat.workflow": message.workflow, "ziggurat.step": message.step}
    return attributes


def _queued(message: Message, attempt: Attempt) -> dict[str, tracing.Attribute]:
    attributes: dict[str, tracing.Attribute] = {
        "ziggurat.queue": message.lane.queue,
        "ziggurat.namespace": message.lane.namespace,
        "ziggurat.priority": message.lane.priority,
        "ziggurat.attempt": message.attempt,
        "ziggurat.delivery": attempt.delivery.epoch,
    }
    if message.lane.region:
        attributes["ziggurat.region"] = message.lane.region
    return attributes
