"""How many workers a pool should have: a pure choice over what is seen and what is allowed.

    demand = the largest of   work / (slots × target wait)     enough to start what waits in time
                              arrivals × duration / (slots × 0.8)     enough to keep up (Little's law, at 80 % use)
                              running / slots                  enough for what runs
    desired = clamp(min(demand, quota, budget), min, max), and never fewer than are busy

From none to one is immediate. A surplus is given back only after an idle window, idle workers first. When the inference quota binds, the
workers that there are stay, because more would only wait for the same tokens, and fewer would lose what they have begun. Whatever
bound the decision is named in it: nothing is worse than a pool that does not grow and does not say why.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from msgspec import Struct

from ziggurat.clock import Clock

Constraint = Literal["none", "demand", "minimum", "maximum", "quota", "budget", "limits", "busy", "idle window"]

#: Seconds that a task is taken to last while none has ended yet.
UNKNOWN_DURATION = 1.0


class Load(Struct, frozen=True, kw_only=True):
    """One class of tasks of a pool, such as a queue: what it holds, and how it behaves."""

    waiting: int = 0
    running: int = 0
    #: Mean seconds of one attempt; None while unknown.
    duration: float | None = None
    #: Tasks that arrive in a second.
    arrivals: float = 0.0


class Quota(Struct, frozen=True, kw_only=True):
    """What inference allows the pool, and what one busy slot takes of it. None: without limit, or unknown."""

    #: Whose quota it is, for people.
    endpoint: str = ""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    #: Calls that may be under way at a time, such as the free seats of a vLLM server.
    seats: float | None = None
    #: Calls and tokens that one busy slot makes in a minute, and calls that it has under way on average.
    requests_per_slot: float = 0.0
    tokens_per_slot: float = 0.0
    seats_per_slot: float = 1.0

    def limits(self) -> list[tuple[float, str]]:
        """Return how many busy slots each limit feeds, with the limit in words."""
        limits: list[tuple[float, str]] = []
        for limit, taken, unit in (
            (self.requests_per_minute, self.requests_per_slot, "requests/min"),
            (self.tokens_per_minute, self.tokens_per_slot, "tokens/min"),
            (self.seats, self.seats_per_slot, "concurrent calls"),
        ):
            if limit is not None and taken > 0:
                place = f" at {self.endpoint}" if self.endpoint else ""
                limits.append((limit / taken, f"{limit:,.0f} {unit}{place}"))
        return limits

    def slots(self) -> float:
        """Return how many busy slots it feeds; infinite without limits."""
        return min((slots for slots, _ in self.limits()), default=math.inf)


class Stats(Struct, frozen=True, kw_only=True):
    """A pool as it is seen now."""

    loads: tuple[Load, ...] = ()
    #: Workers that run or start, those that drain not counted.
    workers: int = 0
    #: Those of them that have work.
    busy: int = 0
    #: The largest demand seen within the idle window, this moment not counted.
    recent_demand: int = 0
    #: Work waits although workers are idle (`Standstill`).
    blocked: bool = False
    quota: Quota = Quota()


class Policy(Struct, frozen=True, kw_only=True):
    """What a pool may do. Durations are seconds, money US dollars."""

    min: int = 0
    max: int = 1
    #: Attempts that one worker runs at a time.
    slots: int = 64
    #: How soon a waiting task should start.
    target_wait: float = 5.0
    #: Share of the slots that may be busy in steady state; the rest absorbs chance.
    utilisation: float = 0.8
    #: A surplus lasts so long before it is given back; longer than a cold start, or a pool starts what it has just stopped.
    idle_window: float = 30.0
    #: What the pool's workers may cost in an hour (None: anything), and what one costs.
    budget_per_hour: float | None = None
    price_per_hour: float = 0.0


class Decision(Struct, frozen=True, kw_only=True):
    """How many workers, and why."""

    count: int
    #: What kept the count from being another.
    constraint: Constraint
    #: One sentence for people.
    explanation: str
    #: What the load alone would have.
    demand: int
    #: Seconds that the last of those waiting will wait for a slot with this many workers; infinite with none.
    predicted_wait: float
    #: What this many workers cost in an hour, in US dollars.
    cost_per_hour: float


def desired(stats: Stats, policy: Policy) -> Decision:
    """Return how many workers the pool should have now, and what bound the answer."""
    demand, why = _demand(stats, policy)
    count, explanation = demand, why
    constraint: Constraint = "demand" if demand else "none"
    bounds: list[tuple[Constraint, int, str]] = []

    fed = _fed_by_quota(stats.quota, policy.slots)
    if fed is not None and count > fed[0]:
        held = max(fed[0], min(stats.workers, count), 1)
        bounds.append(("quota", held, f"the inference quota of {fed[1]} feeds {max(fed[0], 1)}, so it stays at {held}"))
    if policy.budget_per_hour is not None and policy.price_per_hour > 0:
        paid = int(policy.budget_per_hour / policy.price_per_hour + 1e-9)
        bounds.append(("budget", paid, f"the budget of ${policy.budget_per_hour:g} an hour pays {paid}"))
    if stats.blocked:
        text = "idle workers do not take what waits, because its limits or its region forbid it, so more would be idle too"
        bounds.append(("limits", stats.busy + 1, text))
    bounds.append(("maximum", policy.max, f"the pool's maximum is {policy.max}"))
    for name, bound, text in bounds:
        if count > bound:
            count, constraint, explanation = bound, name, f"{why}; {text}."

    # Lower bounds, the strongest last. Each can only hold what is there, or start the minimum.
    affordable = min([bound for name, bound, _ in bounds if name not in ("quota", "limits")])
    surplus = min(stats.workers, stats.recent_demand, affordable)
    floors: list[tuple[Constraint, int, str]] = [
        ("minimum", policy.min, f"the pool's minimum is {policy.min}"),
        (
            "idle window",
            surplus,
            f"{surplus} were wanted within the last {policy.idle_window:g} s, and are kept until that is over",
        ),
        ("busy", min(stats.busy, stats.workers), f"{stats.busy} are busy, and busy workers are never stopped"),
    ]
    for name, bound, text in floors:
        if count < bound:
            count, constraint, explanation = bound, name, f"{why}; {text}."
    return Decision(
        count=count,
        constraint=constraint,
        explanation=explanation if explanation.endswith(".") else explanation + ".",
        demand=demand,
        predicted_wait=_predicted_wait(stats, policy, count),
        cost_per_hour=count * policy.price_per_hour,
    )


def _demand(stats: Stats, policy: Policy) -> tuple[int, str]:
    """Return how many workers the load wants, and a phrase that says of what."""
    waiting = sum(load.waiting for load in stats.loads)
    running = sum(load.running for load in stats.loads)
    if not waiting and not running and not any(load.arrivals > 0 for load in stats.loads):
        return 0, "Nothing waits and nothing runs"
    # A running task has half of its duration before it, on average.
    work = sum((load.waiting + load.running / 2) * _duration(load) for load in stats.loads)
    if not waiting:
        work = 0.0
    arriving = sum(load.arrivals * _duration(load) for load in stats.loads)
    reasons = (
        (work / (policy.slots * policy.target_wait), f"so that what waits starts within {policy.target_wait:g} s"),
        (arriving / (policy.slots * policy.utilisation), "to keep up with what arrives"),
        (running / policy.slots, "for what runs"),
    )
    most, purpose = max(reasons, key=lambda reason: reason[0])
    # Rounding up must not turn the noise of floating point into a worker.
    count = math.ceil(most - 1e-9)
    if waiting or running:
        count = max(count, 1)
    elif most < 0.5 / policy.slots:
        count = 0  # What is left of an average after the last arrival is no demand.
    workers = "1 worker" if count == 1 else f"{count} workers"
    return count, f"{waiting} waiting and {running} running tasks want {workers} {purpose}" if count else "Nothing waits"


def _duration(load: Load) -> float:
    return load.duration if load.duration is not None else UNKNOWN_DURATION


def _fed_by_quota(quota: Quota, slots: int) -> tuple[int, str] | None:
    """Return how many workers the quota keeps busy, and the limit that is the narrowest; None without a limit."""
    limits = quota.limits()
    if not limits:
        return None
    fed, name = min(limits)
    return int(min(fed / slots, 1e9)), name


def _predicted_wait(stats: Stats, policy: Policy, count: int) -> float:
    work = sum(load.waiting * _duration(load) for load in stats.loads)
    free = count * policy.slots - sum(load.running for load in stats.loads)
    if sum(load.waiting for load in stats.loads) <= max(free, 0):
        return 0.0
    return work / (count * policy.slots) if count else math.inf


class Standstill:
    """Notices work that idle workers leave where it is: a concurrency key or a rate holds it, or it must run in another region.

    A depth does not tell such work from work that wants workers, and a pool would grow to its maximum beside it for nothing. One idle
    worker more than are busy stays, to take what is free to go, and to notice when all of it is.
    """

    #: Seconds for which workers must have been idle beside waiting work.
    PATIENCE = 2.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None

    def look(self, *, waiting: int, idle: int) -> bool:
        """Take in how many messages wait and how many ready workers have nothing to do; say whether work stands still."""
        now = self._clock.monotonic()
        if not waiting or not idle:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self.PATIENCE


class Recent:
    """Remembers the largest demand of the idle window, for `Stats.recent_demand`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: (time, demand), with falling demand: what a later and larger one covers is forgotten.
        self._seen: deque[tuple[float, int]] = deque()

    def largest(self, window: float) -> int:
        """Return the largest demand noted within the last `window` seconds."""
        oldest = self._clock.monotonic() - window
        while self._seen and self._seen[0][0] < oldest:
            self._seen.popleft()
        return self._seen[0][1] if self._seen else 0

    def note(self, demand: int) -> None:
        while self._seen and self._seen[-1][1] <= demand:
            self._seen.pop()
        self._seen.append((self._clock.monotonic(), demand))


