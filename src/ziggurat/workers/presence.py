"""A worker shows itself to everyone who shares its queue, so that people see who is alive without asking every process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from ziggurat.clock import Clock
from ziggurat.errors import QueueUnavailable
from ziggurat.queues.interface import Queue
from ziggurat.records import Presence
from ziggurat.telemetry.served import served
from ziggurat.workers.options import ENDINGS, Tally, WorkerOptions

#: Seconds between two records, and for how long each holds: a worker that was killed is gone after that.
EVERY, TTL = 2.0, 10.0
#: Names of tasks in a record, the most frequent ones; a worker that runs more kinds at a time shows these.
NAMES_SHOWN = 8
#: Seconds that the last record, which takes the worker back, may take.
FAREWELL = 1.0


class Shown(Protocol):
    """What a worker says about itself."""

    name: str
    queues: tuple[str, ...]
    options: WorkerOptions
    tally: Tally

    @property
    def busy(self) -> int: ...
    @property
    def stopping(self) -> bool: ...
    def trouble(self) -> str: ...
    def tasks(self) -> Iterable[str]: ...


class Showing:
    """Keeps one worker's record on its queue, if the queue can hold one (`Capabilities.presence`)."""

    def __init__(self, worker: Shown, queue: Queue, clock: Clock) -> None:
        self._worker, self._queue = worker, queue
        self._started_at = clock.time()

    def presence(self) -> Presence:
        """Return the worker as it is now."""
        worker = self._worker
        return Presence(
            worker=worker.name,
            pool=worker.options.pool,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=worker.queues,
            region=worker.options.region,
            slots=worker.options.concurrency,
            running=dict(Counter(worker.tasks()).most_common(NAMES_SHOWN)),
            busy=worker.busy,
            draining=worker.stopping,
            trouble=worker.trouble(),
            ended=sum(getattr(worker.tally, status) for status in ENDINGS),
            ended_in=dict(worker.tally.ended_in),
            started_at=self._started_at,
            metrics=served(),
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Show the worker until cancelled, and at once when it begins to drain. What a queue in trouble does not take is left out."""
        if not self._queue.capabilities.presence:
            await asyncio.Event().wait()  # Nothing to do, but a loop of a worker that ends means that the worker is broken.
        while True:
            with contextlib.suppress(QueueUnavailable):
                await self._queue.announce([self.presence()], ttl=TTL)
            if stopping.is_set():
                await asyncio.sleep(EVERY)
            else:
                # Not wait_for, which before Python 3.12 loses a cancellation that comes as the event is set: a worker that is cancelled
                # sets it, and would wait for this loop for ever.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EVERY):
                        await stopping.wait()

    async def end(self) -> None:
        """Take the record back: the worker has ended. It ends by itself where the queue cannot be told in time."""
        if self._queue.capabilities.presence:
            with contextlib.suppress(QueueUnavailable, TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self._queue.announce([self.presence()], ttl=0.0)
