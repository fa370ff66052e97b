"""What a workflow must not do parks its run with a sentence; everyone else never notices."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import random
import socket
import subprocess
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from time import time as time_by_name
from typing import Any

import pytest

from tests.unit.embedded_system import system
from ziggurat.orchestrator.embedded import guard
from ziggurat.program.definitions import task, workflow
from ziggurat.program.primitives import now
from ziggurat.program.primitives import random as chance


def _thread() -> None:
    threading.Thread(target=int).start()


async def _executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, int)


async def _connection() -> None:
    await asyncio.open_connection("127.0.0.1", 9)


async def _process() -> None:
    await asyncio.create_subprocess_exec("true")


@task(name="guard.free")
async def free() -> list[str]:
    """A task may do all of it."""
    moments = [time.time(), random.random(), datetime.datetime.now(datetime.UTC)]
    with open(__file__) as file:  # noqa: ASYNC230
        file.readline()
    await asyncio.to_thread(time.sleep, 0.001)
    return [type(m).__name__ for m in moments] + [str(uuid.uuid4().version)]


@task(name="guard.free_in_thread")
def free_in_thread() -> bool:
    time.sleep(0.001)
    return time.time() > 0 and random.random() < 1


FORBIDDEN: list[tuple[str, Callable[[], Any], str, str]] = [
    ("time", lambda: time.time(), "called time.time()", "ziggurat.now()"),
    ("time_ns", lambda: time.time_ns(), "called time.time_ns()", "ziggurat.now()"),
    ("random", lambda: random.random(), "called random.random()", "ziggurat.random"),
    ("randint", lambda: random.randint(1, 2), "called random.randint()", "ziggurat.random"),
    ("shuffle", lambda: random.shuffle([1, 2]), "called random.shuffle()", "ziggurat.random"),
    ("expovariate", lambda: random.expovariate(1.0), "called random.expovariate()", "ziggurat.random"),
    ("uuid4", lambda: uuid.uuid4(), "called uuid.uuid4()", "ziggurat.uuid4()"),
    ("urandom", lambda: os.urandom(4), "called os.urandom()", "ziggurat.random"),
    ("open", lambda: open(__file__), "opened a file", "a task"),  # noqa: SIM115
    ("listdir", lambda: os.listdir("/"), "listed a folder", "a task"),
    ("socket", lambda: socket.socket(), "opened a socket", "a task"),
    ("sleep", lambda: time.sleep(0), "called time.sleep()", "asyncio.sleep"),
    ("thread", _thread, "called Thread.start()", "a task"),
    ("process", lambda: subprocess.run(["true"], check=False), "", "a task"),
    ("to_thread", lambda: asyncio.to_thread(int), "A thread", "my_task"),
    ("executor", _executor, "A thread", "my_task"),
    ("connection", _connection, "A ", "my_task"),
    ("subprocess", _process, "A subprocess", "my_task"),
]


@workflow(name="guard.does")
async def does(index: int) -> str:
    result = FORBIDDEN[index][1]()
    if asyncio.iscoroutine(result):
        await result
    return "went on"


@pytest.mark.parametrize("index", range(len(FORBIDDEN)), ids=[name for name, *_ in FORBIDDEN])
async def test_what_a_replay_cannot_repeat_parks_the_run(index: int, tmp_path: Path) -> None:
    async with system(tmp_path / "state.db") as s:
        run = await s.run(does, index)
    _, _, did, way = FORBIDDEN[index]
    assert run.status == "parked"
    assert did in run.reason
    assert way in run.reason
    if did[:1].islower():
        assert f"at {Path(__file__).name}:" in run.reason


async def test_swallowing_the_refusal_does_not_help(tmp_path: Path) -> None:
    @workflow(name="guard.swallows")
    async def swallows() -> str:
        try:
            time.time()
        except BaseException:
            return "swallowed"
        return "went on"

    async with system(tmp_path / "state.db") as s:
        assert (await s.run(swallows)).status == "parked"


async def test_the_clock_of_datetime_is_found_in_the_code(tmp_path: Path) -> None:
    @workflow(name="guard.datetime")
    async def asks() -> str:
        def inside() -> str:
            return datetime.datetime.now(datetime.UTC).isoformat()

        return inside()

    @workflow(name="guard.by_name")
    async def asks_by_name() -> float:
        return time_by_name()

    async with system(tmp_path / "state.db") as s:
        run = await s.run(asks)
        assert run.status == "parked"
        assert f"datetime.now() at {Path(__file__).name}:" in run.reason
        assert "ziggurat.now()" in run.reason
        run = await s.run(asks_by_name)
        assert run.status == "parked"
        assert f"time.time() at {Path(__file__).name}:" in run.reason


async def test_logging_imports_and_tracebacks_are_let_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    @workflow(name="guard.fine")
    async def fine(folder: str) -> list[str]:
        logging.getLogger("app").warning("from a workflow at %s", now())
        try:
            raise ValueError("told")
        except ValueError:
            text = traceback.format_exc()
        import colorsys  # any module that nothing else has loaded

        log = logging.getLogger("app.file")
        log.addHandler(logging.StreamHandler())
        log.error("with a traceback", exc_info=ValueError("x"))
        assert 0 <= chance() < 1
        assert time.monotonic() > 0
        return [text.splitlines()[-1], colorsys.__name__]

    async with system(tmp_path / "state.db") as s:
        assert await s.result(fine, str(tmp_path)) == ["ValueError: told", "colorsys"]
    assert "from a workflow" in caplog.text


async def test_tasks_and_other_threads_are_never_affected(tmp_path: Path) -> None:
    @workflow(name="guard.calls_tasks")
    async def calls() -> list[Any]:
        return [await free(), await free_in_thread()]

    problems: list[BaseException] = []
    stop = threading.Event()

    def beside() -> None:
        try:
            while not stop.is_set():
                time.time()
                random.random()
                uuid.uuid4()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=beside)
    async with system(tmp_path / "state.db") as s:
        thread.start()
        for _ in range(20):
            assert await s.result(calls) == [["float", "float", "datetime", "4"], True]
        time.time()  # The code around the engine is free, too.
        stop.set()
        thread.join()
    assert not problems


async def test_after_the_last_engine_closes_everything_is_as_before(tmp_path: Path) -> None:
    before = [getattr(module, name) for module, name, _ in guard._PATCHED] + [asyncio.as_completed]
    async with system(tmp_path / "one.db"):
        async with system(tmp_path / "two.db"):
            assert time.time is not before[0]
        assert time.time is not before[0]
    assert [getattr(module, name) for module, name, _ in guard._PATCHED] + [asyncio.as_completed] == before
