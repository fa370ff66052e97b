"""Workers are replaced under load, as a deployment does: nothing fails, nothing is lost, no attempt and no delivery is burned."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.chaos.plant import UP, Plant
from tests.chaos.storm import WORKERS, Scale, Storm
from tests.conformance.redis_servers import REDIS_8, RedisServer, running
from tests.conftest import missing_service
from ziggurat.records import ENDED

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

LOAD = Scale(tasks=120, seconds=1.0, poisons=0, faults=0, gap=0.0, limit=500.0, failing=(0, 0))
#: Two deliveries: a message whose delivery counted although it was handed back would soon be a dead letter.
DELIVERIES, LEASE = 2, 20.0


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[RedisServer]:
    with running(REDIS_8, missing_service) as server:
        yield server


@asynccontextmanager
async def loaded(server: RedisServer, folder: Path, seed: int, grace: float) -> AsyncIterator[Storm]:
    """A system with its work planned, and a lease so long that only what was handed back comes back in time."""
    queue = f'backend = "redis"\nurl = "{server.url}/{seed}"\nlease = "{LEASE}s"\nmax_deliveries = {DELIVERIES}'
    plant = Plant(folder, queue, sweep=60.0, concurrency=8, grace=grace)
    try:
        yield Storm(plant, seed, LOAD, lease=LEASE, deliveries=DELIVERIES)
    finally:
        await plant.close()


async def ended(worker: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(worker.wait, UP)


async def replace(plant: Plant, worker: subprocess.Popen[bytes], signals: int) -> int:
    """Start a worker, then end an old one with so many signals; returns its exit code."""
    up = plant.said("worker").count("Running.")
    plant.start_worker()
    await plant.ready(up + 1)
    plant.retire(worker)
    for _ in range(signals - 1):
        await asyncio.sleep(0.3)
        worker.terminate()
    return await ended(worker)


async def roll(storm: Storm, signals: int = 1) -> None:
    """Replace all workers, one after the other, and start more runs whenever few are left, so that there is work all the time."""

    async def replace_all() -> None:
        for worker in list(storm.plant.workers):
            assert await replace(storm.plant, worker, signals) == 0, storm.plant.said("worker")

    replacing = asyncio.create_task(replace_all())
    rounds = 0
    while not replacing.done():
        if sum(run.status not in ENDED for run in (await storm.runs()).values()) < 15:
            rounds += 1
            await storm.start_as_many(f"+{rounds}")
        await asyncio.sleep(0.2)
    await replacing


def tasks(storm: Storm) -> int:
    return sum(len(group) for groups in storm.tours.values() for group in groups)


async def test_replacing_all_workers_lets_everything_finish_that_runs(server: RedisServer, tmp_path: Path) -> None:
    async with loaded(server, tmp_path, 1, grace=30.0) as storm:
        await storm.rage(lambda: roll(storm))
        figures = await storm.check()
        assert (figures["recorded"], figures["begun again"]) == (tasks(storm), 0)
        assert storm.plant.started == 2 * WORKERS


@pytest.mark.parametrize(("grace", "signals"), [(0.1, 1), (600.0, 2)], ids=["short grace", "second SIGTERM"])
async def test_what_a_replaced_worker_cannot_finish_goes_back_and_burns_nothing(
    server: RedisServer, tmp_path: Path, grace: float, signals: int
) -> None:
    async with loaded(server, tmp_path, 1 + signals, grace) as storm:
        await storm.rage(lambda: roll(storm, signals))
        figures = await storm.check()
        # Begun again by another worker, as the same attempt: `check` has seen that every step took one.
        assert figures["recorded"] == tasks(storm)
        assert figures["begun again"] > 0
        assert await storm.plant.ask(lambda orchestrator: orchestrator.dead_letters()) == []
