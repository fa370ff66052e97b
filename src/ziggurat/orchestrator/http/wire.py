"""The shapes of the HTTP API as its client reads them, and what they are as records.

`ziggurat.doors.api.shapes` is the other side. A field that this version does not know is passed over, so that a client may be older than
its server.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct

from ziggurat.records import (
    Awaited,
    CallRecord,
    DeadLetter,
    Depth,
    ErrorInfo,
    Event,
    EventKind,
    Lane,
    Message,
    Presence,
    Progress,
    Run,
    RunEvent,
    RunFilter,
    RunStatus,
    StepView,
    Usage,
)

_NULL = Raw(b"null")
Moment = datetime | None


def at(moment: Moment) -> float | None:
    """Return a moment in seconds since the epoch."""
    return moment.timestamp() if moment is not None else None


def kept(data: Raw) -> Raw | None:
    """Return a payload, or None for null."""
    return None if bytes(data) == b"null" else data


class WireAwaited(Struct):
    step: int
    signal: str
    since: Moment = None


class WireRun(Struct):
    """A Run of the API, with or without input and result."""

    id: str
    workflow: str
    status: RunStatus
    reason: str
    error: ErrorInfo | None
    namespace: str
    entry: str
    tags: dict[str, str]
    priority: int
    budget_usd: float | None
    usage: Usage
    created_at: Moment
    started_at: Moment
    ended_at: Moment
    wake_at: Moment
    generation: int
    epoch: int
    parent: str
    parent_step: int
    forked_from: str
    events: int
    awaits: list[WireAwaited] = []
    state: Raw = _NULL
    input: Raw = Raw(b"{}")
    result: Raw = _NULL

    def record(self) -> Run:
        """Return it as a record."""
        plain = {name: getattr(self, name) for name in _RUN_FIELDS}
        times: dict[str, Any] = {name: at(getattr(self, name)) for name in ("started_at", "ended_at", "wake_at")}
        return Run(
            **plain,
            **times,
            created_at=at(self.created_at) or 0.0,
            payload=self.input,
            # A run that completed without a value has the value null.
            result=self.result if self.status == "completed" else kept(self.result),
            state=kept(self.state),
            awaits=[Awaited(one.step, one.signal, at(one.since) or 0.0) for one in self.awaits],
        )


_RUN_FIELDS = (
    "id", "workflow", "status", "reason", "error", "namespace", "entry", "tags", "priority", "budget_usd", "usage", "generation",
    "epoch", "parent", "parent_step", "forked_from", "events",
)  # fmt: skip


class WirePage(Struct):
    runs: list[WireRun]
    next: str | None = None


class WireCall(Struct):
    id: str
    model: str
    endpoint: str
    upstream: str
    usage: Usage
    price_version: str = ""
    started_at: Moment = None
    latency: float = 0.0
    first_token: float | None = None
    status: str = "ok"
    switch: int = 0
    held_usd: float = 0.0
    replica: str = ""
    hedge: bool = False


class WireEvent(Struct):
    """An Event of the API."""

    seq: int
    kind: EventKind
    at: Moment
    step: int
    step_kind: str
    name: str
    attempt: int
    requested_at: Moment
    sent_at: Moment
    started_at: Moment
    ended_at: Moment
    error: ErrorInfo | None
    usage: Usage | None
    calls: list[WireCall]
    retry_at: Moment
    worker: str
    detail: str
    input: Raw = _NULL
    result: Raw = _NULL

    def record(self) -> Event:
        """Return it as a record."""
        plain = {name: getattr(self, name) for name in ("seq", "kind", "step", "step_kind", "name", "attempt", "error", "usage")}
        moments = ("at", "requested_at", "sent_at", "started_at", "ended_at")
        times: dict[str, Any] = {name: at(getattr(self, name)) or 0.0 for name in moments}
        calls = [
            CallRecord(**{**{n: getattr(c, n) for n in WireCall.__struct_fields__}, "started_at": at(c.started_at) or 0.0})
            for c in self.calls
        ]
        return Event(
            **plain,
            **times,
            input=kept(self.input),
            result=kept(self.result),
            calls=calls,
            retry_at=at(self.retry_at),
            worker=self.worker,
            detail=self.detail,
        )


class WireEvents(Struct):
    events: list[WireEvent]
    next: int | None = None


class WireStep(Struct):
    """A Step of the API."""

    step: int
    kind: str
    name: str
    status: Literal["scheduled", "running", "retrying", "waiting", "completed", "failed", "cancelled"]
    attempt: int
    requested_at: Moment
    started_at: Moment
    ended_at: Moment
    usage: Usage
    error: ErrorInfo | None
    detail: str

    def record(self) -> StepView:
        """Return it as a record."""
        plain = {name: getattr(self, name) for name in ("step", "kind", "name", "status", "attempt", "usage", "error", "detail")}
        return StepView(
            **plain,
            requested_at=at(self.requested_at) or 0.0,
            started_at=at(self.started_at),
            ended_at=at(self.ended_at),
        )


class WireSteps(Struct):
    steps: list[WireStep]


class WireProgress(Struct):
    kind: str
    step: int
    attempt: int
    delivery: int
    offset: int
    at: Moment
    data: Raw = _NULL


class WireStatus(Struct):
    status: str
    reason: str = ""


def happening(run: str, kind: str, data: bytes) -> RunEvent | None:
    """Return a server-sent event as what a watcher sees, or None for a kind that this version does not know."""
    if kind == "history":
        event = msgspec.json.decode(data, type=WireEvent).record()
        return RunEvent(run=run, kind="history", offset=event.seq, event=event)
    if kind == "step":
        return RunEvent(run=run, kind="step", step=msgspec.json.decode(data, type=WireStep).record())
    if kind == "progress":
        told = msgspec.json.decode(data, type=WireProgress)
        plain = {name: getattr(told, name) for name in ("kind", "step", "attempt", "delivery", "offset", "data")}
        return RunEvent(run=run, kind="progress", progress=Progress(run=run, at=at(told.at) or 0.0, **plain))
    if kind == "status":
        status = msgspec.json.decode(data, type=WireStatus)
        return RunEvent(run=run, kind="status", status=status.status, reason=status.reason)
    return None


class WireLetter(Struct):
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
    died_at: Moment
    input: Raw = _NULL

    def record(self) -> DeadLetter:
        """Return it as a record; of the message there is what people look at."""
        lane = Lane(namespace=self.namespace, queue=self.queue, priority=self.priority)
        message = Message(
            id=self.id,
            task=self.task,
            payload=self.input,
            run=self.run,
            workflow=self.workflow,
            step=self.step,
            attempt=self.attempt,
            lane=lane,
        )
        return DeadLetter(
            id=self.id, message=message, reason=self.reason, deliveries=self.deliveries, died_at=at(self.died_at) or 0.0
        )


class WireLetters(Struct):
    dead_letters: list[WireLetter]


class WireQueue(Struct):
    name: str
    ready: int
    leased: int
    delayed: int
    dead: int
    oldest_age: float


class WireQueues(Struct):
    queues: list[WireQueue]

    def record(self) -> dict[str, Depth]:
        """Return what each queue holds, by name."""
        return {one.name: Depth(one.ready, one.leased, one.delayed, one.dead, one.oldest_age) for one in self.queues}


class WireWorker(Struct):
    name: str
    pool: str
    host: str
    pid: int
    queues: list[str]
    region: str
    slots: int
    busy: int
    running: dict[str, int]
    draining: bool
    trouble: str
    ended: int
    started_at: Moment
    seen_at: Moment
    #: A server of before them does not tell.
    metrics: str = ""
    ended_in: dict[str, int] = {}

    def record(self) -> Presence:
        """Return it as a record."""
        names = (
            "pool",
            "host",
            "pid",
            "region",
            "slots",
            "busy",
            "running",
            "draining",
            "trouble",
            "ended",
            "ended_in",
            "metrics",
        )
        return Presence(
            worker=self.name,
            queues=tuple(self.queues),
            started_at=at(self.started_at) or 0.0,
            seen_at=at(self.seen_at) or 0.0,
            **{name: getattr(self, name) for name in names},
        )


class WireWorkers(Struct):
    workers: list[WireWorker]


class WireBulk(Struct):
    id: str
    ended_at: Moment
    done: int


class WireCount(Struct):
    count: int


class WireCounts(Struct):
    counts: dict[str, int]


class WireProblem(Struct):
    class Body(Struct):
        type: str
        message: str

    error: Body


# -- requests -------------------------------------------------------------------------------------------------------


def run_path(run: str, rest: str = "") -> str:
    """Return the path of a run, whatever its id is made of."""
    return f"/runs/{quote(run, safe='')}{rest}"


def query_of(where: RunFilter) -> list[tuple[str, str]]:
    """Return a filter as a query."""
    query = [("status", status) for status in where.status]
    query += [(name, getattr(where, name)) for name in ("workflow", "namespace", "search") if getattr(where, name)]
    if where.awaiting:
        query.append(("awaiting", "true"))
    if where.parent is not None:
        query.append(("parent", where.parent))
    query += [("tag", f"{name}={value}") for name, value in where.tags.items()]
    for name in ("since", "until", "ended_since", "ended_before"):
        if (moment := getattr(where, name)) is not None:
            query.append((name, datetime.fromtimestamp(moment, UTC).isoformat()))
    return query


def body_of(**fields: Any) -> bytes:
    """Return a request's body: the fields that are given."""
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})
