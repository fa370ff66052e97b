"""The workers of an orchestrator process: the one that drives runs, and, with a queue of ours, the one that puts tasks on it."""

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
from ziggurat.orchestrator.temporal.commands import DISPATCH
from ziggurat.orchestrator.temporal.options import TemporalOptions
from ziggurat.orchestrator.temporal.program import Surroundings
from ziggurat.orchestrator.temporal.relay import Relay
from ziggurat.orchestrator.temporal.runner import AnyWorkflow, MachineRunner
from ziggurat.orchestrator.temporal.wire import task_queue
from ziggurat.telemetry import events

#: Seconds that one activation of a run may take. The guard stops programs that spin; this is for those that compute.
ACTIVATION_LIMIT = 30


class Hosting:
    """Drives runs in this process while it is open."""

    def __init__(self, client: Client, surroundings: Surroundings, options: TemporalOptions, relay: Relay | None) -> None:
        self._relay = relay
        # A program runs under the interpreter's lock anyway; more threads than this only take turns.
        self._threads = ThreadPoolExecutor(max_workers=max(4, os.cpu_count() or 1), thread_name_prefix="ziggurat-runs")
        runner = self._runner = MachineRunner(surroundings)
        prefix = surroundings.place.task_queue
        self._workers = [
            Worker(
                client,
                task_queue=prefix,
                workflows=[AnyWorkflow],
                workflow_runner=runner,
                unsandboxed_workflow_runner=runner,
                workflow_task_executor=self._threads,
                max_cached_workflows=options.max_resident_runs,
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=options.sticky),
            )
        ]
        if relay is not None:
            self._workers.append(
                Worker(
                    client,
                    task_queue=task_queue(prefix, DISPATCH),
                    activities=[relay.activity()],
                    # Dispatching is one call of the queue; what is on it holds no place here.
                    max_concurrent_activities=200,
                )
            )
        for worker in self._workers:
            _be_patient(worker)
        self._tasks: list[asyncio.Task[Any]] = []

    async def open(self) -> None:
        """Begin to poll. Raises LayerUnreachable if the server refuses the worker, as for a namespace that does not exist."""
        self._tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        if self._relay is not None:
            self._relay.start()
        # A worker that the server refuses says so at once.
        await asyncio.wait(self._tasks, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                await self.close()
                cause = error.__cause__ or error
                raise LayerUnreachable(f"The Temporal server refuses a worker ({cause}); correct [orchestrator.temporal].")
            task.add_done_callback(_report)

    async def close(self) -> None:
        """Stop. Runs go on wherever another worker is, or at the next open."""
        if self._relay is not None:
            await self._relay.stop()
        await asyncio.gather(*(worker.shutdown() for worker in self._workers), return_exceptions=True)
        for task in self._tasks:
            with contextlib.suppress(Exception):
                await task
        await asyncio.to_thread(self._threads.shutdown)
        self._runner.close()


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        events.WORKFLOW_WORKER_FAILED(error=error)


def _be_patient(worker: Worker) -> None:
    """Let an activation take longer than the SDK's two seconds before it is taken for stuck: decoding 20 MB of JSON on a busy machine may.

    There is no public setting for it. Without this name the two seconds hold, and the task is tried again.
    """
    inner: Any = getattr(worker, "_workflow_worker", None)
    if inner is not None and hasattr(inner, "_deadlock_timeout_seconds"):
        inner._deadlock_timeout_seconds = ACTIVATION_LIMIT
