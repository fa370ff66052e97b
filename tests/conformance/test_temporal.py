"""The orchestrator suite over a real Temporal server: tasks on Temporal's own task queues, and tasks on a queue of ours."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite(
    "ziggurat.testing.orchestrator_control",
    "ziggurat.testing.orchestrator_harness",
    "ziggurat.testing.orchestrator_suite",
    "ziggurat.testing.orchestrator_surgery",
)

from tests.conformance.temporal_servers import TemporalServer, needed, temporal_server  # noqa: E402
from ziggurat.orchestrator.interface import Orchestrator  # noqa: E402
from ziggurat.orchestrator.temporal.engine import TemporalOrchestrator  # noqa: E402
from ziggurat.orchestrator.temporal.options import TemporalOptions  # noqa: E402
from ziggurat.program.registry import Registry  # noqa: E402
from ziggurat.queues.backends.memory import MemoryQueue  # noqa: E402
from ziggurat.queues.backends.temporal import TemporalQueue  # noqa: E402
from ziggurat.queues.interface import Queue, QueueOptions  # noqa: E402
from ziggurat.queues.temporal_link import LinkOptions  # noqa: E402
from ziggurat.testing.orchestrator_suite import OrchestratorSuite  # noqa: E402
from ziggurat.workers.options import WorkerOptions  # noqa: E402
from ziggurat.workers.worker import Worker  # noqa: E402

_queues = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    needed()
    with temporal_server(tmp_path_factory.mktemp("temporal")) as running:
        yield running


class TestTemporal(OrchestratorSuite):
    """Tasks on Temporal's own task queues."""

    patience = 90.0
    glance = 0.3
    programs = 2
    many = 20
    deadline = 3.0
    moment = 6.0
    native = True
    options = TemporalOptions(lease=4.0, relay=0.3, sticky=1.0, eager=16)

    @pytest.fixture(autouse=True)
    def _link(self, server: TemporalServer) -> None:
        # A test's own task queue, so that what one test leaves behind is not another's work.
        self.link = LinkOptions(address=server.address, task_queue=f"t{next(_queues)}")

    def make_queue(self) -> Queue:
        return TemporalQueue(self.link, QueueOptions(lease=self.options.lease))

    async def begin(self, registry: Registry) -> Orchestrator:
        self.queue = self.make_queue()
        await self.queue.open()
        self.engine = TemporalOrchestrator(self.link, self.queue, registry, options=self.options)
        await self.engine.open()
        self.worker = Worker(self.queue, registry, options=WorkerOptions(poll=0.2, cleanup=1.0))
        self.working = asyncio.create_task(self.worker.run())
        return self.engine

    async def end(self) -> None:
        self.worker.stop(0.0)
        await asyncio.gather(self.working, return_exceptions=True)
        await self.queue.close()
        await self.engine.close()


@pytest.mark.slow
class TestTemporalWithOurQueue(TestTemporal):
    """Tasks on a queue of ours, brought back by the relay; workers know nothing of Temporal."""

    options = TemporalOptions(lease=4.0, relay=0.3, sticky=1.0, native=False)

    def make_queue(self) -> Queue:
        return MemoryQueue(QueueOptions(lease=self.options.lease))
