"""Temporal with Redis, and with its own task queues, while everything is killed: workers, the process that drives runs and relays,
Redis' memory, the Temporal server. All runs finish, and with the right results.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.conformance.redis_servers import REDIS_8, RedisServer, running
from tests.conformance.temporal_servers import TemporalServer, needed, temporal_server
from tests.conftest import missing_service
from ziggurat.assembly import System
from ziggurat.records import StartRequest
from ziggurat.settings import load_settings

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

RUNS, PATIENCE = 10, 180.0
PROGRAM = """
import asyncio, os
from ziggurat import Retry, signal, task, workflow

@task(timeout="20s", retry=Retry(5, initial="100ms"))
async def add(run: str, step: int, value: int) -> int:
    await asyncio.sleep(0.25)
    with open(os.environ["SIDE_LOG"], "a") as log:
        log.write(f"{run} {step}\\n")
    return value + step

@task(timeout="20s")
def plain(run: str, value: int) -> int:
    return value * 2

@workflow
async def inner(run: str, value: int) -> int:
    return await add(run, 100, value)

@workflow
async def flow(run: str) -> int:
    value = 0
    for step in range(1, 5):
        value = await add(run, step, value)
        await asyncio.sleep(0.2)
    left, right = await asyncio.gather(add(run, 10, value), inner(run, value))
    return await plain(run, left + right)
"""
EXPECTED = 2 * (20 + 110)


@pytest.fixture(name="temporal")
def _temporal(tmp_path: Path) -> Iterator[TemporalServer]:
    needed()
    with temporal_server(tmp_path) as server:
        yield server


class Site:
    """Processes of a system over one settings file."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        (folder / "chaotic.py").write_text(PROGRAM)
        self.settings = folder / "ziggurat.toml"
        self.settings.write_text('[app]\nmodules = ["chaotic"]\n' + settings)
        self.log = folder / "side.log"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._changing = threading.Lock()

    def begin(self, name: str) -> None:
        """Start a worker, or the process that drives runs."""
        arguments = ["worker", "--config", str(self.settings)] + (["--orchestrator"] if name == "driver" else [])
        environ = {**os.environ, "SIDE_LOG": str(self.log), "PYTHONPATH": str(self.folder)}
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "ziggurat", *arguments], stdout=output, stderr=output, cwd=self.folder, env=environ
            )

    def kill(self, name: str) -> None:
        """End a process as a crash does, and start another in its place."""
        with self._changing:
            self.processes[name].send_signal(signal.SIGKILL)
            self.processes[name].wait()
            self.begin(name)

    async def supervise(self) -> None:
        """Start what has ended by itself again, as a supervisor does: a process that begins while the server is away ends with exit 3."""
        while True:
            await asyncio.sleep(0.5)
            await asyncio.to_thread(self._revive)

    def _revive(self) -> None:
        with self._changing:
            for name, process in list(self.processes.items()):
                if process.poll() is not None:
                    assert process.returncode == 3, f"{name} ended with {process.returncode}"
                    self.begin(name)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


async def _all_finish(site: Site, faults: list[Callable[[], None]]) -> None:
    for name in ("driver", "one", "two"):
        site.begin(name)
    supervising = asyncio.create_task(site.supervise())
    try:
        async with System(load_settings(site.settings), drive=False) as system:
            orchestrator = system.orchestrator
            assert orchestrator is not None
            for number in range(RUNS):
                payload = msgspec.Raw(msgspec.json.encode({"run": f"r{number}"}))
                await orchestrator.start(StartRequest(workflow="flow", payload=payload, id=f"r{number}", entry="chaotic:flow"))
            async with asyncio.timeout(PATIENCE):
                while not site.log.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            for fault in faults:
                await asyncio.sleep(1.5)
                await asyncio.to_thread(fault)
            ended = [await orchestrator.wait(f"r{number}", PATIENCE) for number in range(RUNS)]
            assert [(run.status, run.result and bytes(run.result)) for run in ended] == [
                ("completed", str(EXPECTED).encode())
            ] * RUNS, [run.error or run.reason for run in ended]
            for run in ended:
                steps = [e.step for e in await orchestrator.history(run.id, limit=-1) if e.kind == "step_completed"]
                assert len(steps) == len(set(steps)) == 7
            assert not supervising.done()
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        site.close()
    done = Counter(site.log.read_text().split("\n")[:-1])
    assert len(done) == RUNS * 6


@pytest.mark.slow
async def test_all_runs_finish_whatever_is_killed_with_temporals_own_task_queues(
    temporal: TemporalServer, tmp_path: Path
) -> None:
    site = Site(tmp_path, f'[orchestrator]\nbackend = "temporal"\nurl = "{temporal.address}"\n[queue]\nlease = "4s"\n')

    def restart_the_server() -> None:
        temporal.stop()
        temporal.start()

    await _all_finish(
        site,
        [
            lambda: site.kill("one"),
            lambda: site.kill("driver"),
            restart_the_server,
            lambda: site.kill("two"),
            lambda: site.kill("driver"),
        ],
    )


async def test_all_runs_finish_whatever_is_killed_with_redis(temporal: TemporalServer, tmp_path: Path) -> None:
    with running(REDIS_8, missing_service) as redis:
        await _with_redis(temporal, redis, tmp_path)


async def _with_redis(temporal: TemporalServer, redis: RedisServer, folder: Path) -> None:
    queue = f'[queue]\nbackend = "redis"\nurl = "{redis.url}"\nlease = "4s"\n'
    site = Site(folder, f'[orchestrator]\nbackend = "temporal"\nurl = "{temporal.address}"\n{queue}')

    def lose_everything() -> None:
        redis.command("FLUSHALL")

    def restart_the_server() -> None:
        temporal.stop()
        temporal.start()

    await _all_finish(
        site, [lambda: site.kill("one"), lose_everything, lambda: site.kill("driver"), restart_the_server, lose_everything]
    )
