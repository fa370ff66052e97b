"""What becomes of a step when an attempt has ended: a pure choice, made by the running workflow and again by whoever reads its history."""

from __future__ import annotations

import random

import msgspec
from msgspec import Raw, Struct
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import TimeoutType
from temporalio.api.failure.v1 import Failure

from ziggurat.orchestrator.retry import next_attempt
from ziggurat.orchestrator.temporal.wire import StepInfo, json_payload, nth, read_payload
from ziggurat.program.deferring import DETAIL, due_again, is_deferred
from ziggurat.program.options import Retry
from ziggurat.records import CallRecord, ErrorInfo, Message, Outcome, Usage, encode, outcome_of

#: The type of the failure of an attempt whose next model call would have passed a budget.
BUDGET_EXCEEDED = "ziggurat.errors.BudgetExceeded"


class Verdict(Struct, frozen=True):
    """Either the kind of event that settles the step, or the moment of the next attempt."""

    kind: str
    retry_at: float | None = None
    #: Whether the attempt counts as a failed one.
    counts: bool = False


def judge(message: Message, info: StepInfo, outcome: Outcome, now: float) -> Verdict:
    """Return what becomes of a step whose attempt came to `outcome` at `now`. Chance is seeded by the attempt, so the choice repeats."""
    if outcome.status == "completed":
        return Verdict("step_completed")
    if outcome.status == "cancelled":
        # Nobody here cancelled it: a worker was ended before its time. That is no failure of the task's.
        return Verdict("attempt_failed", now)
    if outcome.error is not None and outcome.error.type == BUDGET_EXCEEDED:
        # It parks the run, and is no failure of the task's: with a larger budget it is made again.
        return Verdict("attempt_failed", now)
    if is_deferred(outcome):
        return Verdict("attempt_failed", due_again(outcome, now, message.deadline))
    if outcome.status == "dead":
        return Verdict("step_failed", counts=True)
    policy = Retry(info.attempts, initial=info.initial, factor=info.factor, maximum=info.maximum, jitter=info.jitter)
    due = next_attempt(policy, info.failures + 1, outcome.error, now, message.deadline, random.Random(message.id))
    return Verdict("step_failed" if due is None else "attempt_failed", due, True)


def detail_of(outcome: Outcome) -> str:
    """Return what the history says of an attempt that came to nothing."""
    return DETAIL if is_deferred(outcome) else outcome.status


def completed_outcome(message: Message, payload: Payload | None) -> Outcome:
    """Return the outcome that a completed activity carries; one that another client completed by hand carries the bare result."""
    if (ours := _outcome_in(payload)) is not None:
        return ours
    return outcome_of(message, "completed", result=Raw(payload.data) if payload is not None and payload.data else Raw(b"null"))


def _outcome_in(payload: Payload | None) -> Outcome | None:
    try:
        return read_payload(payload, Outcome) if payload is not None else None
    except msgspec.MsgspecError:
        return None


def failed_outcome(message: Message, failure: Failure) -> Outcome:
    """Return the outcome that a failed or timed-out activity carries."""
    while True:
        if failure.HasField("application_failure_info"):
            detail = nth(failure.application_failure_info.details, 0)
            if (ours := _outcome_in(detail)) is not None:
                return ours
            error = ErrorInfo(
                type=failure.application_failure_info.type or "Exception",
                message=failure.message,
                retryable=not failure.application_failure_info.non_retryable,
            )
            return outcome_of(message, "failed", error=error)
        if failure.HasField("timeout_failure_info"):
            return _timed_out(message, failure.timeout_failure_info.timeout_type)
        if not failure.HasField("cause"):
            error = ErrorInfo(type="temporalio.exceptions.ActivityError", message=failure.message or "The activity failed.")
            return outcome_of(message, "failed", error=error)
        failure = failure.cause


def _timed_out(message: Message, type_: TimeoutType.ValueType) -> Outcome:
    if message.deadline is not None:
        text = f"The task {message.task!r} did not end within its deadline (attempt {message.attempt})."
        return outcome_of(message, "timeout", error=ErrorInfo(type="ziggurat.errors.TaskTimeout", message=text, retryable=False))
    text = f"The task {message.task!r} was lost with its worker ({TimeoutType.Name(type_)})."
    return outcome_of(message, "crashed", error=ErrorInfo(type="ziggurat.errors.TaskCrashed", message=text))


def outcome_failure(outcome: Outcome) -> Failure:
    """Return a failed outcome as Temporal shows it; the outcome itself is its detail."""
    info = outcome.error or ErrorInfo(type="Exception", message=f"The attempt ended as {outcome.status}.")
    failure = Failure(message=info.message, source="ziggurat", stack_trace=info.traceback)
    failure.application_failure_info.type = info.type
    failure.application_failure_info.non_retryable = True
    failure.application_failure_info.details.payloads.append(json_payload(encode(outcome)))
    return failure


def run_failure(error: ErrorInfo, usage: Usage) -> Failure:
    """Return the failure of a run as Temporal shows it; our record of it and the usage are its details."""
    failure = Failure(message=error.message, source="ziggurat", stack_trace=error.traceback)
    failure.application_failure_info.type = error.type
    failure.application_failure_info.non_retryable = True
    details = failure.application_failure_info.details.payloads
    details.append(json_payload(encode(error)))
    details.append(json_payload(encode(usage)))
    return failure


def run_error(failure: Failure) -> tuple[ErrorInfo, Usage]:
    """Return what a failed run recorded of its failure, and what it consumed."""
    while not failure.HasField("application_failure_info") and failure.HasField("cause"):
        failure = failure.cause
    details = failure.application_failure_info.details
    error, usage = nth(details, 0), nth(details, 1)
    try:
        if error is not None:
            return read_payload(error, ErrorInfo), read_payload(usage, Usage) if usage is not None else Usage()
    except msgspec.MsgspecError:
        pass
    type_ = failure.application_failure_info.type or "temporalio.exceptions.FailureError"
    return ErrorInfo(type=type_, message=failure.message or "The run failed."), Usage()


def usage_of(calls: list[CallRecord]) -> Usage | None:
    """Return the sum of what calls consumed, or None for no calls."""
    if not calls:
        return None
    total = Usage()
    for call in calls:
        total = total + call.usage
    return total
