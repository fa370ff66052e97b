"""The worker of an orchestrator process, which drives runs, and what it does on the way: it takes tasks for this process, or dispatches."""

from __future__ import annotations

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from ziggurat.errors import LayerUnreachable
from ziggurat.orchestrator.temporal.options import TemporalOptions
from ziggurat.orchestrator.temporal.program import Surroundings
from ziggurat.orchestrator.temporal.relay import Relay
from ziggurat.orchestrator.temporal.runner import AnyWorkflow, MachineRunner
from ziggurat.queues.temporal_hand import Hand, Hosted
from ziggurat.telemetry import events

#: Seconds that one activation of a run may take. The guard stops programs that spin; this is for those that compute.
ACTIVATION_LIMIT = 30
#: Dispatches at a time.
DISPATCHES = 200


class Hosting:
    """Drives runs in this process while it is open.

    The worker that drives runs also serves the activities that wait on its task queue, where there is someone for them: attempts of the
    queue "default" for the pool here, in the thread of `hand`, or dispatches for the `relay`. Temporal then hands over what a run asks
    for in its answer to the run ("eager"), which saves a round trip, a task queue and one of the server's four commits a step.
    """

    def __init__(
        self, client: Client, surroundings: Surroundings, options: TemporalOptions, *, relay: Relay | None, hand: Hand | None
    ) -> None:
        self._client, self._options = client, options
        self._relay, self._hand = relay, hand
        # A program runs under the interpreter's lock anyway; more threads than this only take turns.
        self._threads = ThreadPoolExecutor(max_workers=max(4, os.cpu_count() or 1), thread_name_prefix="ziggurat-runs")
        self._runner = MachineRunner(surroundings)
        self._task_queue = surroundings.place.task_queue
        self._hosted: Hosted | None = None
        self._worker: Worker | None = None
        self._running: asyncio.Future[Any] | None = None

    async def open(self) -> None:
        """Begin to poll. Raises LayerUnreachable if the server refuses the worker, as for a namespace that does not exist."""
        if self._hand is not None:
            self._hosted = await self._hand.host(self._client, self._task_queue, self._options.eager, **self._driving())
            worker = self._hosted.worker
            self._running = asyncio.wrap_future(self._hosted.ended)
        else:
            worker = self._worker = Worker(
                self._client, task_queue=self._task_queue, **self._driving(), **self._dispatching(self._relay)
            )
            self._running = asyncio.create_task(worker.run())
        _be_patient(worker)
        if self._relay is not None:
            self._relay.start()
        # A worker that the server refuses says so at once.
        await asyncio.wait([self._running], timeout=0.05)
        if self._running.done() and not self._running.cancelled() and (error := self._running.exception()) is not None:
            await self.close()
            cause = error.__cause__ or error
            raise LayerUnreachable(f"The Temporal server refuses a worker ({cause}); correct [orchestrator.temporal].")
        self._running.add_done_callback(_report)

    def _driving(self) -> dict[str, Any]:
        return {
            "workflows": [AnyWorkflow],
            "workflow_runner": self._runner,
            "unsandboxed_workflow_runner": self._runner,
            "workflow_task_executor": self._threads,
            "max_cached_workflows": self._options.max_resident_runs,
            "sticky_queue_schedule_to_start_timeout": timedelta(seconds=self._options.sticky),
        }

    @staticmethod
    def _dispatching(relay: Relay | None) -> dict[str, Any]:
        if relay is None:
            return {}
        return {
            "activities": [relay.activity()],
            # Dispatching is one call of the queue; what is on it holds no place here. So a whole fan-out may come at once, too.
            "max_concurrent_activities": DISPATCHES,
            "max_eager_activity_reservations_per_workflow_task": DISPATCHES,
        }

    async def close(self) -> None:
        """Stop. Runs go on wherever another worker is, or at the next open."""
        if self._relay is not None:
            await self._relay.stop()
        if self._hand is not None and self._hosted is not None:
            await self._hand.dismiss(self._hosted)
        if self._worker is not None:
            await asyncio.gather(self._worker.shutdown(), return_exceptions=True)
        if self._running is not None:
            with contextlib.suppress(Exception):
                await self._running
        await asyncio.to_thread(self._threads.shutdown)
        self._runner.close()


def _report(task: asyncio.Future[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        events.WORKFLOW_WORKER_FAILED(error=error)


def _be_patient(worker: Worker) -> None:
    """Let an activation take longer than the SDK's two seconds before it is taken for stuck: decoding 20 MB of JSON on a busy machine may.

    There is no public setting for it. Without this name the two seconds hold, and the task is tried again.
    """
    inner: Any = getattr(worker, "_workflow_worker", None)
    if inner is not None and hasattr(inner, "_deadlock_timeout_seconds"):
        inner._deadlock_timeout_seconds = ACTIVATION_LIMIT
