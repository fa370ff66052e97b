"""When to call again, as rules with the time passed in: back-off, the retry budget, the breaker and the cool-down.

One owner decides about retries, the router, so that nothing multiplies: an endpoint makes one attempt, the SDKs that retry on their own
are not used, and the step behind a call is tried again only when the router has given up.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from typing import Literal

from msgspec import Struct


class RetryOptions(Struct, frozen=True, kw_only=True):
    """How stubborn the router is. Durations are seconds."""

    #: Attempts at one route that end without an answer (no connection, 5xx, nonsense), the first included.
    attempts: int = 3
    #: Attempts at one route that end in a 429. They wait for the cool-down, so they cost time rather than load.
    limited_attempts: int = 8
    #: The first delay and the longest: full jitter under initial * 2**n (AWS Architecture Blog, "Exponential Backoff And Jitter").
    initial: float = 0.5
    maximum: float = 20.0
    #: Retries allowed for each call, over the window, beside a floor that lets a quiet process retry at all.
    budget_ratio: float = 0.1
    budget_floor: int = 10
    budget_window: float = 60.0
    #: The longest wait for a breaker. Beyond it the call fails at once, and whoever asked may come back later.
    patience: float = 10.0
    #: Seconds for a whole call when the prompt names none.
    total: float = 600.0


def backoff(failures: int, options: RetryOptions, rng: random.Random) -> float:
    """Return the seconds to wait after the n-th failure, from 1: uniform between 0 and the exponential bound."""
    return rng.uniform(0.0, min(options.maximum, options.initial * 2.0 ** min(failures - 1, 30)))


class RetryBudget:
    """At most `ratio` retries for each call over a sliding window, and a floor (Finagle's RetryBudget, Envoy's retry_budget).

    When an endpoint fails for everybody, each caller's own limit still lets load triple at the worst moment; this lets it grow by a
    tenth.
    """

    __slots__ = ("_calls", "_floor", "_lock", "_ratio", "_retries", "_window")

    def __init__(self, ratio: float, floor: int, window: float) -> None:
        self._ratio, self._floor, self._window = ratio, floor, window
        self._lock = threading.Lock()
        #: (second, count) pairs, so that memory is bounded by the window's seconds.
        self._calls: deque[list[float]] = deque()
        self._retries: deque[list[float]] = deque()

    def call(self, now: float) -> None:
        """Count a first attempt."""
        with self._lock:
            self._forget(self._calls, now)
            _add(self._calls, now)

    def retry(self, now: float) -> bool:
        """Say whether a retry is allowed now, and count it if so."""
        with self._lock:
            allowed = max(float(self._floor), self._ratio * self._total(self._calls, now))
            if self._total(self._retries, now) + 1 > allowed:
                return False
            _add(self._retries, now)
            return True

    def _total(self, counts: deque[list[float]], now: float) -> float:
        self._forget(counts, now)
        return sum(count for _, count in counts)

    def _forget(self, counts: deque[list[float]], now: float) -> None:
        while counts and counts[0][0] <= now - self._window:
            counts.popleft()


def _add(counts: deque[list[float]], now: float) -> None:
    second = float(int(now))
    if counts and counts[-1][0] >= second:
        counts[-1][1] += 1
    else:
        counts.append([second, 1.0])


class Breaker:
    """Stops calls to what keeps failing, and lets one through now and then to see (Nygard, "Release It!"; Envoy's outlier detection).

    closed → open after `threshold` failures in a row; open → half-open after a pause that doubles from `pause` to `pause_max`; half-open
    → closed by one success, → open by a failure. A 429 is no failure here: an endpoint that limits us is well.
    """

    __slots__ = ("_failures", "_open_until", "_pause", "_pause_first", "_pause_max", "_probing_until", "_threshold")

    #: Seconds after which a probe that never reported back no longer holds the door.
    PROBE_TIMEOUT = 10.0

    def __init__(self, threshold: int = 5, pause: float = 2.0, pause_max: float = 60.0) -> None:
        self._threshold, self._pause_first, self._pause_max = threshold, pause, pause_max
        self._failures = 0
        self._pause = 0.0
        self._open_until = 0.0
        self._probing_until = 0.0

    def state(self, now: float) -> Literal["closed", "open", "half-open"]:
        """Return the state, for people and metrics."""
        if not self._pause:
            return "closed"
        return "open" if now < self._open_until else "half-open"

    def wait(self, now: float) -> float:
        """Return the seconds until a call may be tried: 0 if now."""
        if not self._pause:
            return 0.0
        return max(self._open_until - now, self._probing_until - now, 0.0)

    def begin(self, now: float) -> None:
        """Take in that a call is about to be made. In half-open it is the probe, and others wait for its outcome."""
        if self._pause:
            self._probing_until = now + self.PROBE_TIMEOUT

    def success(self) -> None:
        """Take in that the endpoint answered, be it with a refusal: it is alive."""
        self._failures = 0
        self._pause = self._open_until = self._probing_until = 0.0

    def failure(self, now: float, *, sure: bool = False) -> None:
        """Take in that the endpoint did not answer, answered 5xx, or sent nonsense. If that is `sure` to happen again, it opens at once."""
        self._failures += 1
        self._probing_until = 0.0
        if self._pause or sure or self._failures >= self._threshold:
            if now < self._open_until:
                return  # A call that was under way when the breaker opened says nothing new.
            self._pause = min(self._pause_max, self._pause * 2 or self._pause_first)
            self._open_until = now + self._pause

    def abandon(self) -> None:
        """Take in that a call ended without a verdict, as when its caller went away."""
        self._probing_until = 0.0


class CoolDown:
    """How long an endpoint that answered 429 is left alone, by everybody: as long as it asks, else doubling from half a second."""

    __slots__ = ("_limited", "_until")

    FIRST, LONGEST = 0.5, 30.0

    def __init__(self) -> None:
        self._limited = 0
        self._until = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds until calls may start again."""
        return max(0.0, self._until - now)

    def limited(self, now: float, retry_after: float | None, rng: random.Random) -> float:
        """Take in a 429 and return the seconds to wait. Jitter, so that processes limited together do not return together."""
        if now >= self._until:
            self._limited += 1  # Several 429s of one burst are one event.
        if retry_after is not None:
            # A little more than was asked, never less: asking early counts against the limit.
            wait = retry_after + rng.uniform(0.0, min(1.0, 0.1 * retry_after + 0.05))
        else:
            bound = min(self.LONGEST, self.FIRST * 2.0 ** min(self._limited - 1, 30))
            wait = rng.uniform(bound / 2, bound)
        self._until = max(self._until, now + wait)
        return self._until - now

    def success(self) -> None:
        """Take in that the endpoint took a call again."""
        self._limited = 0
