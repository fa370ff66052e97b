"""What the queue suite needs of a backend, and the small moves that its tests are made of."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from msgspec import Raw

from ziggurat.queues.interface import Queue, QueueOptions
from ziggurat.records import Delivery, Depth, Lane, Message, Outcome, OutcomeStatus
from ziggurat.records import outcome_of as outcome_of_message

#: A lease that no test outlives.
LONG = 600.0
QUEUE = "default"


class QueueHarness(ABC):
    """The hooks that a backend's test class fills, and what they default to for a backend that takes a Clock.

    A backend whose server keeps its own time sets `exact_time` to False, a short `lease`, `patience` and `glance`, and lets `passing`
    really wait.
    """

    #: True when `passing` moves the queue's own clock, so that tests may be exact to the microsecond and need no waiting.
    exact_time = True
    #: Seconds of a lease that a test lets run out.
    lease = 30.0
    #: Seconds of waiting that lift a message by one level, in the tests of ageing.
    ageing = 30.0
    #: Seconds by which a backend may be late with what is due, such as a reclaim that runs on a timer of its own.
    late = 0.0
    #: Real seconds to wait for what must come.
    patience = 60.0
    #: Real seconds to watch for what must not come.
    glance = 0.0
    #: Messages of the storage test, and examples of the model test.
    many = 2_000
    examples = 60

    # -- hooks ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def make_queue(self, options: QueueOptions) -> Queue:
        """Return a queue on an empty store of its own, not yet opened."""

    @abstractmethod
    def again(self, queue: Queue) -> Queue:
        """Return what another process would make to reach the store of `queue`: another object with the same settings, not opened."""

    @abstractmethod
    async def passing(self, seconds: float) -> None:
        """Let time pass on the queue's clock."""

    @abstractmethod
    def now(self) -> float:
        """Return the time on the queue's clock, in seconds since any moment."""

    @abstractmethod
    async def storage(self, queue: Queue) -> int:
        """Return how much the queue stores now: rows, keys or objects, but not bytes that a file keeps for reuse."""

    # -- moves ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self, *, lease: float = LONG, **options: Any) -> AsyncIterator[Queue]:
        """Open a fresh queue for a test."""
        queue = self.make_queue(QueueOptions(lease=lease, **options))
        await queue.open()
        try:
            yield queue
        finally:
            await queue.close()

    async def lapse(self) -> None:
        """Let leases of `self.lease` run out, and the backend notice."""
        await self.passing(self.lease * 1.01 + self.late)

    async def take(
        self, queue: Queue, number: int = 1, *, worker: str = "w1", queues: Sequence[str] = (QUEUE,), region: str = ""
    ) -> list[Delivery]:
        """Receive exactly `number` messages, and fail when they do not come."""
        taken: list[Delivery] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        while len(taken) < number:
            more = await queue.receive(
                queues, number - len(taken), worker=worker, wait=max(0.0, deadline - loop.time()), region=region
            )
            assert len(more) <= number - len(taken), "receive returned more than its limit"
            taken += more
            assert more or loop.time() < deadline, f"only {len(taken)} of {number} messages came in {self.patience} s"
        return taken

    async def take_one(self, queue: Queue, **options: Any) -> Delivery:
        (delivery,) = await self.take(queue, 1, **options)
        return delivery

    async def assert_nothing_comes(
        self, queue: Queue, *, worker: str = "nobody", queues: Sequence[str] = (QUEUE,), region: str = ""
    ) -> None:
        found = await queue.receive(queues, 100, worker=worker, wait=self.glance, region=region)
        assert not found, f"these must not be delivered now: {ids(found)}"

    async def take_outcomes(self, queue: Queue, number: int = 1) -> list[Outcome]:
        """Fetch exactly `number` outcomes, and fail when they do not come."""
        taken: list[Outcome] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        while len(taken) < number:
            more = await queue.outcomes(number - len(taken), max(0.0, deadline - loop.time()))
            taken += more
            assert more or loop.time() < deadline, f"only {len(taken)} of {number} outcomes came in {self.patience} s"
        return taken

    async def assert_no_outcome(self, queue: Queue) -> None:
        found = await queue.outcomes(100, self.glance)
        assert not found, f"these outcomes must not come now: {[outcome.message for outcome in found]}"

    async def finish(self, queue: Queue, deliveries: Iterable[Delivery]) -> None:
        """Settle deliveries as completed, fetch the outcomes and acknowledge them."""
        settled = [(delivery, outcome_of(delivery)) for delivery in deliveries]
        assert await queue.settle(settled) == set()
        await queue.ack_outcomes(await self.take_outcomes(queue, len(settled)))

    async def depth(self, queue: Queue, name: str = QUEUE) -> Depth:
        return (await queue.depth([name]))[name]

    async def counts(self, queue: Queue, name: str = QUEUE) -> tuple[int, int, int, int]:
        """Return ready, leased, delayed and dead."""
        depth = await self.depth(queue, name)
        return depth.ready, depth.leased, depth.delayed, depth.dead

    async def use_up(self, queue: Queue, deliveries: int) -> None:
        """Receive one message again and again, each time as a worker that dies with it."""
        for _ in range(deliveries):
            await self.take_one(queue)
            await self.lapse()


_numbers = count(1)


def message(**fields: Any) -> Message:
    """Return a message with a new id; `queue`, `namespace`, `region` and `priority` go into its lane."""
    number = next(_numbers)
    lane = Lane(**{name: fields.pop(name) for name in ("queue", "namespace", "region", "priority") if name in fields})
    fields = {
        "id": f"run-{number}~0.1.1",
        "task": "work",
        "payload": Raw(b'{"number":%d}' % number),
        "run": f"run-{number}",
        "step": 1,
        **fields,
    }
    return Message(lane=lane, **fields)


def messages(number: int, **fields: Any) -> list[Message]:
    return [message(**fields) for _ in range(number)]


def outcome_of(delivery: Delivery, status: OutcomeStatus = "completed") -> Outcome:
    """Return what a worker reports that finished a delivery."""
    return outcome_of_message(delivery.message, status, result=Raw(b'{"done":true}'), worker=delivery.worker)


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]
