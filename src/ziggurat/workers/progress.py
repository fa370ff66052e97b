"""Progress on its way to watchers: gathered from every thread, published in batches, never in the way of work."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from ziggurat.errors import QueueUnavailable
from ziggurat.queues.interface import Queue
from ziggurat.records import Progress
from ziggurat.telemetry import events

#: Progress that waits to be published, at most; the oldest is dropped first.
KEPT = 10_000
#: Seconds for which progress is gathered into one batch, and records in a batch.
GATHER = 0.02
BATCH = 1_000


class Publisher:
    """Publishes what is shown. It may drop progress, which may be lost, but never waits for a queue that is unavailable."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: deque[Progress] = deque(maxlen=KEPT)
        self._something = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def show(self, progress: Progress) -> None:
        """Take progress. Called from any thread."""
        self._waiting.append(progress)
        if self._loop is not None and not self._something.is_set():
            with contextlib.suppress(RuntimeError):  # The loop has ended, and with it all who watched.
                self._loop.call_soon_threadsafe(self._something.set)

    async def run(self) -> None:
        """Publish until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._something.wait()
            await asyncio.sleep(GATHER)
            self._something.clear()
            await self.flush()

    async def flush(self) -> None:
        """Publish what there is, trying each batch once."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                await self._queue.publish(batch)
            except QueueUnavailable:
                return
            except Exception:
                events.PROGRESS_DROPPED(trace_of=True, records=len(batch))
