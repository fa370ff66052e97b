"""The gate before an endpoint: order, priority, tenants, shares, a store that is down, and what 429s teach."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ziggurat.inference.interface import Limits, Reported
from ziggurat.inference.limits.gate import Gate
from ziggurat.inference.limits.interface import (
    BEAT,
    Answer,
    Give,
    Hold,
    Levels,
    LimitStore,
    Purse,
    Request,
    Settle,
    StoreDown,
    Wanted,
)
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.inference.limits.line import AGEING, Line
from ziggurat.inference.limits.process import ProcessStore
from ziggurat.inference.limits.tickets import Demand, Ticket
from ziggurat.testing.clock import FakeClock


class Distant(LimitStore):
    """A store that is asked from the keeper's thread, and that can be down."""

    def __init__(self, store: LimitStore) -> None:
        self.inner = store
        self.down = False
        self.questions = self.given = 0

    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        if self.down:
            raise StoreDown("The store is down. Start it.")
        self.questions += 1
        answers = self.inner.run(holder, requests)
        self.given += sum(isinstance(request, Give) for request in requests)
        return answers

    def look(self, wanted: Wanted) -> Levels:
        return self.inner.look(wanted)

    def purse(self, key: str) -> tuple[float, float]:
        return self.inner.purse(key)


class Slow(Distant):
    """A store whose answers can be held back."""

    def __init__(self, store: LimitStore) -> None:
        super().__init__(store)
        self.answer, self.asked = threading.Event(), threading.Event()
        self.answer.set()

    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        answers = super().run(holder, requests)
        if not self.answer.is_set():
            self.asked.set()
            self.answer.wait(60)
        return answers


def gate(clock: FakeClock, store: LimitStore | None = None, *, name: str = "g", tenants: Any = None, **limits: Any) -> Gate:
    keeper = Keeper(store or ProcessStore(clock), clock)
    return Gate(name, Limits(**limits), clock, random.Random(1), keeper, tenants=tenants)


def want(tokens: float = 0.0, priority: int = 1, **more: Any) -> Demand:
    return Demand(tokens=tokens, priority=priority, **more)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def finished(task: asyncio.Task[Ticket]) -> Ticket:
    """Wait for what another thread has to allow."""
    async with asyncio.timeout(60):
        return await task


async def test_a_call_under_several_limits_of_a_kind_each_is_admitted() -> None:
    clock = FakeClock()
    door = gate(clock, tokens_per_minute=600, requests_per_minute=60)
    mine = Limits(tokens_per_minute=60, requests_per_minute=60)
    ticket = await finished(asyncio.create_task(door.enter(want(5.0, key="alice", limits=mine))))
    door.leave(ticket, 5.0)
    assert door.in_flight == 0


# -- order -----------------------------------------------------------------------------------------------------------


async def test_a_gate_admits_in_order_and_as_many_as_it_may() -> None:
    clock = FakeClock()
    door = gate(clock, concurrency=2)
    entered: list[int] = []
    inside: list[Ticket] = []

    async def call(number: int) -> None:
        inside.append(await door.enter(want()))
        entered.append(number)

    tasks = [asyncio.create_task(call(n)) for n in range(6)]
    await turns()
    assert entered == [0, 1]
    assert door.waiting == 4
    tasks[3].cancel()
    for expected in ([0, 1, 2], [0, 1, 2, 4], [0, 1, 2, 4, 5]):
        door.leave(inside.pop(0), None)
        await turns()
        assert entered == expected
    assert (door.waiting, door.in_flight) == (0, 2)
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_gate_waits_for_tokens_and_gives_back_what_was_estimated_too_high() -> None:
    door = gate(FakeClock(), tokens_per_minute=600)
    first = await door.enter(want(100))
    waiting = asyncio.create_task(door.enter(want(50)))
    await turns()
    assert not waiting.done()
    door.leave(first, 30)
    await turns()
    assert waiting.done()
    assert door.in_flight == 1


async def test_a_gate_opens_with_the_clock() -> None:
    clock = FakeClock()
    door = gate(clock, requests_per_minute=60)
    for _ in range(10):
        await door.enter(want())
    late = asyncio.create_task(door.enter(want()))
    await turns()
    clock.advance(0.5)
    await turns()
    assert not late.done()
    clock.advance(0.51)
    await turns()
    assert late.done()


