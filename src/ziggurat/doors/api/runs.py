"""/runs: start them, look at them, follow them, act on them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from msgspec import UNSET, Raw
from msgspec.structs import replace

from ziggurat import records
from ziggurat.client import start_request
from ziggurat.doors.api import shapes
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import Hub, hub_of, namespace_filter, namespace_of, seen_run
from ziggurat.errors import Conflict, InvalidData, UnknownName
from ziggurat.records import STOPPED
from ziggurat.telemetry.ids import TRACEPARENT, parse
from ziggurat.units import Money, dollars

router = APIRouter(prefix="/runs", route_class=Guarded, tags=["runs"])

#: Whatever an id is made of, slashes too: the command line takes any.
RunId = Annotated[str, Path(alias="id", description="The run's id.", min_length=1, max_length=1000)]
_LOOK, _ACT, _ADMIN = guarded("viewer"), guarded("operator"), guarded("admin")


# -- finding --------------------------------------------------------------------------------------------------------


async def where_of(
    request: Request,
    status: Annotated[list[records.RunStatus] | None, Query(description="May be repeated.")] = None,
    workflow: Annotated[str, Query(description="A workflow's name.")] = "",
    namespace: Annotated[str, Query(description="A tenant; all that the caller may see by default.")] = "",
    since: Annotated[datetime | None, Query(description="Made at that moment or later.")] = None,
    until: Annotated[datetime | None, Query(description="Made before that moment.")] = None,
    ended_since: Annotated[datetime | None, Query(description="Ended at that moment or later.")] = None,
    ended_before: Annotated[datetime | None, Query(description="Ended before that moment.")] = None,
    tag: Annotated[list[str] | None, Query(description="KEY=VALUE; may be repeated: all must fit.")] = None,
    parent: Annotated[str | None, Query(description="The run that started them; empty for runs that none started.")] = None,
    awaiting: Annotated[bool, Query(description="Only runs that wait for a signal.")] = False,
    search: Annotated[str, Query(description="Text that the id contains.", max_length=1000)] = "",
) -> records.RunFilter:
    """Return the filter of a list, narrowed to what the caller may see."""
    return records.RunFilter(
        status=tuple(status or ()),
        workflow=workflow,
        namespace=namespace_filter(request, namespace),
        since=epoch(since),
        until=epoch(until),
        ended_since=epoch(ended_since),
        ended_before=epoch(ended_before),
        tags=tags_of(tag or []),
        parent=parent,
        awaiting=awaiting,
        search=search,
    )


Where = Annotated[records.RunFilter, Depends(where_of)]


def tags_of(given: list[str]) -> dict[str, str]:
    """Return tags from KEY=VALUE texts. Raises InvalidData."""
    tags: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidData(f"The tag {text!r} must be written as KEY=VALUE.")
        tags[key] = value
    return tags


def epoch(moment: datetime | None) -> float | None:
    """Return a moment in seconds since the epoch; one without a zone is in UTC. Raises InvalidData."""
    if moment is None:
        return None
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError) as error:
        raise InvalidData(f"The moment {moment} is out of range.") from error


@router.get("", openapi_extra=_LOOK)
async def list_runs(
    request: Request,
    where: Where,
    limit: Annotated[int, Query(ge=1, le=1000, description="Runs of a page.")] = 100,
    after: Annotated[str, Query(max_length=1000, description="The `next` of the page before.")] = "",
) -> shapes.RunPage:
    """List runs, newest first."""
    hub = hub_of(request)
    if after:
        try:
            await hub.orchestrator.get(after)
        except UnknownName as error:
            raise InvalidData("The page before ended at a run that is gone; start again without `after`.") from error
    found = await hub.orchestrator.list(replace(where, limit=limit + 1, after=after))
    more = len(found) > limit
    return shapes.RunPage(runs=[shapes.summary_of(run) for run in found[:limit]], next=found[limit - 1].id if more else None)


@router.get("/counts", openapi_extra=_LOOK)
async def count_runs(request: Request, where: Where) -> shapes.Counts:
    """Count runs by status."""
    return shapes.Counts(counts=await hub_of(request).orchestrator.count(where))


# -- starting -------------------------------------------------------------------------------------------------------


@router.post("", status_code=201, openapi_extra=_ACT)
async def start_run(request: Request, order: shapes.StartOrder) -> shapes.Run:
    """Start a run, durably. An id that exists already starts nothing: that run is returned."""
    run = await start(
        request, order.workflow, order.input, namespace=order.namespace, id=order.id, tags=order.tags, priority=order.priority,
        budget=order.budget,
    )  # fmt: skip
    return hub_of(request).shown(run)


async def start(
    request: Request,
    workflow: str,
    input: Any,
    *,
    namespace: str | None = None,
    id: str = "",
    tags: dict[str, str] | None = None,
    priority: int | None = None,
    budget: Money | None = None,
) -> records.Run:
    """Start a run for the caller. Raises Conflict if the id is taken by a run that the caller may not see."""
    hub = hub_of(request)
    definition = hub.registry.workflow(workflow)
    payload = b"{}" if input is UNSET else definition.arguments.encode_input(input)
    place = namespace_of(request, namespace)
    wish = start_request(definition, payload, namespace=place, id=id, tags=tags, priority=priority, budget=budget)
    traced_by = request.headers.get(TRACEPARENT, "")
    if parse(traced_by) is not None:
        wish = replace(wish, trace=traced_by)
    run = await hub.orchestrator.start(wish)
    if run.namespace != place:
        raise Conflict(f"The id {id!r} is taken; choose another.")
    return run


# -- one run --------------------------------------------------------------------------------------------------------


@router.get("/{id:path}/history", openapi_extra=_LOOK)
async def history(
    request: Request,
    run: RunId,
    after: Annotated[int, Query(ge=0, le=2**62, description="Events past this position.")] = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
) -> shapes.EventPage:
    """Return a run's history."""
    found = await seen_run(request, run)
    events = await hub_of(request).orchestrator.history(found.id, after=after, limit=limit)
    return shapes.EventPage(
        events=[shapes.event_of(event) for event in events], next=events[-1].seq if len(events) == limit else None
    )


