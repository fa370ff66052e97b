"""The shapes of what surrounds runs: workflows, queues, workers, models, costs, dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from ziggurat.doors.api.shapes import Answer, Cost, Json, Line, Name, Order


class WorkflowView(Answer):
    """A workflow that the server knows."""

    name: str
    entry: str = Field(description='"module:name".')
    description: str = Field(description="The first paragraph of its docstring.")
    tags: dict[str, str]
    budget_usd: float | None
    input_schema: dict[str, Any] = Field(description="JSON schema of its input, an object keyed by parameter.")
    result_schema: dict[str, Any] = Field(description="JSON schema of its result.")
    file_parameters: list[str] = Field(description="Parameters that take an uploaded file.")


class WorkflowList(Answer):
    workflows: list[WorkflowView]


class QueueView(Answer):
    """What a queue holds."""

    name: str
    ready: int
    leased: int
    delayed: int
    dead: int
    oldest_age: float = Field(description="Seconds that the oldest ready message has waited.")
    workers: int = Field(description="Workers that serve it and take work.")
    ended: dict[str, int] = Field(description="Attempts that ended, by the living worker that ran them, since it started.")


class QueueList(Answer):
    at: datetime | None
    queues: list[QueueView]


class WorkerView(Answer):
    """A worker that shows itself."""

    name: str
    pool: str
    host: str
    pid: int
    queues: list[str]
    region: str
    slots: int
    busy: int
    running: dict[str, int] = Field(description="Attempts under way, by task.")
    draining: bool
    trouble: str
    ended: int = Field(description="Attempts that ended since it started.")
    ended_in: dict[str, int] = Field(description="The same by queue.")
    metrics: str = Field(description="Where its process answers GET /metrics, as host:port; empty for nowhere.")
    started_at: datetime | None
    seen_at: datetime | None


class WorkerList(Answer):
    workers: list[WorkerView]


class ReplicaView(Answer):
    """One of the places among which an endpoint balances its calls."""

    url: str
    health: str = Field(description='"well", "ill", "trying", or "unknown" until it was looked at.')
    in_flight: int = Field(description="Calls of this process that are there now.")
    running: int | None = Field(description="Calls of all callers that the server says it runs.")
    waiting: int | None = Field(description="Calls of all callers that the server says wait in it.")
    trouble: str


class RouteView(Answer):
    """Where a model is served."""

    endpoint: str
    upstream: str
    base_url: str
    breaker: str = Field(description='"closed" is well, "open" is not called, "half-open" is being tried.')
    cooling: float = Field(description="Seconds for which the endpoint is left alone after a 429.")
    in_flight: int
    waiting: int
    input_usd_per_million: float | None
    output_usd_per_million: float | None
    limits: dict[str, float] = Field(description="The limits of the endpoint that are set.")
    has_key: bool = Field(description="Whether its key is set, or none is needed.")
    usd_per_hour: float = Field(description="What an hour of all replicas costs; 0 for what is paid by tokens.")
    region: str = Field(description="Where the endpoint is; empty if nobody said.")
    quality: int | None = Field(description="How good the model is, from 1 to 5; null if nobody said.")
    context: int | None = Field(description="Tokens that prompt and answer may have together; null if unknown.")
    replicas: list[ReplicaView] = Field(description="The places among which its calls are balanced; none for one place.")


class ModelView(Answer):
    """A model: an alias and its routes, in the order in which they are tried."""

    alias: str
    routes: list[RouteView]
    weights: list[float] = Field(description="The share of calls that begin with each route; none for all with the first.")
    shadow: str = Field(description="A route that gets a copy of each whole call, or empty.")
    version: int = Field(description="Of the switch that holds; 0 for what the settings say.")


class ModelList(Answer):
    models: list[ModelView]


class CostView(Answer):
    """What the calls of one group consumed and cost."""

    group: dict[str, str]
    calls: int
    unanswered: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: Cost
    held_usd: Cost = Field(description="What unanswered calls may have cost; no part of cost_usd.")


class CostList(Answer):
    by: list[str]
    costs: list[CostView]
    total_usd: Cost


class DeadLetterView(Answer):
    """A message that its queue gave up."""

    id: str
    task: str
    run: str
    workflow: str
    step: int
    attempt: int
    queue: str
    namespace: str
    priority: int
    reason: str
    deliveries: int
    died_at: datetime | None
    input: Json


class DeadLetterList(Answer):
    dead_letters: list[DeadLetterView]


class LettersOrder(Order):
    """Which dead letters."""

    ids: list[Line] = Field([], max_length=10_000)
    all: bool = Field(False, description="All that the caller may see, in the place of ids.")


class Approval(Answer):
    """A run that waits for a signal, which a person may send."""

    run: str
    workflow: str
    namespace: str
    tags: dict[str, str]
    signal: str
    step: int
    since: datetime | None
    value_schema: dict[str, Any] = Field(description="JSON schema of the signal's value; empty if it is not known.")
    state: Json
    input: Json


class ApprovalList(Answer):
    approvals: list[Approval]
    next: str | None


class UploadedFile(Answer):
    """One file of an upload, and the run that it started."""

    file: str
    size: int
    sha256: str
    run: str | None
    status: str
    error: str = Field(description="Why no run was started for it; empty if one was.")


class UploadAnswer(Answer):
    batch: str = Field(description="Upload again with this batch, and each file still starts once.")
    files: list[UploadedFile]


BulkVerb = Literal["cancel", "pause", "resume", "retry", "purge"]


class BulkOrder(Order):
    """A verb for many runs: those of `ids`, or all that match `status`, `workflow`, `tags` and `search`."""

    verb: BulkVerb
    id: str = Field(
        "", max_length=100, pattern=r"^[A-Za-z0-9._-]*$", description="Names the order; the same id is the same order."
    )
    ids: list[Name] = Field([], max_length=100_000)
    status: list[str] = Field([], max_length=8)
    workflow: Line = ""
    tags: dict[Name, Line] = Field({})
    search: Line = ""
    namespace: Name | None = None
    reason: Line = ""


class BulkItem(Answer):
    run: str
    outcome: str = Field(description='"" not yet, "done", "refused": the verb did not apply.')
    message: str


class BulkView(Answer):
    """An order for many runs, and how far it has come. It goes on after a restart of the server."""

    id: str
    verb: str
    namespace: str
    actor: str
    created_at: datetime | None
    ended_at: datetime | None
    total: int
    done: int
    refused: int
    refusals: list[BulkItem] = Field(description="The first hundred runs that the verb did not apply to.")


class BulkList(Answer):
    orders: list[BulkView]
