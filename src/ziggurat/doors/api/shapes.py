"""The shapes of what the API takes and returns; the OpenAPI document is made from them.

Moments are ISO 8601 in UTC, durations are seconds, money is US dollars. What a program made, inputs, results, states, is JSON as it
made it. A field may be added to a shape within /api/v1; none is taken away or given another meaning.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ziggurat import records

Role = Literal["viewer", "operator", "admin"]
Json = Annotated[Any, Field(description="Any JSON value.")]
Cost = Annotated[float, Field(description="US dollars.")]
Priority = Annotated[int, Field(ge=1, le=5, description="1 (served most often) to 5.")]
#: Ids of runs as the API takes them for new ones: what a file name, a URL and a header can hold.
NewId = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9._~:@+=-]*$", description="Names the run; made up if empty.")]
#: One a person writes for a history or a label: one line, no control characters.
Line = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Answer(BaseModel):
    """What the API returns."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Order(BaseModel):
    """What the API takes. A field that it does not know is a mistake, and is said to be one."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(Answer):
    type: str = Field(description="The error's class, as docs/reference/errors lists them.")
    message: str = Field(description="One sentence: the thing, the cause, the remedy.")


class Problem(Answer):
    """What went wrong."""

    error: ErrorBody


class Usage(Answer):
    """What model calls consumed."""

    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    estimated_tokens: int
    cost_usd: Cost


class Failure(Answer):
    """A recorded failure."""

    type: str
    message: str
    traceback: str
    retryable: bool
    step: int | None = Field(description="The step whose failure ended the run.")
    run_id: str = Field(description="The child run whose failure this is, or empty.")
    budget: str = Field(
        description='The budget that was spent: "run:ID", "call", "step", "day", "workflow:NAME", "tenant:NAMESPACE"; or empty.'
    )


class Awaited(Answer):
    """A signal that a run waits for."""

    step: int
    signal: str
    since: datetime | None


class RunSummary(Answer):
    """A run, without its input and result."""

    id: str
    workflow: str
    status: records.RunStatus
    reason: str = Field(description="Why it is paused or parked, or what it waits for.")
    error: Failure | None
    namespace: str
    entry: str
    tags: dict[str, str]
    priority: int
    budget_usd: float | None
    usage: Usage
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    wake_at: datetime | None = Field(description="The moment of its next timer, while it waits.")
    awaits: list[Awaited] = Field(
        description="Signals that it waits for, while it waits. On Temporal they are known of runs that `awaiting` found, and of no others."
    )
    generation: int
    epoch: int
    parent: str
    parent_step: int
    forked_from: str
    state: Json = Field(description="What the program said of itself with state(...).")
    events: int = Field(description="How many events its history has.")


class Run(RunSummary):
    """A run."""

    input: Json
    result: Json
    links: dict[str, str] = Field(
        description="Pages elsewhere that show it: `temporal`, its page in Temporal's Web UI, where that is known."
    )


class RunPage(Answer):
    """Runs, newest first."""

    runs: list[RunSummary]
    next: str | None = Field(description="Give it as `after` for the next page; null on the last one.")


class Call(Answer):
    """A model call in the ledger."""

    id: str
    model: str
    endpoint: str
    upstream: str
    usage: Usage
    price_version: str
    started_at: datetime | None
    latency: float = Field(description="Seconds from the request to the last byte.")
    first_token: float | None = Field(description="Seconds to the first token.")
    status: str
    switch: int = Field(
        0, description="Version of the switch that chose the route; 0 where the alias meant what the settings say."
    )
    held_usd: Cost = Field(0.0, description="What a call without an answer may have cost; no part of its usage.")
    replica: str = Field("", description="The replica that served it; empty for an endpoint of one place.")
    hedge: bool = Field(False, description="Whether it is a second request, sent because the first one took long.")


class Event(Answer):
    """One line of a run's history."""

    seq: int
    kind: records.EventKind
    at: datetime | None
    step: int
    step_kind: str
    name: str
    attempt: int
    requested_at: datetime | None
    sent_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    input: Json
    result: Json
    error: Failure | None
    usage: Usage | None
    calls: list[Call]
    retry_at: datetime | None
    worker: str
    detail: str


class EventPage(Answer):
    """Events of a history, in their order."""

    events: list[Event]
    next: int | None = Field(description="Give it as `after` for the next page; null on the last one.")


class Step(Answer):
    """A step as people look at it; times say how long it was queued, and how long it ran."""

    step: int
    kind: str
    name: str
    status: Literal["scheduled", "running", "retrying", "waiting", "completed", "failed", "cancelled"]
    attempt: int
    requested_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    usage: Usage
    error: Failure | None
    detail: str


