"""A worker on Redis whose clock is minutes off: leases are the server's, so nothing is delivered twice and nothing is given up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Raw

from tests.conformance.redis_servers import REDIS_8, RedisServer, running
from tests.conftest import missing_service
from ziggurat.assembly import System
from ziggurat.clock import SystemClock
from ziggurat.program.definitions import task, workflow
from ziggurat.records import StartRequest
from ziggurat.settings import load_settings

LEASE = 1.5
begun: list[str] = []


class Skewed(SystemClock):
    """A clock that somebody set wrong."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        return super().time() + self._seconds


@task(name="skew.long", retry=1, timeout="60s", deadline="60s")
def long(name: str) -> str:
    """Take longer than two leases, without a word."""
    begun.append(name)
    time.sleep(2.2 * LEASE)
    return name


@workflow(name="skew.flow")
async def flow(name: str) -> str:
    return await long(await long(name))


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with running(REDIS_8, missing_service) as server:
        yield server


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_a_worker_whose_clock_is_minutes_off_keeps_its_leases(server: RedisServer, tmp_path: Path, skew: float) -> None:
    settings = tmp_path / "ziggurat.toml"
    settings.write_text(
        f'[orchestrator]\npath = "state.db"\nsweep = "1s"\n[queue]\nbackend = "redis"\nurl = "{server.url}"\n'
        f'lease = "{LEASE}s"\nmax_deliveries = 2\n[workers.default]\ngrace = "5s"\n'
    )
    begun.clear()
    async with System(load_settings(settings), pools=()) as host:
        async with System(load_settings(settings), orchestrate=False, clock=Skewed(skew)):
            assert host.orchestrator is not None
            started = await host.orchestrator.start(StartRequest(workflow=flow.name, payload=Raw(b'{"name": "a"}'), id="a"))
            ended = await host.orchestrator.wait(started.id, 120.0)
            steps = await host.orchestrator.steps("a")
        assert (ended.status, bytes(ended.result or b"")) == ("completed", b'"a"'), ended.error
        assert [step.attempt for step in steps] == [1, 1]
        assert begun == ["a", "a"]
        assert await host.queue.dead_letters() == []
