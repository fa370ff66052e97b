"""/limits and /budgets: what may be used and spent, and how much of it is."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from ziggurat import records
from ziggurat.assembly import BudgetUse, EndpointUse, LimitUse
from ziggurat.doors.api import shapes
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import Hub, caller_of, hub_of, namespace_filter
from ziggurat.doors.api.keys import EVERY

router = APIRouter(route_class=Guarded, tags=["system"])
_LOOK = guarded("viewer")

#: Parked runs, and live ones that may have a budget, looked through for one answer, the newest first.
PARKED_MOST, LIVE_MOST = 1000, 500
_SPENT = "ziggurat.errors.BudgetExceeded"


class LimitView(shapes.Answer):
    """A limit, and how much of it is in use."""

    whose: Literal["endpoint", "model", "tenant", "key"]
    endpoint: str = Field(description="Of an endpoint and of a model; empty for a tenant and a gateway key, which hold over all.")
    name: str = Field(description="Of the endpoint, the upstream model, the namespace or the gateway key.")
    what: Literal["tokens", "requests", "calls"] = Field(
        description='"tokens" and "requests" are of a minute, "calls" are at a time.'
    )
    limit: float
    used: float = Field(description="Used within the last minute, or under way now; what was taken in advance counts.")
    free: float = Field(description="The share that may be drawn at once, from 0 to 1; at 0 calls wait.")


class EndpointUseView(shapes.Answer):
    """What all processes together have at an endpoint; as old as their last sign of life, two seconds at most."""

    endpoint: str
    in_flight: int
    waiting: dict[str, int] = Field(description="Calls that wait, by priority, 1 first.")
    cooling: float = Field(description="Seconds for which it is left alone after a 429.")
    learned: float | None = Field(description="Calls at a time that 429s have taught, over all processes; null where none did.")
    processes: int = Field(description="Processes that call it.")


class LimitList(shapes.Answer):
    at: datetime | None
    endpoints: list[EndpointUseView]
    limits: list[LimitView]
    trouble: str = Field(description="Why the limit store could not be looked at; empty if it could.")


class BudgetView(shapes.Answer):
    """A budget of the settings."""

    key: str = Field(description='"call", "step", "day", "workflow:NAME" or "tenant:NAMESPACE".')
    kind: Literal["call", "step", "day", "workflow", "tenant"]
    name: str
    limit_usd: shapes.Cost
    soft_usd: float = Field(description="US dollars from which on the cheaper model is asked, where one is named.")
    spent_usd: float = Field(description="US dollars spent in its window; 0 for a call and a step, which have one window each.")
    reserved_usd: float = Field(description="US dollars that calls under way have reserved.")
    renews_at: datetime | None = Field(
        description="When its window ends: 00:00 UTC for those of a day; null for a call and a step."
    )
    parked: int = Field(description="Runs that are parked because it is spent, among the newest thousand parked ones.")


class RunBudgetView(shapes.Answer):
    """A run that has a budget, or is parked because one is spent."""

    run: str
    workflow: str
    namespace: str
    status: records.RunStatus
    budget_usd: float | None = Field(description="Its own budget, in US dollars, for itself and its children.")
    spent_usd: float = Field(
        description="US dollars that its calls cost, and those of its children where the limit store has heard of them."
    )
    budget: str = Field(
        description='The budget that parked it: "run:ID" for its own or that of a parent, or the key of another; empty if none did.'
    )
    reason: str


class BudgetList(shapes.Answer):
    at: datetime | None
    budgets: list[BudgetView]
    runs: list[RunBudgetView] = Field(description="Parked ones first, then those that have spent the largest share.")
    downgrade: str = Field(
        description="The alias that is asked once the soft share of a budget is spent; empty if none is named."
    )


@router.get("/limits", openapi_extra=_LOOK)
async def list_limits(request: Request) -> LimitList:
    """List limits with what is in use of them, and what waits at each endpoint. A tenant sees its own limits."""
    hub, who = hub_of(request), caller_of(request)
    found = await asyncio.to_thread(hub.standing.limits)
    whole = who.namespace == EVERY
    return LimitList(
        at=shapes.moment(hub.clock.time()),
        endpoints=[_endpoint(one) for one in found.endpoints if whole],
        limits=[_limit(one) for one in found.limits if whole or (one.whose == "tenant" and one.name == who.namespace)],
        trouble=found.trouble,
    )


@router.get("/budgets", openapi_extra=_LOOK)
async def list_budgets(
    request: Request, namespace: str = "", limit: Annotated[int, Query(ge=1, le=1000, description="Runs at most.")] = 100
) -> BudgetList:
    """List budgets with what is spent of them and who is parked for them. A tenant sees its own, and its runs."""
    hub, who = hub_of(request), caller_of(request)
    wanted = namespace_filter(request, namespace)
    runs = await _runs(hub, wanted)
    tenants = {run.namespace for run in runs if run.budget} | ({who.namespace} - {EVERY})
    found = await asyncio.to_thread(hub.standing.budgets, sorted(tenants))
    parked: dict[str, int] = {}
    for run in runs:
        parked[run.budget] = parked.get(run.budget, 0) + 1
    # What a tenant may not see is what others spend: a call's limit is everybody's, a day's budget is spent by all.
    seen = [
        one for one in found if one.kind in ("call", "step") or who.namespace == EVERY or one.key == f"tenant:{who.namespace}"
    ]
    return BudgetList(
        at=shapes.moment(hub.clock.time()),
        budgets=[_budget(one, parked.get(one.key, 0)) for one in seen],
        runs=runs[:limit],
        downgrade=hub.settings.inference.budgets.downgrade,
    )


async def _runs(hub: Hub, namespace: str) -> list[RunBudgetView]:
    look = hub.orchestrator.list
    parked = await look(records.RunFilter(status=("parked",), namespace=namespace, limit=PARKED_MOST))
    live = await look(records.RunFilter(status=("pending", "running", "waiting", "paused"), namespace=namespace, limit=LIVE_MOST))
    limited = [run for run in [*parked, *live] if run.budget_usd is not None or budget_of(run)]
    trees = await asyncio.to_thread(hub.standing.spent_by, [run.id for run in limited if run.budget_usd is not None])
    views = [_run(run, trees.get(run.id, 0.0)) for run in limited]
    return sorted(views, key=lambda one: (not one.budget, -(one.spent_usd / one.budget_usd if one.budget_usd else 0.0)))


def budget_of(run: records.Run) -> str:
    """Return the budget that parked a run; empty if none did."""
    error = run.error
    if run.status != "parked" or error is None or error.type != _SPENT:
        return ""
    return error.budget or (f"run:{error.run_id}" if error.run_id else "unknown")


def _run(run: records.Run, spent: float) -> RunBudgetView:
    return RunBudgetView(
        run=run.id,
        workflow=run.workflow,
        namespace=run.namespace,
        status=run.status,
        budget_usd=run.budget_usd,
        spent_usd=max(run.usage.cost_usd, spent),
        budget=budget_of(run),
        reason=run.reason,
    )


def _limit(one: LimitUse) -> LimitView:
    return LimitView(**{name: getattr(one, name) for name in one.__struct_fields__})


def _endpoint(one: EndpointUse) -> EndpointUseView:
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    return EndpointUseView(**{**fields, "waiting": {str(priority): count for priority, count in one.waiting.items()}})


def _budget(one: BudgetUse, parked: int) -> BudgetView:
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    return BudgetView(**{**fields, "renews_at": shapes.moment(one.renews_at), "parked": parked})
