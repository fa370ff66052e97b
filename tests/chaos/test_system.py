"""The whole system in a storm: orchestrator, queue and workers in processes of their own, killed, frozen, restarted and emptied.

The faults are drawn from a seed, which is printed. ZIGGURAT_CHAOS_SEEDS asks for more seeds of the short storm. The long ones, marked slow,
are of the full size: ZIGGURAT_CHAOS_SEED is their first seed, and ZIGGURAT_CHAOS_HOURS lets them go on with the next seeds for so long:

    ZIGGURAT_CHAOS_HOURS=8 pytest tests/chaos/test_system.py -m slow -k redis -s
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
from tests.chaos.storm import Scale, Storm
from tests.conformance.redis_servers import REDIS_8, VALKEY, count_everything, opened_queue, running
from tests.conftest import missing_service
from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import QueueOptions

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

SEEDS = range(1, 1 + int(os.environ.get("ZIGGURAT_CHAOS_SEEDS") or 1))
#: The first seed of the long storms, and the hours for which they go on; at least one is fought through.
FIRST_SEED = int(os.environ.get("ZIGGURAT_CHAOS_SEED") or 100)
HOURS = float(os.environ.get("ZIGGURAT_CHAOS_HOURS") or 0)
SHORT = Scale(tasks=150, seconds=1.0, poisons=1, faults=10, gap=1.5, limit=300.0)
FULL = Scale(tasks=2_000, seconds=3.0, poisons=4, faults=60, gap=3.0, limit=900.0)
LEASE, DELIVERIES = 1.5, 6
FULL_LEASE, FULL_DELIVERIES = 3.0, 8
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
        print(storm)
        try:
            yield storm
        finally:
            await plant.close()


async def weather_redis(folder: Path, seed: int, scale: Scale, lease: float, deliveries: int) -> None:
    async with redis_storm(folder, seed, scale, lease, deliveries) as storm:
        await storm.rage()
        print(await storm.check())
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
            print(f"{found} keys and members are left")


async def weather_sqlite(folder: Path, seed: int, scale: Scale, lease: float, deliveries: int) -> None:
    plant = Plant(
        folder, f'backend = "sqlite"\npath = "queue.db"\nlease = "{lease}s"\nmax_deliveries = {deliveries}', sweep=2 * lease
    )
    storm = Storm(plant, seed, scale, lease=lease, deliveries=deliveries)
    print(storm)
    try:
        await storm.rage()
        print(await storm.check())
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
