"""The worker suite over every queue."""

from __future__ import annotations

import asyncio

import pytest

from ziggurat.clock import SystemClock
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import Queue, QueueOptions
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.worker_suite import WorkerSuite


class TestWorkerOverMemory(WorkerSuite):
    """Time is the test's own, except where a test outlives a lease by waiting."""

    @pytest.fixture(autouse=True)
    def _clock(self, request: pytest.FixtureRequest) -> None:
        self.clock = SystemClock() if "renewed" in request.node.name else FakeClock()

    def make_queue(self, options: QueueOptions) -> Queue:
        return MemoryQueue(options, clock=self.clock)

    def again(self, queue: Queue) -> Queue:
        return queue

    async def passing(self, seconds: float) -> None:
        assert isinstance(self.clock, FakeClock)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    def now(self) -> float:
        return self.clock.monotonic()

    async def storage(self, queue: Queue) -> int:
        return 0