class Meter:
    """Estimates how long tasks last and how fast they arrive, from totals that only grow and a backlog.

    Both estimates are exponential averages: of durations over tasks, of arrivals over time (a half-life of `memory` seconds). Once nothing
    has arrived for that long, nothing arrives.
    """

    def __init__(self, clock: Clock, memory: float = 10.0) -> None:
        self._clock = clock
        self._memory = memory
        self._at: float | None = None
        self._ended = 0
        self._seconds = 0.0
        self._backlog = 0
        self._arrived_at = clock.monotonic()
        self.duration: float | None = None
        self.arrivals = 0.0

    def look(self, *, ended: int, seconds: float, backlog: int) -> None:
        """Take a sample.

        Args:
            ended: attempts that ended since the beginning, over all workers.
            seconds: how long those attempts ran together.
            backlog: tasks that wait or run now.
        """
        now = self._clock.monotonic()
        if self._at is None or ended < self._ended or seconds < self._seconds:
            # The first look, or a worker took its totals along when it ended.
            self._at, self._ended, self._seconds, self._backlog = now, ended, seconds, backlog
            return
        count, spent, passed = ended - self._ended, seconds - self._seconds, now - self._at
        if passed <= 0:
            return
        if count:
            mean, weight = spent / count, 1 - 0.5 ** (count / 20)
            self.duration = mean if self.duration is None else self.duration + weight * (mean - self.duration)
        arrived = max(0, count + backlog - self._backlog)
        fade = 0.5 ** (passed / self._memory)
        self.arrivals = self.arrivals * fade + (arrived / passed) * (1 - fade)
        if arrived:
            self._arrived_at = now
        elif now - self._arrived_at >= self._memory:
            # The tail of an average over a great rate would hold workers for minutes after the last arrival.
            self.arrivals = 0.0
        self._at, self._ended, self._seconds, self._backlog = now, ended, seconds, backlog
