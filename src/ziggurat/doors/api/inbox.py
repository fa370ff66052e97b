"""/approvals and /deadletters: what waits for a person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from ziggurat import records
from ziggurat.doors.api import shapes
from ziggurat.doors.api import system_shapes as views
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import Hub, caller_of, hub_of, namespace_filter
from ziggurat.errors import ConfigurationError, InvalidData, UnknownName
from ziggurat.program.primitives import awaited_type

router = APIRouter(route_class=Guarded, tags=["inbox"])

#: More letters than a state file holds.
_EVERY = 10_000_000


@router.get("/approvals", openapi_extra=guarded("viewer"))
async def list_approvals(
    request: Request,
    workflow: str = "",
    namespace: str = "",
    limit: Annotated[int, Query(ge=1, le=200, description="Waiting runs of a page.")] = 50,
    after: Annotated[str, Query(max_length=1000, description="The `next` of the page before.")] = "",
) -> views.ApprovalList:
    """List runs that wait for a signal, each with the schema of its value, newest first. Answer with POST /runs/{id}/signal."""
    hub = hub_of(request)
    where = records.RunFilter(
        workflow=workflow, namespace=namespace_filter(request, namespace), awaiting=True, limit=limit, after=after
    )
    waiting = await hub.orchestrator.list(where)
    found = [one for run in waiting for one in await _approvals(hub, run)]
    return views.ApprovalList(approvals=found, next=waiting[-1].id if len(waiting) == limit else None)


async def _approvals(hub: Hub, run: records.Run) -> list[views.Approval]:
    """Return what a run waits for. A list shows no input, and a state file of before has no notes of signals: both are looked up."""
    try:
        whole = await hub.orchestrator.get(run.id)
        awaited = run.awaits or [
            records.Awaited(step.step, step.name, step.requested_at)
            for step in await hub.orchestrator.steps(run.id)
            if step.kind == "signal" and step.status == "waiting"
        ]
    except UnknownName:
        return []  # It is gone meanwhile.
    return [_approval(whole, one) for one in awaited] if whole.ended_at is None else []


def _approval(run: records.Run, awaited: records.Awaited) -> views.Approval:
    codec = awaited_type(run.workflow, awaited.signal)
    return views.Approval(
        run=run.id,
        workflow=run.workflow,
        namespace=run.namespace,
        tags=run.tags,
        signal=awaited.signal,
        step=awaited.step,
        since=shapes.moment(awaited.since),
        value_schema=codec.json_schema() if codec is not None else {},
        state=shapes.value_of(run.state),
        input=shapes.value_of(run.payload),
    )


@router.get("/deadletters", openapi_extra=guarded("viewer"))
async def list_dead_letters(
    request: Request, namespace: str = "", limit: Annotated[int, Query(ge=1, le=10_000)] = 100
) -> views.DeadLetterList:
    """List messages that their queue gave up, newest first, each with its reason."""
    return views.DeadLetterList(dead_letters=[_letter(one) for one in (await _letters(request, namespace))[:limit]])


@router.post("/deadletters/redrive", openapi_extra=guarded("operator"))
async def redrive_dead_letters(request: Request, order: views.LettersOrder) -> shapes.Count:
    """Give dead letters another chance: their runs are taken up from those steps. Counts the runs."""
    return shapes.Count(count=await hub_of(request).orchestrator.redrive(await _meant(request, order)))


@router.post("/deadletters/discard", openapi_extra=guarded("operator"))
async def discard_dead_letters(request: Request, order: views.LettersOrder) -> shapes.Count:
    """Forget dead letters; their runs stay failed."""
    return shapes.Count(count=await hub_of(request).orchestrator.discard(await _meant(request, order)))


async def _letters(request: Request, namespace: str = "") -> list[records.DeadLetter]:
    """Return the dead letters that the caller may see. A tenant's are few among all, so that all are looked through."""
    wanted, who = namespace_filter(request, namespace), caller_of(request)
    letters = await hub_of(request).orchestrator.dead_letters(_EVERY)
    return [one for one in letters if who.sees(one.message.lane.namespace) and wanted in ("", one.message.lane.namespace)]


async def _meant(request: Request, order: views.LettersOrder) -> list[str]:
    if bool(order.ids) == order.all:
        raise InvalidData('Say which dead letters: {"ids": […]}, or {"all": true}.')
    known = [letter.id for letter in await _letters(request)]
    if unknown := sorted(set(order.ids) - set(known)):
        raise UnknownName(f"There is no dead letter {unknown[0]!r}; GET /api/v1/deadletters lists those that there are.")
    return list(order.ids or known)


def _letter(letter: records.DeadLetter) -> views.DeadLetterView:
    message = letter.message
    try:
        shown = shapes.value_of(message.payload)
    except (ConfigurationError, ValueError):
        shown = None
    return views.DeadLetterView(
        id=letter.id,
        task=message.task,
        run=message.run,
        workflow=message.workflow,
        step=message.step,
        attempt=message.attempt,
        queue=message.lane.queue,
        namespace=message.lane.namespace,
        priority=message.lane.priority,
        reason=letter.reason,
        deliveries=letter.deliveries,
        died_at=shapes.moment(letter.died_at),
        input=shown,
    )
