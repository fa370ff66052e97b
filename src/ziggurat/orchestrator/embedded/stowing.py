"""What a run hands on that is too large to be recorded: stored first, beside the event loop, and then the run goes on.

Everything else is sealed on the spot. While something is being stored its run stays in memory and takes signals, but its program's end
waits: nothing is recorded that refers to an object which is not there yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import Payloads, is_sealed
from ziggurat.errors import ArtifactsUnreachable, ZigguratError
from ziggurat.orchestrator.embedded.resident import Resident
from ziggurat.orchestrator.embedded.steps import Finished
from ziggurat.records import Progress
from ziggurat.telemetry import events

#: Seconds after which a program that needed the store is built again.
STALL = 5.0

#: Pauses in seconds between tries while the store cannot be used; after the last the run is parked.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


class Stowing:
    """Seals what runs hand on. Used on the engine's event loop.

    Args:
        payloads: the seam.
        park: called with a run and a sentence when what it hands on cannot be stored.
    """

    def __init__(self, payloads: Payloads, park: Callable[[Resident, str], None]) -> None:
        self.payloads = payloads
        self._park = park
        self._tasks: set[asyncio.Task[None]] = set()

    def finished(self, resident: Resident, finished: Finished, again: Callable[[Resident, Finished], None]) -> Finished | None:
        """Return how a program ended with its result sealed; or None, and `again` is called with it once it is stored."""
        if finished.result is None or finished.sealed:
            return finished
        small = self.payloads.seal_small(bytes(finished.result), resident.run.id)
        if small is not None:
            return replace(finished, result=Raw(small), sealed=True)

        def stored(sealed: bytes) -> None:
            resident.storing = False
            again(resident, replace(finished, result=Raw(sealed), sealed=True))

        resident.storing = True
        self.store(resident, bytes(finished.result), resident.run.id, stored)
        return None

    def store(self, resident: Resident, data: bytes, run: str, then: Callable[[bytes], None]) -> None:
        """Seal what a resident run hands to `run`, and call `then` with it, unless the run was parked meanwhile."""
        # What is on the way keeps the run in memory, like a write.
        resident.writes += 1
        task = asyncio.get_running_loop().create_task(self._store(resident, data, run, then), name="ziggurat-store")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stall(self, resident: Resident, error: ArtifactsUnreachable, again: Callable[[Resident], None]) -> None:
        """Wait until a program that needs the store may be built again: a little later, and when its writes are on the disk."""
        resident.stalled = True
        events.RUN_STALLED(run=resident.run.id, error=error)
        task = asyncio.get_running_loop().create_task(self._stall(resident, again), name="ziggurat-stall")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stall(self, resident: Resident, again: Callable[[Resident], None]) -> None:
        await asyncio.sleep(STALL)
        while resident.writes:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        again(resident)

    async def _store(self, resident: Resident, data: bytes, run: str, then: Callable[[bytes], None]) -> None:
        execution = resident.execution
        for pause in (*PAUSES, None):
            try:
                sealed = await self.payloads.seal(data, run)
                break
            except ArtifactsUnreachable as error:
                if pause is None:
                    resident.writes -= 1
                    if resident.execution is execution:
                        resident.storing = False
                        self._park(resident, str(error))
                    return
                events.HAND_ON_WAITS(run=resident.run.id, error=error)
                await asyncio.sleep(pause)
        resident.writes -= 1
        if resident.execution is execution and execution is not None:
            then(sealed)

    def rebound(self, data: Raw | None, run: str, to: str) -> Raw | None:
        """Return a payload that one run hands to another, sealed for that one. What cannot be opened now stays as it is: who asks for it
        then is told why.
        """
        if data is None or not is_sealed(data):
            return data
        try:
            return Raw(self.payloads.rebind(data, run, to))
        except ZigguratError:
            return data

    def opened(self, progress: Progress) -> Progress:
        """Return progress as watchers see it."""
        if not is_sealed(progress.data):
            return progress
        try:
            return replace(progress, data=Raw(self.payloads.open_now(progress.data, progress.run)))
        except ZigguratError:
            return replace(progress, data=Raw(b"null"))

    async def stop(self) -> None:
        """Give up what is on the way; a replay asks for it again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
