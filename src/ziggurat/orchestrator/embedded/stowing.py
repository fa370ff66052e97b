"""Large payloads of runs in memory: what a program hands on is stored first, and what it is handed is fetched first.

Both happen beside the event loop; everything else is sealed and opened on the spot. While something is being stored its run stays in memory
and takes signals, but its program's end waits: nothing is recorded that refers to an object which is not there yet. A run whose program
waits for the store is stalled: in memory without its program, so that what happens to it is recorded. It is built once the store has
answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import Payloads, is_sealed
from ziggurat.errors import ArtifactsUnreachable, ZigguratError
from ziggurat.orchestrator.embedded.execution import Execution
from ziggurat.orchestrator.embedded.resident import Resident
from ziggurat.orchestrator.embedded.steps import Finished
from ziggurat.records import Event, Progress
from ziggurat.telemetry import events

#: Seconds after which a program that needed the store is built again.
STALL = 5.0

#: Pauses in seconds between tries while the store cannot be used; after the last the run is parked.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)

#: Builds the program of a stalled run; the flag says that its payloads were fetched as far as could be.
Again = Callable[[Resident, bool], None]


class Stowing:
    """Seals what runs hand on. Used on the engine's event loop.

    Args:
        payloads: the seam.
        park: called with a run and a sentence when what it hands on cannot be stored.
        harvest: called with a run once something is stored: it may rest now.
    """

    def __init__(self, payloads: Payloads, park: Callable[[Resident, str], None], harvest: Callable[[Resident], None]) -> None:
        self.payloads = payloads
        self._park, self._harvest = park, harvest
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        #: What waits for stalled programs, by run.
        self._after: dict[str, list[Callable[[], None]]] = {}

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
        self._begin(self._store(resident, resident.execution, data, run, then))

    # -- programs that wait for the store ----------------------------------------------------------------------------

    def stall(self, resident: Resident, error: ArtifactsUnreachable, again: Again) -> None:
        """Take the program out of memory that needs the store, and build it again a little later, once the run's writes are on the disk."""
        execution, resident.execution = resident.execution, None
        if execution is not None:
            execution.discard()
        resident.stalled = True
        events.RUN_STALLED(run=resident.run.id, error=error)
        self._begin(self._stall(resident, again))

    async def _stall(self, resident: Resident, again: Again) -> None:
        await asyncio.sleep(STALL)
        await self._go_on(resident, again, warmed=False)

    def warm(self, resident: Resident, history: list[Event], again: Again) -> bool:
        """Fetch what a program will be handed and is only at the store, beside the event loop, before it is built.

        Says whether there is any; then the run is stalled until `again` is called.
        """
        wanted = [resident.run.payload, *(event.result for event in history if event.result is not None)]
        cold = [payload for payload in wanted if is_sealed(payload) and self._is_cold(payload)]
        if cold:
            resident.stalled = True
            self._begin(self._warm(resident, cold, again))
        return bool(cold)

    def _is_cold(self, payload: Raw) -> bool:
        try:
            return self.payloads.must_wait(payload)
        except ZigguratError:
            return False  # Whoever opens it says what is wrong.

    async def _warm(self, resident: Resident, cold: list[Raw], again: Again) -> None:
        # What cannot be had is asked for again when the program is built, and told then; so is what the memory had no room for.
        await asyncio.gather(*(self.payloads.open(payload, resident.run.id) for payload in cold), return_exceptions=True)
        await self._go_on(resident, again, warmed=True)

    async def _go_on(self, resident: Resident, again: Again, *, warmed: bool) -> None:
        while resident.writes:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        again(resident, warmed)
        for call in self._after.pop(resident.run.id, ()):
            call()

    def after(self, resident: Resident, call: Callable[[], None]) -> None:
        """Call once the program of a stalled run is built."""
        self._after.setdefault(resident.run.id, []).append(call)

    def _begin(self, move: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            move.close()
            return
        task = asyncio.get_running_loop().create_task(move, name="ziggurat-stow")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what runs hand on -------------------------------------------------------------------------------------------

    async def _store(
        self, resident: Resident, execution: Execution | None, data: bytes, run: str, then: Callable[[bytes], None]
    ) -> None:
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
            self._harvest(resident)

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
        """Give up what is on the way; a replay asks for it again. Nothing begins after that."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
