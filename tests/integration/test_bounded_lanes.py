"""A lane that is full slows the orchestrator down, and nothing else: every run finishes, and other lanes never wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.redis_servers import FLAVOURS, REDIS_8, find_binary, running
from tests.conftest import missing_service
from ziggurat import Client, task, workflow
from ziggurat.assembly import build_queue
from ziggurat.clock import SystemClock
from ziggurat.settings import load_settings

CAPACITY = 4


@task
async def bounded_double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


@task(queue="elsewhere")
async def bounded_elsewhere(n: int) -> int:
    return n


@task(queue="unserved")
async def bounded_unserved() -> None: ...


@workflow
async def bounded_sum(numbers: int) -> int:
    return sum(await asyncio.gather(*(bounded_double(n) for n in range(numbers))))


@workflow
async def bounded_stuck(tasks: int) -> None:
    await asyncio.gather(*(bounded_unserved() for _ in range(tasks)))


@workflow
async def bounded_other(n: int) -> int:
    return await bounded_elsewhere(n)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def settings_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Settings with lanes that hold a handful of messages, over each queue."""
    path = tmp_path / "ziggurat.toml"
    pools = '[workers.default]\nqueues = ["default", "elsewhere"]\nconcurrency = 2\n'
    text = f'[queue]\nbackend = "{request.param}"\ncapacity = {CAPACITY}\n'
    if request.param != "redis":
        path.write_text(text + pools)
        yield path
        return
    flavour = next((flavour for flavour in FLAVOURS if find_binary(flavour)), REDIS_8)
    with running(flavour, missing_service) as server:
        path.write_text(f'{text}url = "{server.url}"\n{pools}')
        yield path


async def test_many_more_tasks_than_a_lane_holds_all_finish(settings_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Client(load_settings(settings_file, {})) as client:
        handles = [await client.start(bounded_sum, 60) for _ in range(5)]
        results = await asyncio.gather(*(handle.result(120.0) for handle in handles))
        assert results == [sum(2 * n for n in range(60))] * 5
        for handle in handles:
            assert {step.attempt for step in await handle.steps()} == {1}
        assert (await client.queues())["default"].ready == 0
    refused = [record for record in caplog.records if "does not take messages" in record.getMessage()]
    assert len(refused) <= 1, "a lane that is full is said once, not at every try"


async def test_a_full_lane_holds_up_no_other(settings_file: Path) -> None:
    async with Client(load_settings(settings_file, {})) as client:
        stuck = await client.start(bounded_stuck, 50)
        async with asyncio.timeout(120):
            while (depth := (await client.queues()).get("unserved")) is None or depth.ready < CAPACITY:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        handles = [await client.start(bounded_other, n) for n in range(20)]
        assert await asyncio.gather(*(handle.result(120.0) for handle in handles)) == list(range(20))
        assert (await client.queues())["unserved"].ready == CAPACITY, "and no more than it holds is on it"
        await stuck.cancel()
        assert (await stuck.wait(120.0)).status == "cancelled"


async def test_other_senders_meet_the_same_bound(settings_file: Path) -> None:
    settings = load_settings(settings_file, {})
    if settings.queue.backend == "memory":
        pytest.skip("a queue in memory has one sender")
    async with Client(settings) as client:
        await client.start(bounded_stuck, 50)
        queue = build_queue(settings, SystemClock())
        await queue.open()
        try:
            async with asyncio.timeout(120):
                while (depth := (await queue.depth()).get("unserved")) is None or depth.ready < CAPACITY:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            # Someone takes a message and settles it: the room is used by what waited.
            (delivery,) = await queue.receive(["unserved"], 1, worker="stranger", wait=60.0)
            await queue.release([delivery])
            assert (await queue.depth())["unserved"].ready == CAPACITY
        finally:
            await queue.close()
