"""Routes: where an alias is served, what is known of each place, and the pure choice among them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from msgspec import Struct

from ziggurat.clock import Clock
from ziggurat.errors import ConfigurationError, InferenceError, ModelNotFound, UnknownName
from ziggurat.inference import capabilities as table
from ziggurat.inference.interface import Capabilities, CapabilityOverrides, Endpoint, Limits, ModelConfig, Price, ReplicaView
from ziggurat.inference.limits.gate import Gate
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.inference.metering import Meter
from ziggurat.inference.policies import COMPARED_INPUT, COMPARED_OUTPUT, Pace, quickest_first
from ziggurat.inference.prices import UNPRICED, Tariff, tariff
from ziggurat.inference.retrying import Breaker, RetryBudget, RetryOptions

#: A route that only waits for its own short back-off is waited for, rather than left for the next: the next may be another model.
HOLD_SECONDS = 1.0


class Lane:
    """What all routes to one endpoint share: its gate, its retry budget and the meter of its hourly price."""

    __slots__ = ("budget", "endpoint", "gate", "meter")

    def __init__(
        self,
        endpoint: Endpoint,
        clock: Clock,
        options: RetryOptions,
        rng: random.Random,
        keeper: Keeper,
        tenants: Mapping[str, Limits],
    ) -> None:
        self.endpoint = endpoint
        config = endpoint.config
        self.gate = Gate(config.name, config.limits, clock, rng, keeper, models=config.model_limits, tenants=tenants)
        self.meter = Meter(config.price_per_hour * config.replicas, lambda: keeper.holders)
        self.budget = RetryBudget(options.budget_ratio, options.budget_floor, options.budget_window)


class Route:
    """One upstream model of one endpoint, as one alias uses it. Breaker and pace are shared by all aliases that use the model."""

    __slots__ = ("_tariff", "breaker", "capabilities", "lane", "name", "pace", "price", "upstream")

    def __init__(
        self, lane: Lane, upstream: str, breaker: Breaker, pace: Pace, capabilities: Capabilities, price: Price | None
    ) -> None:
        self.lane, self.upstream, self.breaker, self.pace = lane, upstream, breaker, pace
        self.capabilities, self.price = capabilities, price
        self.name = f"{lane.endpoint.name}:{upstream}"
        self._tariff: Tariff | None = None

    @property
    def tariff(self) -> Tariff:
        """How the route is billed."""
        if self._tariff is None:
            endpoint = self.lane.endpoint
            self._tariff = tariff(endpoint.config, self.upstream, alias_price=self.price, free=endpoint.free(self.upstream))
        return self._tariff

    def cost(self, at: float) -> float | None:
        """Return what the compared call costs here, in US dollars, or None if nobody knows. After `prepare`."""
        tariff = self.tariff
        return None if tariff.version == UNPRICED else tariff.estimate(COMPARED_INPUT, COMPARED_OUTPUT, at)

    @property
    def region(self) -> str:
        """Where the endpoint is; empty if nobody said."""
        return self.lane.endpoint.config.region

    @property
    def quality(self) -> int:
        """How good the model is, from 1 to 5; 0 if nobody said."""
        return self.lane.endpoint.config.rated(self.upstream)

    @property
    def context(self) -> int:
        """Tokens that the prompt and the answer may have together; 0 if unknown."""
        return self.capabilities.context or self.lane.endpoint.context(self.upstream)

    async def prepare(self) -> None:
        """Look the tariff up before the first call, in a thread: a price library may take half a second to import."""
        if self._tariff is None:
            await asyncio.to_thread(lambda: self.tariff)


class RouteView(Struct, frozen=True, kw_only=True):
    """A route as people look at it."""

    endpoint: str
    upstream: str
    capabilities: Capabilities
    #: US dollars for a million tokens; None if a library prices it at each call, or nobody does.
    price: Price | None
    price_version: str
    #: "closed" is well, "open" is not called, "half-open" is being tried.
    breaker: str
    #: Seconds for which the endpoint is left alone after a 429.
    cooling: float
    in_flight: int
    waiting: int
    #: Where the endpoint is, and how good the model is from 1 to 5; empty and 0 if nobody said.
    region: str = ""
    quality: int = 0
    #: Tokens that the prompt and the answer may have together; 0 if unknown.
    context: int = 0
    #: The places among which an endpoint balances its calls; none for an endpoint of one place.
    replicas: list[ReplicaView] = []
    #: US dollars for a million tokens of input and of output at this hour; None if nobody knows.
    per_million: tuple[float, float] | None = None
    #: US dollars for an hour of all replicas; 0 for what is paid by tokens.
    per_hour: float = 0.0


class Routes:
    """The table of aliases. Replaced as a whole, so that a call sees the old table or the new one and nothing between."""

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        models: Mapping[str, ModelConfig],
        clock: Clock,
        options: RetryOptions,
        rng: random.Random,
        keeper: Keeper,
        tenants: Mapping[str, Limits],
    ) -> None:
        self.endpoints = dict(endpoints)
        self.lanes = {name: Lane(endpoint, clock, options, rng, keeper, tenants) for name, endpoint in endpoints.items()}
        self._breakers: dict[str, Breaker] = {}
        self._paces: dict[str, Pace] = {}
        self._direct: dict[str, list[Route]] = {}
        self._aliases: dict[str, list[Route]] = {}
        self._models: dict[str, ModelConfig] = {}
        self._rng, self._clock = rng, clock
        self.set_models(models)

    def set_models(self, models: Mapping[str, ModelConfig]) -> None:
        """Point the aliases anew. What is known of endpoints and their models stays. Raises UnknownName."""
        aliases = {alias: [self._route(alias, r, model) for r in model.routes] for alias, model in models.items()}
        for alias, model in models.items():
            if model.shadow:
                self._route(alias, model.shadow, model)  # So that one that means nothing is refused here.
        self._aliases, self._models = aliases, dict(models)

    def aliases(self) -> list[str]:
        """Return the configured aliases."""
        return list(self._aliases)

    def pick(self, model: str) -> tuple[list[Route], ModelConfig | None]:
        """Return the routes in the order in which a call tries them, and what the alias means now.

        By its share one route comes first; the others follow as they stand. Raises ModelNotFound.
        """
        routes, config = self.of(model), self._models.get(model)
        if config is None or len(routes) < 2:
            return routes, config
        if len(config.weights) != len(routes):
            if config.policy == "latency":
                routes = quickest_first(routes, [route.pace for route in routes], self._rng)
            return routes, config
        (first,) = self._rng.choices(range(len(routes)), config.weights)
        return [routes[first], *routes[:first], *routes[first + 1 :]], config

    def config(self, model: str) -> ModelConfig | None:
        """Return what an alias means now; None for a route that is named directly."""
        return self._models.get(model)

    def of(self, model: str) -> list[Route]:
        """Return the routes of an alias, or of "endpoint:upstream" named directly. Raises ModelNotFound."""
        found = self._aliases.get(model) or self._direct.get(model)
        if found is not None:
            return found
        endpoint, colon, _ = model.partition(":")
        if colon and endpoint in self.lanes:
            self._direct[model] = found = [self._route(model, model, ModelConfig(routes=[model]))]
            return found
        known = ", ".join(sorted(self._aliases)) or "none"
        raise ModelNotFound(
            f"There is no model {model!r}. The configured aliases are: {known}. Add [inference.models.{model}] to ziggurat.toml, or name "
            'a route directly, such as "local:smollm2".',
            model=model,
        )

    def views(self, model: str, now: float) -> list[RouteView]:
        """Return the routes of an alias for people. Raises ModelNotFound."""
        return [
            RouteView(
                endpoint=r.lane.endpoint.name,
                upstream=r.upstream,
                capabilities=r.capabilities,
                price=r.tariff.price,
                price_version=r.tariff.version,
                breaker=r.breaker.state(now),
                cooling=r.lane.gate.cooling(),
                in_flight=r.lane.gate.in_flight,
                waiting=r.lane.gate.waiting,
                region=r.region,
                quality=r.quality,
                context=r.context,
                replicas=r.lane.endpoint.replicas(),
                per_million=r.tariff.per_million(self._clock.time()),
                per_hour=r.lane.endpoint.config.price_per_hour * r.lane.endpoint.config.replicas,
            )
            for r in self.of(model)
        ]

    def standing(self, now: float) -> tuple[dict[str, tuple[int, int]], dict[tuple[str, str], str]]:
        """Return calls under way and waiting by endpoint, and the breaker's state by endpoint and upstream model."""
        calls = {name: (lane.gate.in_flight, lane.gate.waiting) for name, lane in self.lanes.items()}
        breakers: dict[tuple[str, str], str] = {}
        for text, breaker in list(self._breakers.items()):
            endpoint, _, upstream = text.partition(":")
            breakers[endpoint, upstream] = breaker.state(now)
        return calls, breakers

    def _route(self, alias: str, text: str, model: ModelConfig) -> Route:
        name, _, upstream = text.partition(":")
        lane = self.lanes.get(name)
        if lane is None:
            known = ", ".join(sorted(self.lanes)) or "none"
            raise UnknownName(
                f"The model {alias!r} has the route {text!r}, and there is no endpoint {name!r}; the endpoints are: {known}."
            )
        known_of = lane.endpoint.capabilities(upstream)
        corrected = table.corrected(known_of, model.capabilities) if model.capabilities != CapabilityOverrides() else known_of
        breaker = self._breakers.setdefault(text, Breaker())
        pace = self._paces.setdefault(text, Pace())
        return Route(lane, upstream, breaker, pace, corrected, model.price)


