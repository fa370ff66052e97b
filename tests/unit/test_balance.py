"""Which replica serves a call: sessions stay, a lost replica moves its own and no others, and nobody is buried."""

from __future__ import annotations

import math
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ziggurat.inference.balance import BOUND, FEW, bound, by_load, by_session, order

names = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=12, unique=True)
sessions = st.text(max_size=20)


@given(sessions, names, st.randoms())
def test_a_session_orders_the_replicas_alike_whatever_order_they_are_named_in(
    session: str, replicas: list[str], rng: random.Random
) -> None:
    shuffled = list(replicas)
    rng.shuffle(shuffled)
    assert order(session, replicas) == order(session, shuffled)
    assert sorted(order(session, replicas)) == sorted(replicas)


@given(st.lists(sessions, max_size=50), names, st.data())
def test_a_lost_replica_moves_only_its_own_sessions(asked: list[str], replicas: list[str], data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(replicas))
    left = [name for name in replicas if name != lost]
    for session in asked if left else []:
        before = order(session, replicas)
        # The whole order of what is left stays, so a second loss moves as little as the first.
        assert order(session, left) == [name for name in before if name != lost]
        if before[0] != lost:
            assert by_session(session, dict.fromkeys(left, 0.0)) == before[0]


@given(st.lists(sessions, max_size=50), names, st.text(min_size=1, max_size=12))
def test_a_new_replica_takes_sessions_and_moves_none_between_the_others(asked: list[str], replicas: list[str], new: str) -> None:
    for session in asked:
        first = order(session, [*dict.fromkeys([*replicas, new])])[0]
        assert first in (new, order(session, replicas)[0])


@given(st.lists(sessions, max_size=200), names)
def test_no_replica_goes_over_its_bound_however_the_sessions_fall(asked: list[str], replicas: list[str]) -> None:
    loads = dict.fromkeys(replicas, 0.0)
    for session in asked:
        most = bound(list(loads.values()))
        place = by_session(session, loads)
        loads[place] += 1
        assert loads[place] <= most
    assert max(loads.values()) <= max(FEW, math.ceil(BOUND * max(1, len(asked)) / len(replicas)))


@given(sessions, st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0, 1000), min_size=1, max_size=8))
def test_a_session_goes_to_its_first_replica_that_has_room(session: str, loads: dict[str, float]) -> None:
    place, most = by_session(session, loads), bound(list(loads.values()))
    assert loads[place] + 1 <= most
    preferred = order(session, list(loads))
    assert all(loads[name] + 1 > most for name in preferred[: preferred.index(place)])


def test_sessions_spread_evenly() -> None:
    replicas = [f"http://10.0.0.{n}:8000/v1" for n in range(4)]
    counts = Counter(order(f"run-{n}", replicas)[0] for n in range(4000))
    assert set(counts) == set(replicas)
    # 1,000 each; five standard deviations of a fair draw are 137.
    assert all(800 < count < 1200 for count in counts.values()), counts


def test_of_two_that_are_drawn_the_less_busy_is_taken() -> None:
    rng = random.Random(7)
    loads = {"a": 5.0, "b": 0.0, "c": 9.0}
    drawn = Counter(by_load(loads, rng) for _ in range(3000))
    assert drawn["c"] == 0, "the busiest loses to whichever it is drawn with"
    assert drawn["b"] > drawn["a"] > 0
    assert by_load({"only": 3.0}, rng) == "only"


@given(st.integers(2, 8), st.integers(0, 2**32))
def test_two_choices_keep_the_loads_close(count: int, seed: int) -> None:
    rng = random.Random(seed)
    loads = {str(n): 0.0 for n in range(count)}
    for _ in range(count * 20):
        loads[by_load(loads, rng)] += 1
    assert max(loads.values()) - min(loads.values()) <= 12
