"""Looks at the depth of the queues now and then, for metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ziggurat.queues.interface import Queue
from ziggurat.records import Depth
from ziggurat.telemetry.catalogue import QUEUE_MESSAGES, QUEUE_OLDEST

#: Seconds between two looks. A page of metrics is made in any thread, and a queue answers on its own event loop only.
INTERVAL = 5.0


class Depths:
    """Shows the depth of a queue while `run` runs. One process of a system does so, the one that orchestrates: sums stay right.

    Args:
        named: returns the queues that are shown although they are empty, so that a graph begins at 0.
    """

    def __init__(self, queue: Queue, named: Callable[[], Iterable[str]] = lambda: ("default",)) -> None:
        self._queue, self._named = queue, named
        self._seen: dict[str, Depth] = {}

    async def run(self) -> None:
        """Look until cancelled. While the queue is unavailable nothing is shown: an old depth would be a wrong one."""
        stops = [QUEUE_MESSAGES.watch(self._messages), QUEUE_OLDEST.watch(self._oldest)]
        try:
            while True:
                try:
                    # A queue that is empty and forgotten goes to 0 rather than away.
                    self._seen = {**dict.fromkeys((*self._named(), *self._seen), Depth()), **await self._queue.depth()}
                except Exception:
                    # The queue's own users report what is wrong with it; the looking goes on.
                    self._seen = {}
                await asyncio.sleep(INTERVAL)
        finally:
            for stop in stops:
                stop()

    def _messages(self) -> dict[tuple[str, ...], float]:
        return {
            (queue, state): float(getattr(depth, state))
            for queue, depth in self._seen.items()
            for state in ("ready", "leased", "delayed", "dead")
        }

    def _oldest(self) -> dict[tuple[str, ...], float]:
        return {(queue,): depth.oldest_age for queue, depth in self._seen.items()}
