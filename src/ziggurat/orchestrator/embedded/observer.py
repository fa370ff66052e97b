"""A look at a state file that no process owns: reads without the lock, without the program, without changing anything."""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncGenerator, Collection
from pathlib import Path

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.errors import Conflict, UnknownName
from ziggurat.orchestrator.embedded.resident import step_views
from ziggurat.orchestrator.embedded.store import Reader
from ziggurat.orchestrator.embedded.surgery import current_generation
from ziggurat.orchestrator.interface import Capabilities, Orchestrator
from ziggurat.orchestrator.schedules import Schedules, next_moment
from ziggurat.records import STOPPED, DeadLetter, Event, Run, RunEvent, RunFilter, Schedule, StartRequest, StepView


class Observer(Orchestrator):
    """Runs as the file has them. Steps under way are not in the file, so they are not seen; verbs that change something raise Conflict."""

    capabilities = Capabilities(pause=False, retry=False, fork=False, fork_with_input=False, purge=False)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: Reader | None = None
        self.schedules = ObservedSchedules(self)

    async def open(self) -> None:
        """Open the file, if there is one. Raises StateUnusable."""
        if self.path.exists() and self.path.stat().st_size:
            self._reader = Reader(self.path)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _row(self, run: str) -> tuple[Reader, int, Run]:
        found = self._reader.run(run) if self._reader is not None else None
        if self._reader is None or found is None:
            raise UnknownName(f"There is no run {run!r} in {self.path}. `ziggurat list` shows the runs that there are.")
        return self._reader, *found

    async def get(self, run: str) -> Run:
        return self._row(run)[2]

    async def list(self, where: RunFilter) -> list[Run]:
        return self._reader.runs(where) if self._reader is not None else []

    async def count(self, where: RunFilter) -> dict[str, int]:
        return self._reader.count(where) if self._reader is not None else {}

    async def history(self, run: str, *, after: int = 0, limit: int = 1000) -> builtins.list[Event]:
        reader, key, _ = self._row(run)
        return reader.events(key, after=after, limit=limit)

    async def steps(self, run: str) -> builtins.list[StepView]:
        reader, key, _ = self._row(run)
        return step_views(current_generation(reader.events(key)), None)

    async def wait(self, run: str, timeout: float | None = None) -> Run:
        found = await self.get(run)
        if found.status in STOPPED:
            return found
        raise self.only_reading(f"wait for the run {run}")

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        reader, key, found = self._row(run)
        for event in reader.events(key, after=after):
            yield RunEvent(run=run, kind="history", offset=event.seq, event=event)
        yield RunEvent(run=run, kind="status", status=found.status, reason=found.reason)

    async def dead_letters(self, limit: int = 100) -> builtins.list[DeadLetter]:
        return self._reader.dead_letters(limit) if self._reader is not None else []

    def stored_schedules(self) -> builtins.list[Schedule]:
        """Return all schedules, as the file has them."""
        return self._reader.schedules() if self._reader is not None else []

    def only_reading(self, what: str) -> Conflict:
        """Return the error of a verb that changes something."""
        return Conflict(
            f"The state file {self.path} is only read here, so nobody can {what}; use a client that hosts the system."
        )

    async def start(self, request: StartRequest) -> Run:
        raise self.only_reading("start a run")

    async def signal(self, run: str, name: str, payload: Raw, *, signal_id: str = "") -> None:
        raise self.only_reading("send a signal")

    async def cancel(self, run: str, reason: str = "") -> None:
        raise self.only_reading("cancel a run")

    async def pause(self, run: str, reason: str = "") -> None:
        raise self.only_reading("pause a run")

    async def resume(self, run: str, *, budget_usd: float | None = None) -> None:
        raise self.only_reading("resume a run")

    async def retry(self, run: str) -> Run:
        raise self.only_reading("retry a run")

    async def fork(self, run: str, step: int, *, payload: Raw | None = None, id: str = "") -> Run:
        raise self.only_reading("fork a run")

    async def redrive(self, ids: Collection[str]) -> int:
        raise self.only_reading("redrive dead letters")

    async def discard(self, ids: Collection[str]) -> int:
        raise self.only_reading("discard dead letters")

    async def purge(self, where: RunFilter) -> int:
        raise self.only_reading("purge runs")


class ObservedSchedules(Schedules):
    """Schedules as the file has them. While no process stays to fire them, their next moments are those that would be."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    async def list(self) -> builtins.list[Schedule]:
        now = time.time()
        found = sorted(self._observer.stored_schedules(), key=lambda s: s.name)
        return [s if s.paused else replace(s, next_at=next_moment(s, now)) for s in found]

    async def put(self, schedule: Schedule) -> Schedule:
        raise self._observer.only_reading("make a schedule")

    async def remove(self, name: str) -> None:
        raise self._observer.only_reading("remove a schedule")

    async def pause(self, name: str, reason: str = "") -> None:
        raise self._observer.only_reading("pause a schedule")

    async def resume(self, name: str) -> None:
        raise self._observer.only_reading("resume a schedule")

    async def trigger(self, name: str) -> Run:
        raise self._observer.only_reading("start a run")

    async def backfill(self, name: str, since: float, until: float) -> int:
        raise self._observer.only_reading("start runs")
