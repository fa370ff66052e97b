"""/schedules: workflows that start by themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from msgspec.structs import replace
from pydantic import Field, ValidationError

from ziggurat import records
from ziggurat.assembly import schedule_of
from ziggurat.doors.api import shapes
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import caller_of, hub_of, namespace_of
from ziggurat.doors.api.runs import epoch
from ziggurat.errors import ConfigurationError, Conflict, InvalidData, UnknownName
from ziggurat.orchestrator.schedules import next_moment
from ziggurat.settings import ScheduleSettings

router = APIRouter(prefix="/schedules", route_class=Guarded, tags=["schedules"])

_LOOK, _ACT = guarded("viewer"), guarded("operator")
#: Moments that are shown of each schedule.
_SHOWN = 5

ScheduleName = Annotated[str, Path(alias="name", min_length=1, max_length=100)]
Span = float | Annotated[str, Field(max_length=50)]


class ScheduleView(shapes.Answer):
    """A schedule, and how it went so far."""

    name: str
    workflow: str
    input: shapes.Json
    cron: list[str]
    every: float | None = Field(description="Seconds.")
    timezone: str
    jitter: float
    overlap: records.Overlap
    catch_up: float
    namespace: str
    tags: dict[str, str]
    budget_usd: float | None
    origin: Literal["settings", "hand"]
    paused: bool
    reason: str
    last_run: str
    waiting: datetime | None = Field(description="The moment that waits for the last run to end.")
    skipped: int = Field(description="Moments that were passed over because a run was going on.")
    error: str = Field(description="Why the last moment started nothing, if it failed to.")
    next: list[datetime] = Field(description="The next moments; none while it is paused.")


class ScheduleList(shapes.Answer):
    schedules: list[ScheduleView]


class ScheduleOrder(shapes.Order):
    """The wish for a schedule; it needs `cron`, `every` or both."""

    workflow: shapes.Name
    input: dict[str, Any] = Field({})
    cron: list[Annotated[str, Field(max_length=200)]] = Field([], max_length=20)
    every: Span | None = Field(None, description='Seconds, or text such as "15m".')
    timezone: Annotated[str, Field(max_length=100)] = "UTC"
    jitter: Span = 0.0
    overlap: records.Overlap = "skip"
    catch_up: Span = 3600.0
    namespace: shapes.Name | None = None
    tags: dict[shapes.Name, shapes.Line] = Field({})
    budget: float | shapes.Line | None = None


class BackfillOrder(shapes.Order):
    """A run for each moment of [since, until) that has none yet."""

    since: datetime
    until: datetime


@router.get("", openapi_extra=_LOOK)
async def list_schedules(request: Request) -> ScheduleList:
    """List schedules by name."""
    who = caller_of(request)
    found = await hub_of(request).orchestrator.schedules.list()
    return ScheduleList(schedules=[_view(one) for one in found if who.sees(one.namespace)])


@router.get("/{name}", openapi_extra=_LOOK)
async def get_schedule(request: Request, name: ScheduleName) -> ScheduleView:
    """Return a schedule."""
    return _view(await _seen(request, name))


@router.put("/{name}", openapi_extra=_ACT)
async def put_schedule(request: Request, name: ScheduleName, order: ScheduleOrder) -> ScheduleView:
    """Make a schedule, or change the one of that name; how it went so far is kept."""
    hub = hub_of(request)
    there = [one for one in await hub.orchestrator.schedules.list() if one.name == name]
    if there and not caller_of(request).sees(there[0].namespace):
        raise Conflict(f"The name {name!r} is taken; choose another.")
    if there and there[0].origin == "settings":
        raise Conflict(f"The schedule {name!r} stands in the settings, [schedules.{name}]; change it there.")
    # By its name, and never by "module:name": a caller over the network does not choose what is imported here.
    workflow = hub.registry.workflow(order.workflow)
    try:
        wanted = ScheduleSettings.model_validate({**order.model_dump(exclude={"namespace"}), "workflow": workflow.name})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidData(f"{first['loc'][0]}: {first['msg'].removeprefix('Value error, ').rstrip('.')}.") from error
    schedule = schedule_of(name, wanted, hub.settings, hub.registry, origin="hand")
    namespace = namespace_of(request, order.namespace)
    kept = await hub.orchestrator.schedules.put(replace(schedule, namespace=namespace))
    return _view(kept)


@router.delete("/{name}", status_code=204, openapi_extra=_ACT, response_class=Response)
async def remove_schedule(request: Request, name: ScheduleName) -> Response:
    """Forget a schedule; its runs go on. One of the settings comes back when the server starts again."""
    found = await _seen(request, name)
    await hub_of(request).orchestrator.schedules.remove(found.name)
    return Response(status_code=204)


@router.post("/{name}/pause", openapi_extra=_ACT)
async def pause_schedule(request: Request, name: ScheduleName, order: shapes.ReasonOrder) -> ScheduleView:
    """Start nothing until resume."""
    found = await _seen(request, name)
    await hub_of(request).orchestrator.schedules.pause(found.name, order.reason)
    return _view(await _seen(request, name))


@router.post("/{name}/resume", openapi_extra=_ACT)
async def resume_schedule(request: Request, name: ScheduleName) -> ScheduleView:
    """Go on from now; moments that passed meanwhile are not made up."""
    found = await _seen(request, name)
    await hub_of(request).orchestrator.schedules.resume(found.name)
    return _view(await _seen(request, name))


@router.post("/{name}/trigger", status_code=201, openapi_extra=_ACT)
async def trigger_schedule(request: Request, name: ScheduleName) -> shapes.Run:
    """Start a run now, whatever else is running."""
    found = await _seen(request, name)
    return hub_of(request).shown(await hub_of(request).orchestrator.schedules.trigger(found.name))


@router.post("/{name}/backfill", openapi_extra=_ACT)
async def backfill_schedule(request: Request, name: ScheduleName, order: BackfillOrder) -> shapes.Count:
    """Start a run for each past moment that has none; counts the moments."""
    found = await _seen(request, name)
    since, until = epoch(order.since) or 0.0, epoch(order.until) or 0.0
    return shapes.Count(count=await hub_of(request).orchestrator.schedules.backfill(found.name, since, until))


async def _seen(request: Request, name: str) -> records.Schedule:
    """Return a schedule that the caller may see. Raises UnknownName."""
    for found in await hub_of(request).orchestrator.schedules.list():
        if found.name == name and caller_of(request).sees(found.namespace):
            return found
    raise UnknownName(f"There is no schedule {name!r}; GET /api/v1/schedules lists those that there are.")


def _view(schedule: records.Schedule) -> ScheduleView:
    moments: list[datetime] = []
    at = None if schedule.paused else schedule.next_at
    while at is not None and len(moments) < _SHOWN:
        moments += [found] if (found := shapes.moment(at)) is not None else []
        at = next_moment(schedule, at)
    try:
        input = shapes.value_of(schedule.payload)
    except (ConfigurationError, ValueError):  # Encrypted with a key that is not known here.
        input = None
    return ScheduleView(
        **{name: getattr(schedule, name) for name in _COPIED},
        input=input,
        waiting=shapes.moment(schedule.waiting),
        next=moments,
    )


_COPIED = (
    "name", "workflow", "cron", "every", "timezone", "jitter", "overlap", "catch_up", "namespace", "tags", "budget_usd", "origin",
    "paused", "reason", "last_run", "skipped", "error",
)  # fmt: skip