@router.get("/{id:path}/steps", openapi_extra=_LOOK)
async def steps(request: Request, run: RunId) -> shapes.StepList:
    """Return a run's steps, those under way included."""
    found = await seen_run(request, run)
    return shapes.StepList(steps=[shapes.step_of(step) for step in await hub_of(request).orchestrator.steps(found.id)])


@router.get(
    "/{id:path}/events",
    openapi_extra=_LOOK,
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": "Server-sent events, until the run stops.",
        },
        204: {"description": "The run has stopped, and the caller has seen all of it."},
    },
)
async def events(
    request: Request,
    run: RunId,
    after: Annotated[int, Query(ge=0, le=2**62, description="Events of the history past this position.")] = 0,
    last: Annotated[
        str, Header(alias="Last-Event-ID", max_length=100, description="The id of the last event that was seen.")
    ] = "",
) -> Response:
    """Follow a run: its history, its steps, tokens and progress as they come, until it ends or is parked."""
    found = await seen_run(request, run)
    hub = hub_of(request)
    seen = last.partition("-")[0]
    if seen.isdigit() and found.status in STOPPED and int(seen[:18]) >= found.events:
        return Response(status_code=204)  # EventSource stops coming back at this status only.
    return StreamingResponse(
        hub.streams.read(found.id, after=after, last=last),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


@router.post("/{id:path}/signal", openapi_extra=_ACT)
async def signal_run(request: Request, run: RunId, order: shapes.SignalOrder) -> shapes.Run:
    """Send a signal, durably."""
    found = await seen_run(request, run)
    payload = Raw(msgspec.json.encode(order.value))
    await hub_of(request).orchestrator.signal(found.id, order.name, payload, signal_id=order.signal_id)
    return await _now(hub_of(request), found.id)


@router.post("/{id:path}/cancel", openapi_extra=_ACT)
async def cancel_run(request: Request, run: RunId, order: shapes.ReasonOrder | None = None) -> shapes.Run:
    """Ask a run to stop; its workflow may clean up. Cancelling an ended run changes nothing."""
    found = await seen_run(request, run)
    await hub_of(request).orchestrator.cancel(found.id, order.reason if order is not None else "")
    return await _now(hub_of(request), found.id)


@router.post("/{id:path}/pause", openapi_extra=_ACT)
async def pause_run(request: Request, run: RunId, order: shapes.ReasonOrder | None = None) -> shapes.Run:
    """Let running attempts finish, and hold everything else."""
    found = await seen_run(request, run)
    await hub_of(request).orchestrator.pause(found.id, order.reason if order is not None else "")
    return await _now(hub_of(request), found.id)


@router.post("/{id:path}/resume", openapi_extra=_ACT)
async def resume_run(request: Request, run: RunId, order: shapes.ResumeOrder | None = None) -> shapes.Run:
    """Let a paused or parked run go on."""
    found = await seen_run(request, run)
    limit: float | None = None
    if order is not None and order.budget is not None:
        text = str(order.budget).strip()
        limit = dollars(text.removeprefix("+"), what=f"budget of {found.id}")
        if text.startswith("+"):
            limit += found.budget_usd or 0.0
    await hub_of(request).orchestrator.resume(found.id, budget_usd=limit)
    return await _now(hub_of(request), found.id)


@router.post("/{id:path}/retry", openapi_extra=_ACT)
async def retry_run(request: Request, run: RunId) -> shapes.Run:
    """Take a failed run up again from the step that failed."""
    found = await seen_run(request, run)
    return hub_of(request).shown(await hub_of(request).orchestrator.retry(found.id))


@router.post("/{id:path}/fork", status_code=201, openapi_extra=_ACT)
async def fork_run(request: Request, run: RunId, order: shapes.ForkOrder) -> shapes.Run:
    """Start a new run that shares every recorded step before one, optionally with other input."""
    found = await seen_run(request, run)
    hub = hub_of(request)
    payload: Raw | None = None
    if order.input is not None:
        payload = Raw(hub.registry.workflow(found.workflow, found.entry).arguments.encode_input(order.input))
    return hub.shown(await hub.orchestrator.fork(found.id, order.step, payload=payload, id=order.id))


@router.delete("/{id:path}", openapi_extra=_ADMIN)
async def purge_run(request: Request, run: RunId) -> shapes.Count:
    """Delete an ended run with its history, for good."""
    found = await seen_run(request, run)
    if found.ended_at is None:
        raise Conflict(f"The run {found.id} is {found.status}; only ended runs can be deleted. Cancel it first.")
    return shapes.Count(count=await hub_of(request).orchestrator.purge(records.RunFilter(ids=(found.id,))))


@router.get("/{id:path}", openapi_extra=_LOOK)
async def get_run(request: Request, run: RunId) -> shapes.Run:
    """Return a run with its input, result and state."""
    return hub_of(request).shown(await seen_run(request, run))


async def _now(hub: Hub, id: str) -> shapes.Run:
    return hub.shown(await hub.orchestrator.get(id))
