"""Seeded faults in every verb of the queue: whatever fails and when, every message ends once, and nothing stays behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest
from msgspec import Raw

from ziggurat.errors import QueueUnavailable
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Delivery, Message, Outcome, Progress
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.worker_harness import order
from ziggurat.workers import outage
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker

T = TypeVar("T")


class Flaky(MemoryQueue):
    """Fails at random: before a verb is done, or after, when the caller cannot know that it was."""

    def __init__(self, generator: random.Random, options: QueueOptions, clock: FakeClock) -> None:
        super().__init__(options, clock=clock)
        self.generator = generator
        self.share = 0.2

    async def _maybe(self, verb: Callable[[], Awaitable[T]]) -> T:
        chance = self.generator.random()
        if chance < self.share / 2:
            raise QueueUnavailable("lost the request")
        await asyncio.sleep(0)
        answer = await verb()
        if chance < self.share:
            raise QueueUnavailable("lost the answer")
        return answer

    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        one = super().receive
        return await self._maybe(lambda: one(queues, limit, worker=worker, wait=min(wait, 0.01), region=region))

    async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        one = super().settle
        return await self._maybe(lambda: one(settled))

    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        one = super().extend
        return await self._maybe(lambda: one(deliveries, details))

    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        one = super().release
        return await self._maybe(lambda: one(deliveries, delay=delay, reason=reason))

    async def cancellations(self, worker: str, wait: float) -> list[str]:
        one = super().cancellations
        return await self._maybe(lambda: one(worker, min(wait, 0.01)))

    async def publish(self, progress: Sequence[Progress]) -> None:
        one = super().publish
        await self._maybe(lambda: one(progress))


def message(generator: random.Random, number: int) -> tuple[Message, str]:
    """Return a message for a task of some kind, and the status that it must end with. Without a timeout: the clock jumps."""
    kind = generator.choice(["add", "move", "value", "talk", "exit", "arguments"])
    match kind:
        case "add":
            return order("add", a=number, b=1, timeout=None), "completed"
        case "move":
            return order("move", point={"x": number, "y": 0}, timeout=None), "completed"
        case "talk":
            return order("talk", words=["a", "b"], timeout=None), "completed"
        case "arguments":
            return order("add", a="not a number", timeout=None), "failed"
    return order("fail", kind=kind, timeout=None), "failed"


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_fails_every_message_ends_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(outage, "LONGEST_PAUSE", 0.001)
    generator, clock = random.Random(seed), FakeClock()
    queue = Flaky(generator, QueueOptions(lease=30.0, max_deliveries=1_000), clock)
    await queue.open()
    workers = [
        Worker(
            queue, Registry(["ziggurat.testing.worker_tasks"]), options=WorkerOptions(name=f"w{n}", concurrency=4), clock=clock
        )
        for n in range(3)
    ]
    running = [asyncio.create_task(worker.run()) for worker in workers]
    expected = [message(generator, number) for number in range(120)]
    statuses = {sent.id: status for sent, status in expected}
    await queue.send([sent for sent, _ in expected])
    ended: Counter[str] = Counter()
    wrong: list[Any] = []
    async with asyncio.timeout(60.0):
        while len(ended) < len(statuses):
            for outcome in await queue.outcomes(50, 0.01):
                ended[outcome.message] += 1
                if outcome.status != statuses[outcome.message]:
                    wrong.append(outcome)
                await queue.ack_outcomes([outcome])
            if generator.random() < 0.3:
                # A delivery whose answer was lost is held by nobody; only the end of its lease brings it back.
                clock.advance(generator.choice([1.0, 31.0]))
            if generator.random() < 0.05:
                leaver = generator.randrange(len(workers))
                workers[leaver].stop(generator.choice([0.0, 5.0]))
                clock.advance(6.0)
                queue.share = 0.0  # A drain ends; it may not depend on luck how.
                await running[leaver]
                queue.share = 0.2
                workers[leaver] = Worker(
                    queue, Registry(["ziggurat.testing.worker_tasks"]), options=WorkerOptions(concurrency=4), clock=clock
                )
                running[leaver] = asyncio.create_task(workers[leaver].run())
    assert not wrong
    assert set(ended.values()) == {1}
    queue.share = 0.0
    for worker in workers:
        worker.stop(0.0)
    await asyncio.gather(*running)
    depth = (await queue.depth())["default"]
    assert (depth.ready, depth.leased, depth.dead) == (0, 0, 0)
    assert all(worker.busy == 0 for worker in workers)
    await queue.close()


def test_the_mix_of_messages_covers_both_endings() -> None:
    generator = random.Random(0)
    kinds = Counter(message(generator, number)[1] for number in range(100))
    assert set(kinds) == {"completed", "failed"}
    assert message(generator, 1)[0].payload != Raw(b"")
