"""/models/{alias}: point an alias elsewhere, and take that back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import Field

from ziggurat.assembly import build_switches
from ziggurat.doors.api import shapes
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import Hub, caller_of, hub_of
from ziggurat.errors import InvalidData
from ziggurat.inference.switches import Book, Switch, check_routes, check_switch
from ziggurat.settings.demands import unserved

router = APIRouter(prefix="/models", route_class=Guarded, tags=["system"])

_LOOK, _ACT = guarded("viewer", system=True), guarded("operator", system=True)

Alias = Annotated[str, Path(alias="alias", min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f:]+$")]
RouteText = Annotated[str, Field(max_length=300, pattern=r"^[^:\s]+:\S+$")]


class SwitchOrder(shapes.Order):
    """Where an alias is served from now on."""

    routes: list[RouteText] = Field(min_length=1, max_length=20, description='"endpoint:upstream model", best first.')
    weights: list[Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        [], max_length=20, description="The share of calls that begin with each route, 1 together; none for all with the first."
    )
    shadow: RouteText | None = Field(None, description="A route that gets a copy of each whole call.")


class SwitchView(shapes.Answer):
    """A switch of an alias."""

    routes: list[str] = Field(description="None: it is what the settings say.")
    weights: list[float]
    shadow: str
    version: int = Field(description="Recorded with each call that it chose the route of.")
    at: datetime | None
    by: str


class SwitchList(shapes.Answer):
    """The switches of an alias, newest first; the first one holds."""

    switches: list[SwitchView]


@router.get("/{alias}/switches", openapi_extra=_LOOK)
async def list_switches(request: Request, alias: Alias) -> SwitchList:
    """List the switches of an alias, newest first."""
    return await _list(hub_of(request), alias, None)


@router.put("/{alias}", openapi_extra=_ACT)
async def switch_model(request: Request, alias: Alias, order: SwitchOrder) -> SwitchList:
    """Point an alias elsewhere. This process follows at once, workers and gateways within seconds."""
    hub = hub_of(request)
    switch = check_switch(Switch(routes=list(order.routes), weights=list(order.weights), shadow=order.shadow or ""))
    check_routes([*switch.routes, *([switch.shadow] if switch.shadow else [])], hub.settings.inference.endpoints)
    wanted = hub.settings.inference
    if said := unserved(alias, wanted.models.get(alias), switch.routes, wanted.endpoints):
        raise InvalidData(said)
    at, by = hub.clock.time(), caller_of(request).name
    return await _list(hub, alias, lambda book: book.switched(alias, switch, at=at, by=by))


@router.post("/{alias}/rollback", openapi_extra=_ACT)
async def roll_back_model(request: Request, alias: Alias) -> SwitchList:
    """Take the last switch of an alias back; past the first one it is what the settings say."""
    hub = hub_of(request)
    at, by = hub.clock.time(), caller_of(request).name
    return await _list(hub, alias, lambda book: book.rolled_back(alias, at=at, by=by))


async def _list(hub: Hub, alias: str, change: Callable[[Book], Book] | None) -> SwitchList:
    def look() -> Book:
        store = build_switches(hub.settings)
        try:
            return store.read() if change is None else store.change(change)
        finally:
            store.close()

    book = await asyncio.to_thread(look)
    models = hub.system.models
    if change is not None and models is not None and models.follower is not None:
        await asyncio.to_thread(models.follower.look)
    return SwitchList(switches=[_view(one) for one in book.aliases.get(alias, [])[::-1]])


def _view(switch: Switch) -> SwitchView:
    return SwitchView(
        routes=switch.routes,
        weights=switch.weights,
        shadow=switch.shadow,
        version=switch.version,
        at=shapes.moment(switch.at),
        by=switch.by,
    )