async def test_a_cancelled_call_that_was_promised_a_moment_gives_its_share_back() -> None:
    clock = FakeClock()
    door = gate(clock, tokens_per_minute=600)
    await door.enter(want(100))
    soon = asyncio.create_task(door.enter(want(2)))
    await turns()
    assert (soon.done(), door.in_flight) == (False, 2)
    soon.cancel()
    await turns()
    assert door.in_flight == 1
    clock.advance(10.0)
    assert (await door.enter(want(100))).admitted


async def test_one_tenant_at_its_limit_does_not_hold_the_others() -> None:
    door = gate(FakeClock(), tenants={"small": Limits(concurrency=1)}, concurrency=10)
    await door.enter(want(namespace="small"))
    held = [asyncio.create_task(door.enter(want(namespace="small"))) for _ in range(3)]
    await turns()
    assert (await door.enter(want(namespace="large"))).admitted
    assert door.waiting == 3
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_a_callers_own_limits_hold_over_all_its_calls() -> None:
    door = gate(FakeClock())
    own = Limits(requests_per_minute=6)
    await door.enter(want(key="team", limits=own))
    late = asyncio.create_task(door.enter(want(key="team", limits=own)))
    await turns()
    assert not late.done()
    assert (await door.enter(want(key="other", limits=own))).admitted
    late.cancel()


async def test_what_a_provider_reports_limits_where_the_settings_do_not() -> None:
    clock = FakeClock()
    door = gate(clock)
    assert (await door.enter(want(1e9, upstream="m"))).admitted
    door.reported("m", Reported(tokens_per_minute=600, tokens_left=20.0))
    late = asyncio.create_task(door.enter(want(50, upstream="m")))
    await turns()
    assert not late.done()
    assert (await door.enter(want(1e9, upstream="other"))).admitted
    clock.advance(3.1)
    await turns()
    assert late.done()


class Waits:
    """Something in a line."""

    def __init__(self, name: str, priority: int, tenant: str = "t", since: float = 0.0) -> None:
        self.name, self.priority, self.tenant, self.since = name, priority, tenant, since

    def __repr__(self) -> str:
        return self.name


def drained(line: Line[Waits], now: float = 0.0) -> list[str]:
    names = []
    while (found := line.next(now)) is not None:
        names.append(found.name)
        line.serve(found, now)
    return names


def test_levels_take_turns_by_weight_and_tenants_within_them() -> None:
    line: Line[Waits] = Line()
    for n in range(40):
        line.add(Waits(f"low{n}", 5, "flood"))
    for n in range(4):
        line.add(Waits(f"high{n}", 1, "a" if n < 3 else "b"))
    names = drained(line)
    assert names[:4] == ["high0", "high3", "high1", "high2"] or "high3" in names[:3]
    assert [n for n in names if n.startswith("low")] == [f"low{n}" for n in range(40)]


@given(st.lists(st.integers(1, 5), min_size=60, max_size=60))
def test_no_level_starves_however_many_higher_calls_come(arrivals: list[int]) -> None:
    line: Line[Waits] = Line()
    line.add(Waits("patient", 5))
    for n, priority in enumerate(arrivals):
        line.add(Waits(str(n), min(priority, 4), since=0.0))
    names = []
    for turn in range(61):
        # A fresh call of the highest level comes at every turn.
        line.add(Waits(f"fresh{turn}", 1, since=turn * 1.0))
        found = line.next(float(turn))
        assert found is not None
        names.append(found.name)
        line.serve(found, float(turn))
    assert "patient" in names
    assert AGEING < 61


def test_a_blocked_level_blocks_those_below_and_not_those_above() -> None:
    line: Line[Waits] = Line()
    high, middle, low = Waits("high", 1), Waits("middle", 3), Waits("low", 5, "other")
    for call in (middle, low):
        line.add(call)
    line.block(middle, 5.0, tenant_only=False)
    assert line.next(0.0) is None
    assert line.wait(1.0) == 4.0
    line.add(high)
    assert line.next(0.0) is high
    line.remove(high)
    line.unblock()
    line.block(middle, 5.0, tenant_only=True)
    assert line.next(0.0) is low


# -- sharing ---------------------------------------------------------------------------------------------------------


async def test_two_processes_share_a_limit_and_a_busy_one_asks_seldom() -> None:
    clock = FakeClock()
    store = ProcessStore(clock)
    first, second = Distant(store), Distant(store)
    doors = [gate(clock, first, requests_per_minute=6_000), gate(clock, second, requests_per_minute=6_000)]
    try:
        for _ in range(20):
            for _ in range(20):
                doors[0].leave(await asyncio.wait_for(doors[0].enter(want()), 60), None)
            clock.advance(1.0)
        # 400 calls: the share in hand grows with the use, and most calls ask nobody.
        assert first.questions < 250
        for _ in range(3):
            await asyncio.wait_for(doors[1].enter(want()), 60)
        assert doors[1]._keeper.holders == 2
    finally:
        for door in doors:
            await asyncio.to_thread(door._keeper.close)


