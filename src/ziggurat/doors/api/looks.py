"""/workflows, /queues, /workers, /models, /costs: what surrounds the runs."""

from __future__ import annotations

import asyncio
import inspect
import types
import typing
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from ziggurat.artifacts import Artifact
from ziggurat.assembly import EndpointUse
from ziggurat.assembly.ledgers import ledger_files
from ziggurat.doors.api import shapes
from ziggurat.doors.api import system_shapes as views
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import Hub, hub_of, namespace_filter
from ziggurat.doors.api.runs import epoch
from ziggurat.errors import DefinitionError
from ziggurat.inference.ledger import CostFilter, Dimension, costs
from ziggurat.program.definitions import Workflow

router = APIRouter(route_class=Guarded, tags=["system"])

_LOOK, _SYSTEM = guarded("viewer"), guarded("viewer", system=True)


# -- workflows ------------------------------------------------------------------------------------------------------


@router.get("/workflows", openapi_extra=_LOOK)
async def list_workflows(request: Request) -> views.WorkflowList:
    """List the workflows that the server knows, with JSON schemas of what they take and return."""
    known = [one for one in hub_of(request).registry.workflows() if not one.name.startswith("ziggurat.")]
    return views.WorkflowList(workflows=[_workflow(one) for one in known])


@router.get("/workflows/{name}", openapi_extra=_LOOK)
async def get_workflow(request: Request, name: Annotated[str, Path(min_length=1, max_length=200)]) -> views.WorkflowView:
    """Return a workflow."""
    return _workflow(hub_of(request).registry.workflow(name))


def _workflow(workflow: Workflow[..., Any]) -> views.WorkflowView:
    options = workflow.options_
    try:
        taken, returned = workflow.arguments.json_schema(), workflow.result.json_schema()
    except (DefinitionError, ValueError, TypeError):
        taken = returned = {}  # A type that has a codec and no schema, such as one with validators of its own.
    return views.WorkflowView(
        name=workflow.name,
        entry=workflow.entry,
        description=(inspect.getdoc(workflow.fn) or "").partition("\n\n")[0],
        tags=options.tags,
        budget_usd=options.budget,
        input_schema=taken,
        result_schema=returned,
        file_parameters=file_parameters(workflow),
    )


def file_parameters(workflow: Workflow[..., Any]) -> list[str]:
    """Return the parameters that take a file: an Artifact, or one that may be left out."""
    return [name for name, type_ in workflow.hints.items() if name != "return" and _is_file(type_)]


def _is_file(type_: Any) -> bool:
    union = typing.get_origin(type_) in (typing.Union, types.UnionType)
    return type_ is Artifact or (union and Artifact in typing.get_args(type_))


# -- queues and workers ---------------------------------------------------------------------------------------------


@router.get("/queues", openapi_extra=_SYSTEM)
async def list_queues(request: Request) -> views.QueueList:
    """List queues with what they hold now."""
    hub = hub_of(request)
    depths, workers = await hub.queue.depth(), await hub.queue.workers()
    found = [
        views.QueueView(
            name=name,
            ready=depth.ready,
            leased=depth.leased,
            delayed=depth.delayed,
            dead=depth.dead,
            oldest_age=depth.oldest_age,
            workers=sum(name in worker.queues and not worker.draining for worker in workers),
            ended={worker.worker: worker.ended_in[name] for worker in workers if name in worker.ended_in},
        )
        for name, depth in sorted(depths.items())
    ]
    return views.QueueList(at=shapes.moment(hub.clock.time()), queues=found)