class Standing:
    """What one call has learned of one route."""

    __slots__ = ("asked", "asked_with", "attempts", "error", "limited", "not_before", "out", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.attempts = self.limited = 0
        #: Back-off of this call.
        self.not_before = 0.0
        #: True once the call is done with the route.
        self.out = False
        self.error: InferenceError | ConfigurationError | None = None
        self.asked = False
        #: The capabilities that the last attempt was shaped to.
        self.asked_with = route.capabilities

    def wait(self, now: float) -> float:
        """Return the seconds until this call may try the route."""
        return max(self.not_before - now, self.route.breaker.wait(now), self.route.lane.gate.cooling(), 0.0)


def choose(standings: list[Standing], now: float) -> tuple[Standing | None, float]:
    """Return the route to try and the seconds to wait before; None if no route is left.

    The first in order that is ready; one that waits briefly for its own back-off holds its place; if none is ready, the one that is
    soonest.
    """
    soonest: Standing | None = None
    shortest = 0.0
    for standing in standings:
        if standing.out:
            continue
        wait = standing.wait(now)
        if wait <= 0:
            return standing, 0.0
        if standing.attempts and wait <= HOLD_SECONDS:
            return standing, wait
        if soonest is None or wait < shortest:
            soonest, shortest = standing, wait
    return soonest, shortest
