"""The queue's choices: shares in proportion, no starvation, limits that neither leak nor block."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from ziggurat.queues.contest import Candidate, Contest, Turns
from ziggurat.queues.interface import AGEING, PRIORITY_WEIGHTS
from ziggurat.queues.lines import Entry, Lines
from ziggurat.queues.scheduling import Bucket, Buckets, LevelTurns, Ring, Slots, full_at, refilled, seconds_until_token
from ziggurat.records import Concurrency, Lane, Message, Rate

FRESH = dict.fromkeys(PRIORITY_WEIGHTS, 0.0)
LEVELS = st.sets(st.sampled_from(sorted(PRIORITY_WEIGHTS)), min_size=1)


# -- levels ----------------------------------------------------------------------------------------------------------


def test_levels_are_served_in_proportion_and_smoothly() -> None:
    turns = LevelTurns(PRIORITY_WEIGHTS, AGEING)
    order = [turns.choose(FRESH) for _ in range(31)]
    assert Counter(order) == PRIORITY_WEIGHTS
    assert "".join(map(str, order)).count("111") == 0, "the highest level must not be served in long rows"


@given(LEVELS, st.integers(1, 5))
def test_any_levels_that_compete_are_served_in_proportion(levels: set[int], rounds: int) -> None:
    turns = LevelTurns(PRIORITY_WEIGHTS, AGEING)
    total = sum(PRIORITY_WEIGHTS[level] for level in levels)
    served = Counter(turns.choose(dict.fromkeys(levels, 0.0)) for _ in range(total * rounds))
    assert served == {level: PRIORITY_WEIGHTS[level] * rounds for level in levels}


@given(st.lists(LEVELS, max_size=200))
def test_credit_stays_bounded_however_levels_come_and_go(history: list[set[int]]) -> None:
    turns = LevelTurns(PRIORITY_WEIGHTS, AGEING)
    total = sum(PRIORITY_WEIGHTS.values())
    for levels in history:
        assert turns.choose(dict.fromkeys(levels, 0.0)) in levels
    # Whatever it owes for turns that it took while others were away, a level is served within two rounds of all.
    order = [turns.choose(FRESH) for _ in range(2 * total)]
    assert set(order) == set(PRIORITY_WEIGHTS)


@given(st.integers(1, 5), st.floats(0, 1e9), st.floats(0, 1e9))
def test_weight_grows_with_waiting_and_never_passes_the_highest(level: int, one: float, other: float) -> None:
    turns = LevelTurns(PRIORITY_WEIGHTS, AGEING)
    shorter, longer = sorted((one, other))
    assert PRIORITY_WEIGHTS[level] <= turns.weight(level, shorter) <= turns.weight(level, longer) <= PRIORITY_WEIGHTS[1]


def test_each_ageing_lifts_by_one_level() -> None:
    turns = LevelTurns(PRIORITY_WEIGHTS, 30.0)
    assert [turns.weight(5, waited) for waited in (0, 29.9, 30, 60, 90, 120, 1e12)] == [1, 1, 2, 4, 8, 16, 16]


def test_without_ageing_waiting_changes_nothing() -> None:
    assert LevelTurns(PRIORITY_WEIGHTS, 0.0).weight(5, 1e9) == 1


def test_the_wait_of_an_aged_message_is_bounded_under_a_flood_of_the_highest_level() -> None:
    turns = LevelTurns(PRIORITY_WEIGHTS, AGEING)
    for _ in range(100):
        turns.choose({1: 0.0, 5: 0.0})
    assert 5 in [turns.choose({1: 0.0, 5: 4 * AGEING}) for _ in range(3)]


# -- rings and slots -------------------------------------------------------------------------------------------------


def test_a_ring_gives_each_member_its_turn_and_newcomers_the_last() -> None:
    ring: Ring[int] = Ring(a=1, b=2)
    ring.served("a")
    ring["c"] = 3
    assert list(ring) == ["b", "a", "c"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans())))
def test_slots_count_and_never_pass_a_limit(operations: list[tuple[str, int, bool]]) -> None:
    slots = Slots()
    running: Counter[str] = Counter()
    for key, limit, take in operations:
        if take:
            assert slots.take(Concurrency(key, limit)) == (running[key] < limit)
            running[key] += running[key] < limit
        elif running[key]:
            slots.free(key)
            running[key] -= 1
        assert slots.running(key) == running[key]
    assert len(slots) == len(+running), "an idle key must leave nothing behind"


def test_freeing_a_slot_that_nobody_holds_changes_nothing() -> None:
    slots = Slots()
    slots.free("a")
    assert slots.running("a") == 0
    assert slots.take(Concurrency("a", 1))


# -- rates -----------------------------------------------------------------------------------------------------------

RATES = st.builds(Rate, st.just("key"), per_second=st.floats(0.01, 1_000), burst=st.integers(1, 20))


@given(RATES, st.lists(st.floats(0, 10), max_size=100))
def test_a_rate_lets_no_more_than_its_bucket_through_in_any_time(rate: Rate, gaps: list[float]) -> None:
    buckets, now = Buckets(), 1e6
    starts: list[float] = []
    for gap in gaps:
        now += gap
        if buckets.take(rate, now) == 0:
            starts.append(now)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            allowed = rate.burst + rate.per_second * (starts[last] - starts[first])
            assert last - first + 1 <= allowed + 1e-3


@given(RATES, st.integers(1, 30))
def test_who_waits_as_long_as_told_may_start(rate: Rate, number: int) -> None:
    buckets, now = Buckets(), 1.7e9
    for _ in range(number):
        # A wall clock of this size resolves a quarter of a microsecond, so what is left of a wait may be one tick of it.
        for _ in range(3):
            wait = buckets.take(rate, now)
            if wait == 0:
                break
            now = max(now + wait, math.nextafter(now, math.inf))
        assert wait == 0


@given(RATES, st.floats(0, 1e4), st.floats(-1e4, 1e4))
def test_a_bucket_never_overflows_and_time_that_goes_back_adds_nothing(rate: Rate, tokens: float, gap: float) -> None:
    bucket = Bucket(min(tokens, rate.burst), 1e6)
    after = refilled(bucket, rate, 1e6 + gap)
    assert bucket.tokens <= after <= rate.burst
    if gap <= 0:
        assert after == bucket.tokens


def test_a_rate_of_zero_never_refills() -> None:
    never = Rate("key", per_second=0.0, burst=1)
    buckets = Buckets()
    assert buckets.take(never, 0.0) == 0
    assert buckets.take(never, 1e9) == float("inf")
    assert full_at(0.0, never, 0.0) == float("inf")
    assert seconds_until_token(1.0, never) == 0


@given(RATES)
def test_a_token_that_is_given_back_can_be_taken_again_and_no_more(rate: Rate) -> None:
    buckets = Buckets()
    for _ in range(rate.burst):
        assert buckets.take(rate, 0.0) == 0
    assert buckets.take(rate, 0.0) > 0
    buckets.give_back(rate, 0.0)
    assert buckets.take(rate, 0.0) == 0
    assert buckets.take(rate, 0.0) > 0
    for _ in range(rate.burst + 5):
        buckets.give_back(rate, 0.0)
    assert refilled(None, rate, 0.0) == rate.burst


def test_full_buckets_are_forgotten() -> None:
    buckets = Buckets()
    for number in range(100):
        buckets.take(Rate(f"user-{number}", per_second=1.0), 0.0)
    buckets.prune(0.5)
    assert len(buckets) == 100
    buckets.prune(1.0)
    assert len(buckets) == 0


# -- lines in memory -------------------------------------------------------------------------------------------------


def message(number: int, **fields: object) -> Message:
    lane = Lane(**{name: fields.pop(name) for name in ("namespace", "queue", "region", "priority") if name in fields})  # type: ignore[arg-type]
    return Message(id=str(number), task="t", payload=Raw(b"{}"), lane=lane, **fields)  # type: ignore[arg-type]


def put(lines: Lines, it: Message, now: float = 0.0) -> Entry:
    line = lines.line(it)
    line.held += 1
    entry = Entry(message=it, line=line)
    lines.put(entry, now)
    return entry


def test_a_line_is_served_oldest_first_and_what_comes_back_keeps_its_place() -> None:
    lines = Lines(PRIORITY_WEIGHTS, AGEING)
    for number in range(6):
        put(lines, message(number))
    view = lines.view(["default"], "")
    taken = lines.take(view, 4, 0.0)
    assert [entry.message.id for entry in taken] == ["0", "1", "2", "3"]
    for entry in (taken[2], taken[0]):
        lines.put_back(entry)
    assert [entry.message.id for entry in lines.take(view, 9, 0.0)] == ["0", "2", "4", "5"]


def test_removing_most_of_a_line_frees_its_memory() -> None:
    lines = Lines(PRIORITY_WEIGHTS, AGEING)
    entries = [put(lines, message(number)) for number in range(1_000)]
    for entry in entries[1:]:
        lines.remove(entry)
    assert lines.stored() < 100
    assert lines.take(lines.view(["default"], ""), 9, 0.0) == entries[:1]


def test_lines_of_keys_that_nobody_uses_any_more_are_forgotten() -> None:
    lines = Lines(PRIORITY_WEIGHTS, AGEING)
    view = lines.view(["default"], "")
    for number in range(10_000):
        entry = put(lines, message(number, concurrency=Concurrency(f"user-{number}", 1)))
        assert lines.take(view, 1, 0.0) == [entry]
        lines.ended(entry)
        entry.line.held -= 1
    assert len(lines) <= 2_048


def test_a_full_key_parks_its_line_and_a_freed_slot_brings_it_back() -> None:
    lines = Lines(PRIORITY_WEIGHTS, AGEING)
    view = lines.view(["default"], "")
    one = Concurrency("key", 1)
    first, second = (put(lines, message(number, concurrency=one)) for number in range(2))
    free = put(lines, message(9))
    assert lines.take(view, 9, 0.0) == [first, free]
    assert lines.take(view, 9, 0.0) == []
    assert lines.ended(first), "somebody waits for this slot"
    assert lines.take(view, 9, 0.0) == [second]


def test_a_rate_wakes_its_line_when_it_allows_the_next_start() -> None:
    lines = Lines(PRIORITY_WEIGHTS, AGEING)
    view = lines.view(["default"], "")
    rate = Rate("mail", per_second=0.5, burst=1)
    first, second = (put(lines, message(number, rate=rate)) for number in range(2))
    assert lines.take(view, 9, 0.0) == [first]
    assert lines.rate_due == 2.0
    assert not lines.wake_rates(1.9)
    assert lines.wake_rates(2.0)
    assert lines.take(view, 9, 2.0) == [second]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["q", "r"]),
            st.sampled_from(["", "eu"]),
            st.integers(1, 5),
            st.sampled_from([None, "k", "l"]),
        ),
        max_size=60,
    ),
    st.integers(1, 7),
    st.sampled_from(["", "eu"]),
)
def test_lines_deliver_everything_that_a_view_may_see_once(
    lanes: list[tuple[str, str, str, int, str | None]], batch: int, region: str
) -> None:
    lines = Lines(PRIORITY_WEIGHTS, AGEING)
    for number, (namespace, queue, place, priority, key) in enumerate(lanes):
        limit = Concurrency(key, 2) if key else None
        put(lines, message(number, namespace=namespace, queue=queue, region=place, priority=priority, concurrency=limit))
    visible = {str(number) for number, lane in enumerate(lanes) if lane[2] in ("", region)}
    view = lines.view(["q", "r"], region)
    seen: list[str] = []
    while taken := lines.take(view, batch, 1.0):
        assert len(taken) <= batch
        seen += [entry.message.id for entry in taken]
        for entry in taken:
            lines.ended(entry)
    assert Counter(seen) == Counter(visible)


# -- contests over a store -------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 5), st.lists(st.floats(0, 100), min_size=1, max_size=5)
        ),
        max_size=15,
    )
)
def test_a_contest_serves_everything_once_and_each_line_in_its_order(lines: list[tuple[str, str, int, list[float]]]) -> None:
    turns = Turns(["a", "b"], LevelTurns(PRIORITY_WEIGHTS, AGEING))
    left = {number: sorted(moments) for number, (*_, moments) in enumerate(lines)}
    contest = Contest(
        [
            Candidate(number, queue, namespace, level, min(moments))
            for number, (queue, namespace, level, moments) in enumerate(lines)
        ],
        turns,
    )
    while (it := contest.next(100.0)) is not None:
        assert it.since == left[it.line].pop(0)
        contest.served(it, left[it.line][0] if left[it.line] else None)
    assert not any(left.values())


@pytest.mark.parametrize("batch", [1, 4, 60])
def test_contests_share_between_namespaces_over_many_receives(batch: int) -> None:
    turns = Turns(["q"], LevelTurns(PRIORITY_WEIGHTS, AGEING))
    served: Counter[str] = Counter()
    for _ in range(60 // batch):
        contest = Contest([Candidate(number, "q", name, 3, float(number)) for number, name in enumerate("abc")], turns)
        for _ in range(batch):
            it = contest.next(0.0)
            assert it is not None
            served[it.namespace] += 1
            contest.served(it, it.since)
    assert served == {"a": 20, "b": 20, "c": 20}


def test_a_dropped_candidate_leaves_the_contest_to_the_others() -> None:
    turns = Turns(["q"], LevelTurns(PRIORITY_WEIGHTS, AGEING))
    contest = Contest([Candidate(1, "q", "a", 3, 0.0), Candidate(2, "q", "a", 3, 1.0), Candidate(3, "q", "b", 1, 2.0)], turns)
    seen = []
    while (it := contest.next(0.0)) is not None:
        seen.append(it.line)
        contest.dropped(it)
    assert sorted(seen) == [1, 2, 3]
