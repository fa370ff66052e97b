"""What the inference quota absorbs: the pure choice, what is learned from what slots took, and both under a simulated load and clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.records import CallRecord, Usage
from ziggurat.testing.clock import FakeClock
from ziggurat.workers.autoscale import Decision, Load, Meter, Policy, Quota, Recent, Stats, desired
from ziggurat.workers.quota import Appetite, EndpointLimits, Flow, Quotas, left_for, quota_of
from ziggurat.workers.usage import Used, together, used_by


def test_calls_are_added_up_by_endpoint() -> None:
    calls = [
        CallRecord(id="1", model="m", endpoint="gmi", upstream="u", usage=Usage(1, 100, 20, cost_usd=0.5), latency=2.0),
        CallRecord(id="2", model="m", endpoint="local", upstream="u", usage=Usage(1, 7, 3), latency=1.0),
        CallRecord(id="3", model="m", endpoint="gmi", upstream="u", usage=Usage(1, 10, 5, cost_usd=0.25), latency=4.0),
    ]
    used = used_by(calls)
    assert used == {"gmi": Used(2, 135, 6.0, 0.75), "local": Used(1, 10, 1.0)}
    assert together([used, {"local": Used(1, 1, 1.0)}, {}]) == {"gmi": Used(2, 135, 6.0, 0.75), "local": Used(2, 11, 2.0)}


def test_the_narrowest_limit_of_the_narrowest_endpoint_is_the_quota() -> None:
    limits = [
        EndpointLimits(endpoint="wide", tokens_per_minute=1e6),
        EndpointLimits(endpoint="gmi", tokens_per_minute=60_000.0, requests_per_minute=600.0),
    ]
    quota = quota_of(limits, {"wide": Flow(1.0, 1_000.0), "gmi": Flow(20.0, 1_500.0, 0.5)})
    assert (quota.endpoint, quota.slots()) == ("gmi", 30.0)
    decision = desired(Stats(loads=(Load(waiting=10_000, duration=1.0),), quota=quota), Policy(max=100, slots=10))
    assert (decision.count, decision.constraint) == (3, "quota")
    assert "the inference quota of 600 requests/min at gmi feeds 3" in decision.explanation


def test_seats_count_for_the_part_of_a_slot_that_calls() -> None:
    quota = quota_of([EndpointLimits(endpoint="vllm", seats=32.0)], {"vllm": Flow(1.0, 1.0, 0.25)})
    assert quota.slots() == 128.0, "a slot that calls a quarter of its time needs a quarter of a seat"


def test_what_nobody_used_or_nobody_limits_is_no_quota() -> None:
    assert quota_of([EndpointLimits(endpoint="gmi", tokens_per_minute=1.0)], {}).slots() == math.inf
    assert quota_of([], {"gmi": Flow(1.0, 1.0, 1.0)}) == Quota()


def test_pools_share_a_limit_by_use_and_each_keeps_an_equal_share() -> None:
    limits = EndpointLimits(endpoint="gmi", tokens_per_minute=90_000.0)
    assert left_for(limits, []).tokens_per_minute == 90_000.0
    assert left_for(limits, [Flow()]).tokens_per_minute == 90_000.0, "one that uses nothing takes nothing"
    assert left_for(limits, [Flow(10.0, 20_000.0)]).tokens_per_minute == 70_000.0
    assert left_for(limits, [Flow(10.0, 80_000.0)]).tokens_per_minute == 45_000.0
    assert left_for(limits, [Flow(1.0, 50_000.0), Flow(1.0, 40_000.0)]).tokens_per_minute == 30_000.0


def learn(appetite: Appetite, clock: FakeClock, seconds: int, *, slots: float, tokens: float, waits: float = 0.0) -> None:
    """Let `slots` busy slots take so many tokens a slot-minute of work, while a part of their time goes into waiting."""
    working = slots * (1 - waits)
    for n in range(1, seconds + 1):
        clock.advance(1.0)
        appetite.look(
            used={"gmi": Used(calls=n, tokens=round(n * working * tokens / 60), seconds=n * working / 2)},
            seconds=n * slots,
            waited=n * slots * waits,
        )


def test_what_a_slot_takes_is_learned_from_ended_attempts() -> None:
    clock = FakeClock()
    appetite = Appetite(clock)
    appetite.look(used={}, seconds=0.0)
    assert appetite.each == {}
    learn(appetite, clock, 60, slots=8.0, tokens=1_200.0)
    assert appetite.each["gmi"].tokens == pytest.approx(1_200.0, rel=0.02)
    assert appetite.each["gmi"].seats == pytest.approx(0.5)
    assert appetite.all["gmi"].tokens == pytest.approx(9_600.0, rel=0.1)


def test_waiting_for_the_limit_does_not_make_a_slot_look_modest() -> None:
    clock = FakeClock()
    appetite = Appetite(clock)
    appetite.look(used={}, seconds=0.0)
    learn(appetite, clock, 60, slots=40.0, tokens=1_200.0, waits=0.75)
    assert appetite.each["gmi"].tokens == pytest.approx(1_200.0, rel=0.02)


def test_totals_that_start_anew_teach_nothing() -> None:
    clock = FakeClock()
    appetite = Appetite(clock)
    appetite.look(used={"gmi": Used(5, 500, 1.0)}, seconds=50.0)
    clock.advance(1.0)
    appetite.look(used={"gmi": Used(1, 10, 1.0)}, seconds=1.0)
    assert appetite.each == {}


@given(
    st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 100_000), st.floats(0.0, 200.0)), max_size=20),
    st.floats(0.001, 10.0),
)
def test_no_history_of_totals_makes_an_estimate_wrong(steps: list[tuple[float, int, float]], pause: float) -> None:
    clock = FakeClock()
    appetite = Appetite(clock)
    seconds = waited = 0.0
    used = Used()
    for ran, tokens, idle in steps:
        clock.advance(pause)
        seconds, waited, used = seconds + ran, waited + idle, used + Used(1, tokens, ran)
        appetite.look(used={"e": used}, seconds=seconds, waited=waited)
    for flow in (*appetite.each.values(), *appetite.all.values()):
        assert all(value >= 0 and math.isfinite(value) for value in (flow.requests, flow.tokens, flow.seats))


class Limited:
    """A pool of tasks that are one model call each: `duration` seconds of work and `tokens` at an endpoint with a limit.

    The endpoint is a bucket that fills evenly; a call that finds too little in it waits in its slot, as it does before a real one.
    """

    def __init__(self, policy: Policy, *, per_minute: float, tokens: int = 500, duration: float = 2.0, cold: float = 1.0) -> None:
        self.policy, self.tokens, self.duration, self.cold = policy, tokens, duration, cold
        self.per_minute = per_minute
        self.clock = FakeClock()
        self.recent, self.meter, self.appetite = Recent(self.clock), Meter(self.clock), Appetite(self.clock)
        self.quotas = Quotas([EndpointLimits(endpoint="gmi", tokens_per_minute=per_minute)])
        self.quotas.join("p", self.appetite)
        self.bucket = 0.0
        self.waiting, self.ended, self.seconds, self.waited = 0, 0, 0.0, 0.0
        #: Of each worker when it is ready; of each attempt its start and the end of its call, None while it waits for the limit.
        self.workers: list[tuple[float, list[list[float | None]]]] = []
        self.decisions: list[Decision] = []
        self.stopped_busy = 0

    def run(self, seconds: float, arrivals: float = 0.0) -> None:
        owed = 0.0
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            owed += arrivals / 4
            self.waiting, owed = self.waiting + int(owed), owed - int(owed)
            self._work(self.clock.monotonic())
            self._scale(self.clock.monotonic())

    def _work(self, now: float) -> None:
        self.bucket = min(self.bucket + self.per_minute / 240, self.per_minute / 6)
        for ready, attempts in self.workers:
            while ready <= now and self.waiting and len(attempts) < self.policy.slots:
                self.waiting -= 1
                attempts.append([now, None])
        for attempt in sorted((a for _, attempts in self.workers for a in attempts if a[1] is None), key=lambda a: a[0] or 0.0):
            if self.bucket >= self.tokens:
                self.bucket -= self.tokens
                self.waited += now - (attempt[0] or 0.0)
                attempt[1] = now + self.duration
        for _, attempts in self.workers:
            for attempt in [a for a in attempts if a[1] is not None and a[1] <= now]:
                attempts.remove(attempt)
                self.ended += 1
                self.seconds += now - (attempt[0] or 0.0)

    def _scale(self, now: float) -> None:
        running = sum(len(attempts) for _, attempts in self.workers)
        self.meter.look(ended=self.ended, seconds=self.seconds, backlog=self.waiting + running)
        used = {"gmi": Used(self.ended, self.ended * self.tokens, self.ended * self.duration)}
        self.appetite.look(used=used, seconds=self.seconds, waited=self.waited)
        decision = desired(
            Stats(
                loads=(Load(waiting=self.waiting, running=running, duration=self.meter.duration, arrivals=self.meter.arrivals),),
                workers=len(self.workers),
                busy=sum(bool(attempts) for _, attempts in self.workers),
                recent_demand=self.recent.largest(self.policy.idle_window),
                quota=self.quotas.of("p"),
            ),
            self.policy,
        )
        self.recent.note(decision.demand)
        while len(self.workers) < decision.count:
            self.workers.append((now + self.cold, []))
        for worker in sorted(self.workers, key=lambda worker: -len(worker[1]))[decision.count :]:
            self.stopped_busy += bool(worker[1])
            self.workers.remove(worker)
        self.decisions.append(decision)

    @property
    def counts(self) -> list[int]:
        return [decision.count for decision in self.decisions]


def test_a_backlog_that_the_quota_binds_grows_the_pool_only_as_far_as_it_is_fed() -> None:
    # A slot takes 500 tokens in 2 s, 15,000 a minute: the limit feeds 20 slots, which are 4 workers.
    pool = Limited(Policy(max=40, slots=5), per_minute=300_000.0)
    pool.waiting = 4
    pool.run(6.0)
    pool.waiting = 5_000
    pool.run(240.0)
    assert {decision.constraint for decision in pool.decisions[-100:]} == {"quota"}
    assert pool.counts[-1] == 4
    assert max(pool.counts) <= 5, "the pool does not grow into the wall, and back"
    assert pool.ended / 240 == pytest.approx(300_000 / 500 / 60, rel=0.15), "and nearly all of the quota is used"
    assert "at gmi feeds 4, so it stays at 4" in pool.decisions[-1].explanation
    assert pool.stopped_busy == 0


def test_a_steady_load_within_the_quota_is_not_bound_by_it() -> None:
    pool = Limited(Policy(max=40, slots=5), per_minute=300_000.0)
    pool.run(180.0, arrivals=5.0)
    assert {decision.constraint for decision in pool.decisions[200:]} <= {"demand", "idle window", "busy"}
    assert pool.waiting <= 5
    changes = sum(a != b for a, b in zip(pool.counts[100:], pool.counts[101:], strict=False))
    assert changes <= 6, "a steady load makes a steady pool"
    pool.run(90.0)
    assert pool.counts[-1] == 0


def test_the_budget_binds_before_the_quota_where_it_is_tighter() -> None:
    pool = Limited(Policy(max=40, slots=5, budget_per_hour=0.5, price_per_hour=0.25), per_minute=300_000.0)
    pool.waiting = 3_000
    pool.run(60.0)
    assert pool.decisions[-1].constraint == "budget"
    assert set(pool.counts[4:]) == {2}
    assert pool.decisions[-1].cost_per_hour == 0.5


def test_bursts_in_turn_do_not_make_the_pool_flap() -> None:
    pool = Limited(Policy(max=40, slots=5, idle_window=30.0), per_minute=600_000.0)
    for _ in range(8):
        pool.waiting += 60
        pool.run(12.0)
    shrunk = sum(b < a for a, b in zip(pool.counts, pool.counts[1:], strict=False))
    assert shrunk == 0, "the idle window bridges the pauses"
    assert pool.waiting == 0
    pool.run(45.0)
    assert pool.counts[-1] == 0, "and after the last one it goes back to none"
    assert pool.stopped_busy == 0
