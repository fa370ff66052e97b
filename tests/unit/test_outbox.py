"""The outbox: whatever lanes refuse, every message is taken once, in the order of its lane, and no lane waits for another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ziggurat.orchestrator.embedded.outbox import Outbox
from ziggurat.records import Lane, Message
from ziggurat.testing.queue_harness import message

LIMIT = 8


def of(queue: str, number: int) -> Message:
    return message(id=f"{queue}{number}", queue=queue)


class Lanes:
    """A queue that keeps so many messages of each lane, and takes a batch whole or not at all."""

    def __init__(self, room: dict[str, int]) -> None:
        self.room = room
        self.taken: list[str] = []

    def send(self, messages: list[Message]) -> bool:
        wanted: dict[str, int] = {}
        for one in messages:
            wanted[one.lane.queue] = wanted.get(one.lane.queue, 0) + 1
        if any(self.room[queue] < number for queue, number in wanted.items()):
            return False
        for queue, number in wanted.items():
            self.room[queue] -= number
        self.taken += [one.id for one in messages]
        return True


def hand_over(outbox: Outbox, lanes: Lanes) -> int:
    """Offer all batches once, and return how many tries there were."""
    tries = 0
    for messages in outbox.batches(LIMIT):
        assert 0 < len(messages) <= LIMIT
        tries += 1
        if lanes.send(messages):
            outbox.taken(messages, LIMIT)
        else:
            outbox.refused(messages)
    return tries


@given(
    st.lists(st.sampled_from("abc"), max_size=60),
    st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 10), min_size=1), min_size=1, max_size=6),
)
def test_everything_is_taken_once_and_in_the_order_of_its_lane(sent: list[str], rooms: list[dict[str, int]]) -> None:
    outbox, lanes = Outbox(), Lanes(dict.fromkeys("abc", 0))
    for number, queue in enumerate(sent):
        outbox.put(of(queue, number))
        if number % 7 == 0:
            hand_over(outbox, lanes)
    for _ in range(600):
        if not outbox:
            break
        for more in rooms:
            for queue, number in more.items():
                lanes.room[queue] += number
        for queue in "abc":  # Some day, somebody serves every lane.
            lanes.room[queue] += 1
        hand_over(outbox, lanes)
    assert not outbox
    assert len(outbox) == 0
    for queue in "abc":
        assert [id_ for id_ in lanes.taken if id_[0] == queue] == [f"{q}{n}" for n, q in enumerate(sent) if q == queue]


def test_a_lane_that_holds_fewer_than_a_batch_still_gets_its_messages() -> None:
    outbox, lanes = Outbox(), Lanes({"a": 3})
    for number in range(LIMIT):
        outbox.put(of("a", number))
    tries = 0
    while len(lanes.taken) < 3:
        tries += hand_over(outbox, lanes)
    assert tries <= 8, "halving finds the room that there is"
    assert len(outbox) == LIMIT - 3


def test_a_full_lane_holds_up_no_other() -> None:
    outbox, lanes = Outbox(), Lanes({"a": 0, "b": 100})
    for number in range(4):
        outbox.put(of("a", number))
        outbox.put(of("b", number))
    hand_over(outbox, lanes)
    hand_over(outbox, lanes)
    assert sorted(lanes.taken) == ["b0", "b1", "b2", "b3"]
    assert outbox.ids() == {"a0", "a1", "a2", "a3"}


def test_what_is_dropped_is_offered_no_more_and_what_is_replaced_stays() -> None:
    outbox, lanes = Outbox(), Lanes({"a": 0})
    first, second = of("a", 1), of("a", 2)
    outbox.put(first)
    outbox.put(second)
    hand_over(outbox, lanes)
    outbox.drop("a1")
    outbox.drop("nobody")
    assert outbox.ids() == {"a2"}
    again = of("a", 2)
    outbox.put(again)
    outbox.taken([second], LIMIT)
    assert outbox.ids() == {"a2"}, "another message of the same id was put there while the first was on its way"
    outbox.drop("a2")
    assert not outbox
    assert list(outbox.batches(LIMIT)) == []
    assert again.lane == Lane(queue="a")
