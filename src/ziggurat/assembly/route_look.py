"""Where models are served, as people ask: prices, regions, qualities, and whether replicas are well, without a running system."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

from ziggurat.assembly.endpoints import build_endpoint, price_of
from ziggurat.inference.interface import Endpoint, ReplicaView
from ziggurat.inference.prices import tariff
from ziggurat.inference.replicas import Replicated
from ziggurat.settings import Settings


class RouteStanding(Struct, frozen=True, kw_only=True):
    """What is known of a route."""

    region: str = ""
    #: From 1 to 5; 0 if nobody said.
    quality: int = 0
    #: US dollars for a million tokens of input and of output; None if nobody knows.
    per_million: tuple[float, float] | None = None
    #: US dollars for an hour of all replicas; 0 for what is paid by tokens.
    per_hour: float = 0.0
    #: Names the table that the price came from.
    price_version: str = ""
    replicas: list[ReplicaView] = []


async def look_at_routes(settings: Settings, routes: list[tuple[str, str]]) -> list[RouteStanding]:
    """Describe routes, each the alias and "endpoint:upstream", in their order. Looks at the replicas of those that have several."""
    wanted = settings.inference
    names = dict.fromkeys(route.partition(":")[0] for _, route in routes)
    endpoints = {name: build_endpoint(name, wanted.endpoints[name]) for name in names if name in wanted.endpoints}
    try:
        await asyncio.gather(*(e.look_at_all() for e in endpoints.values() if isinstance(e, Replicated)))
        return await asyncio.to_thread(lambda: [_standing(settings, endpoints, alias, route) for alias, route in routes])
    finally:
        for endpoint in endpoints.values():
            await endpoint.close()


def _standing(settings: Settings, endpoints: dict[str, Endpoint], alias: str, route: str) -> RouteStanding:
    name, _, upstream = route.partition(":")
    endpoint, model = endpoints.get(name), settings.inference.models.get(alias)
    if endpoint is None:
        return RouteStanding()
    config = endpoint.config
    alias_price = price_of(model.prices) if model is not None and model.prices is not None else None
    found = tariff(config, upstream, alias_price=alias_price, free=endpoint.free(upstream))
    return RouteStanding(
        region=config.region,
        quality=config.rated(upstream),
        per_million=found.per_million(time.time()),
        per_hour=config.price_per_hour * config.replicas,
        price_version=found.version,
        replicas=endpoint.replicas(),
    )
