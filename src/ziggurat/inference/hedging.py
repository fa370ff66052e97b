"""Hedges: a call that has no answer yet when most would have one is sent to a second place too, and the first good answer is taken.

    first ──────────────────────▶ answer ─▶ taken
      └─ after the delay ─▶ second ─▶ answer ─▶ taken, if it is sooner
                                                 the other is closed upstream and recorded as what may be billed

That cuts the slowest calls, whose time is mostly somebody's queue, at the price of a few more (Dean and Barroso, "The Tail at Scale", 2013:
after the 95th percentile, a few per cent of load). It costs money, so an alias asks for it, and no more than its share of calls is doubled.
Hedges are also counted as retries of the endpoint that they go to, so that both together stay under its retry budget. No hedge goes where
limits are short: it draws on them last of all priorities, waits a moment only, and not past a budget's soft share.

A stream is hedged until its first piece. Whatever a call is asked for, asking twice changes nothing but the bill.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ziggurat.clock import Clock
from ziggurat.errors import (
    BudgetExceeded,
    ConfigurationError,
    ContextTooLong,
    InferenceError,
    OutputRefused,
    RateLimited,
    RequestRejected,
    ZigguratError,
)
from ziggurat.inference.admission import hedging
from ziggurat.inference.calls import Call
from ziggurat.inference.limits.budgets import PastSoft
from ziggurat.inference.retrying import RetryBudget
from ziggurat.inference.routes import Route, Standing
from ziggurat.records import Chunk
from ziggurat.telemetry.catalogue import HEDGES

T = TypeVar("T")

#: Calls of a route that are remembered, and of which at least so many must be before their 95th percentile means something.
REMEMBERED, ENOUGH = 128, 20
PERCENTILE = 0.95
#: Seconds over which the share of hedged calls holds: long, so that an alias that is seldom used has its share too.
WINDOW = 600.0


class Tail:
    """How long the answers of a route took of late, for one alias: those of another may be longer by their nature."""

    __slots__ = ("_known", "_seconds", "_stale")

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._known: float | None = None
        self._stale = 0

    def took(self, seconds: float) -> None:
        """Take in how long an answer took; of one that was given up, how long it was waited for, or slow answers would be forgotten."""
        self._seconds.append(seconds)
        self._stale += 1

    def p95(self) -> float | None:
        """Return the 95th percentile in seconds; None while too little is known."""
        if len(self._seconds) < ENOUGH:
            return None
        if self._known is None or self._stale >= 8:
            self._known, self._stale = sorted(self._seconds)[int(PERCENTILE * len(self._seconds))], 0
        return self._known


class Hedges:
    """Makes the attempts of those aliases that are hedged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: By alias, route, and whether a stream's first piece is waited for.
        self._tails: dict[tuple[str, str, bool], Tail] = {}
        self._shares: dict[str, RetryBudget] = {}

    async def answer(self, call: Call, standing: Standing, attempt: Callable[[Route], Awaitable[T]]) -> T:
        """Return a whole answer of an attempt at a route, or of a second one elsewhere. Raises what the first one raised."""

        async def make(route: Route) -> T:
            return await attempt(route)

        race = _Race(self, call, standing, streamed=False)
        try:
            return await race.run(make)
        finally:
            await race.end()

    async def stream(
        self, call: Call, standing: Standing, attempt: Callable[[Call, Route], AsyncGenerator[Chunk, None]]
    ) -> AsyncGenerator[Chunk, None]:
        """Yield the answer of whichever of the two begins to answer first. Raises as `answer`."""
        opened: list[AsyncGenerator[Chunk, None]] = []

        async def begin(route: Route) -> tuple[AsyncGenerator[Chunk, None], Chunk]:
            stream = attempt(call, route)
            opened.append(stream)
            return stream, await anext(stream)

        race = _Race(self, call, standing, streamed=True)
        try:
            stream, chunk = await race.run(begin)
            # The other one is closed now, not when the reader is done with this one.
            await race.end()
            for other in opened:
                if other is not stream:
                    await other.aclose()
            yield chunk
            async for chunk in stream:
                yield chunk
        finally:
            await race.end()
            for stream in opened:
                await stream.aclose()

    def tail(self, call: Call, route: Route, streamed: bool) -> Tail:
        """Return what is known of a route's times."""
        return self._tails.setdefault((call.prompt.model, route.name, streamed), Tail())

    def share(self, call: Call) -> RetryBudget:
        """Return what is left of an alias's share of hedges."""
        assert call.config is not None
        # Named by the share too: a switch or new settings may change it.
        name = f"{call.config.hedge_budget}:{call.prompt.model}"
        return self._shares.setdefault(name, RetryBudget(call.config.hedge_budget, 0, WINDOW))


