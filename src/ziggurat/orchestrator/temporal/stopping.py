"""Waiting for a run to stop: its end is told by the server, that it is parked is not."""

from __future__ import annotations

import asyncio

from ziggurat.orchestrator.temporal.options import TemporalOptions
from ziggurat.orchestrator.temporal.reading import Reader
from ziggurat.records import STOPPED, Run

#: Seconds to the first look at a run whose worker, in this process, says that it is parked: the server may not have heard it yet.
_SOON = 0.05


class Stopping:
    """One who waits for a run.

    Each look costs the server two reads, which a thousand waiters feel. So looks become rarer, and a `hint` of this process's own worker
    brings the next one forward.
    """

    def __init__(self, reader: Reader, run: str, options: TemporalOptions) -> None:
        self.run = run
        self._reader, self._options = reader, options
        self._pause = options.look
        self._hinted = asyncio.Event()

    def hint(self) -> None:
        """Look soon. Called on the loop of whoever waits."""
        self._pause = _SOON
        self._hinted.set()

    async def wait(self) -> Run:
        """Return the run once it has stopped. Raises UnknownName, LayerUnreachable."""
        closed = False
        while True:
            # A closed execution may have a successor: then the run goes on.
            if closed or (await self._reader.live(self.run)).status in STOPPED:
                found = await self._reader.run(self.run)
                if found.status in STOPPED:
                    return found
            closed = await self._until_it_may_have_stopped()

    async def _until_it_may_have_stopped(self) -> bool:
        """Return True once the execution has closed, False when it is time for a look."""
        closing = asyncio.create_task(self._reader.closing(self.run))
        hinted = asyncio.create_task(self._hinted.wait())
        try:
            while not closing.done():
                await asyncio.wait([closing, hinted], timeout=self._pause, return_when=asyncio.FIRST_COMPLETED)
                if hinted.done():
                    self._hinted.clear()
                    hinted = asyncio.create_task(self._hinted.wait())
                    continue  # The worker's word comes before the server's.
                self._pause = min(self._options.look_most, 2 * self._pause)
                if not closing.done() and (await self._reader.live(self.run)).status in STOPPED:
                    return False
            return closing.result()
        finally:
            closing.cancel()
            hinted.cancel()
