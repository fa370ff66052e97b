"""What the inference quota absorbs: how many busy slots an endpoint's limits feed, learned from what slots have taken so far.

    one slot takes       requests, tokens and seats a minute, measured over attempts that ended     Appetite.each
    the pool takes       the same, of all its slots together, measured over time                    Appetite.all
    left for a pool      limit - what the other pools take, and at least an equal share of it       left_for
    slots that it feeds  the smallest of  left / one slot's  over the limits that there are         quota_of

A slot that waits for the limits takes less in a minute than one that does not. To count its waiting would make the quota seem to feed
more slots the tighter it is, and the pool would grow into a wall; so the seconds that calls waited are taken off (`waited`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from ziggurat.clock import Clock
from ziggurat.workers.autoscale import Quota
from ziggurat.workers.usage import Used

#: Attempt-seconds after which half of an estimate comes from what was measured since.
MEMORY_SLOT_SECONDS = 120.0
#: Seconds after which half of a pool's rate comes from what was measured since.
MEMORY_SECONDS = 15.0
#: Of attempt time, at least this part is taken to be no waiting: clocks and counts of processes do not meet exactly.
WORKING_LEAST = 0.05


class EndpointLimits(Struct, frozen=True, kw_only=True):
    """What an endpoint allows all workers together. None: without limit."""

    endpoint: str
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    #: Calls under way at a time.
    seats: float | None = None


class Flow(Struct, frozen=True):
    """What is taken of an endpoint: requests and tokens in a minute, and calls under way on average."""

    requests: float = 0.0
    tokens: float = 0.0
    seats: float = 0.0

    def toward(self, other: Flow, weight: float) -> Flow:
        """Return the flow moved toward another by a weight from 0 to 1."""
        return Flow(
            self.requests + weight * (other.requests - self.requests),
            self.tokens + weight * (other.tokens - self.tokens),
            self.seats + weight * (other.seats - self.seats),
        )


#: Seconds of work below which a sample says nothing of a slot: dividing by it would tell of anything.
WORK_TOLD = 1e-6


class Appetite:
    """Learns what a pool takes of each endpoint, from totals that only grow."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: float | None = None
        self._used: dict[str, Used] = {}
        self._seconds = self._waited = 0.0
        #: What one busy slot takes, by endpoint.
        self.each: dict[str, Flow] = {}
        #: What the pool takes, by endpoint.
        self.all: dict[str, Flow] = {}

    def look(self, *, used: Mapping[str, Used], seconds: float, waited: float = 0.0) -> None:
        """Take a sample.

        Args:
            used: what ended attempts took since the beginning, by endpoint.
            seconds: how long those attempts ran together.
            waited: how long their calls waited for limits together.
        """
        now = self._clock.monotonic()
        before, at = self._used, self._at
        ran, idle = seconds - self._seconds, waited - self._waited
        self._used, self._at, self._seconds, self._waited = dict(used), now, seconds, waited
        if at is None or ran < 0 or now <= at:
            return
        working = max(ran - max(0.0, idle), ran * WORKING_LEAST)
        fade = 0.5 ** ((now - at) / MEMORY_SECONDS)
        for endpoint in {*used, *self.all}:
            since = _difference(used.get(endpoint, Used()), before.get(endpoint, Used()))
            self.all[endpoint] = self.all.get(endpoint, Flow()).toward(_flow(since, now - at), 1 - fade)
            if working >= WORK_TOLD:
                each = _flow(since, working)
                weight = 1 - 0.5 ** (working / MEMORY_SLOT_SECONDS)
                self.each[endpoint] = self.each[endpoint].toward(each, weight) if endpoint in self.each else each


def left_for(limits: EndpointLimits, others: Iterable[Flow]) -> EndpointLimits:
    """Return what a pool may take of an endpoint: what the other pools leave, and at least an equal share."""
    flows = [flow for flow in others if flow.requests > 0]

    def left(limit: float | None, taken: float) -> float | None:
        return None if limit is None else max(limit - taken, limit / (len(flows) + 1))

    return EndpointLimits(
        endpoint=limits.endpoint,
        requests_per_minute=left(limits.requests_per_minute, sum(flow.requests for flow in flows)),
        tokens_per_minute=left(limits.tokens_per_minute, sum(flow.tokens for flow in flows)),
        seats=left(limits.seats, sum(flow.seats for flow in flows)),
    )


def quota_of(limits: Iterable[EndpointLimits], each: Mapping[str, Flow]) -> Quota:
    """Return the quota of the endpoint that feeds the fewest slots, given what one slot takes of each; no quota if none is limited."""
    narrowest, fewest = Quota(), float("inf")
    for limit in limits:
        flow = each.get(limit.endpoint, Flow())
        quota = Quota(
            endpoint=limit.endpoint,
            requests_per_minute=limit.requests_per_minute,
            tokens_per_minute=limit.tokens_per_minute,
            seats=limit.seats,
            requests_per_slot=flow.requests,
            tokens_per_slot=flow.tokens,
            seats_per_slot=flow.seats,
        )
        slots = quota.slots()
        if slots < fewest:
            narrowest, fewest = quota, slots
    return narrowest


class Quotas:
    """The endpoints' limits, shared by the pools of one system."""

    def __init__(self, limits: Iterable[EndpointLimits]) -> None:
        self._limits = [
            limit for limit in limits if (limit.requests_per_minute, limit.tokens_per_minute, limit.seats) != (None,) * 3
        ]
        self._appetites: dict[str, Appetite] = {}

    def join(self, pool: str, appetite: Appetite) -> None:
        """Let a pool share the limits."""
        self._appetites[pool] = appetite

    def of(self, pool: str) -> Quota:
        """Return what a pool may take now."""
        own = self._appetites[pool]
        others = [appetite for name, appetite in self._appetites.items() if name != pool]
        left = [left_for(limit, [other.all.get(limit.endpoint, Flow()) for other in others]) for limit in self._limits]
        return quota_of(left, own.each)


def _difference(now: Used, before: Used) -> Used:
    return Used(now.calls - before.calls, now.tokens - before.tokens, now.seconds - before.seconds)


def _flow(used: Used, seconds: float) -> Flow:
    minutes = seconds / 60.0
    return Flow(used.calls / minutes, used.tokens / minutes, used.seconds / seconds)
