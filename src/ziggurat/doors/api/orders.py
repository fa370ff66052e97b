"""/bulk: verbs for many runs at once."""

from __future__ import annotations

import secrets
from typing import Annotated, get_args

from fastapi import APIRouter, Path, Request
from msgspec.structs import replace

from ziggurat import records
from ziggurat.doors.api import shapes
from ziggurat.doors.api import system_shapes as views
from ziggurat.doors.api.bulk import BulkOrderRecord
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import caller_of, hub_of, namespace_filter
from ziggurat.doors.api.problems import Refused
from ziggurat.errors import InvalidData, UnknownName

router = APIRouter(prefix="/bulk", route_class=Guarded, tags=["runs"])

#: Runs of one order.
RUNS_MAX = 100_000


@router.post("", status_code=202, openapi_extra=guarded("operator"))
async def order_bulk(request: Request, order: views.BulkOrder) -> views.BulkView:
    """Order a verb for many runs. It is written down, then carried out, after a restart too; GET /bulk/{id} tells how far it is."""
    who, hub = caller_of(request), hub_of(request)
    if order.verb == "purge" and not who.may("admin"):
        raise Refused(403, "Forbidden", f"Deleting runs needs the role admin, and {who.name!r} has the role {who.role}.")
    if order.ids and (order.status or order.workflow or order.tags or order.search):
        raise InvalidData("Name the runs by `ids`, or by what they match, and not by both.")
    if not order.ids and not (order.status or order.workflow or order.tags or order.search):
        raise InvalidData("Name the runs: by `ids`, or by `status`, `workflow`, `tags` or `search`.")
    known = get_args(records.RunStatus)
    for status in order.status:
        if status not in known:
            raise InvalidData(f"There is no status {status!r}; the statuses are: {', '.join(known)}.")
    where = records.RunFilter(
        status=tuple(order.status),
        workflow=order.workflow,
        tags=dict(order.tags),
        search=order.search,
        namespace=namespace_filter(request, order.namespace or ""),
        limit=1000,
    )
    runs = await _matching(request, where, order.ids)
    namespace = who.namespace
    made = await hub.bulk.order(
        order.id or f"bulk-{secrets.token_hex(8)}", order.verb, runs, namespace=namespace, actor=who.name, reason=order.reason
    )
    return bulk_view(made)


async def _matching(request: Request, where: records.RunFilter, ids: list[str]) -> list[str]:
    """Return the ids of runs that match, or of those named: only runs that the caller may see. Raises UnknownName."""
    orchestrator = hub_of(request).orchestrator
    found: list[str] = []
    if ids:
        for at in range(0, len(ids), 500):
            part = tuple(ids[at : at + 500])
            seen = {run.id for run in await orchestrator.list(replace(where, ids=part))}
            if missing := [id for id in part if id not in seen]:
                raise UnknownName(f"There is no run {missing[0]!r}; nothing was done to any.")
            found += part
        return found
    page = where
    while len(found) < RUNS_MAX and (runs := await orchestrator.list(page)):
        found += [run.id for run in runs]
        page = replace(page, after=runs[-1].id)
    return found[:RUNS_MAX]


@router.get("", openapi_extra=guarded("viewer"))
async def list_bulk(request: Request) -> views.BulkList:
    """List orders, newest first."""
    return views.BulkList(orders=[bulk_view(one) for one in hub_of(request).bulk.newest(namespace_filter(request, ""))])


@router.get("/{id}", openapi_extra=guarded("viewer"))
async def get_bulk(request: Request, order: Annotated[str, Path(alias="id", max_length=100)]) -> views.BulkView:
    """Return an order, and how far it has come."""
    found = hub_of(request).bulk.get(order)
    if found is None or not caller_of(request).sees(found.namespace):
        raise UnknownName(f"There is no bulk order {order!r}.")
    return bulk_view(found)


def bulk_view(order: BulkOrderRecord) -> views.BulkView:
    """Return an order in the shape that the API promises."""
    return views.BulkView(
        id=order.id,
        verb=order.verb,
        namespace=order.namespace,
        actor=order.actor,
        created_at=shapes.moment(order.created_at),
        ended_at=shapes.moment(order.ended_at),
        total=order.total,
        done=order.done,
        refused=order.refused,
        refusals=[views.BulkItem(run=run, outcome="refused", message=message) for run, message in order.refusals],
    )
