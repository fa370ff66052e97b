"""What every limit store must do. Subclass and say how a store is made; see `tests/conformance/test_limit_stores.py`.

Time is a FakeClock that the stores are given, so nothing here waits.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.inference.limits.interface import (
    LEASE,
    LOOKAHEAD,
    Answer,
    Beat,
    Cool,
    Flow,
    Give,
    Held,
    Hold,
    Leave,
    LimitStore,
    Load,
    Purse,
    Request,
    Settle,
    Slots,
    Take,
    Taken,
    Wanted,
)
from ziggurat.inference.limits.process import ProcessStore
from ziggurat.testing.clock import FakeClock

_fresh = itertools.count()


def flow(need: float, *, key: str = "f", rate: float = 10.0, burst: float = 100.0, **more: Any) -> Flow:
    """A draw upon a flow of ten units a second."""
    return Flow(key=key, rate=rate, burst=burst, need=need, **more)


def take(*flows: Flow, slots: tuple[Slots, ...] = (), priority: float = 1.0, gate: str = "g") -> Take:
    """A request for these flows and slots."""
    return Take(gate=gate, flows=flows, slots=slots, priority=priority)


def hold(id: str, most: float, *, likely: float | None = None, limit: float = 1.0, key: str = "p", **more: Any) -> Hold:
    """A reservation in one purse of a dollar."""
    past_soft = more.pop("past_soft", True)
    purse = Purse(key=key, limit=limit, soft=more.pop("soft", limit), **more)
    return Hold(id=id, purses=(purse,), most=most, likely=most if likely is None else likely, past_soft=past_soft)


class LimitStoreSuite(ABC):
    """The promises of a limit store."""

    @abstractmethod
    def make_store(self, clock: FakeClock, name: str) -> LimitStore:
        """Return a store of that name: made anew, or one more way to the same numbers."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def store(self, clock: FakeClock) -> LimitStore:
        self.name = f"s{next(_fresh)}"
        return self.make_store(clock, self.name)

    @staticmethod
    def ask(store: LimitStore, request: Request, holder: str = "a") -> Any:
        [answer] = store.run(holder, [request])
        return answer

    # -- flows -------------------------------------------------------------------------------------------------------

    def test_a_full_bucket_gives_its_burst_and_then_its_rate(self, store: LimitStore, clock: FakeClock) -> None:
        assert self.ask(store, take(flow(100.0))).granted
        refused: Taken = self.ask(store, take(flow(10.0)))
        assert (refused.granted, refused.short) == (False, "f")
        assert refused.wait == pytest.approx(1.0 - LOOKAHEAD / 2)
        clock.advance(1.0)
        assert self.ask(store, take(flow(10.0))) == Taken(granted=True, flows=(10.0,))
        clock.advance(1_000.0)
        assert self.ask(store, take(flow(100.0))).granted
        assert not self.ask(store, take(flow(10.0))).granted

    def test_a_little_debt_is_granted_with_its_delay(self, store: LimitStore, clock: FakeClock) -> None:
        self.ask(store, take(flow(100.0)))
        early: Taken = self.ask(store, take(flow(2.0)))
        assert early.granted
        assert early.delay == pytest.approx(0.2)
        assert not self.ask(store, take(flow(2.0))).granted

    def test_more_than_the_burst_is_let_through_once_and_leaves_a_debt(self, store: LimitStore, clock: FakeClock) -> None:
        assert self.ask(store, take(flow(150.0))).granted
        assert self.ask(store, take(flow(1.0))).wait == pytest.approx(5.1 - LOOKAHEAD / 2)

    def test_all_keys_or_none(self, store: LimitStore) -> None:
        assert self.ask(store, take(flow(100.0, key="small"))).granted
        for _ in range(3):
            refused = self.ask(store, take(flow(60.0, key="large"), flow(50.0, key="small"), slots=(Slots(key="s", limit=2),)))
            assert (refused.granted, refused.short) == (False, "small")
        assert self.ask(store, take(flow(100.0, key="large"))).granted
        assert self.ask(store, take(slots=(Slots(key="s", limit=2, need=2, want=2),))).granted

    def test_what_comes_back_can_be_taken_again_and_an_overrun_is_owed(self, store: LimitStore) -> None:
        self.ask(store, take(flow(100.0)))
        self.ask(store, Give(flows=(("f", 10.0, 100.0, 40.0),)))
        assert self.ask(store, take(flow(40.0))).granted
        self.ask(store, Give(flows=(("f", 10.0, 100.0, -20.0),)))
        assert self.ask(store, take(flow(10.0))).wait == pytest.approx(3.0 - LOOKAHEAD / 2)
        self.ask(store, Give(flows=(("f", 10.0, 100.0, 1e9),)))
        assert self.ask(store, take(flow(100.0))).granted
        assert not self.ask(store, take(flow(100.0))).granted

    def test_lower_priorities_leave_something_for_higher_ones(self, store: LimitStore) -> None:
        for priority, left in ((5.0, 40.0), (3.0, 20.0), (2.0, 10.0), (1.0, 0.0)):
            draw = take(flow(10.0, key=f"f{priority}"), priority=priority)
            taken = sum(self.ask(store, draw).granted for _ in range(12))
            assert 100.0 - 10.0 * taken == pytest.approx(left)

    def test_extras_are_shared_and_never_owed(self, store: LimitStore) -> None:
        for name in ("b", "c", "d"):
            self.ask(store, Beat(), name)
        taken: Taken = self.ask(store, take(flow(20.0, want=100.0)))
        assert (taken.flows, taken.holders) == ((40.0,), 4)

    def test_the_provider_knows_best_what_is_left(self, store: LimitStore) -> None:
        assert self.ask(store, take(flow(10.0, left=10.0))).granted
        assert not self.ask(store, take(flow(10.0))).granted

    def test_a_cool_down_holds_for_all(self, store: LimitStore, clock: FakeClock) -> None:
        self.ask(store, Cool(gate="g", seconds=5.0))
        self.ask(store, Cool(gate="g", seconds=2.0), "b")
        cooling: Taken = self.ask(store, take(flow(1.0)), "b")
        assert (cooling.granted, cooling.short, cooling.holders) == (False, "", 2)
        assert cooling.wait == pytest.approx(5.0)
        assert self.ask(store, take(flow(1.0), gate="other"), "b").granted
        clock.advance(5.1)
        assert self.ask(store, take(flow(1.0)), "b").granted

    # -- slots -------------------------------------------------------------------------------------------------------

    def test_so_many_slots_and_no_more(self, store: LimitStore) -> None:
        one = take(slots=(Slots(key="s", limit=2),))
        assert [self.ask(store, one, name).granted for name in ("a", "b", "c")] == [True, True, False]
        self.ask(store, Give(slots=(("s", 1),)), "a")
        assert self.ask(store, one, "c").granted
        # One that has none gives none.
        self.ask(store, Give(slots=(("s", 5),)), "a")
        assert not self.ask(store, one, "a").granted

    def test_a_dead_holders_slots_are_free_after_the_lease(self, store: LimitStore, clock: FakeClock) -> None:
        one = take(slots=(Slots(key="s", limit=1),))
        assert self.ask(store, one, "a").granted
        clock.advance(LEASE - 1.0)
        assert not self.ask(store, one, "b").granted
        self.ask(store, Beat(), "a")
        clock.advance(LEASE - 1.0)
        assert not self.ask(store, one, "b").granted
        clock.advance(2.0)
        assert self.ask(store, one, "b").granted

    def test_a_slot_is_kept_free_while_a_higher_priority_is_about(self, store: LimitStore, clock: FakeClock) -> None:
        one = (Slots(key="s", limit=2),)
        assert self.ask(store, take(slots=one)).granted
        assert not self.ask(store, take(slots=one, priority=3.0)).granted
        assert self.ask(store, take(slots=one)).granted
        self.ask(store, Give(slots=(("s", 2),)))
        clock.advance(60.0)
        for _ in range(2):
            assert self.ask(store, take(slots=one, priority=3.0)).granted

    # -- purses ------------------------------------------------------------------------------------------------------

    def test_reservations_add_up_and_settle_once(self, store: LimitStore) -> None:
        assert self.ask(store, hold("x", 0.6)) == Held(answer="granted")
        assert self.ask(store, hold("x", 0.6)) == Held(answer="granted")
        assert store.purse("p") == pytest.approx((0.0, 0.6))
        assert self.ask(store, hold("y", 0.6)).answer == "wait"
        for _ in range(2):
            self.ask(store, Settle(id="x", cost=0.3))
        assert store.purse("p") == pytest.approx((0.3, 0.0))
        assert self.ask(store, hold("y", 0.6)).answer == "granted"
        refused: Held = self.ask(store, hold("z", 0.8))
        assert (refused.answer, refused.key) == ("hard", "p")
        assert refused.spent == pytest.approx(0.3)
        assert store.purse("never") == (0.0, 0.0)

    def test_one_call_at_a_time_may_overshoot_by_its_estimates_error(self, store: LimitStore) -> None:
        assert self.ask(store, hold("x", 5.0, likely=0.2)).answer == "granted"
        assert self.ask(store, hold("y", 5.0, likely=0.2)).answer == "wait"
        self.ask(store, Settle(id="x", cost=0.9))
        assert self.ask(store, hold("y", 5.0, likely=0.2)).answer == "hard"
        assert self.ask(store, hold("y", 5.0, likely=0.05)).answer == "granted"

    def test_all_purses_or_none(self, store: LimitStore) -> None:
        purses = (Purse(key="run", limit=9.0, soft=9.0), Purse(key="day", limit=1.0, soft=1.0))
        assert self.ask(store, Hold(id="x", purses=purses, most=2.0, likely=2.0)).key == "day"
        assert store.purse("run") == (0.0, 0.0)
        assert self.ask(store, Hold(id="y", purses=purses, most=1.0, likely=1.0)).answer == "granted"
        assert store.purse("run") == store.purse("day") == (0.0, 1.0)

    def test_past_the_soft_limit_the_caller_is_told_unless_it_knows(self, store: LimitStore) -> None:
        assert self.ask(store, hold("x", 0.5, soft=0.4, past_soft=False)).answer == "soft"
        assert self.ask(store, hold("x", 0.5, soft=0.4)).answer == "granted"

    def test_the_history_is_the_floor_of_what_is_spent(self, store: LimitStore) -> None:
        self.ask(store, hold("x", 0.1, spent=0.7))
        self.ask(store, Settle(id="x", cost=0.1))
        self.ask(store, hold("y", 0.1, spent=0.2))
        assert store.purse("p")[0] == pytest.approx(0.8)

    def test_a_dead_holders_reservation_may_have_been_billed_and_one_that_left_was_not(
        self, store: LimitStore, clock: FakeClock
    ) -> None:
        self.ask(store, hold("x", 0.4), "a")
        self.ask(store, hold("y", 0.3), "b")
        self.ask(store, Leave(), "b")
        assert store.purse("p") == pytest.approx((0.0, 0.4))
        clock.advance(LEASE + 1.0)
        self.ask(store, Beat(), "c")
        assert store.purse("p") == pytest.approx((0.4, 0.0))
        # It was not dead but asleep: what it settles late changes nothing.
        self.ask(store, Settle(id="x", cost=0.1), "a")
        assert store.purse("p")[0] == pytest.approx(0.4)

    # -- what people see ---------------------------------------------------------------------------------------------

    def test_a_look_shows_how_things_stand_and_changes_nothing(self, store: LimitStore, clock: FakeClock) -> None:
        everything = Wanted(
            flows={"f": (10.0, 100.0), "unknown": (1.0, 1.0)}, slots=("s", "t"), purses=("p", "unknown"), gates=("g", "h")
        )
        nothing = store.look(everything)
        assert (nothing.flows, nothing.slots, nothing.purses, nothing.cooling, nothing.loads) == ({}, {}, {}, {}, {})
        self.ask(store, take(flow(60.0), slots=(Slots(key="s", limit=4),)), "a")
        self.ask(store, hold("x", 0.25), "a")
        self.ask(store, Cool(gate="h", seconds=20.0), "a")
        told = Load(endpoint="e", in_flight=2, waiting={1: 3, 5: 40}, flows={"f": (10.0, 100.0)}, slots={"s": 4})
        self.ask(store, Beat(loads=(told,)), "b")
        for _ in range(2):
            seen = store.look(everything)
            assert set(seen.flows) == {"f"}
            assert seen.flows["f"] == pytest.approx((40.0, 60.0))
            assert (seen.slots, seen.purses, seen.loads) == ({"s": 1}, {"p": (0.0, 0.25)}, {"b": [told]})
            assert seen.cooling == {"h": pytest.approx(20.0)}
        clock.advance(3)
        assert store.look(everything).flows["f"][0] == pytest.approx(70.0)
        # Whoever looks is no holder: the next one finds "a" and "b" and itself.
        assert self.ask(store, take(flow(1.0)), "c").holders == 3
        self.ask(store, Beat(), "b")
        assert store.look(everything).loads == {}
        self.ask(store, Beat(loads=(told,)), "b")
        clock.advance(LEASE + 1)
        self.ask(store, Beat(), "d")
        seen = store.look(everything)
        assert (seen.loads, seen.slots.get("s", 0)) == ({}, 0)

    def test_what_was_used_lately_is_counted_over_a_sliding_minute(self, store: LimitStore, clock: FakeClock) -> None:
        wanted = Wanted(flows={"f": (10.0, 100.0)})
        clock.advance(60.0 - clock.time() % 60.0)  # To the beginning of a minute of the clock.
        self.ask(store, take(flow(40.0)))
        self.ask(store, Give(flows=(("f", 10.0, 100.0, 10.0),)))
        assert store.look(wanted).flows["f"][1] == pytest.approx(30.0)
        clock.advance(75.0)
        assert store.look(wanted).flows["f"][1] == pytest.approx(30.0 * 0.75)
        self.ask(store, take(flow(50.0)))
        assert store.look(wanted).flows["f"][1] == pytest.approx(30.0 * 0.75 + 50.0)
        clock.advance(60.0)
        assert store.look(wanted).flows["f"][1] == pytest.approx(50.0 * 0.75)
        clock.advance(120.0)
        assert store.look(wanted).flows["f"][1] == 0.0

    # -- all of it ---------------------------------------------------------------------------------------------------

    def test_two_ways_to_one_store_see_the_same_numbers(self, store: LimitStore, clock: FakeClock) -> None:
        other = self.make_store(clock, self.name)
        assert self.ask(store, take(flow(100.0)), "a").granted
        assert not self.ask(other, take(flow(10.0)), "b").granted
        self.ask(store, hold("x", 1.0), "a")
        assert other.purse("p") == (0.0, 1.0)
        other.close()

    def test_every_sequence_is_answered_as_the_arithmetic_answers_it(self) -> None:
        # A function of its own for each store: hypothesis takes one that several classes share for a mistake.
        @settings(max_examples=40)
        @given(moves=st.lists(_MOVES, max_size=40))
        def check(moves: list[tuple[str, Request, float]]) -> None:
            self.compare(moves)

        check()

    def compare(self, moves: list[tuple[str, Request, float]]) -> None:
        """Make the same requests of the store and of the arithmetic, and look at the promises on the way."""
        clock = FakeClock()
        store, model = self.make_store(clock, f"s{next(_fresh)}"), ProcessStore(clock)
        drawn = 0.0
        for holder, request, seconds in moves:
            [expected], [answer] = model.run(holder, [request]), store.run(holder, [request])
            assert _near(answer, expected), (request, answer, expected)
            if isinstance(answer, Taken) and answer.granted:
                drawn += sum(answer.flows)
            # A burst, one draw beyond it, what flowed, and what was granted a little early.
            assert drawn <= 100.0 + 60.0 + 10.0 * (clock.monotonic() - 1_000.0 + LOOKAHEAD) + 1e-6
            clock.advance(seconds)
        everything = Wanted(flows={"f": (10.0, 100.0)}, slots=("s",), purses=("p", "q"), gates=("g",))
        seen, expected_ = store.look(everything), model.look(everything)
        assert seen.slots.get("s", 0) == expected_.slots.get("s", 0)
        for name in ("flows", "purses", "cooling"):
            found, due = getattr(seen, name), getattr(expected_, name)
            assert set(found) == set(due), name
            assert all(found[key] == pytest.approx(due[key], abs=1e-6) for key in due), name
        for key in ("p", "q"):
            assert store.purse(key) == pytest.approx(model.purse(key))
        store.close()


