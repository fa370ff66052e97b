"""The whole system in a storm: orchestrator, queue and workers in processes of their own, killed, frozen, restarted and emptied.

The faults are drawn from a seed, which is printed. ZIGGURAT_CHAOS_SEEDS asks for more seeds of the short storm. The long ones, marked slow,
are of the full size: ZIGGURAT_CHAOS_SEED is their first seed, and ZIGGURAT_CHAOS_HOURS lets them go on with the next seeds for so long:

    ZIGGURAT_CHAOS_HOURS=8 pytest tests/chaos/test_system.py -m slow -k "redis and long_storms" -s

One more asks what the storms cannot, whose processes die young: whether an orchestrator and a worker that live through hours of other
processes' faults hold as much memory and as many files at the end as at the beginning (-k flat). docs/how-to/test-with-chaos.md tells more.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.chaos.plant import Plant
from tests.chaos.storm import WORKERS, Scale, Storm
from tests.chaos.watch import Watch, say
from tests.conformance.redis_servers import REDIS_8, VALKEY, RedisServer, count_everything, opened_queue, running
from tests.conftest import missing_service
from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import ENDED, RunFilter

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

SEEDS = range(1, 1 + int(os.environ.get("ZIGGURAT_CHAOS_SEEDS") or 1))
#: The first seed of the long storms, and the hours for which they go on; at least one is fought through.
FIRST_SEED = int(os.environ.get("ZIGGURAT_CHAOS_SEED") or 100)
HOURS = float(os.environ.get("ZIGGURAT_CHAOS_HOURS") or 0)
SHORT = Scale(tasks=150, seconds=1.0, poisons=1, faults=10, gap=1.5, limit=300.0)
FULL = Scale(tasks=2_000, seconds=3.0, poisons=4, faults=60, gap=3.0, limit=900.0)
LEASE, DELIVERIES = 1.5, 6
FULL_LEASE, FULL_DELIVERIES = 3.0, 8
#: One round of the storm that spares an orchestrator and a worker; rounds follow each other for hours, over one plant.
ROUND = Scale(tasks=400, seconds=1.0, poisons=0, faults=12, gap=2.0, limit=600.0)
#: Rounds at least, where no hours are asked for.
ROUNDS = 3
#: Keys and members that an idle queue keeps on a Redis server beside what expires by itself: counters, names of queues.
BASELINE = 15


def long_seeds() -> Iterator[int]:
    """Yield seeds until the hours are over."""
    over = time.monotonic() + HOURS * 3600
    for seed in itertools.count(FIRST_SEED):
        yield seed
        if time.monotonic() >= over:
            return


def _room(folder: Path, seed: int) -> Path:
    room = folder / str(seed)
    room.mkdir()
    return room


@asynccontextmanager
async def redis_storm(folder: Path, seed: int, scale: Scale, lease: float, deliveries: int) -> AsyncIterator[Storm]:
    durable, flavour = seed % 2 == 1, (REDIS_8, VALKEY)[seed // 2 % 2]
    options = {"appendonly": "yes", "appendfsync": "always"} if durable else {}
    with running(flavour, missing_service, **options) as server:
        plant = Plant(
            folder, f'backend = "redis"\nurl = "{server.url}"\nlease = "{lease}s"\nmax_deliveries = {deliveries}', sweep=2 * lease
        )
        storm = Storm(plant, seed, scale, lease=lease, deliveries=deliveries, server=server, durable=durable)
        print(storm, flush=True)
        try:
            yield storm
        finally:
            await plant.close()


async def rage(storm: Storm, watch: Watch) -> None:
    """Let a storm rage, and tell of it."""
    following = asyncio.create_task(watch.follow(storm.progress))
    try:
        await storm.rage()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    say(f"seed {storm.seed}: {await storm.check()}")
    say(f"  after it: {watch.note()}")


async def weather_redis(folder: Path, seed: int, scale: Scale, lease: float, deliveries: int) -> None:
    async with redis_storm(folder, seed, scale, lease, deliveries) as storm:
        await rage(storm, Watch(storm.plant, storm.server))
        assert storm.server is not None
        async with opened_queue(storm.server.url, lease=lease, max_deliveries=deliveries) as queue:
            async with asyncio.timeout(120.0):
                while any(it.ready or it.leased or it.delayed for it in (await queue.depth()).values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            letters = await queue.dead_letters()
            assert {letter.message.run for letter in letters} <= set(storm.poisons)
            assert {letter.deliveries for letter in letters} <= {deliveries}
            if not storm.losses:
                assert {letter.message.run for letter in letters} == set(storm.poisons)
            await queue.discard([letter.id for letter in letters])
            while (found := await count_everything(storm.server.url, "ziggurat", lasting=True)) > BASELINE:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            say(f"  {found} keys and members are left")


async def weather_sqlite(folder: Path, seed: int, scale: Scale, lease: float, deliveries: int) -> None:
    plant = Plant(
        folder, f'backend = "sqlite"\npath = "queue.db"\nlease = "{lease}s"\nmax_deliveries = {deliveries}', sweep=2 * lease
    )
    storm = Storm(plant, seed, scale, lease=lease, deliveries=deliveries)
    print(storm, flush=True)
    try:
        await rage(storm, Watch(plant))
    finally:
        await plant.close()
    queue = SqliteQueue(folder / "queue.db", QueueOptions(lease=lease, max_deliveries=deliveries))
    await queue.open()
    try:
        async with asyncio.timeout(120.0):
            while any(it.ready or it.leased or it.delayed for it in (await queue.depth()).values()):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        letters = await queue.dead_letters()
        assert {(letter.message.run, letter.deliveries) for letter in letters} == {(run, deliveries) for run in storm.poisons}
        await queue.discard([letter.id for letter in letters])
        await queue.progress(10_000, 0.0)
        with closing(sqlite3.connect(folder / "queue.db")) as file:
            # What killed workers said of themselves goes when its time is over.
            file.execute("DELETE FROM presences")
            file.commit()
        assert await queue.stored() == 0
    finally:
        await queue.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_system_on_sqlite_comes_through_a_storm(seed: int, tmp_path: Path) -> None:
    await weather_sqlite(tmp_path, seed, SHORT, LEASE, DELIVERIES)


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_a_system_of_full_size_on_sqlite_comes_through_long_storms(tmp_path: Path) -> None:
    for seed in long_seeds():
        await weather_sqlite(_room(tmp_path, seed), seed, FULL, FULL_LEASE, FULL_DELIVERIES)


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_a_system_of_full_size_on_redis_comes_through_long_storms(tmp_path: Path) -> None:
    for seed in long_seeds():
        await weather_redis(_room(tmp_path, seed), seed, FULL, FULL_LEASE, FULL_DELIVERIES)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_system_on_redis_comes_through_a_storm(seed: int, tmp_path: Path) -> None:
    await weather_redis(tmp_path, seed, SHORT, LEASE, DELIVERIES)


@pytest.mark.slow
@pytest.mark.timeout(0)
async def test_processes_that_live_through_storms_on_redis_stay_flat(tmp_path: Path) -> None:
    with running(REDIS_8, missing_service, appendonly="yes", appendfsync="always") as server:
        queue = f'backend = "redis"\nurl = "{server.url}"\nlease = "{LEASE}s"\nmax_deliveries = {DELIVERIES}'
        plant = Plant(tmp_path, queue, sweep=2 * LEASE)
        watch = Watch(plant, server)
        try:
            for _ in range(WORKERS):
                plant.start_worker()
            plant.spared = plant.workers[0]
            plant.start_orchestrator()
            await plant.ready(WORKERS)
            over = time.monotonic() + HOURS * 3600
            for number, seed in enumerate(itertools.count(FIRST_SEED)):
                if number >= ROUNDS and time.monotonic() >= over:
                    break
                await _one_round(plant, server, watch, seed)
            assert not list(watch.growth())
        finally:
            await plant.close()


async def _one_round(plant: Plant, server: RedisServer, watch: Watch, seed: int) -> None:
    storm = Storm(
        plant, seed, ROUND, lease=LEASE, deliveries=DELIVERIES, server=server, label=f"{seed}-", spare_orchestrator=True
    )
    orchestrator, spared = plant.orchestrator, plant.spared
    await rage(storm, watch)
    # Whoever was to live does.
    assert plant.orchestrator is orchestrator and orchestrator is not None and orchestrator.poll() is None, plant.said("orch")[
        -4_000:
    ]
    assert plant.spared is spared and spared is not None and spared.poll() is None, plant.said("worker-1.")[-4_000:]
    # What the round left must go: a history that grows is no leak.
    purged = await plant.ask(lambda orchestrator: orchestrator.purge(RunFilter(limit=100_000, status=tuple(ENDED))))
    assert purged == len(storm.tours)
    os.truncate(plant.log, 0)
    say(f"  the state has {plant.state.stat().st_size >> 20} MiB")
