"""What the inference layer says of itself: the metrics of its calls, limits and breakers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol
from weakref import WeakSet

from ziggurat.records import CallRecord
from ziggurat.telemetry import catalogue

_STATES = {"closed": 0.0, "half-open": 1.0, "open": 2.0}


class Shown(Protocol):
    """What the gauges read of a router."""

    def standing(self) -> tuple[Mapping[str, tuple[int, int]], Mapping[tuple[str, str], str]]:
        """Return calls under way and waiting by endpoint, and the breaker's state by endpoint and upstream model."""


_routers: WeakSet[Shown] = WeakSet()


def show(router: Shown) -> None:
    """Let the gauges show a router for as long as it is there."""
    _routers.add(router)


def called(record: CallRecord) -> None:
    """Count one attempt at an endpoint."""
    endpoint, model, usage = record.endpoint, record.upstream, record.usage
    catalogue.CALLS.labels(endpoint, model, record.status).inc()
    catalogue.CALL_SECONDS.labels(endpoint, model).observe(record.latency)
    if record.first_token is not None:
        catalogue.FIRST_TOKEN.labels(endpoint, model).observe(record.first_token)
    for kind, tokens in (
        ("input", usage.input_tokens),
        ("output", usage.output_tokens),
        ("cached", usage.cached_tokens),
        ("reasoning", usage.reasoning_tokens),
    ):
        if tokens:
            catalogue.TOKENS.labels(endpoint, model, kind).inc(tokens)
    if usage.cost_usd:
        catalogue.COST.labels(endpoint, model).inc(usage.cost_usd)


def _endpoints() -> Iterable[tuple[str, tuple[int, int]]]:
    for router in list(_routers):
        yield from router.standing()[0].items()


def _breakers() -> dict[tuple[str, ...], float]:
    # Two routers over one endpoint: the worse state is shown.
    found: dict[tuple[str, ...], float] = {}
    for router in list(_routers):
        for key, state in router.standing()[1].items():
            found[key] = max(found.get(key, 0.0), _STATES[state])
    return found


def _summed(place: int) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for endpoint, counts in _endpoints():
        found[(endpoint,)] = found.get((endpoint,), 0.0) + counts[place]
    return found


catalogue.MODEL_IN_FLIGHT.watch(lambda: _summed(0))
catalogue.MODEL_WAITING.watch(lambda: _summed(1))
catalogue.BREAKER.watch(_breakers)
