"""Workers forked by a nursery: they start, print, hear signals, tell how they ended, and outlive the nursery itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ziggurat.workers.pools.nursery import UNKNOWN_END, Answer, NurseryStarter, supported
from ziggurat.workers.pools.processes import ProcessPool

if not supported():
    pytest.skip("workers are forked on Linux only", allow_module_level=True)

#: A nursery whose workers do what their first argument says.
SCRIPT = """
import os, random, signal, sys, time
from ziggurat.workers.pools.nursery import tend

def work(arguments, status):
    what = arguments[0]
    os.write(status, b'{"slots":1}\\n')
    if what == "exit":
        return int(arguments[1])
    if what == "sysexit":
        sys.exit(9)
    if what == "raise":
        raise ValueError("no good")
    if what == "print":
        print("on stdout", os.getsid(0) == os.getpid())
        print("on stderr", file=sys.stderr)
        return 0
    if what == "chance":
        os.write(status, b"%r" % random.random() + b"\\n")
        return 0
    os.write(status, b"%d %d\\n" % (os.getpid(), os.getppid()))
    time.sleep(600)

tend(int(sys.argv[1]), work)
"""
LIMIT = 60.0


@asynccontextmanager
async def nursery() -> AsyncIterator[NurseryStarter]:
    starter = NurseryStarter([sys.executable, "-c", SCRIPT], os.environ)
    try:
        yield starter
    finally:
        await starter.close()


async def start(starter: NurseryStarter, *arguments: str, output: Any = None) -> tuple[Any, Any]:
    """Start a worker, and return it with what it writes to its status pipe."""
    reading, writing = os.pipe()
    try:
        started = await starter.start(arguments, writing, output)
    finally:
        os.close(writing)
    return started, os.fdopen(reading, "rb")


async def line_of(status: Any) -> bytes:
    line: bytes = await asyncio.wait_for(asyncio.to_thread(status.readline), LIMIT)
    return line


@pytest.mark.parametrize(("arguments", "code"), [(("exit", "0"), 0), (("exit", "75"), 75), (("sysexit",), 9), (("raise",), 1)])
async def test_a_worker_says_how_it_ended(arguments: tuple[str, ...], code: int) -> None:
    async with nursery() as starter:
        started, status = await start(starter, *arguments)
        with status:
            assert await line_of(status) == b'{"slots":1}\n'
            assert await asyncio.wait_for(started.wait(), LIMIT) == code
            assert status.read() == b"", "nobody else holds the pipe"
        started.send_signal(signal.SIGTERM)  # To one that has ended: nothing.


async def test_a_worker_that_has_ended_before_its_start_is_heard_of_is_held_all_the_same() -> None:
    starter = NurseryStarter([sys.executable], os.environ)
    started = starter._asked[1] = asyncio.get_running_loop().create_future()
    # Both answers come in one go, as they do on a busy machine.
    starter._hear(Answer(pid=os.getpid(), id=1))
    starter._hear(Answer(pid=os.getpid(), code=75))
    assert await (await started).wait() == 75


async def test_a_signal_ends_a_worker_and_no_other() -> None:
    async with nursery() as starter:
        one, first = await start(starter, "sleep")
        other, second = await start(starter, "sleep")
        with first, second:
            await line_of(first), await line_of(second)
            one.send_signal(signal.SIGKILL)
            assert await asyncio.wait_for(one.wait(), LIMIT) == -signal.SIGKILL
            os.kill(other.pid, 0)
            other.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(other.wait(), LIMIT) == -signal.SIGTERM


async def test_a_worker_prints_where_it_is_told_to_in_a_session_of_its_own(tmp_path: Path) -> None:
    async with nursery() as starter:
        with (tmp_path / "out.log").open("ab") as file:
            started, status = await start(starter, "print", output=file)
        with status:
            assert await asyncio.wait_for(started.wait(), LIMIT) == 0
    assert sorted((tmp_path / "out.log").read_text().splitlines()) == ["on stderr", "on stdout True"]


async def test_each_worker_has_a_chance_of_its_own() -> None:
    async with nursery() as starter:
        drawn = set()
        for _ in range(3):
            started, status = await start(starter, "chance")
            with status:
                await line_of(status)
                drawn.add(await line_of(status))
                await asyncio.wait_for(started.wait(), LIMIT)
        assert len(drawn) == 3


async def test_workers_outlive_the_nursery_and_the_next_start_makes_another() -> None:
    async with nursery() as starter:
        started, status = await start(starter, "sleep")
        with status:
            await line_of(status)
            pid, parent = map(int, (await line_of(status)).split())
            assert pid == started.pid
            os.kill(parent, signal.SIGKILL)
            next_one, its_status = await start(starter, "exit", "3")
            with its_status:
                assert await asyncio.wait_for(next_one.wait(), LIMIT) == 3
            os.kill(pid, 0)
            started.send_signal(signal.SIGKILL)
            assert await asyncio.wait_for(started.wait(), LIMIT) == UNKNOWN_END, "who could tell its code is dead"


async def test_the_nursery_ends_with_its_pool() -> None:
    starter = NurseryStarter([sys.executable, "-c", SCRIPT], os.environ)
    started, status = await start(starter, "exit", "0")
    with status:
        await started.wait()
    await asyncio.wait_for(starter.close(), LIMIT)


async def test_a_nursery_that_cannot_start_is_a_trouble_of_the_pool(tmp_path: Path) -> None:
    for command in (["/no/such/program"], [sys.executable, "-c", "import sys; sys.exit(3)"]):
        starter = NurseryStarter(command, os.environ)
        pool = ProcessPool("missing", ["x"], starter=starter)
        await pool.scale(1)
        assert "cannot be started" in (await pool.look()).trouble
        await pool.close(0.0)
        await starter.close()
