"""A small embedded system for unit tests: the engine on a state file, the memory queue and a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from ziggurat.clock import Clock
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.orchestrator.embedded.options import EngineOptions
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import Run, StartRequest
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker

PATIENCE = 60.0


class System:
    """An open engine, with the moves that tests are made of."""

    def __init__(self, engine: EmbeddedOrchestrator, queue: MemoryQueue, registry: Registry) -> None:
        self.engine, self.queue, self.registry = engine, queue, registry

    async def start(self, workflow: Any, *args: Any, id: str = "") -> str:
        """Start a run of this very definition, and return its id."""
        self.registry.add(workflow)
        payload = Raw(workflow.arguments.encode(args, {}))
        return (await self.engine.start(StartRequest(workflow=workflow.name, payload=payload, id=id))).id

    async def run(self, workflow: Any, *args: Any, id: str = "") -> Run:
        """Start a run and return it once it has ended or is parked."""
        return await self.engine.wait(await self.start(workflow, *args, id=id), PATIENCE)

    async def result(self, workflow: Any, *args: Any, id: str = "") -> Any:
        """Return the result of a run that must complete."""
        found = await self.run(workflow, *args, id=id)
        assert found.status == "completed", (found.status, found.reason, found.error)
        return msgspec.json.decode(found.result or b"null")

    async def signal(self, run: str, name: str, value: Any = None) -> None:
        """Send a signal."""
        await self.engine.signal(run, name, Raw(msgspec.json.encode(value)))

    async def rests(self, run: str, status: str = "waiting") -> Run:
        """Wait until a run has a status."""
        async with asyncio.timeout(PATIENCE):
            while (found := await self.engine.get(run)).status != status:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        return found


@asynccontextmanager
async def system(
    state: Path, *, queue: MemoryQueue | None = None, registry: Registry | None = None, clock: Clock | None = None, **options: Any
) -> AsyncIterator[System]:
    """Open a system over a state file."""
    queue = queue or MemoryQueue()
    registry = registry or Registry()
    await queue.open()
    engine = EmbeddedOrchestrator(state, queue, registry, options=EngineOptions(**options), clock=clock)
    await engine.open()
    working = asyncio.create_task(Worker(queue, registry, options=WorkerOptions(poll=0.2, cleanup=1.0)).run())
    try:
        yield System(engine, queue, registry)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await engine.close()
        await queue.close()
