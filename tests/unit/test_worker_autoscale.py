"""How many workers: the pure choice, and what it does to a simulated pool under a simulated load."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.queue_harness import message
from ziggurat.workers.autoscale import Decision, Load, Meter, Policy, Quota, Recent, Standstill, Stats, desired
from ziggurat.workers.pools.interface import PoolSeen, WorkerPool, WorkerSeen
from ziggurat.workers.scaler import Scaler


def decide(waiting: int = 0, running: int = 0, **fields: object) -> Decision:
    """Decide for one load of tasks that last a second, with 10 slots, a target of 5 s and at most 100 workers by default."""
    stats: dict[str, object] = {"loads": (Load(waiting=waiting, running=running, duration=1.0),)}
    policy: dict[str, object] = {"max": 100, "slots": 10}
    for name, value in fields.items():
        (policy if name in Policy.__struct_fields__ else stats)[name] = value
    return desired(Stats(**stats), Policy(**policy))  # type: ignore[arg-type]


def test_nothing_to_do_wants_nobody() -> None:
    decision = decide()
    assert (decision.count, decision.constraint) == (0, "none")
    assert decision.explanation == "Nothing waits and nothing runs."


def test_the_first_message_starts_the_first_worker_at_once() -> None:
    decision = decide(waiting=1)
    assert (decision.count, decision.constraint) == (1, "demand")


def test_a_backlog_wants_enough_to_start_within_the_target() -> None:
    # 1,000 s of work, 50 s of work done per worker within the target of 5 s.
    decision = decide(waiting=1_000)
    assert (decision.count, decision.demand) == (20, 20)
    assert decision.explanation == "1000 waiting and 0 running tasks want 20 workers so that what waits starts within 5 s."
    assert decision.predicted_wait == 5.0


def test_steady_arrivals_want_slots_by_littles_law() -> None:
    loads = (Load(running=40, arrivals=20.0, duration=2.0),)
    decision = desired(Stats(loads=loads, workers=5, busy=5), Policy(max=100, slots=10))
    assert decision.count == 5
    assert "keep up" in decision.explanation


def test_what_runs_is_never_worth_less_than_its_slots() -> None:
    assert decide(running=95).count == 10


def test_the_maximum_the_budget_and_the_quota_are_named_when_they_bind() -> None:
    assert (decide(waiting=1_000, max=3).constraint, decide(waiting=1_000, max=3).count) == ("maximum", 3)
    decision = decide(waiting=1_000, budget_per_hour=2.0, price_per_hour=0.25)
    assert (decision.count, decision.constraint, decision.cost_per_hour) == (8, "budget", 2.0)
    assert "$2 an hour pays 8" in decision.explanation
    quota = Quota(tokens_per_minute=60_000.0, tokens_per_slot=1_500.0, requests_per_minute=1e6, requests_per_slot=1.0)
    decision = decide(waiting=1_000, quota=quota)
    assert (decision.count, decision.constraint) == (4, "quota")
    assert "60,000 tokens/min feeds 4" in decision.explanation


def test_a_quota_that_shrinks_holds_the_workers_that_there_are() -> None:
    quota = Quota(seats=20)
    assert decide(waiting=1_000, workers=7, quota=quota).count == 7
    assert decide(waiting=1_000, workers=1, quota=quota).count == 2
    assert decide(waiting=1_000, workers=1, quota=Quota(seats=3)).count == 1, (
        "less than a worker's worth of quota still feeds one"
    )


def test_a_surplus_is_kept_for_the_idle_window_and_busy_workers_for_ever() -> None:
    decision = decide(workers=6, recent_demand=4)
    assert (decision.count, decision.constraint) == (4, "idle window")
    decision = decide(waiting=0, running=3, workers=6, busy=3)
    assert (decision.count, decision.constraint) == (3, "busy")
    assert "never stopped" in decision.explanation
    assert decide(workers=6, busy=2, budget_per_hour=1.0, price_per_hour=1.0, running=2).count == 2


def test_work_that_idle_workers_may_not_take_brings_no_more_of_them() -> None:
    decision = decide(waiting=1_000, running=2, workers=6, busy=2, blocked=True)
    assert (decision.count, decision.constraint) == (3, "limits")
    assert "because its limits or its region forbid it" in decision.explanation
    assert decide(waiting=1_000, workers=0, blocked=True).count == 1
    assert decide(waiting=1_000, workers=6, busy=2, recent_demand=6, blocked=True).count == 6, "the idle window holds here too"
    clock = FakeClock()
    standstill = Standstill(clock)
    assert not standstill.look(waiting=5, idle=1)
    clock.advance(Standstill.PATIENCE)
    assert standstill.look(waiting=5, idle=1)
    assert not standstill.look(waiting=5, idle=0), "a worker that took something shows that it moves"
    clock.advance(Standstill.PATIENCE)
    assert not standstill.look(waiting=5, idle=1)
    assert not standstill.look(waiting=0, idle=1)


def test_tasks_of_unknown_length_are_taken_to_last_a_second() -> None:
    assert desired(Stats(loads=(Load(waiting=500),)), Policy(max=100, slots=10)).count == 10


loads = st.builds(
    Load,
    waiting=st.integers(0, 100_000),
    running=st.integers(0, 5_000),
    duration=st.none() | st.floats(0.001, 10_000.0),
    arrivals=st.floats(0.0, 1_000.0),
)
quotas = st.builds(
    Quota,
    requests_per_minute=st.none() | st.floats(0.0, 1e6),
    tokens_per_minute=st.none() | st.floats(0.0, 1e9),
    seats=st.none() | st.integers(0, 10_000),
    requests_per_slot=st.floats(0.0, 1e4),
    tokens_per_slot=st.floats(0.0, 1e7),
)


@st.composite
def seen(draw: st.DrawFn) -> Stats:
    workers = draw(st.integers(0, 50))
    return Stats(
        loads=tuple(draw(st.lists(loads, max_size=3))),
        workers=workers,
        busy=draw(st.integers(0, workers)),
        recent_demand=draw(st.integers(0, 200)),
        blocked=draw(st.booleans()),
        quota=draw(quotas),
    )


@st.composite
def allowed(draw: st.DrawFn) -> Policy:
    most = draw(st.integers(1, 60))
    return Policy(
        min=draw(st.integers(0, most)),
        max=most,
        slots=draw(st.integers(1, 256)),
        target_wait=draw(st.floats(0.1, 600.0)),
        budget_per_hour=draw(st.sampled_from([None, 0.5, 10.0])),
        price_per_hour=draw(st.sampled_from([0.0, 0.25, 3.0])),
    )


@given(seen(), allowed())
def test_every_decision_keeps_the_promises(stats: Stats, policy: Policy) -> None:
    decision = desired(stats, policy)
    count = decision.count
    waiting, running = sum(load.waiting for load in stats.loads), sum(load.running for load in stats.loads)
    assert count >= stats.busy, "never fewer than are busy"
    assert policy.min <= count <= max(policy.max, stats.busy)
    if waiting or running:
        paid = policy.budget_per_hour is not None and policy.price_per_hour > policy.budget_per_hour
        assert count >= 1 or paid, "work that waits is never left without a worker, unless nobody pays for one"
    if count > max(stats.workers, policy.min):
        assert count <= decision.demand, "nothing grows past the demand"
    if policy.budget_per_hour is not None and policy.price_per_hour:
        assert decision.cost_per_hour <= max(policy.budget_per_hour, policy.price_per_hour * max(policy.min, stats.busy)) + 1e-9
    if decision.constraint in ("demand", "none"):
        assert count == decision.demand
    elif decision.constraint in ("quota", "budget", "maximum", "limits"):
        assert count < decision.demand, "a bound that changes nothing is not the one that binds"
    assert decision.explanation.endswith(".")
    assert "\n" not in decision.explanation
    assert decision.predicted_wait >= 0
    assert not math.isnan(decision.predicted_wait)


@given(seen(), allowed(), st.integers(1, 10_000))
def test_more_work_never_wants_fewer_workers(stats: Stats, policy: Policy, more: int) -> None:
    extra = Load(waiting=more, duration=1.0)
    grown = Stats(
        loads=(*stats.loads, extra),
        workers=stats.workers,
        busy=stats.busy,
        recent_demand=stats.recent_demand,
        quota=stats.quota,
        blocked=stats.blocked,
    )
    assert desired(grown, policy).count >= desired(stats, policy).count


def test_the_largest_recent_demand_is_forgotten_after_the_window() -> None:
    clock = FakeClock()
    recent = Recent(clock)
    for demand in (2, 9, 4, 6):
        recent.note(demand)
        clock.advance(10.0)
    assert recent.largest(60.0) == 9
    assert recent.largest(25.0) == 6
    assert recent.largest(5.0) == 0


def test_the_meter_learns_durations_and_arrivals() -> None:
    clock = FakeClock()
    meter = Meter(clock)
    ended, seconds = 0, 0.0
    meter.look(ended=0, seconds=0.0, backlog=0)
    for _ in range(60):
        clock.advance(1.0)
        ended, seconds = ended + 10, seconds + 25.0
        meter.look(ended=ended, seconds=seconds, backlog=5)
    assert meter.duration == pytest.approx(2.5)
    assert meter.arrivals == pytest.approx(10.0, rel=0.05)
    for _ in range(11):
        clock.advance(1.0)
        meter.look(ended=ended, seconds=seconds, backlog=0)
    assert meter.arrivals == 0.0, "after a while without any, the average's tail is no arrivals"
    meter.look(ended=3, seconds=1.0, backlog=0)  # totals that start anew are no arrivals
    assert meter.arrivals < 0.5


class Simulated:
    """A pool whose workers take `cold` seconds to start, and whose tasks last `duration`. One step is 0.1 s."""

    def __init__(self, policy: Policy, *, cold: float = 2.0, duration: float = 3.0) -> None:
        self.policy, self.cold, self.duration = policy, cold, duration
        self.clock = FakeClock()
        self.recent, self.meter = Recent(self.clock), Meter(self.clock)
        self.waiting = 0
        #: Of each worker: when it is ready, and when each of its attempts ends.
        self.workers: list[tuple[float, list[float]]] = []
        self.ended, self.stopped_busy = 0, 0
        self.counts: list[int] = []
        self.decisions: list[Decision] = []

    def run(self, seconds: float, arrivals: Callable[[float], int]) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.waiting += arrivals(self.clock.monotonic())
            self._work()
            self._scale()

    def _work(self) -> None:
        now = self.clock.monotonic()
        for ready, attempts in self.workers:
            left = [end for end in attempts if end > now]
            self.ended += len(attempts) - len(left)
            attempts[:] = left
            while ready <= now and self.waiting and len(attempts) < self.policy.slots:
                self.waiting -= 1
                attempts.append(now + self.duration)

    def _scale(self) -> None:
        now = self.clock.monotonic()
        running = sum(len(attempts) for _, attempts in self.workers)
        self.meter.look(ended=self.ended, seconds=self.ended * self.duration, backlog=self.waiting + running)
        decision = desired(
            Stats(
                loads=(Load(waiting=self.waiting, running=running, duration=self.meter.duration, arrivals=self.meter.arrivals),),
                workers=len(self.workers),
                busy=sum(bool(attempts) for _, attempts in self.workers),
                recent_demand=self.recent.largest(self.policy.idle_window),
            ),
            self.policy,
        )
        self.recent.note(decision.demand)
        while len(self.workers) < decision.count:
            self.workers.append((now + self.cold, []))
        idle_first = sorted(self.workers, key=lambda worker: -len(worker[1]))
        for worker in idle_first[decision.count :]:
            self.stopped_busy += bool(worker[1])
            self.workers.remove(worker)
        self.counts.append(len(self.workers))
        self.decisions.append(decision)


def test_a_burst_is_met_at_once_and_given_back_after_the_idle_window() -> None:
    pool = Simulated(Policy(max=8, slots=10, idle_window=30.0))
    pool.run(5.0, lambda _: 0)
    assert set(pool.counts) == {0}
    pool.waiting = 400
    pool.run(0.1, lambda _: 0)
    assert pool.counts[-1] == 8, "the whole burst is answered in one look"
    pool.run(120.0, lambda _: 0)
    assert pool.ended == 400
    assert pool.counts[-1] == 0
    assert pool.stopped_busy == 0
    # 400 tasks of 3 s on 80 slots take 15 s and the cold start 2; then the window.
    busy_until = next(n for n, decision in enumerate(pool.decisions) if n > 100 and decision.demand == 0)
    assert pool.counts[busy_until + 290] > 0
    assert pool.counts[busy_until + 310] == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_varying_load_is_followed_without_stopping_busy_workers_or_flapping(seed: int) -> None:
    generator = random.Random(seed)
    pool = Simulated(Policy(max=20, slots=5, idle_window=30.0), duration=2.0)

    def arrivals(now: float) -> int:
        rate = 8.0 + 7.0 * math.sin(now / 40.0)
        return sum(generator.random() < rate / 100 for _ in range(10))

    pool.run(300.0, arrivals)
    assert pool.stopped_busy == 0
    assert pool.waiting <= 60
    changes = sum(a != b for a, b in zip(pool.counts, pool.counts[1:], strict=False))
    assert changes <= 40, "the pool must not flap"
    pool.run(120.0, lambda _: 0)
    assert pool.counts[-1] == 0


class SeenPool(WorkerPool):
    """A pool whose workers do at most `limit` tasks at a time among them, whatever waits: as under a concurrency key."""

    def __init__(self, clock: FakeClock, limit: int) -> None:
        self.name = "p"
        self.limit = limit
        self.count = 0

    async def look(self) -> PoolSeen:
        busy = min(self.limit, self.count)
        return PoolSeen(
            workers=tuple(WorkerSeen(name=f"w{n}", state="ready", busy=int(n < busy), slots=1) for n in range(self.count))
        )

    async def scale(self, count: int) -> None:
        self.count = count

    async def close(self, grace: float) -> None: ...


async def test_a_pool_beside_limited_work_settles_at_one_more_than_may_run() -> None:
    clock = FakeClock()
    queue = MemoryQueue(clock=clock)
    await queue.send([message() for _ in range(500)])
    pool = SeenPool(clock, limit=3)
    scaler = Scaler(pool, queue, Policy(max=20, slots=1, idle_window=10.0), clock=clock)
    counts = []
    for _ in range(400):
        counts.append((await scaler.look()).count)
        clock.advance(0.25)
    assert counts[0] == 20, "nothing is known at first"
    assert set(counts[-200:]) == {4}, "and it does not flap"
    assert scaler.decision is not None
    assert scaler.decision.constraint == "limits"
    pool.limit = 1_000
    for _ in range(8):
        await scaler.look()
        clock.advance(0.25)
    assert pool.count == 20, "when the limit goes, the pool grows at once"
