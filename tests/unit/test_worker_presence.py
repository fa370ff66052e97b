"""What a worker shows of itself, and that trouble with the queue never disturbs it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ziggurat.errors import QueueUnavailable
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import Capabilities
from ziggurat.records import Presence
from ziggurat.testing.clock import FakeClock
from ziggurat.workers import presence
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker


async def until_shown(queue: MemoryQueue, number: int) -> list[Presence]:
    async with asyncio.timeout(60):
        while len(shown := await queue.workers()) != number:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return shown


async def test_a_worker_shows_itself_while_it_runs_and_takes_its_record_back() -> None:
    queue = MemoryQueue(clock=FakeClock())
    worker = Worker(queue, Registry(), options=WorkerOptions(name="w", pool="p", queues=("a", "b"), region="eu", concurrency=3))
    running = asyncio.create_task(worker.run())
    (shown,) = await until_shown(queue, 1)
    assert (shown.worker, shown.pool, shown.queues, shown.region, shown.slots) == ("w", "p", ("a", "b"), "eu", 3)
    assert (shown.busy, shown.draining, shown.trouble) == (0, False, "")
    worker.stop()
    await running
    assert await queue.workers() == []


async def test_draining_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "EVERY", 3600.0)
    queue = MemoryQueue(clock=FakeClock())
    worker = Worker(queue, Registry(), options=WorkerOptions(name="w"))
    showing, stopping = presence.Showing(worker, queue, FakeClock()), asyncio.Event()
    running = asyncio.create_task(showing.run(stopping))
    assert not (await until_shown(queue, 1))[0].draining
    worker.stop()
    stopping.set()
    async with asyncio.timeout(60):
        while not (await queue.workers())[0].draining:  # noqa: ASYNC110
            await asyncio.sleep(0)
    running.cancel()


class Unwilling(MemoryQueue):
    """A queue whose server takes no records now."""

    asked = 0

    async def announce(self, presences: Sequence[Presence], *, ttl: float) -> None:
        self.asked += 1
        raise QueueUnavailable("The server is away.")


async def test_a_queue_that_takes_no_record_does_not_stop_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "EVERY", 0.001)
    queue = Unwilling(clock=FakeClock())
    worker = Worker(queue, Registry(), options=WorkerOptions(name="w", poll=0.01))
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        while queue.asked < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert not running.done()
    worker.stop()
    await running


async def test_a_queue_that_declares_no_presence_is_not_asked() -> None:
    queue = Unwilling(clock=FakeClock())
    queue.capabilities = Capabilities()
    worker = Worker(queue, Registry(), options=WorkerOptions(name="w"))
    running = asyncio.create_task(worker.run())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not running.done()
    worker.stop()
    await running
    assert queue.asked == 0