class StepList(Answer):
    steps: list[Step]


class Counts(Answer):
    """How many runs match, by status; statuses that none has are left out."""

    counts: dict[str, int]


class Count(Answer):
    count: int


# -- orders ---------------------------------------------------------------------------------------------------------


class StartOrder(Order):
    """The wish to start a run."""

    workflow: Name = Field(description="The workflow's name.")
    input: Json = Field({}, description="A JSON object keyed by parameter, or the fields of the only, model-typed parameter.")
    id: NewId = ""
    namespace: Name | None = Field(None, description="The tenant; the key's own, or the settings'.")
    tags: dict[Name, Line] = {}
    priority: Priority | None = None
    budget: float | Line | None = Field(None, description='What it may spend on models: dollars, or text such as "$0.05".')


class SignalOrder(Order):
    name: Name
    value: Json = None
    signal_id: Line = Field("", description="A second signal of this id is ignored, so that sending again is safe.")


class ReasonOrder(Order):
    reason: Line = ""


class ResumeOrder(Order):
    budget: float | Line | None = Field(None, description='What it may spend in all: dollars, "$2", or "+$1" for that much more.')


class ForkOrder(Order):
    step: int = Field(1, ge=1, le=1_000_000, description="The first step to run anew; those before are shared.")
    input: Json = Field(None, description="Other input than the run's own; null for the same.")
    id: NewId = ""


# -- from records ---------------------------------------------------------------------------------------------------


def moment(at: float | None) -> datetime | None:
    """Return a moment, to the microsecond; None for none."""
    return datetime.fromtimestamp(at, UTC) if at else None


def value_of(data: records.MaybeRaw) -> Any:
    """Return the JSON value of a payload, or None."""
    return None if data is None else json.loads(bytes(data))


def usage_of(usage: records.Usage) -> Usage:
    return Usage(**{name: getattr(usage, name) for name in records.Usage.__struct_fields__})


def failure_of(error: records.ErrorInfo | None) -> Failure | None:
    if error is None:
        return None
    return Failure(
        type=error.type,
        message=error.message,
        traceback=error.traceback,
        retryable=error.retryable,
        step=error.step,
        run_id=error.run_id,
        budget=error.budget,
    )


def _summary(run: records.Run) -> dict[str, Any]:
    shown = {name: getattr(run, name) for name in _COPIED}
    shown.update({name: moment(getattr(run, name)) for name in ("created_at", "started_at", "ended_at", "wake_at")})
    awaits = [Awaited(step=one.step, signal=one.signal, since=moment(one.since)) for one in run.awaits]
    return {
        **shown,
        "error": failure_of(run.error),
        "usage": usage_of(run.usage),
        "state": value_of(run.state),
        "awaits": awaits,
    }


_COPIED = (
    "id", "workflow", "status", "reason", "namespace", "entry", "tags", "priority", "budget_usd", "generation", "epoch", "parent",
    "parent_step", "forked_from", "events",
)  # fmt: skip


def summary_of(run: records.Run) -> RunSummary:
    return RunSummary(**_summary(run))


def run_of(run: records.Run, links: dict[str, str]) -> Run:
    return Run(**_summary(run), input=value_of(run.payload), result=value_of(run.result), links=links)


def call_of(call: records.CallRecord) -> Call:
    return Call(
        id=call.id,
        model=call.model,
        endpoint=call.endpoint,
        upstream=call.upstream,
        usage=usage_of(call.usage),
        price_version=call.price_version,
        started_at=moment(call.started_at),
        latency=call.latency,
        first_token=call.first_token,
        status=call.status,
        switch=call.switch,
        held_usd=call.held_usd,
        replica=call.replica,
        hedge=call.hedge,
    )


def event_of(event: records.Event) -> Event:
    times: dict[str, Any] = {
        name: moment(getattr(event, name)) for name in ("at", "requested_at", "sent_at", "started_at", "ended_at", "retry_at")
    }
    plain = {name: getattr(event, name) for name in ("seq", "kind", "step", "step_kind", "name", "attempt", "worker", "detail")}
    return Event(
        **times,
        **plain,
        input=value_of(event.input),
        result=value_of(event.result),
        error=failure_of(event.error),
        usage=usage_of(event.usage) if event.usage is not None else None,
        calls=[call_of(call) for call in event.calls],
    )


def step_of(step: records.StepView) -> Step:
    times: dict[str, Any] = {name: moment(getattr(step, name)) for name in ("requested_at", "started_at", "ended_at")}
    plain = {name: getattr(step, name) for name in ("step", "kind", "name", "status", "attempt", "detail")}
    return Step(**times, **plain, usage=usage_of(step.usage), error=failure_of(step.error))