def _near(answer: Answer, expected: Answer) -> bool:
    if not isinstance(expected, Taken) or not isinstance(answer, Taken):
        return answer == expected or (
            isinstance(answer, Held)
            and isinstance(expected, Held)
            and (answer.answer, answer.key) == (expected.answer, expected.key)
            and answer.spent == pytest.approx(expected.spent)
        )
    same = ("granted", "short", "slots", "holders", "contended")
    close = ("wait", "delay", "flows")
    return all(getattr(answer, n) == getattr(expected, n) for n in same) and all(
        getattr(answer, n) == pytest.approx(getattr(expected, n), abs=1e-6) for n in close
    )


_IDS = st.sampled_from(["1", "2", "3", "4"])
_AMOUNTS = st.sampled_from([0.05, 0.1, 0.4, 0.7])
_PURSES = st.lists(
    st.builds(
        Purse, key=st.sampled_from(["p", "q"]), limit=st.just(1.0), soft=st.just(0.5), spent=st.sampled_from([0.0, 0.0, 0.3])
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda purse: purse.key,
)
_REQUESTS: Any = st.one_of(
    st.builds(
        lambda need, want, priority, slots: take(
            flow(need, want=want), slots=(Slots(key="s", limit=3, want=2),) if slots else (), priority=priority
        ),
        st.sampled_from([1.0, 10.0, 40.0, 160.0]),
        st.sampled_from([0.0, 60.0]),
        st.sampled_from([1.0, 2.5, 5.0]),
        st.booleans(),
    ),
    st.builds(Give, slots=st.just((("s", 1),))),
    st.builds(Cool, gate=st.just("g"), seconds=st.sampled_from([0.5, 3.0])),
    st.builds(
        lambda id, purses, likely, extra, past: Hold(
            id=id, purses=tuple(purses), most=likely + extra, likely=likely, past_soft=past
        ),
        _IDS,
        _PURSES,
        _AMOUNTS,
        st.sampled_from([0.0, 0.5]),
        st.booleans(),
    ),
    st.builds(Settle, id=_IDS, cost=_AMOUNTS),
    st.builds(Beat),
    st.builds(Leave),
)
_MOVES = st.tuples(st.sampled_from(["a", "b", "c"]), _REQUESTS, st.sampled_from([0.0, 0.1, 1.0, 4.0, 11.0]))
