"""The small moves that the worker suite is made of: a worker over a queue, messages for its tasks, and the orchestrator's side."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Raw

from ziggurat.program.registry import Registry
from ziggurat.queues.interface import Queue
from ziggurat.records import Message, Outcome, Progress
from ziggurat.testing.queue_harness import LONG, QueueHarness
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker

_numbers = itertools.count(1)


def order(task: str, /, *, payload: bytes | None = None, **fields: Any) -> Message:
    """Return a message for a task of the suite. Fields of `Message` are taken as such, all others are the task's arguments."""
    number = next(_numbers)
    known = {name: fields.pop(name) for name in list(fields) if name in Message.__struct_fields__}
    known = {"id": f"worker-run-{number}~0.1.1", "run": f"worker-run-{number}", "step": 1, "timeout": 60.0, **known}
    data = payload if payload is not None else msgspec.json.encode(fields)
    return Message(task=f"suite.{task}", payload=Raw(data), **known)


class WorkerHarness(QueueHarness):
    """Adds a worker to the hooks of a queue's harness. A backend that passes the queue suite needs nothing more."""

    def make_worker(self, queue: Queue, **options: Any) -> Worker:
        """Return a worker over an open queue, not yet running."""
        fields = {"poll": 0.2, "cleanup": 5.0, "processes": 2, **options}
        return Worker(
            queue,
            Registry(["ziggurat.testing.worker_tasks"]),
            options=WorkerOptions(**fields),
            lease_keeper=self.lease_keeper(queue),
        )

    def lease_keeper(self, queue: Queue) -> Callable[[], Queue] | None:
        """Return what makes a second connection for the thread that renews leases; None where the event loop renews them."""
        return None

    @asynccontextmanager
    async def working(
        self, *, lease: float = LONG, max_deliveries: int = 5, **options: Any
    ) -> AsyncIterator[tuple[Queue, Worker]]:
        """Run a worker over a fresh queue for a test, and drain it afterwards."""
        async with self.opened(lease=lease, max_deliveries=max_deliveries) as queue:
            async with self.another(queue, **options) as worker:
                yield queue, worker

    @asynccontextmanager
    async def another(self, queue: Queue, **options: Any) -> AsyncIterator[Worker]:
        """Run one more worker over a queue."""
        worker = self.make_worker(queue, **options)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
            assert worker.stopping or not running.done(), "the worker ended by itself"
        finally:
            worker.stop(0.0)
            await asyncio.wait_for(running, 90.0)

    async def result_of(self, queue: Queue, message: Message) -> Outcome:
        """Send a message and return its outcome, acknowledged."""
        await queue.send([message])
        return await self.outcome_of(queue, message)

    async def outcome_of(self, queue: Queue, message: Message) -> Outcome:
        """Return the next outcome, which must be this message's."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 90.0
        while True:
            for outcome in await queue.outcomes(1, 1.0):
                assert outcome.message == message.id
                await queue.ack_outcomes([outcome])
                return outcome
            assert loop.time() < deadline, f"no outcome of {message.id} ({message.task}) came"

    async def watched(self, queue: Queue, number: int, kind: str = "emit") -> list[Progress]:
        """Return the next `number` progress records of one kind."""
        found: list[Progress] = []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 90.0
        while len(found) < number:
            found += [progress for progress in await queue.progress(100, 0.5) if progress.kind == kind]
            assert loop.time() < deadline, f"only {len(found)} of {number} progress records of kind {kind!r} came"
        return found
