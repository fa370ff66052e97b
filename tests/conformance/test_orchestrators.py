"""The orchestrator suite over every backend of this project, and what the embedded one promises beyond it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "ziggurat.testing.orchestrator_control",
    "ziggurat.testing.orchestrator_harness",
    "ziggurat.testing.orchestrator_schedules",
    "ziggurat.testing.orchestrator_suite",
    "ziggurat.testing.orchestrator_surgery",
)

from ziggurat.artifacts import Keyring, Library, Payloads  # noqa: E402
from ziggurat.artifacts.backends.folder import FolderStore  # noqa: E402
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator  # noqa: E402
from ziggurat.orchestrator.embedded.options import EngineOptions  # noqa: E402
from ziggurat.orchestrator.interface import Orchestrator  # noqa: E402
from ziggurat.orchestrator.sealing import SealedOrchestrator  # noqa: E402
from ziggurat.program.registry import Registry  # noqa: E402
from ziggurat.queues.backends.memory import MemoryQueue  # noqa: E402
from ziggurat.testing.orchestrator_suite import OrchestratorSuite  # noqa: E402
from ziggurat.workers.options import WorkerOptions  # noqa: E402
from ziggurat.workers.worker import Worker  # noqa: E402


class TestEmbedded(OrchestratorSuite):
    options = EngineOptions(seed=1, fire_schedules=True)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.state = tmp_path / "state.db"

    async def begin(self, registry: Registry) -> Orchestrator:
        self.queue = MemoryQueue()
        await self.queue.open()
        self.engine = EmbeddedOrchestrator(self.state, self.queue, registry, options=self.options)
        await self.engine.open()
        worker = Worker(self.queue, registry, options=WorkerOptions(poll=0.2, cleanup=1.0))
        self.working = asyncio.create_task(worker.run())
        return self.engine

    async def end(self) -> None:
        self.working.cancel()
        await asyncio.gather(self.working, return_exceptions=True)
        await self.engine.close()
        await self.queue.close()


class TestEmbeddedThatForgets(TestEmbedded):
    """Every run is evicted whenever it rests, so that all of it works by replay."""

    options = EngineOptions(seed=1, fire_schedules=True, evict_always=True)


class TestEmbeddedThatSealsEverything(TestEmbedded):
    """Every payload is encrypted, and all but the smallest are stored; engine and worker share no memory, and every run is evicted."""

    options = EngineOptions(seed=1, fire_schedules=True, evict_always=True)
    programs = 3

    def _seam(self) -> Payloads:
        keyring = Keyring({"suite": b"s" * 32}, "suite")
        store = FolderStore(self.state.with_name("artifacts"))
        return Payloads(Library(store, keyring, cache_bytes=64), keyring=keyring, inline_limit=8)

    async def begin(self, registry: Registry) -> Orchestrator:
        self.queue = MemoryQueue()
        await self.queue.open()
        payloads = self._seam()
        self.engine = EmbeddedOrchestrator(self.state, self.queue, registry, options=self.options, payloads=payloads)
        await self.engine.open()
        worker = Worker(self.queue, registry, options=WorkerOptions(poll=0.2, cleanup=1.0), payloads=self._seam())
        self.working = asyncio.create_task(worker.run())
        return SealedOrchestrator(self.engine, payloads)
