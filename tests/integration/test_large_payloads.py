"""Large payloads and files over every local queue, with two worker processes; encrypted on all but one."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import redis_servers
from tests.conftest import missing_service
from tests.integration import artifact_flows as flows
from ziggurat import Artifact, Client

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 150.0
KEY = base64.b64encode(b"k" * 32).decode()
#: Bytes of text: the result is twice as large.
SIZE = 10_000_000


class Worker:
    """A `ziggurat worker` process, begun again when it ends by itself, as any supervisor would."""

    def __init__(self, config: Path) -> None:
        self._command = [sys.executable, "-m", "ziggurat", "worker", "--config", str(config)]
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZK": KEY}
        self.starts = 0

    async def run(self) -> None:
        while True:
            self.starts += 1
            process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            try:
                await process.wait()
            except asyncio.CancelledError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise


@asynccontextmanager
async def running(folder: Path, queue: str, *, workers: int = 2, encrypted: bool = False) -> AsyncIterator[Client]:
    """Run a system over a queue; its workers are processes of their own, or one in this process for the queue in memory."""
    config = folder / "ziggurat.toml"
    encryption = '[encryption]\nuse = "k"\n[encryption.keys]\nk = "env:ZK"\n' if encrypted else ""
    config.write_text(f'[app]\nmodules = ["tests.integration.artifact_flows"]\n[queue]\n{queue}\nlease = "4s"\n{encryption}')
    local = 'backend = "memory"' in queue
    async with Client.connect(config) as client:
        if not local:
            assert client.attachment.system is not None
            # Only the processes work.
            await asyncio.gather(*(pool.stop(0.0) for pool in client.attachment.system.pools))
        processes = [asyncio.create_task(Worker(config).run()) for _ in range(0 if local else workers)]
        try:
            yield client
        finally:
            for process in processes:
                process.cancel()
            await asyncio.gather(*processes, return_exceptions=True)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def queue(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "redis":
        with redis_servers.running(redis_servers.REDIS_8, missing_service) as server:
            yield f'backend = "redis"\nurl = "{server.url}"'
    else:
        yield f'backend = "{request.param}"'


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZK", KEY)


async def test_twenty_megabytes_in_and_out(tmp_path: Path, queue: str) -> None:
    async with running(tmp_path, queue, encrypted="redis" not in queue) as client:
        handle = await client.start(flows.large, "secret " * (SIZE // 7))
        assert await handle.result(PATIENCE) == "secret " * (SIZE // 7) * 2
        assert all(len(event.result or b"") < 1000 for event in await handle.history())
        document = await Artifact.save(os.urandom(3_000_001), name="document.bin")
        whole = await (await client.start(flows.through_files, document)).result(PATIENCE)
        assert (whole.sha256, whole.name) == (document.sha256, "whole.bin")
        assert await client.purge() == 2
    left = _files(tmp_path)
    assert not [name for name in left if name.startswith("zg")]
    # Neither the history nor the queue grew by what travelled.
    assert sum(left.values()) < 1_000_000, left


def _files(folder: Path) -> dict[str, int]:
    """Return the files under a folder with their sizes."""
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


async def test_a_worker_killed_between_the_store_and_the_queue_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path, 'backend = "sqlite"', workers=1) as client:
        handle = await client.start(flows.survives, str(tmp_path / "marker"))
        assert await handle.result(PATIENCE) == 300_000
        assert (tmp_path / "marker").exists()
        system: Any = client.attachment.system
        found = {stored.key for stored in system.payloads.library.store.list()}
        # The second attempt wrote the same object; nothing was stored twice, and nothing is swept that the run refers to.
        system.orchestrator._cleaner._grace = 0.0
        assert await system.orchestrator._cleaner.sweep() == 0
        assert len(found) == 1
        assert await client.purge() == 1
        assert list(system.payloads.library.store.list()) == []
