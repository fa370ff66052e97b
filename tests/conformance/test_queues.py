"""The queue suite over every backend of this project."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "ziggurat.testing.queue_delivery",
    "ziggurat.testing.queue_harness",
    "ziggurat.testing.queue_model",
    "ziggurat.testing.queue_policy",
)

from ziggurat.queues.backends.memory import MemoryQueue  # noqa: E402
from ziggurat.queues.backends.sqlite import SqliteQueue  # noqa: E402
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


class TestSqliteQueue(QueueSuite):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder, self.numbers = tmp_path, count()

    def make_queue(self, options: QueueOptions) -> Queue:
        self.clock = FakeClock()
        return SqliteQueue(self.folder / f"queue-{next(self.numbers)}.db", options, clock=self.clock)

    def again(self, queue: Queue) -> Queue:
        assert isinstance(queue, SqliteQueue)
        return SqliteQueue(queue.path, queue.options, clock=self.clock)

    def now(self) -> float:
        return self.clock.time()

    async def passing(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def storage(self, queue: Queue) -> int:
        assert isinstance(queue, SqliteQueue)
        return await queue.stored()