@router.get("/workers", openapi_extra=_SYSTEM)
async def list_workers(request: Request) -> views.WorkerList:
    """List the workers that are alive."""
    found = [
        views.WorkerView(
            name=worker.worker,
            pool=worker.pool,
            host=worker.host,
            pid=worker.pid,
            queues=list(worker.queues),
            region=worker.region,
            slots=worker.slots,
            busy=worker.busy,
            running=worker.running,
            draining=worker.draining,
            trouble=worker.trouble,
            ended=worker.ended,
            ended_in=worker.ended_in,
            metrics=worker.metrics,
            started_at=shapes.moment(worker.started_at),
            seen_at=shapes.moment(worker.seen_at),
        )
        for worker in await hub_of(request).queue.workers()
    ]
    return views.WorkerList(workers=found)


# -- models and costs -----------------------------------------------------------------------------------------------


@router.get("/models", openapi_extra=_SYSTEM)
async def list_models(request: Request) -> views.ModelList:
    """List the models with their routes: health as it stands in this process, calls of all that call the endpoint."""
    hub = hub_of(request)
    models = hub.system.models
    if models is None:
        return views.ModelList(models=[])
    uses = {one.endpoint: one for one in (await asyncio.to_thread(hub.standing.limits)).endpoints}
    return views.ModelList(
        models=[
            views.ModelView(
                alias=alias,
                routes=[_route(hub, route, uses.get(route.endpoint)) for route in models.routes(alias)],
                weights=config.weights,
                shadow=config.shadow,
                version=config.version,
            )
            for alias in models.aliases()
            if (config := models.config(alias)) is not None
        ]
    )


def _route(hub: Hub, route: Any, use: EndpointUse | None) -> views.RouteView:
    endpoint = hub.settings.inference.endpoints.get(route.endpoint)
    limits = {} if endpoint is None else {k: float(v) for k, v in endpoint.limits.model_dump().items() if v is not None}
    key = endpoint.api_key if endpoint is not None else None
    return views.RouteView(
        endpoint=route.endpoint,
        upstream=route.upstream,
        base_url=endpoint.base_url or ", ".join(replica.url for replica in route.replicas) if endpoint is not None else "",
        breaker=route.breaker,
        cooling=max(route.cooling, use.cooling if use is not None else 0.0),
        in_flight=max(route.in_flight, use.in_flight if use is not None else 0),
        waiting=max(route.waiting, sum(use.waiting.values()) if use is not None else 0),
        input_usd_per_million=route.per_million[0] if route.per_million is not None else None,
        output_usd_per_million=route.per_million[1] if route.per_million is not None else None,
        usd_per_hour=route.per_hour,
        region=route.region,
        quality=route.quality or None,
        context=route.context or None,
        replicas=[
            views.ReplicaView(
                url=replica.url,
                health=replica.health,
                in_flight=replica.in_flight,
                running=replica.running,
                waiting=replica.waiting,
                trouble=replica.trouble,
            )
            for replica in route.replicas
        ],
        limits=limits,
        has_key=key is None or key.present(),
    )


@router.get("/costs", openapi_extra=_LOOK)
async def list_costs(
    request: Request,
    by: Annotated[list[Dimension] | None, Query(description="Dimensions to group by; may be repeated.", max_length=3)] = None,
    since: Annotated[datetime | None, Query(description="Calls made at that moment or later.")] = None,
    until: Annotated[datetime | None, Query(description="Calls made before that moment.")] = None,
    workflow: str = "",
    model: str = "",
    run: str = "",
    namespace: str = "",
) -> views.CostList:
    """Return what model calls cost, in groups, the dearest first."""
    hub = hub_of(request)
    dimensions = list(by or ["workflow"])
    where = CostFilter(
        since=epoch(since),
        until=epoch(until),
        workflow=workflow,
        model=model,
        run=run,
        namespace=namespace_filter(request, namespace),
    )
    rows = await asyncio.to_thread(costs, ledger_files(hub.settings), dimensions, where)
    found = [
        views.CostView(
            group=dict(zip(dimensions, row.group, strict=True)),
            **{name: getattr(row, name) for name in row.__struct_fields__ if name != "group"},
        )
        for row in rows
    ]
    return views.CostList(by=dimensions, costs=found, total_usd=sum(row.cost_usd for row in rows))