class Counted(ProcessStore):
    """A store of this process that counts its questions."""

    questions = 0

    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        self.questions += 1
        return super().run(holder, requests)


async def test_a_busy_process_asks_its_own_store_seldom_too() -> None:
    clock = FakeClock()
    store = Counted(clock)
    door = gate(clock, store, requests_per_minute=6_000, tokens_per_minute=60_000)
    for _ in range(20):
        for _ in range(20):
            door.leave(await door.enter(want(10.0)), 10.0)
        clock.advance(1.0)
    assert store.questions < 120  # 400 calls.


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 30), st.sampled_from([0.0, 0.1, 0.6, 1.5, 20.0])), max_size=40))
async def test_two_endpoints_of_a_process_draw_on_one_limit_of_a_tenant(visits: list[tuple[int, int, float]]) -> None:
    clock = FakeClock()
    keeper = Keeper(ProcessStore(clock), clock)
    tenant = {"t": Limits(requests_per_minute=600)}  # 10 a second, and a burst of as many as `burst` says.
    doors = [Gate(name, Limits(), clock, random.Random(1), keeper, tenants=tenant) for name in ("a", "b")]
    burst = 10.0 * tenant["t"].burst
    started: list[float] = []
    for number, count, pause in visits:
        waiting = [asyncio.create_task(doors[number].enter(want(namespace="t"))) for _ in range(count)]
        await turns()
        for task in waiting:
            if task.done():
                started.append(clock.monotonic())
                doors[number].leave(task.result(), None)
            else:
                task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        clock.advance(pause)
    for at, begun in enumerate(started):
        for until in range(at, len(started)):
            # What was in hand when the window began was taken before it: a quarter of a burst at each of the two.
            assert until - at + 1 <= 1.5 * burst + 10.0 * (started[until] - begun) + 1e-6


async def test_what_a_process_has_at_an_endpoint_is_told_with_its_signs_of_life() -> None:
    clock = FakeClock()
    store = ProcessStore(clock)
    door = gate(clock, Distant(store), concurrency=1, tokens_per_minute=600)
    keeper = door._keeper
    try:
        assert door.load() is None
        first = await asyncio.wait_for(door.enter(want(50)), 60)
        others = [asyncio.create_task(door.enter(Demand(tokens=1.0, priority=p))) for p in (1, 5, 5)]
        while door.waiting < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        load = door.load()
        assert load is not None and (load.endpoint, load.in_flight, load.waiting) == (door.name, 1, {1: 1, 5: 2})
        assert load.slots == {f"endpoint:{door.name}:calls": 1} and set(load.flows) == {f"endpoint:{door.name}:tokens"}
        clock.advance(BEAT)
        keeper.tell()  # Wakes the thread, which sees that it is time; a Beat of ours might come after its own and take the load back.
        async with asyncio.timeout(60):
            while store.look(Wanted()).loads.get(keeper.holder) != [load]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        door.leave(first, 50)
        assert door.load() == replace(load, in_flight=0, waiting={})
    finally:
        await asyncio.to_thread(keeper.close)
    assert store.look(Wanted()).loads == {}


