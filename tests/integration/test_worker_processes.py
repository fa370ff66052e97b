"""Worker processes: what signals do, what the health server says, and pools that grow and shrink over a shared queue."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec import Raw

from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Outcome
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.worker_harness import order
from ziggurat.workers.autoscale import Policy
from ziggurat.workers.pools.processes import ProcessPool
from ziggurat.workers.process import RECYCLE
from ziggurat.workers.scaler import Scaler

SCRIPT = Path(__file__).with_name("worker_process.py")
LIMIT = 120.0


def command(folder: Path, *flags: str, **options: Any) -> list[str]:
    return [sys.executable, str(SCRIPT), str(folder / "queue.db"), "--options", json.dumps(options), *flags]


@asynccontextmanager
async def shared_queue(folder: Path) -> AsyncIterator[SqliteQueue]:
    queue = SqliteQueue(folder / "queue.db", QueueOptions(lease=2.0))
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


@asynccontextmanager
async def process(folder: Path, *flags: str, **options: Any) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """Start a worker process, and yield it with what it says once it is up."""
    started = await asyncio.create_subprocess_exec(*command(folder, *flags, **options), stdout=asyncio.subprocess.PIPE)
    try:
        assert started.stdout is not None
        yield started, json.loads(await asyncio.wait_for(started.stdout.readline(), LIMIT))
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_true(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(LIMIT):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def open_gates(paths: list[Path]) -> None:
    for path in paths:
        Path(f"{path}.out").touch()


async def outcomes(queue: SqliteQueue, number: int) -> list[Outcome]:
    found: list[Outcome] = []
    async with asyncio.timeout(LIMIT):
        while len(found) < number:
            new = await queue.outcomes(number, 1.0)
            await queue.ack_outcomes(new)
            found += new
    return found


async def test_sigterm_finishes_what_runs_and_hands_back_the_rest(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue, process(tmp_path, concurrency=2, threads=1) as (worker, _):
        await queue.send([order("hold_file", path=str(tmp_path / "a"))])
        await until((tmp_path / "a.in").exists)
        await queue.send([order("hold_file", path=str(tmp_path / "b"))])
        await until_true(lambda: _leased(queue, 2))
        worker.send_signal(signal.SIGTERM)
        await until_true(lambda: _leased(queue, 1))
        assert (await queue.depth())["default"].ready == 1
        (tmp_path / "a.out").touch()
        assert await asyncio.wait_for(worker.wait(), LIMIT) == 0
        (outcome,) = await outcomes(queue, 1)
        assert outcome.status == "completed"
        assert not (tmp_path / "b.in").exists()


async def test_a_second_sigterm_hands_everything_back_at_once(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue, process(tmp_path, grace=600.0) as (worker, _):
        sent = order("hold_file", path=str(tmp_path / "a"))
        await queue.send([sent])
        await until((tmp_path / "a.in").exists)
        worker.send_signal(signal.SIGTERM)
        await until_true(lambda: _draining(queue))  # Two signals that wait at the same time are one.
        assert worker.returncode is None
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), LIMIT) == 0
        (back,) = await queue.receive(["default"], 1, worker="other", wait=0.0)
        assert back.message.id == sent.id


LATE = """
import asyncio, os, signal
from ziggurat.workers.process import serve

async def drain(grace):
    pass

async def main():
    code = await serve(lambda: [], drain, started=lambda server: os.kill(os.getpid(), signal.SIGTERM))
    os.kill(os.getpid(), signal.SIGTERM)
    return code

