"""Random sequences of verbs over a queue, checked against a model that is small enough to be read and believed.

The model knows no order: it says which messages may be delivered, and fails when another one is, when one is held twice, when a
fence lets a zombie through, or when the counts differ.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ziggurat.queues.interface import Queue
from ziggurat.records import Delivery, Message
from ziggurat.testing.queue_harness import LONG, QUEUE, QueueHarness, message, outcome_of

MAX_DELIVERIES = 2
#: Small numbers make sequences meet each other: the same few messages, workers and deliveries again and again.
NAMES = st.integers(0, 3)
CHOICES = st.integers(0, 12)
BATCH = st.integers(1, 4)

OPERATION = st.one_of(
    st.tuples(st.just("send"), st.lists(NAMES, min_size=1, max_size=4), st.booleans()),
    st.tuples(st.just("receive"), st.integers(1, 2), BATCH),
    st.tuples(st.just("settle"), CHOICES, BATCH),
    st.tuples(st.just("extend"), CHOICES, BATCH),
    st.tuples(st.just("release"), CHOICES, st.sampled_from(["", "no"])),
    st.tuples(st.just("cancel"), st.lists(NAMES, min_size=1, max_size=3)),
    st.tuples(st.just("outcomes"), BATCH, st.booleans()),
    st.tuples(st.just("redrive"), NAMES),
    st.tuples(st.just("discard"), NAMES),
    st.tuples(st.just("pass_"), st.sampled_from([0.25, 0.6, 1.01])),
)


@dataclass
class Held:
    """What the model knows of one id that the queue holds."""

    message: Message
    state: str = "ready"
    #: The delivery that owns it, its end, and when a delayed one is due.
    owner: Delivery | None = None
    until: float = 0.0
    deliveries: int = 0
    cancelled: bool = False


@dataclass
class Model:
    held: dict[str, Held] = field(default_factory=dict)
    #: Unacknowledged outcomes by id: status, and when a fetched one comes again (None: it waits to be fetched).
    outcomes: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    dead: dict[str, Message] = field(default_factory=dict)

    def pass_to(self, now: float) -> None:
        for id_, it in list(self.held.items()):
            if it.state == "delayed" and it.until <= now:
                it.state = "ready"
            elif it.state == "leased" and it.until <= now:
                self.hand_back(id_, it)
        for id_, (status, again) in self.outcomes.items():
            if again is not None and again <= now:
                self.outcomes[id_] = (status, None)

    def hand_back(self, id_: str, it: Held) -> None:
        it.owner = None
        if it.cancelled:
            del self.held[id_]
        elif it.deliveries >= MAX_DELIVERIES:
            del self.held[id_]
            self.dead[id_] = it.message
            self.outcomes[id_] = ("dead", None)
        else:
            it.state = "ready"

    def owned(self, delivery: Delivery) -> Held | None:
        it = self.held.get(delivery.message.id)
        return it if it is not None and it.owner is delivery else None

    def counts(self) -> tuple[int, int, int, int]:
        states = [it.state for it in self.held.values()]
        return states.count("ready"), states.count("leased"), states.count("delayed"), len(self.dead)


class ModelPromises(QueueHarness):
    """Whatever happens in whatever order, the queue does what the model does."""

    def test_any_sequence_of_verbs_does_what_the_model_does(self) -> None:
        # A profile that asks for more examples than hypothesis does by itself gets them in proportion.
        number = self.examples * max(100, settings.default.max_examples if settings.default else 0) // 100

        @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operations=st.lists(OPERATION, min_size=20, max_size=80))
        def follow(operations: list[tuple[Any, ...]]) -> None:
            asyncio.run(self._follow(operations))

        follow()

    async def _follow(self, operations: list[tuple[Any, ...]]) -> None:
        # Where time cannot be told exactly, leases outlive the test, and only the order of verbs is checked.
        lease = self.lease if self.exact_time else LONG
        async with self.opened(lease=lease, max_deliveries=MAX_DELIVERIES) as queue:
            walk = _Walk(self, queue, lease)
            for name, *arguments in operations:
                await getattr(walk, name)(*arguments)
                await walk.check()


class _Walk:
    """One sequence of verbs, applied to the queue and to the model."""

    def __init__(self, suite: QueueHarness, queue: Queue, lease: float) -> None:
        self.suite, self.queue, self.lease = suite, queue, lease
        self.model = Model()
        self.messages = [message(priority=1 + number % 3, namespace=f"n{number % 2}") for number in range(4)]
        self.deliveries: list[Delivery] = []

    def _some(self, choice: int, number: int) -> list[Delivery]:
        """Pick deliveries out of all that there ever were, zombies included, recent ones first."""
        recent = self.deliveries[::-1]
        return recent[choice % len(recent) :][:number] if recent else []

    async def check(self) -> None:
        if self.queue.capabilities.exact_depth:
            assert await self.suite.counts(self.queue) == self.model.counts()
        everything = [it.id for it in self.messages]
        absent = {id_ for id_ in everything if id_ not in self.model.held and id_ not in self.model.outcomes}
        assert await self.queue.missing(everything) == absent

    async def send(self, names: list[int], delayed: bool) -> None:
        # While an outcome waits, the orchestrator knows the id as taken care of, and a backend may keep it or not.
        batch = [self.messages[name] for name in names if self.messages[name].id not in self.model.outcomes]
        await self.queue.send(batch, delay=self.lease / 2 if delayed else 0.0)
        for it in batch:
            if it.id not in self.model.held:
                self.model.dead.pop(it.id, None)
                until = self.suite.now() + self.lease / 2
                self.model.held[it.id] = Held(it, "delayed", until=until) if delayed else Held(it)

    async def receive(self, worker: int, limit: int) -> None:
        ready = {id_ for id_, it in self.model.held.items() if it.state == "ready"}
        taken = await self.queue.receive([QUEUE], limit, worker=f"w{worker}", wait=self.suite.patience if ready else 0.0)
        assert len({delivery.message.id for delivery in taken}) == len(taken) <= limit
        assert {delivery.message.id for delivery in taken} <= ready
        assert bool(taken) == bool(ready)
        told, trusted = self.queue.capabilities.tells_suspects, self.queue.options.trusted
        suspects = {id_ for id_ in ready if told and self.model.held[id_].deliveries >= trusted}
        if self.suite.exact_time:
            assert {delivery.message.id for delivery in taken if delivery.suspect} == suspects & {it.message.id for it in taken}
            if suspects & {delivery.message.id for delivery in taken}:
                assert len(taken) == 1, "a suspect comes alone"
            elif not suspects:
                assert len(taken) == min(limit, len(ready))
        for delivery in taken:
            it = self.model.held[delivery.message.id]
            assert delivery.message == it.message
            assert delivery.worker == f"w{worker}"
            it.state, it.owner, it.until = "leased", delivery, self.suite.now() + self.lease
            it.deliveries += 1
            self.deliveries.append(delivery)

    async def settle(self, choice: int, number: int) -> None:
        chosen = self._some(choice, number)
        fenced = await self.queue.settle([(delivery, outcome_of(delivery)) for delivery in chosen])
        allowed = set()
        for delivery in chosen:
            if self.model.owned(delivery) is not None:
                allowed.add(delivery.message.id)
                del self.model.held[delivery.message.id]
                self.model.outcomes[delivery.message.id] = ("completed", None)
        # Of one batch, two deliveries of one message may differ: one owns it, the other is fenced.
        assert fenced >= {delivery.message.id for delivery in chosen} - allowed
        assert allowed - fenced == {id_ for id_ in allowed if sum(d.message.id == id_ for d in chosen) == 1} - fenced

    async def extend(self, choice: int, number: int) -> None:
        chosen = self._some(choice, number)
        lost = {delivery.message.id for delivery in chosen if self.model.owned(delivery) is None}
        assert await self.queue.extend(chosen) == lost
        for delivery in chosen:
            if (it := self.model.owned(delivery)) is not None:
                it.until = self.suite.now() + self.lease

    async def release(self, choice: int, reason: str) -> None:
        for delivery in self._some(choice, 1):
            it = self.model.owned(delivery)
            fenced = await self.queue.release([delivery], reason=reason)
            assert fenced == (set() if it else {delivery.message.id})
            if it is not None:
                it.deliveries -= not reason
                self.model.hand_back(delivery.message.id, it)

    async def cancel(self, names: list[int]) -> None:
        chosen = [self.messages[name].id for name in names]
        await self.queue.cancel(chosen)
        for id_ in chosen:
            it = self.model.held.get(id_)
            if it is not None and it.state == "leased":
                it.cancelled = True
            elif it is not None:
                del self.model.held[id_]

    async def outcomes(self, limit: int, acknowledge: bool) -> None:
        waiting = {id_ for id_, (_, again) in self.model.outcomes.items() if again is None}
        found = await self.queue.outcomes(limit, self.suite.patience if waiting else 0.0)
        assert {outcome.message for outcome in found} <= waiting
        assert bool(found) == bool(waiting)
        for outcome in found:
            status, _ = self.model.outcomes[outcome.message]
            assert outcome.status == status
            self.model.outcomes[outcome.message] = (status, self.suite.now() + self.lease)
        if acknowledge:
            await self.queue.ack_outcomes(found)
            for outcome in found:
                del self.model.outcomes[outcome.message]

    async def redrive(self, name: int) -> None:
        id_ = self.messages[name].id
        if id_ in self.model.outcomes:
            return  # Whether a death that is reported and not yet recorded can be taken back is not promised.
        redriven = await self.queue.redrive([id_])
        assert redriven == (id_ in self.model.dead)
        if redriven:
            self.model.held[id_] = Held(self.model.dead.pop(id_))

    async def discard(self, name: int) -> None:
        id_ = self.messages[name].id
        assert await self.queue.discard([id_]) == (id_ in self.model.dead)
        self.model.dead.pop(id_, None)

    async def pass_(self, leases: float) -> None:
        if self.suite.exact_time:
            await self.suite.passing(self.lease * leases)
            self.model.pass_to(self.suite.now())
