"""Which message is served next: choices without a clock, a socket or a store of their own.

Three rules apply in this order, and every backend that declares them follows the same code or the same arithmetic.

1. Levels take turns by weight (`LevelTurns`), smoothly: with weights 16:8:4:2:1 the lowest level is served once in 31 turns, not 16 high
   ones in a row. A level whose next message has waited long counts as a higher one, so a wait is bounded.
2. Within a level, namespaces take turns (`Ring`), each as often as the others for as long as it has messages.
3. Within a namespace, the oldest message is first, unless its concurrency key (`Slots`) or its rate (`Buckets`) must wait; those
   hold back only the messages that carry the same keys.

Times are seconds on one clock, passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct

from ziggurat.records import Concurrency, Rate

V = TypeVar("V")


class LevelTurns:
    """Smooth weighted round-robin over priority levels, with ageing.

    Each turn every level that has messages gains its weight, the richest is served and pays the sum of the weights: the method of
    nginx's upstream balancer (ngx_http_upstream_round_robin.c). Over time a level is served in proportion to its weight among those
    that compete, in the smoothest order. Strict order instead would starve the lower levels under load.
    """

    def __init__(self, weights: Mapping[int, int], ageing: float) -> None:
        self._weights = dict(weights)
        self._ageing = ageing
        self._highest = min(weights)
        self._credit: dict[int, int] = dict.fromkeys(weights, 0)

    def weight(self, level: int, waited: float) -> int:
        """Return the weight of a level whose next message has waited so many seconds: one level higher for each `ageing`.

        The whole level is lifted, rather than its old messages moved up among the newer ones of a higher level: after a long outage
        everything is old, and a fresh message of level 1 must still find its level's share.
        """
        if waited >= self._ageing > 0:
            level = max(self._highest, level - int(min(waited / self._ageing, 1e6)))
        return self._weights.get(level, 1)

    def choose(self, waited: Mapping[int, float]) -> int:
        """Take a turn and return the level to serve, given how long the next message of each competing level has waited."""
        credit = self._credit
        total = 0
        chosen, most = 0, float("-inf")
        for level, seconds in waited.items():
            weight = self.weight(level, seconds)
            total += weight
            credit[level] = rich = credit.get(level, 0) + weight
            if rich > most or (rich == most and level < chosen):
                chosen, most = level, rich
        credit[chosen] -= total
        return chosen


class Ring(OrderedDict[str, V]):
    """Competitors for a level, the one that was served longest ago first: equal turns for all that stay.

    One that leaves and comes back joins at the end, so absence earns no credit.
    """

    def served(self, name: str) -> None:
        """Note that it was this one's turn."""
        self.move_to_end(name)


class Slots:
    """How many attempts run under each concurrency key."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}

    def take(self, wish: Concurrency) -> bool:
        """Occupy a slot of the key; False when the message's limit is reached."""
        running = self._running.get(wish.key, 0)
        if running >= wish.limit:
            return False
        self._running[wish.key] = running + 1
        return True

    def free(self, key: str) -> None:
        """Leave a slot of the key."""
        left = self._running.get(key, 0) - 1
        if left > 0:
            self._running[key] = left
        else:
            self._running.pop(key, None)

    def running(self, key: str) -> int:
        """Return how many slots of the key are occupied."""
        return self._running.get(key, 0)

    def __len__(self) -> int:
        return len(self._running)


class Bucket(Struct, frozen=True):
    """A token bucket as it was at a moment. It is state to keep; `refilled` and `Buckets` are the arithmetic."""

    tokens: float
    at: float


def refilled(bucket: Bucket | None, rate: Rate, now: float) -> float:
    """Return the tokens of a bucket now; a bucket never seen is full. Time that goes back adds nothing."""
    burst = float(max(1, rate.burst))
    if bucket is None:
        return burst
    return min(burst, bucket.tokens + max(0.0, now - bucket.at) * rate.per_second)


def seconds_until_token(tokens: float, rate: Rate) -> float:
    """Return how long until the bucket holds a whole token: 0 when it does, infinity when it never fills."""
    # A billionth short is a rounding error of the sum, and waiting for it would wait for nothing.
    short = 1.0 - tokens
    if short <= 1e-9:
        return 0.0
    return short / rate.per_second if rate.per_second > 0 else float("inf")


def full_at(tokens: float, rate: Rate, now: float) -> float:
    """Return when a bucket that holds so many tokens now is full: from then on it says nothing that an absent one does not."""
    missing = max(1, rate.burst) - tokens
    return now + missing / rate.per_second if rate.per_second > 0 else float("inf")


class Buckets:
    """Token buckets by rate key: at most `burst` starts at once, and `per_second` over time."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._full_at: dict[str, float] = {}

    def take(self, rate: Rate, now: float) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        tokens = refilled(self._buckets.get(rate.key), rate, now)
        wait = seconds_until_token(tokens, rate)
        if wait <= 0:
            self._keep(rate, tokens - 1.0, now)
        return wait

    def give_back(self, rate: Rate, now: float) -> None:
        """Return the token of an attempt that never started."""
        tokens = refilled(self._buckets.get(rate.key), rate, now)
        self._keep(rate, min(float(max(1, rate.burst)), tokens + 1.0), now)

    def prune(self, now: float) -> None:
        """Forget buckets that are full by now."""
        for key in [key for key, full_at in self._full_at.items() if full_at <= now]:
            del self._buckets[key], self._full_at[key]

    def _keep(self, rate: Rate, tokens: float, now: float) -> None:
        self._buckets[rate.key] = Bucket(tokens, now)
        self._full_at[rate.key] = full_at(tokens, rate, now)

    def __len__(self) -> int:
        return len(self._buckets)