code = asyncio.run(main())
os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit(code)
"""


async def test_a_sigterm_that_comes_when_all_is_handed_back_makes_no_death_of_an_exit() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LATE)
    async with asyncio.timeout(LIMIT):
        assert await process.wait() == 0


async def test_a_retired_process_takes_nothing_more_and_finishes_without_a_limit(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue, process(tmp_path, grace=0.0) as (worker, _):
        await queue.send([order("hold_file", path=str(tmp_path / "a"))])
        await until((tmp_path / "a.in").exists)
        worker.send_signal(signal.SIGUSR1)
        await until_true(lambda: _draining(queue))
        await queue.send([order("add", a=1, b=2)])
        (tmp_path / "a.out").touch()
        assert await asyncio.wait_for(worker.wait(), LIMIT) == 0
        (outcome,) = await outcomes(queue, 1)
        assert outcome.task == "suite.hold_file"
        assert (await queue.depth())["default"].ready == 1


async def test_a_killed_workers_message_returns_and_runs_elsewhere(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue:
        sent = order("hold_file", path=str(tmp_path / "a"))
        async with process(tmp_path) as (worker, _):
            await queue.send([sent])
            await until((tmp_path / "a.in").exists)
            worker.kill()
            await worker.wait()
        (tmp_path / "a.out").touch()
        async with process(tmp_path) as (second, _):
            (outcome,) = await outcomes(queue, 1)
            assert (outcome.status, outcome.result) == ("completed", Raw(str(second.pid).encode()))


async def test_over_its_memory_ceiling_a_process_asks_to_be_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shared_queue(tmp_path), process(tmp_path, memory_ceiling=1) as (worker, _):
        assert await asyncio.wait_for(worker.wait(), LIMIT) == RECYCLE


async def test_an_exit_in_an_asyncio_task_of_a_task_fails_that_task_only(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue, process(tmp_path) as (worker, _):
        await queue.send([order("stray_exit")])
        (outcome,) = await outcomes(queue, 1)
        assert outcome.error is not None
        assert "called sys.exit(4)" in outcome.error.message
        await queue.send([order("add", a=1, b=2)])
        assert [outcome.result for outcome in await outcomes(queue, 1)] == [Raw(b"3")]
        worker.terminate()
        assert await asyncio.wait_for(worker.wait(), LIMIT) == 0


async def test_the_health_server_tells_the_living_from_the_draining(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue, process(tmp_path, "--health", name="w-9") as (worker, said):
        base = f"http://127.0.0.1:{said['health']}"
        async with aiohttp.ClientSession() as session:

            async def get(path: str) -> tuple[int, str]:
                async with session.get(base + path) as answer:
                    return answer.status, await answer.text()

            assert (await get("/healthz"))[0] == 200
            assert (await get("/readyz"))[0] == 200
            await queue.send([order("add", a=1, b=2), order("fail", kind="value")])
            await outcomes(queue, 2)
            # An outcome is on the queue a moment before the worker counts it.
            for counted in ('task="suite.fail",status="failed"} 1', 'task="suite.add",status="completed"} 1'):
                await until_true(lambda counted=counted: _shows(get("/metrics"), counted))  # type: ignore[misc]
            metrics = (await get("/metrics"))[1]
            assert 'ziggurat_worker_attempts_ended_total{task="suite.add",status="completed"} 1' in metrics
            assert 'ziggurat_worker_attempts_ended_total{task="suite.fail",status="failed"} 1' in metrics
            assert 'ziggurat_worker_slots{pool="default"} 64' in metrics
            await queue.send([order("hold_file", path=str(tmp_path / "a"))])
            await until((tmp_path / "a.in").exists)
            worker.terminate()
            await until_true(lambda: _is(get("/readyz"), 503))
            status, text = await get("/readyz")
            assert status == 503
            assert "draining" in text
            assert (await get("/healthz"))[0] == 200
            (tmp_path / "a.out").touch()
        assert await asyncio.wait_for(worker.wait(), LIMIT) == 0


async def _shows(answer: Awaitable[tuple[int, str]], text: str) -> bool:
    return text in (await answer)[1]


async def _is(answer: Awaitable[tuple[int, str]], status: int) -> bool:
    return (await answer)[0] == status


async def _draining(queue: SqliteQueue) -> bool:
    return any(worker.draining for worker in await queue.workers())


async def _leased(queue: SqliteQueue, number: int) -> bool:
    return (await queue.depth())["default"].leased == number


async def test_a_pool_grows_with_a_burst_spares_the_busy_and_goes_back_to_none(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue:
        pool = ProcessPool("burst", command(tmp_path, concurrency=2))
        scaler = Scaler(pool, queue, Policy(max=3, slots=2, target_wait=0.5, idle_window=1.0))
        running = asyncio.create_task(scaler.run())
        try:
            await until(lambda: scaler.decision is not None)
            assert scaler.seen.size == 0
            paths = [tmp_path / f"task-{n}" for n in range(6)]
            await queue.send([order("hold_file", path=str(path)) for path in paths])
            await until(lambda: all(Path(f"{path}.in").exists() for path in paths))
            await until(lambda: [worker.state for worker in scaler.seen.workers] == ["ready"] * 3)
            open_gates(paths[:5])
            await outcomes(queue, 5)
            # The idle ones go, the busy one stays however long it takes.
            await until(lambda: scaler.seen.size == 1 and len(scaler.seen.workers) == 1)
            assert scaler.seen.busy == 1
            open_gates(paths[5:])
            await outcomes(queue, 1)
            await until(lambda: not scaler.seen.workers)
            assert scaler.seen.ended == 6
            assert scaler.seen.seconds > 0
        finally:
            running.cancel()
            await pool.close(1.0)


async def test_a_crashed_worker_of_a_pool_is_started_anew_after_a_pause(tmp_path: Path) -> None:
    async with shared_queue(tmp_path) as queue:
        clock = FakeClock()
        pool = ProcessPool("crashing", command(tmp_path), clock=clock)
        try:
            await pool.scale(1)
            await queue.send([order("hold_file", path=str(tmp_path / "a"))])
            await until((tmp_path / "a.in").exists)
            (tmp_path / "a.out").touch()
            (outcome,) = await outcomes(queue, 1)
            os.kill(int(bytes(outcome.result or b"")), signal.SIGKILL)
            await until_true(lambda: _troubled(pool))
            assert "was killed by SIGKILL. The next one is started in 0.5 s." in (await pool.look()).trouble
            await pool.scale(1)
            assert (await pool.look()).size == 0, "a crash is followed by a pause"
            clock.advance(0.5)
            await pool.scale(1)
            assert (await pool.look()).size == 1
            await until_true(lambda: _ready(pool))
            assert (await pool.look()).trouble == ""
        finally:
            await pool.close(1.0)
        assert (await pool.look()).workers == ()


async def _troubled(pool: ProcessPool) -> bool:
    return bool((await pool.look()).trouble)


async def _ready(pool: ProcessPool) -> bool:
    return any(worker.state == "ready" for worker in (await pool.look()).workers)


async def test_a_command_that_cannot_be_started_is_a_trouble_and_no_crash() -> None:
    pool = ProcessPool("missing", ["/no/such/program"])
    await pool.scale(2)
    assert "cannot be started" in (await pool.look()).trouble
    await pool.close(0.0)


async def test_worker_processes_end_when_their_pool_is_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    started = await asyncio.create_subprocess_exec(*command(tmp_path, "--status-fd", str(writing)), pass_fds=(writing,))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        line = await asyncio.to_thread(pipe.readline)
    assert json.loads(line)["slots"] == 64
    # The reading end is closed now, as when the pool's process was killed.
    assert await asyncio.wait_for(started.wait(), LIMIT) == 0
