"""The worker suite over every queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.conformance.redis_servers import RedisServer, redis_server
from ziggurat.clock import SystemClock
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.backends.redis_streams import RedisQueue
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


_prefixes = count(1)


class TestWorkerOverRedis(WorkerSuite):
    """Over each server there is; time really passes, and leases are renewed from the thread."""

    exact_time = False
    lease, late, glance = 1.5, 0.4, 0.1

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.server = redis_server

    def make_queue(self, options: QueueOptions) -> Queue:
        self.url = f"{self.server.url}?prefix=workers-{next(_prefixes)}"
        return RedisQueue(self.url, options)

    def again(self, queue: Queue) -> Queue:
        return RedisQueue(self.url, queue.options)

    def lease_keeper(self, queue: Queue) -> Callable[[], Queue] | None:
        return lambda: self.again(queue)

    async def passing(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    async def storage(self, queue: Queue) -> int:
        return 0


__all__ = ["redis_server"]
