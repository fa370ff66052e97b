"""What the orchestrator suite needs of a backend, and the small moves that its tests are made of."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Raw

from ziggurat.errors import UnknownName
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.program.registry import Registry
from ziggurat.records import Run, RunEvent, StartRequest

_names = itertools.count(1)


class OrchestratorHarness(ABC):
    """The hooks that a backend's test class fills."""

    #: Real seconds to wait for what must come.
    patience = 60.0
    #: Real seconds to watch for what must not come.
    glance = 0.05
    #: Random programs that the suite runs.
    programs = 10
    #: Seconds in which a task fails more than once, on a busy machine too.
    deadline = 1.0
    #: Seconds in which a run is started and a pause has been heeded for certain.
    moment = 3.0
    #: Runs that the suite starts at once.
    many = 100

    # -- hooks ---------------------------------------------------------------------------------------------------

    @abstractmethod
    async def begin(self, registry: Registry) -> Orchestrator:
        """Open the orchestrator over this test's store, which is empty at first, with workers for the queue "default" beside it."""

    @abstractmethod
    async def end(self) -> None:
        """Close it and its workers without waiting for runs. The store stays; what a lost process would lose is lost."""

    # -- moves ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Orchestrator]:
        """Run the orchestrator for a test. `self.name` is a name that no other test uses."""
        # Ids that are made up hold no "u", so that none of them contains this name.
        self.name = f"run{next(_names)}"
        self.registry = Registry()
        self.orchestrator = await self.begin(self.registry)
        try:
            yield self.orchestrator
        finally:
            await self.end()

    async def restart(self) -> Orchestrator:
        """End the process, and begin a new one over the same store."""
        await self.end()
        self.orchestrator = await self.begin(self.registry)
        return self.orchestrator

    async def start(self, workflow: Any, *args: Any, id: str = "", **options: Any) -> str:
        """Start a run and return its id."""
        payload = Raw(workflow.arguments.encode(args, {}))
        run = await self.orchestrator.start(StartRequest(workflow=workflow.name, payload=payload, id=id, **options))
        return run.id

    async def send(self, run: str, name: str, value: Any = None, signal_id: str = "") -> None:
        """Send a signal."""
        await self.orchestrator.signal(run, name, Raw(msgspec.json.encode(value)), signal_id=signal_id)

    async def ended(self, run: str) -> Run:
        """Return a run once it has ended or is parked."""
        return await self.orchestrator.wait(run, self.patience)

    async def result(self, run: str) -> Any:
        """Return the result of a run that must complete."""
        found = await self.ended(run)
        assert found.status == "completed", (found.status, found.reason, found.error)
        assert found.result is not None
        return msgspec.json.decode(found.result)

    async def until(self, holds: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + self.patience
        while not await holds():
            assert time.monotonic() < deadline, "It does not come to hold."
            await asyncio.sleep(0.002)

    async def rests(self, run: str, status: str = "waiting") -> Run:
        """Wait until a run has a status, and return it."""

        async def has() -> bool:
            try:
                return (await self.orchestrator.get(run)).status == status
            except UnknownName:  # A child run that its parent is about to start.
                return False

        await self.until(has)
        return await self.orchestrator.get(run)

    async def watched(self, run: str, after: int = 0) -> list[RunEvent]:
        """Watch a run to its end, and return all that was seen."""
        async with asyncio.timeout(self.patience):
            return [event async for event in self.orchestrator.watch(run, after=after)]
