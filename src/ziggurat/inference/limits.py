"""The gate before an endpoint: calls wait here, in order, rather than in the provider's queue or in a storm of 429s.

A gate holds what the settings say (calls and tokens per minute, calls at a time), what a 429 said (the cool-down) and what 429s teach
where nothing is known: additive increase, multiplicative decrease of the calls at a time (Chiu and Jain, 1989). It is one process's
share; calls of several event loops in several threads pass the same gate.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque

from ziggurat.clock import Clock
from ziggurat.inference.interface import Limits
from ziggurat.inference.retrying import CoolDown

#: Seconds of a per-minute limit that may be spent at once. Providers count in windows of their own, so a full minute's burst could
#: meet two of them.
BURST_SECONDS = 10.0
#: A learned window this wide limits nothing any more, and is forgotten.
LEARNED_MAX = 1024.0
#: Wake at least this often, so that a lost wake-up costs seconds and not a call.
LOOK_AGAIN = 5.0


class Bucket:
    """A token bucket that may be overdrawn by one large request, and that takes corrections once the truth is known."""

    __slots__ = ("_at", "_level", "burst", "per_second")

    def __init__(self, per_minute: int) -> None:
        self.per_second = per_minute / 60.0
        self.burst = max(1.0, self.per_second * BURST_SECONDS)
        self._level = self.burst
        self._at = 0.0

    def wait(self, now: float, amount: float) -> float:
        """Return the seconds until `amount` may be taken; more than the burst is let through once the bucket is full."""
        self._fill(now)
        missing = min(amount, self.burst) - self._level
        return missing / self.per_second if missing > 1e-9 else 0.0

    def take(self, now: float, amount: float) -> None:
        """Take the amount, be it there or not; a negative one is given back."""
        self._fill(now)
        self._level = min(self.burst, self._level - amount)

    def _fill(self, now: float) -> None:
        if self._at:
            self._level = min(self.burst, self._level + max(0.0, now - self._at) * self.per_second)
        self._at = now


class Gate:
    """Admits calls to one endpoint in the order in which they came."""

    def __init__(self, limits: Limits, clock: Clock, rng: random.Random) -> None:
        self._clock, self._rng = clock, rng
        self._concurrency = limits.concurrency
        self._tokens = Bucket(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._requests = Bucket(limits.requests_per_minute) if limits.requests_per_minute else None
        self._cool_down = CoolDown()
        self._learned: float | None = None
        self._shrunk_until = 0.0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self.in_flight = 0
        #: True if admission needs an estimate of the tokens.
        self.counts_tokens = self._tokens is not None

    @property
    def window(self) -> float | None:
        """Calls at a time that the gate lets through now; None if it does not limit them."""
        if self._learned is None:
            return self._concurrency
        return self._learned if self._concurrency is None else min(self._learned, self._concurrency)

    @property
    def waiting(self) -> int:
        """Calls that wait here."""
        return len(self._waiting)

    def cooling(self) -> float:
        """Return the seconds that the endpoint is still to be left alone."""
        return self._cool_down.wait(self._clock.monotonic())

    async def enter(self, tokens: float) -> None:
        """Wait until a call of about so many tokens may start. Every enter is followed by one `leave`; a cancelled one is not."""
        with self._lock:
            if not self._waiting and not self._wait(tokens):
                self._take(tokens)
                return
            loop = asyncio.get_running_loop()
            me = (loop, loop.create_future())
            self._waiting.append(me)
        stop = self._clock.watch(self._wake)
        admitted = False
        try:
            while not admitted:
                with self._lock:
                    first = self._waiting[0] is me
                    wait = self._wait(tokens) if first else LOOK_AGAIN
                    if first and not wait:
                        self._take(tokens)
                        admitted = True
                        continue
                await _rung(me[1], min(wait, LOOK_AGAIN))
                if me[1].done():
                    with self._lock:
                        me = self._again(me, loop)
        finally:
            stop()
            with self._lock:
                if me in self._waiting:
                    self._waiting.remove(me)
            self._wake()

    def leave(self, reserved: float, used: float | None) -> None:
        """End a call: `used` are the tokens it took, None if that is unknown and the reservation stands."""
        with self._lock:
            self.in_flight -= 1
            if self._tokens is not None and used is not None and used != reserved:
                self._tokens.take(self._clock.monotonic(), used - reserved)
        if self._waiting:
            self._wake()

    def limited(self, retry_after: float | None) -> float:
        """Take in a 429 and return the seconds until calls may start again."""
        with self._lock:
            now = self._clock.monotonic()
            wait = self._cool_down.limited(now, retry_after, self._rng)
            if now >= self._shrunk_until:  # Once for a burst of 429s: they tell of one moment.
                self._learned = max(1.0, min(self.window or LEARNED_MAX, self.in_flight) / 2)
                self._shrunk_until = now + wait
            return wait

    def succeeded(self) -> None:
        """Take in that the endpoint answered."""
        if self._learned is not None:
            with self._lock:
                if self._learned is not None:
                    self._cool_down.success()
                    self._learned += 1.0 / self._learned
                    if self._learned >= LEARNED_MAX:
                        self._learned = None

    def _wait(self, tokens: float) -> float:
        now = self._clock.monotonic()
        window = self.window
        if window is not None and self.in_flight >= max(1, int(window)):
            return LOOK_AGAIN
        wait = self._cool_down.wait(now)
        if self._requests is not None:
            wait = max(wait, self._requests.wait(now, 1))
        if self._tokens is not None:
            wait = max(wait, self._tokens.wait(now, tokens))
        return wait

    def _take(self, tokens: float) -> None:
        self.in_flight += 1
        now = self._clock.monotonic()
        if self._requests is not None:
            self._requests.take(now, 1)
        if self._tokens is not None:
            self._tokens.take(now, tokens)

    def _again(
        self, me: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]], loop: asyncio.AbstractEventLoop
    ) -> tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]:
        """Put a fresh future in the place of one that has rung."""
        fresh = (loop, loop.create_future())
        self._waiting[self._waiting.index(me)] = fresh
        return fresh

    def _wake(self) -> None:
        """Let the first of those who wait look again, in its own loop."""
        with self._lock:
            first = self._waiting[0] if self._waiting else None
        if first is not None:
            loop, future = first
            try:
                loop.call_soon_threadsafe(_ring, future)
            except RuntimeError:
                # Its loop is closed, and nobody will ever await it: it must not keep the others waiting.
                with self._lock:
                    if self._waiting and self._waiting[0] is first:
                        self._waiting.popleft()
                self._wake()


def _ring(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _rung(future: asyncio.Future[None], seconds: float) -> None:
    """Wait until the future rings or the time is over; the future stays good for the next wait."""
    timer = asyncio.get_running_loop().call_later(seconds, _ring, future)
    try:
        await future
    finally:
        timer.cancel()
