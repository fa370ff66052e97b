"""What a gate keeps of a call, of the limits that it is under, and of what this process has in hand of them."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from ziggurat.inference.interface import Limits

#: Seconds of its recent use that a process takes in advance.
AHEAD = 0.5


class Demand(Struct, frozen=True, kw_only=True):
    """What a call wants of a gate."""

    #: Estimated tokens of prompt and answer.
    tokens: float = 0.0
    upstream: str = ""
    namespace: str = "default"
    #: 1 (highest) to 5.
    priority: int = 3
    #: The caller's own limits and their name, as of a key of the gateway.
    key: str = ""
    limits: Limits | None = None


class Rule(Struct, frozen=True):
    """A limited key."""

    key: str
    limits: Limits
    #: True if others can go on when this one cannot.
    narrow: bool

    def draws(self, tokens: float) -> list[tuple[str, float, float, float]]:
        """Return what a call of so many tokens draws upon, as (key, rate, burst, amount)."""
        limits, found = self.limits, []
        if limits.tokens_per_minute:
            rate = limits.tokens_per_minute / 60.0
            found.append((f"{self.key}:tokens", rate, max(1.0, rate * limits.burst), tokens))
        if limits.requests_per_minute:
            rate = limits.requests_per_minute / 60.0
            found.append((f"{self.key}:requests", rate, max(1.0, rate * limits.burst), 1.0))
        return found


class Ticket:
    """A call at a gate: in the line, then inside."""

    __slots__ = ("admitted", "begun", "demand", "flows", "future", "loop", "priority", "rules", "since", "start_at", "tenant")

    def __init__(self, demand: Demand, rules: tuple[Rule, ...], since: float) -> None:
        self.demand, self.rules, self.since = demand, rules, since
        self.priority = demand.priority
        # Its place in the line: that of those who share all narrow limits with it.
        self.tenant = "\0".join([demand.namespace, *(rule.key for rule in rules if rule.narrow)])
        #: What it draws upon, as (key, rate, burst, amount).
        self.flows = [draw for rule in rules for draw in rule.draws(demand.tokens)]
        #: The call may start, now or at `start_at`; and it might at once.
        self.admitted = self.begun = False
        self.start_at = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[None] | None = None


class Share:
    """What this process has in hand of one flow, and how fast it uses it."""

    __slots__ = ("_second", "_used", "burst", "in_hand", "rate", "touched", "use")

    def __init__(self) -> None:
        self.in_hand = self.rate = self.burst = self.touched = 0.0
        #: Units used in the last whole second.
        self.use = self._used = 0.0
        self._second = 0

    @property
    def ahead(self) -> float:
        """What may be taken in advance: never so much that others would wait for it."""
        return min(self.use * AHEAD, self.burst / 4)

    def draw(self, amount: float, now: float) -> None:
        self.in_hand -= amount
        self.touched = now
        if int(now) != self._second:
            self.use = self._used if int(now) == self._second + 1 else 0.0
            self._second, self._used = int(now), 0.0
        self._used += amount


class SlotShare:
    """The slots that this process has, and how many of them are in use."""

    __slots__ = ("contended", "has", "limit", "used")

    def __init__(self) -> None:
        self.has = self.used = self.limit = 0
        self.contended = False
