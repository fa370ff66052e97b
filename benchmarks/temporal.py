"""What a task costs on Temporal: through the plain SDK, through Ziggurat on Temporal's task queues, and through Ziggurat and Redis.

Each side is one process that drives runs and runs up to 64 tasks at a time, beside a server of its own: the development server over a
file, whose timers are exact. The task does nothing, so everything that is measured is the way there and back. "runs" starts many runs of
ten tasks one after the other; "fan-out" is one run with many more tasks at a time than there are places. The plain SDK runs its workflows
unsandboxed, as ours are, and may start an activity in the process that asked for it, as ours may.

Beside the time, the CPU time of both processes is measured: it says where the cost is, and depends less on what else a machine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from benchmarks.harness import Measured
from tests.conformance.redis_servers import REDIS_8, running
from tests.conformance.temporal_servers import TemporalServer, temporal_server
from ziggurat.assembly import System
from ziggurat.program.definitions import task
from ziggurat.program.definitions import workflow as our_workflow
from ziggurat.records import StartRequest
from ziggurat.settings import load_settings

SIZES = {"runs": {"runs": 40, "tasks": 10}, "fan-out": {"runs": 1, "tasks": 400}}
QUICK = {"runs": {"runs": 3, "tasks": 3}, "fan-out": {"runs": 1, "tasks": 10}}
REPEATS = 3
#: Tasks at a time, on every side; ours by default.
PLACES = 64

Load = Callable[[str, int, int], Awaitable[None]]


# -- the programs ----------------------------------------------------------------------------------------------------


@activity.defn
async def plain_nothing(value: int) -> int:
    return value + 1


@workflow.defn(sandboxed=False)
class PlainLine:
    @workflow.run
    async def run(self, tasks: int) -> int:
        value = 0
        for _ in range(tasks):
            value = await workflow.execute_activity(plain_nothing, value, start_to_close_timeout=timedelta(minutes=1))
        return value


@workflow.defn(sandboxed=False)
class PlainFan:
    @workflow.run
    async def run(self, tasks: int) -> int:
        calls = [workflow.execute_activity(plain_nothing, i, start_to_close_timeout=timedelta(minutes=1)) for i in range(tasks)]
        return len(await asyncio.gather(*calls))


@task(name="bench.nothing")
async def nothing(value: int) -> int:
    return value + 1


@our_workflow(name="bench.line")
async def line(tasks: int) -> int:
    value = 0
    for _ in range(tasks):
        value = await nothing(value)
    return value


@our_workflow(name="bench.fan")
async def fan(tasks: int) -> int:
    return len(await asyncio.gather(*(nothing(i) for i in range(tasks))))


# -- the sides -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _plain(server: TemporalServer, folder: Path) -> AsyncIterator[Load]:
    client = await Client.connect(server.address)

    async def load(kind: str, runs: int, tasks: int) -> None:
        flow: Any = PlainLine.run if kind == "runs" else PlainFan.run
        stamp = time.monotonic_ns()
        handles = await asyncio.gather(
            *(client.start_workflow(flow, tasks, id=f"{stamp}-{i}", task_queue="plain") for i in range(runs))
        )
        assert await asyncio.gather(*(handle.result() for handle in handles)) == [tasks] * runs

    async with Worker(
        client, task_queue="plain", workflows=[PlainLine, PlainFan], activities=[plain_nothing],
        workflow_runner=UnsandboxedWorkflowRunner(), max_concurrent_activities=PLACES,
    ):  # fmt: skip
        yield load


def _ours(queue: str) -> Callable[[TemporalServer, Path], contextlib.AbstractAsyncContextManager[Load]]:
    @contextlib.asynccontextmanager
    async def side(server: TemporalServer, folder: Path) -> AsyncIterator[Load]:
        file = folder / "ziggurat.toml"
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(running(REDIS_8, _missing)) if queue == "redis" else None
            more = f'[queue]\nbackend = "redis"\nurl = "{redis.url}"\n' if redis is not None else ""
            file.write_text(f'[orchestrator]\nbackend = "temporal"\nurl = "{server.address}"\n{more}')
            async with System(load_settings(file, {})) as system:
                yield _load_of(system)

    return side


def _load_of(system: System) -> Load:
    orchestrator = system.orchestrator
    assert orchestrator is not None

    async def load(kind: str, runs: int, tasks: int) -> None:
        name = "bench.line" if kind == "runs" else "bench.fan"
        payload = Raw(msgspec.json.encode({"tasks": tasks}))
        started = await asyncio.gather(*(orchestrator.start(StartRequest(workflow=name, payload=payload)) for _ in range(runs)))
        ended = await asyncio.gather(*(orchestrator.wait(run.id, 300.0) for run in started))
        assert [run.result and bytes(run.result) for run in ended] == [str(tasks).encode()] * runs

    return load


def _missing(what: str, install: str) -> Any:
    raise RuntimeError(f"There is no {what} here. {install}")


SIDES: dict[str, Callable[[TemporalServer, Path], contextlib.AbstractAsyncContextManager[Load]]] = {
    "plain SDK": _plain,
    "Ziggurat": _ours(""),
    "Ziggurat, Redis": _ours("redis"),
}


# -- measuring -------------------------------------------------------------------------------------------------------


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all sides, or those whose label contains one of `only`."""
    measured = Measured("temporal", patience)
    measured.sizes = QUICK if quick else SIZES
    sides = [side for side in SIDES if not only or any(word.lower() in side.lower() for word in only)]
    for kind, sizes in measured.sizes.items():
        for turn in range(1 if quick else REPEATS):
            # Whoever comes first finds the machine as it was left, so the sides take turns at that, too.
            for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                measured.add(side, kind, lambda side=side, kind=kind, sizes=sizes: _measure(side, kind, sizes))  # type: ignore[misc]
    return measured


def _measure(side: str, kind: str, sizes: dict[str, int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, temporal_server(Path(folder)) as server:
        seconds, own, served = asyncio.run(_seconds(side, kind, sizes, server, Path(folder)))
    tasks = sizes["runs"] * sizes["tasks"]
    return {
        "seconds": seconds,
        "tasks_per_second": tasks / seconds,
        "ms_per_task": 1000 * seconds / tasks,
        "own_cpu_ms": 1000 * own / tasks,
        "server_cpu_ms": 1000 * served / tasks,
    }


async def _seconds(
    side: str, kind: str, sizes: dict[str, int], server: TemporalServer, folder: Path
) -> tuple[float, float, float]:
    """Return the seconds that the load took, and the CPU seconds of this process and of the server meanwhile."""
    assert server.process is not None
    pid = server.process.pid
    async with SIDES[side](server, folder) as load:
        await load(kind, 2, 3)  # Connections and caches are warm from here on.
        own, served, began = time.process_time(), _cpu_of(pid), time.perf_counter()
        await load(kind, sizes["runs"], sizes["tasks"])
        return time.perf_counter() - began, time.process_time() - own, _cpu_of(pid) - served


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
