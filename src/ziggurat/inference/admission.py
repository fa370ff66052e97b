"""Before and after an attempt: what it may cost is reserved, its turn at the gate is waited for, and both are put right afterwards."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from ziggurat.clock import Clock
from ziggurat.errors import Overloaded
from ziggurat.inference.interface import Endpoint
from ziggurat.inference.ledger import current_attribution
from ziggurat.inference.limits.budgets import Budgets, Cost
from ziggurat.inference.limits.caller import current_caller
from ziggurat.inference.limits.tickets import Demand, Ticket
from ziggurat.inference.routes import Route
from ziggurat.inference.tokens import TokenEstimator
from ziggurat.program.context import current_attempt
from ziggurat.records import PRIORITY_LOWEST, Prompt
from ziggurat.telemetry.catalogue import GATE_SECONDS
from ziggurat.units import human_seconds

#: Seconds that a hedge may wait at a gate: one that waits longer helps nobody.
HEDGE_PATIENCE = 0.25
#: True for the second of two attempts that are made at a time (`hedging.py`).
hedging: ContextVar[bool] = ContextVar("ziggurat_hedging", default=False)


class Entry:
    """An attempt that was let in: its ticket, its reservation, what it was estimated to cost, and where the hour's meter stood."""

    __slots__ = ("cost", "hedge", "hold", "meter", "place", "ticket")

    def __init__(self, ticket: Ticket, hold: str, cost: Cost | None, meter: float) -> None:
        self.ticket, self.hold, self.cost, self.meter = ticket, hold, cost, meter
        #: True for an attempt that was made because another one took long.
        self.hedge = hedging.get()
        #: Where the attempt is made, once it is known.
        self.place: Endpoint | None = None


class Admission:
    """Lets attempts in.

    Args:
        tokens: the estimates.
        budgets: what may be spent.
        clock: the time.
    """

    def __init__(self, tokens: TokenEstimator, budgets: Budgets, clock: Clock) -> None:
        self._tokens, self._clock = tokens, clock
        self.budgets = budgets

    async def enter(self, route: Route, shaped: Prompt, *, past_soft: bool) -> Entry:
        """Reserve what an attempt may cost and wait for its turn. Every entry is followed by `leave` and `settle`.

        The money first: a call that cannot be paid must not wait in a line. Raises BudgetExceeded, PastSoft.
        """
        caller, by = current_caller(), current_attribution()
        priority, patience = caller.priority, caller.patience
        if hedging.get():
            # Last of all who draw on the limits, and not for long.
            priority, patience, past_soft = PRIORITY_LOWEST, HEDGE_PATIENCE, False
        hold, cost = "", None
        likely = self._tokens.likely(shaped, route.upstream)
        if self.budgets.limits(caller):
            cost = self.estimate(route, shaped, likely)
            if cost.most > 0:
                attempt = current_attempt()
                step = attempt.info.idempotency_key if attempt is not None and by.step else ""
                hold = await self.budgets.reserve(by, caller, step, cost, shaped.model, past_soft=past_soft)
        began, gate = self._clock.monotonic(), route.lane.gate
        demand = Demand(
            tokens=float(likely),
            upstream=route.upstream,
            namespace=by.namespace,
            priority=priority,
            key=caller.key,
            limits=caller.limits,
        )
        try:
            ticket = gate.ticket(demand)
            if not ticket.begun:
                async with asyncio.timeout(patience):
                    await gate.wait(ticket)
        except BaseException as error:
            self.budgets.settle(hold, 0.0)
            if not isinstance(error, TimeoutError):
                raise
            raise Overloaded(
                f"The limits that the call is under had no room for it within {human_seconds(patience or 0.0)}: those of the "
                f"endpoint {route.lane.endpoint.name!r}, its model, the tenant or the key. Send it again later, or raise them."
            ) from None
        now = self._clock.monotonic()
        GATE_SECONDS.labels(route.lane.endpoint.name).observe(now - began)
        return Entry(ticket, hold, cost, route.lane.meter.begin(now))

    def leave(self, route: Route, entry: Entry, used: float | None) -> float:
        """End an attempt that took so many tokens, None if that is unknown; returns its share of an endpoint's hourly price."""
        route.lane.gate.leave(entry.ticket, used)
        return route.lane.meter.end(entry.meter, self._clock.monotonic())

    def settle(self, entry: Entry, cost_usd: float) -> None:
        """Put what an attempt cost, or may have cost, in the place of what was reserved."""
        self.budgets.settle(entry.hold, cost_usd)

    def estimate(self, route: Route, shaped: Prompt, tokens: int | None = None, *, batch: bool = False) -> Cost:
        """Return what an attempt will cost by its prompt, its max_tokens and the route's prices."""
        now, upstream = self._clock.time(), route.upstream
        inputs, outputs = self._tokens.most(shaped, upstream, route.context)
        prompt = self._tokens.prompt(shaped, upstream)
        likely = max(0, (self._tokens.likely(shaped, upstream) if tokens is None else tokens) - prompt)
        return Cost(
            likely=route.tariff.estimate(prompt, min(likely, outputs), now, batch=batch),
            most=route.tariff.estimate(inputs, outputs, now, batch=batch),
        )
