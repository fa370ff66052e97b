"""The worker suite over every queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ziggurat.clock import SystemClock
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.backends.sqlite import SqliteQueue
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


class TestWorkerOverSqlite(TestWorkerOverMemory):
    """Every queue in a file of its own; the worker has a connection of its own for leases where time is real."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder, self.files = tmp_path, 0

    def make_queue(self, options: QueueOptions) -> Queue:
        self.files += 1
        return SqliteQueue(self.folder / f"queue-{self.files}.db", options, clock=self.clock)

    def lease_keeper(self, queue: Queue) -> Callable[[], Queue] | None:
        assert isinstance(queue, SqliteQueue)
        if isinstance(self.clock, FakeClock):
            return None  # Its watchers are called in the test's thread.
        return lambda: SqliteQueue(queue.path, queue.options)
