"""The queue suite over every backend of this project."""

from __future__ import annotations

import asyncio
import time
from itertools import count
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "ziggurat.testing.queue_delivery",
    "ziggurat.testing.queue_harness",
    "ziggurat.testing.queue_model",
    "ziggurat.testing.queue_policy",
)

from tests.conformance.redis_servers import RedisServer, count_everything  # noqa: E402
from tests.conformance.redis_servers import redis_server as redis_server  # noqa: E402
from ziggurat.queues.backends import redis_streams  # noqa: E402
from ziggurat.queues.backends.memory import MemoryQueue  # noqa: E402
from ziggurat.queues.backends.redis_streams import RedisQueue  # noqa: E402
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


_prefixes = count(1)


class TestRedisQueue(QueueSuite):
    """Over each server there is. The server's clock is the queue's, so time really passes."""

    exact_time = False
    lease, ageing, late, glance = 1.2, 0.5, 0.4, 0.1
    many = 20_000
    examples = 40

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = redis_server
        # Waiting calls look by themselves now and then, in case a wake is lost. Here none may be.
        monkeypatch.setattr(redis_streams, "GLANCE", 3600.0)

    def make_queue(self, options: QueueOptions) -> Queue:
        self.url = f"{self.server.url}?prefix=suite-{next(_prefixes)}"
        return RedisQueue(self.url, options)

    def again(self, queue: Queue) -> Queue:
        return RedisQueue(self.url, queue.options)

    def now(self) -> float:
        return time.monotonic()

    async def passing(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def storage(self, queue: Queue) -> int:
        return await count_everything(self.server.url, self.url.partition("prefix=")[2])
