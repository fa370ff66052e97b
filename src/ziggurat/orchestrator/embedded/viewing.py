"""What the engine shows of runs: records, lists, and what happens to them while it happens."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.errors import UnknownName
from ziggurat.orchestrator.embedded.driver import Driver
from ziggurat.orchestrator.embedded.journal import Journal
from ziggurat.orchestrator.embedded.resident import Resident, step_views
from ziggurat.orchestrator.embedded.surgery import current_generation
from ziggurat.records import STOPPED, Event, Run, RunEvent, RunFilter, StepView

T = TypeVar("T")


class Viewer:
    """Runs as they are now: those in memory from there, all others from the file."""

    def __init__(self, path: Path, journal: Journal, driver: Driver) -> None:
        self._path, self._journal, self._driver = path, journal, driver

    def row(self, run: str) -> tuple[int, Run]:
        """Return a run's key and record as the file has them. Raises UnknownName."""
        found = self._journal.reader.run(run)
        if found is None:
            resident = self._driver.residents.get(run)
            if resident is not None:
                return resident.key, resident.run
            raise UnknownName(f"There is no run {run!r} in {self._path}. `ziggurat list` shows the runs that there are.")
        return found

    def stored(self, run: str) -> Run:
        """Return a run's record as of now. Raises UnknownName."""
        resident = self._driver.residents.get(run)
        return resident.run if resident is not None else self.row(run)[1]

    async def get(self, run: str) -> Run:
        """Return a run's record; an end is shown once it is on the disk. Raises UnknownName."""
        resident = self._driver.residents.get(run)
        if resident is not None and resident.finishing:
            await self._journal.settled()
        return self.stored(run)

    async def list(self, where: RunFilter) -> builtins.list[Run]:
        """Return runs without payloads and results, newest first."""
        found = await self._journal.read(lambda reader: reader.runs(where))
        live = self._driver.residents
        return [replace(live[r.id].run, payload=Raw(b"{}"), result=None) if r.id in live else r for r in found]

    async def steps(self, run: str, *, drive: bool) -> builtins.list[StepView]:
        """Return a run's steps; what it waits for only its program knows, which is brought into memory for that if `drive` allows."""
        key, found = self.row(run)
        resident = self._driver.residents.get(run)
        if resident is None and drive and found.status not in STOPPED:
            resident = self._driver.resident(run)

        def look() -> builtins.list[StepView]:
            return self._views(run, current_generation(self._journal.reader.events(key)))

        return look() if resident is None else await self._once_built(resident, look)

    def _views(self, run: str, events: builtins.list[Event]) -> builtins.list[StepView]:
        """Return the steps that these events settled, and what the run waits for as far as its program is in memory."""
        resident = self._driver.residents.get(run)
        return step_views(events, resident.execution if resident is not None else None)

    async def _once_built(self, resident: Resident, look: Callable[[], T]) -> T:
        """Look at a run whose program is in memory: at once, or when what the program needs of the artifact store has come, or has not."""
        if not resident.stalled:
            return look()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        # Right then, and not when this task has its turn: the run may be evicted by that time.
        self._driver.stowing.after(resident, lambda: None if future.done() else future.set_result(look()))
        await self._journal.wait(future)
        return future.result()

    async def wait(self, run: str, timeout: float | None = None) -> Run:
        """Return the run once it has ended or is parked. Raises TimeoutError."""
        found = self.stored(run)
        resident = self._driver.residents.get(run)
        if found.status in STOPPED and resident is None:
            return found
        future: asyncio.Future[Run] = asyncio.get_running_loop().create_future()
        take_back = self._driver.when_stopped(run, lambda stopped: None if future.done() else future.set_result(stopped))
        try:
            async with asyncio.timeout(timeout):
                await self._journal.wait(future)
                return future.result()
        finally:
            take_back()

    async def watch(self, run: str, after: int) -> AsyncGenerator[RunEvent, None]:
        """Yield a run's history past a position, then what happens to it, until it has ended or is parked."""
        key, _ = self.row(run)
        watcher = self._driver.watchers.add(run)
        try:
            seen = after
            for event in self._journal.reader.events(key, after=after):
                seen = event.seq
                yield RunEvent(run=run, kind="history", offset=event.seq, event=event)
            resident = self._driver.resident(run)
            found = self.stored(run)
            if resident is None and found.status in STOPPED:
                # It stopped while the caller took its time.
                for event in self._journal.reader.events(key, after=seen):
                    yield RunEvent(run=run, kind="history", offset=event.seq, event=event)
            elif resident is not None:
                for view in await self._once_built(resident, lambda: self._views(run, [])):
                    yield RunEvent(run=run, kind="step", step=view)
            if resident is None or found.status not in STOPPED:
                yield RunEvent(run=run, kind="status", status=found.status, reason=found.reason)
            while resident is not None or found.status not in STOPPED:
                happening = watcher.take()
                if happening is None:
                    await self._journal.wait(watcher.arrival())
                    continue
                if happening.kind == "history" and happening.offset <= seen:
                    continue
                yield happening
                if happening.kind == "status" and happening.status in STOPPED:
                    return
        finally:
            self._driver.watchers.remove(run, watcher)
