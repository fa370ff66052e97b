"""The order in which a call tries the routes of an alias, by price, pace, quality, slack or region: pure choices over what is known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, TypeVar

T = TypeVar("T")

#: "order": as they are written. "price": the cheapest first. "latency": the quickest first. "quality": the best first, of equals the
#: cheapest. "slack": the cheapest while a call has time to spare, the quickest when it has none.
Policy = Literal["order", "price", "latency", "quality", "slack"]

#: How much the newest call counts in a route's pace.
NEWEST = 0.2
#: The share of calls that begin with another route than the quickest, so that one which got quicker is noticed.
EXPLORED = 0.05
#: Tokens of the call by which prices are compared: what a document costs to read and to sum up.
COMPARED_INPUT, COMPARED_OUTPUT = 1_000, 300


#: A route has time enough for a call if it could be asked so often before the call's end: once in vain, once again, and a margin.
SLACK = 3.0
#: Seconds for an output token of a route that was never asked: 20 tokens a second, which hosted models exceed.
USUAL_PACE = 0.05


class Pace:
    """How quick a route is: seconds for an output token, the newest calls counting most. A whole answer's time says little, since answers
    are of all lengths.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        #: None until a call was answered.
        self.seconds: float | None = None

    def answered(self, latency: float, output_tokens: int) -> None:
        """Take in a call that took `latency` seconds and wrote so many tokens."""
        if output_tokens > 0:
            newest = latency / output_tokens
            self.seconds = newest if self.seconds is None else self.seconds + NEWEST * (newest - self.seconds)


def cheapest_first(routes: Sequence[T], costs: Sequence[float | None]) -> list[T]:
    """Return routes by what the same call costs on each; those of equal cost as they stand, those of unknown cost last."""
    order = sorted(range(len(routes)), key=lambda n: float("inf") if costs[n] is None else costs[n] or 0.0)
    return [routes[n] for n in order]


def quickest_first(routes: Sequence[T], paces: Sequence[Pace], rng: random.Random) -> list[T]:
    """Return routes by pace, those not known yet first, so that each becomes known; now and then another one begins."""
    order = sorted(range(len(routes)), key=lambda n: paces[n].seconds or 0.0)
    if len(order) > 1 and rng.random() < EXPLORED:
        order.insert(0, order.pop(rng.randrange(1, len(order))))
    return [routes[n] for n in order]


def best_first(routes: Sequence[T], qualities: Sequence[int], costs: Sequence[float | None]) -> list[T]:
    """Return routes by quality, those of equal quality by cost; those of unknown quality (0) last."""
    known = [float("inf") if cost is None else cost for cost in costs]
    return [routes[n] for n in sorted(range(len(routes)), key=lambda n: (-qualities[n], known[n]))]


def by_slack(routes: Sequence[T], costs: Sequence[float | None], seconds: Sequence[float], left: float) -> list[T]:
    """Return the routes that leave slack by cost, then the others by pace.

    Args:
        costs: what the same call costs on each, in US dollars; None if nobody knows.
        seconds: how long each is expected to take.
        left: seconds until the call is pointless.
    """
    slack = [n for n in range(len(routes)) if seconds[n] * SLACK <= left]
    short = sorted((n for n in range(len(routes)) if seconds[n] * SLACK > left), key=lambda n: seconds[n])
    return [*cheapest_first([routes[n] for n in slack], [costs[n] for n in slack]), *(routes[n] for n in short)]


def preferred_first(routes: Sequence[T], regions: Sequence[str], preferred: Sequence[str]) -> list[T]:
    """Return the routes of the preferred regions first, in the order of the preference; otherwise as they stand."""
    rank = {region: place for place, region in enumerate(preferred)}
    return [routes[n] for n in sorted(range(len(routes)), key=lambda n: rank.get(regions[n], len(rank)))]