async def test_a_store_that_is_down_leaves_a_safe_share_and_is_told_later(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    store = Distant(ProcessStore(clock))
    keeper = Keeper(store, clock)
    answers: list[Answer] = []
    arrived = threading.Event()

    def took(found: list[Answer]) -> None:
        answers.extend(found)
        arrived.set()

    def ask(*requests: Request) -> list[Answer]:
        answers.clear()
        arrived.clear()
        keeper.ask(requests, took)
        assert arrived.wait(60)
        return list(answers)

    def hold(id: str, amount: float) -> Hold:
        return Hold(id=id, purses=(Purse(key="p", limit=1.0, soft=1.0),), most=amount, likely=amount)

    try:
        ask(hold("before", 0.1))
        keeper.holders = 4
        store.down = True
        with caplog.at_level(logging.INFO):
            found = ask(hold("x", 0.2), hold("y", 0.2))
            assert [getattr(a, "answer", "") for a in found] == ["granted", "wait"]
            ask(Settle(id="x", cost=0.05), Settle(id="before", cost=0.02))
            seen = [keeper.down]
            store.down = False
            clock.advance(2.0)
            ask(hold("z", 0.1))
        assert [*seen, keeper.down] == [True, False]
        assert store.purse("p") == pytest.approx((0.07, 0.1))
        assert caplog.text.count("goes on with 1/4 of each limit") == 1
        assert "is back" in caplog.text
    finally:
        await asyncio.to_thread(keeper.close)


async def test_an_overrun_while_the_store_is_asked_does_not_lose_the_call_that_waits() -> None:
    clock = FakeClock()
    store = Slow(ProcessStore(clock))
    door = gate(clock, store, tokens_per_minute=600)
    try:
        first = await asyncio.wait_for(door.enter(want(50)), 60)
        store.answer.clear()
        waiting = asyncio.create_task(door.enter(want(10)))
        await asyncio.to_thread(store.asked.wait, 10)
        door.leave(first, 70)
        store.answer.set()
        await finished(waiting)
    finally:
        store.answer.set()
        await asyncio.to_thread(door._keeper.close)


async def test_what_is_in_hand_and_not_used_goes_back() -> None:
    clock = FakeClock()
    store = ProcessStore(clock)
    distant = Distant(store)
    door = gate(clock, distant, tokens_per_minute=600, concurrency=4)
    other = gate(clock, store, tokens_per_minute=600, concurrency=4)
    try:
        door.leave(await asyncio.wait_for(door.enter(want(100)), 60), 10)
        clock.advance(0.5)
        late = asyncio.create_task(other.enter(want(95)))
        await turns()
        assert not late.done()
        clock.advance(1.0)
        given = distant.given
        door.tidy()
        door._keeper.tell()
        async with asyncio.timeout(60):
            while distant.given == given:  # noqa: ASYNC110  # The thread takes its time, which is not the clock's.
                await asyncio.sleep(0.001)
            while not late.done():
                clock.advance(0.1)
                await asyncio.sleep(0.01)
        assert clock.monotonic() < 1_004.0
    finally:
        await asyncio.to_thread(door._keeper.close)


# -- what 429s teach -------------------------------------------------------------------------------------------------


async def test_a_429_halves_what_may_be_in_flight_once_for_a_burst_and_success_widens_it_again() -> None:
    clock = FakeClock()
    door = gate(clock)
    inside = [await door.enter(want()) for _ in range(40)]
    for _ in range(10):
        door.limited(2.0)
    assert door.window == 20
    for ticket in inside:
        door.leave(ticket, None)
    blocked = asyncio.create_task(door.enter(want()))
    await turns()
    assert not blocked.done()
    assert door.cooling() >= 2.0
    clock.advance(4.0)
    await turns()
    assert blocked.done()
    for _ in range(40):
        door.succeeded()
    assert 21 < (door.window or 0) < 23
    limited = 0
    while door.window is not None and limited < 10_000_000:
        door.succeeded()
        limited += 1
    assert 100_000 < limited < 10_000_000


async def test_a_429_of_one_process_cools_the_others_down() -> None:
    clock = FakeClock()
    store = ProcessStore(clock)
    first, second = gate(clock, Distant(store), requests_per_minute=600), gate(clock, store, requests_per_minute=600)
    try:
        await asyncio.wait_for(first.enter(want()), 60)
        first.limited(5.0)
        await asyncio.wait_for(asyncio.to_thread(_asked, first), 60)
        late = asyncio.create_task(second.enter(want()))
        await turns()
        assert not late.done()
        clock.advance(6.0)
        await turns()
        assert late.done()
    finally:
        await asyncio.to_thread(first._keeper.close)


def _asked(door: Gate) -> None:
    """Wait until the keeper has carried out what it was told."""
    done = threading.Event()
    door._keeper.ask([], lambda answers: done.set())
    done.wait()


async def test_a_waiter_whose_loop_has_died_does_not_hold_the_others() -> None:
    door = gate(FakeClock(), concurrency=1)
    inside = await door.enter(want())
    other = asyncio.new_event_loop()
    stranded = other.create_task(door.enter(want()))
    await asyncio.to_thread(other.run_until_complete, _turn())
    assert door.waiting == 1
    mine = asyncio.create_task(door.enter(want()))
    await turns()
    stranded.cancel()
    stranded._log_destroy_pending = False  # type: ignore[attr-defined]
    other.close()
    door.leave(inside, None)
    await turns()
    assert mine.done()


async def _turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