class _Race:
    """One attempt and, if it takes long, its hedge."""

    def __init__(self, hedges: Hedges, call: Call, standing: Standing, *, streamed: bool) -> None:
        self._hedges, self._call, self._standing = hedges, call, standing
        self._clock = hedges._clock
        self._tail = hedges.tail(call, standing.route, streamed)
        self._began = self._clock.monotonic()
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, attempt: Callable[[Route], Coroutine[Any, Any, T]]) -> T:
        """Return the first good answer."""
        call, route = self._call, self._standing.route
        if not call.hedged:
            self._hedges.share(call).call(self._clock.monotonic())
        first = self._start(attempt(route))
        delay = self._delay()
        if delay is not None and await self._is_slow(first, delay) and (other := self._second()) is not None:
            call.hedged = True
            return await self._decide(first, self._start(self._hedge(attempt, other.route)), other)
        answer = await first
        self._took()
        return answer

    async def end(self) -> None:
        """Close what is still under way, and wait until it has been recorded."""
        under_way = [task for task in self._tasks if not task.done()]
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)
        for task in self._tasks:
            if not task.cancelled():
                task.exception()  # Looked at, so that nobody is told of an error that was never looked at.

    def _start(self, attempt: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(attempt, name="ziggurat-attempt")
        self._tasks.append(task)
        return task

    async def _hedge(self, attempt: Callable[[Route], Coroutine[Any, Any, T]], route: Route) -> T:
        hedging.set(True)  # In the context of this task alone.
        await route.prepare()
        return await attempt(route)

    def _delay(self) -> float | None:
        """Return the seconds after which the attempt is hedged; None for never."""
        config = self._call.config
        if self._call.hedged or config is None or config.hedge is None:
            return None
        if self._call.prompt.due is not None:
            return None  # Whoever said that it can wait does not pay twice to be quick.
        delay = self._tail.p95() if config.hedge == "p95" else config.hedge
        return delay if delay is not None and delay < self._call.left() else None

    async def _is_slow(self, first: asyncio.Task[Any], delay: float) -> bool:
        timer = asyncio.ensure_future(self._call.pause(delay))
        try:
            await asyncio.wait((first, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        return not first.done()

    def _second(self) -> Standing | None:
        """Return where to send the hedge, and count it; None if it is not to be."""
        call, now = self._call, self._clock.monotonic()
        other = call.second(self._standing, now)
        lane = other.route.lane
        gate = lane.gate
        full = gate.window is not None and gate.in_flight >= gate.window
        if full or gate.waiting or gate.cooling() > 0 or other.route.breaker.state(now) != "closed":
            return None
        if not self._hedges.share(call).retry(now) or not lane.budget.retry(now):
            return None
        return other

    async def _decide(self, first: asyncio.Task[T], second: asyncio.Task[T], other: Standing) -> T:
        outcome = HEDGES.labels(self._call.prompt.model, "lost")
        pending: set[asyncio.Task[T]] = {first, second}
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in (first, second):
                if task not in done:
                    continue
                error = task.exception()
                if error is None:
                    if task is second:
                        outcome = HEDGES.labels(self._call.prompt.model, "won")
                    outcome.inc()
                    self._took()
                    return task.result()
                if task is second:
                    outcome = HEDGES.labels(self._call.prompt.model, "failed")
                    self._learn(other, error)
                elif not _may_help(error):
                    pending = set()
        outcome.inc()
        return first.result()  # Raises.

    def _learn(self, other: Standing, error: BaseException) -> None:
        """Take in what a failed hedge teaches; it costs the call nothing, since the first attempt goes on."""
        if isinstance(error, RateLimited):
            other.route.lane.gate.limited(error.retry_after)
        elif not isinstance(error, (ZigguratError, PastSoft)):
            raise error

    def _took(self) -> None:
        self._tail.took(self._clock.monotonic() - self._began)


def _may_help(error: BaseException) -> bool:
    """Say whether another place may answer what the first one did not: not what is the caller's own fault, nor a refusal."""
    if isinstance(error, ContextTooLong):
        return True
    return isinstance(error, (InferenceError, ConfigurationError)) and not isinstance(
        error, (RequestRejected, OutputRefused, BudgetExceeded)
    )
