"""The queue suite over every backend of this project."""

from __future__ import annotations

import asyncio

import pytest

pytest.register_assert_rewrite(
    "ziggurat.testing.queue_delivery",
    "ziggurat.testing.queue_harness",
    "ziggurat.testing.queue_model",
    "ziggurat.testing.queue_policy",
)

from ziggurat.queues.backends.memory import MemoryQueue  # noqa: E402
from ziggurat.queues.interface import Queue, QueueOptions  # noqa: E402
from ziggurat.testing.clock import FakeClock  # noqa: E402
from ziggurat.testing.queue_suite import QueueSuite  # noqa: E402


class TestMemoryQueue(QueueSuite):
    examples = 200

    def make_queue(self, options: QueueOptions) -> Queue:
        self.clock = FakeClock()
        return MemoryQueue(options, clock=self.clock)

    def again(self, queue: Queue) -> Queue:
        return MemoryQueue(queue.options, clock=self.clock)

    def now(self) -> float:
        return self.clock.monotonic()

    async def passing(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    async def storage(self, queue: Queue) -> int:
        assert isinstance(queue, MemoryQueue)
        return queue.stored()
