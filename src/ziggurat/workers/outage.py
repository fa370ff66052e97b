"""An outage of the queue as the worker sees it: told once, waited out with growing pauses."""

from __future__ import annotations

import asyncio
import random

from ziggurat.errors import QueueUnavailable
from ziggurat.telemetry import events
from ziggurat.telemetry.catalogue import QUEUE_OUTAGES

#: First and longest pause between two tries, in seconds; each is spread by ±25 % so that workers do not return all at once.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


class Outage:
    """Shared by all of a worker's loops. It is over once every verb that failed works again.

    One verb's success says nothing of another: a long poll that began before the outage still returns, and a server may allow reads
    while it refuses writes.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._pause = FIRST_PAUSE
        self._failing: set[str] = set()
        #: Loop time at which the outage began; 0 while there is none.
        self.since = 0.0
        #: What is wrong, as a sentence; empty while nothing is.
        self.sentence = ""

    async def failed(self, verb: str, error: Exception) -> None:
        """Note a failed call and wait before the next one."""
        self._failing.add(verb)
        expected = isinstance(error, QueueUnavailable)
        self.sentence = str(error) if expected else f"The queue failed unexpectedly: {type(error).__name__}: {error}"
        if not self.since:
            self.since = asyncio.get_running_loop().time()
            self._pause = FIRST_PAUSE
            QUEUE_OUTAGES.inc()
            trace = None if expected else error
            events.QUEUE_LOST(trace_of=trace, worker=self._worker, error=self.sentence)
        pause = self._pause * random.uniform(0.75, 1.25)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        await asyncio.sleep(pause)

    def worked(self, verb: str) -> None:
        """Note a call that the queue answered."""
        self._failing.discard(verb)
        if self.since and not self._failing:
            lasted = asyncio.get_running_loop().time() - self.since
            events.QUEUE_BACK(worker=self._worker, seconds=lasted)
            self.since, self.sentence = 0.0, ""
