"""What is left of runs on Temporal that were purged or are past their retention: nothing, and of the others everything."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from tests.conformance.temporal_servers import TemporalServer, needed, temporal_server
from ziggurat.artifacts import Artifact, artifact_keys
from ziggurat.artifacts.backends.folder import FolderStore
from ziggurat.assembly import System
from ziggurat.errors import UnknownName
from ziggurat.program.definitions import task, workflow
from ziggurat.program.primitives import signal, state
from ziggurat.records import Run, RunFilter, StartRequest
from ziggurat.settings import load_settings

PATIENCE = 120.0
LONG = "long " * 100
_numbers = itertools.count(1)


@task(name="tcl.keep")
async def keep(text: str) -> Artifact:
    """Save an artifact of the run's own."""
    return await Artifact.save(text, name="kept.txt")


@workflow(name="tcl.inner")
async def inner(text: str) -> str:
    """Return something so large that it is stored."""
    return text * 2


@workflow(name="tcl.flow")
async def flow(text: str, wait: bool = False, given: Artifact | None = None) -> list[Any]:
    """Store through every door: input, child run, a task's artifact, state, signal, result."""
    kept = await keep(text)
    state(kept=kept)
    doubled = await inner(text)
    more = await signal("more", str) if wait else ""
    return [doubled, kept, more]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    needed()
    with temporal_server(tmp_path_factory.mktemp("temporal")) as running:
        yield running


class Place:
    """A system on Temporal with an artifact store of its own, where nothing is too young to be swept."""

    def __init__(self, server: TemporalServer, folder: Path, more: str = "") -> None:
        self.store = FolderStore(folder / "artifacts")
        self.file = folder / "ziggurat.toml"
        self.file.write_text(
            f'[orchestrator]\nbackend = "temporal"\nurl = "{server.address}"\n{more}\n'
            f'[orchestrator.temporal]\ntask_queue = "cl{next(_numbers)}"\n'
            '[artifacts]\nurl = "artifacts"\ninline_limit = 200\ngrace = "0s"\n'
        )

    @asynccontextmanager
    async def open(self, *, stay: bool = False) -> AsyncIterator[Any]:
        async with System(load_settings(self.file, {}), stay=stay) as system:
            yield system.orchestrator

    def stored(self) -> set[str]:
        return {found.key for found in self.store.list()}

    def text(self) -> str:
        """Return a text that is stored under a key which no other run shares."""
        return f"{next(_numbers)} {LONG}"


async def start(orchestrator: Any, *args: Any, id: str) -> None:
    payload = Raw(flow.arguments.encode(args, {}))
    await orchestrator.start(StartRequest(workflow=flow.name, payload=payload, id=id))


async def listed(orchestrator: Any, *ids: str) -> None:
    """Wait until visibility shows how these runs stand."""

    async def shows() -> bool:
        known = {run.id: run.status for run in await orchestrator.list(RunFilter(limit=-1))}
        if not set(ids) <= known.keys():
            return False
        return [known.get(id) for id in ids] == [(await orchestrator.get(id)).status for id in ids]

    async with asyncio.timeout(PATIENCE):
        while not await shows():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def gone(orchestrator: Any, *ids: str) -> None:
    """Wait until the server has deleted these runs, and visibility, by which a sweep goes, has heard of it."""
    async with asyncio.timeout(PATIENCE):
        for id in ids:
            while True:
                try:
                    await orchestrator.get(id)
                except UnknownName:
                    break
                await asyncio.sleep(0.1)
        while set(ids) & {run.id for run in await orchestrator.list(RunFilter(limit=-1))}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def sweep(orchestrator: Any) -> int:
    """Sweep until a sweep deletes nothing; returns how many objects were deleted."""
    await asyncio.sleep(0.01)  # What was written at this very moment is not older than the grace of nothing.
    return sum([await orchestrator.cleaner.sweep() for _ in range(3)])


async def test_what_no_run_refers_to_goes_and_everything_else_stays(server: TemporalServer, tmp_path: Path) -> None:
    place = Place(server, tmp_path)
    async with place.open() as orchestrator:
        uploaded = await Artifact.save(place.text())
        orphan = await Artifact.save(place.text())
        done, waits = f"done{next(_numbers)}", f"waits{next(_numbers)}"
        await start(orchestrator, place.text(), False, uploaded, id=done)
        await start(orchestrator, place.text(), True, uploaded, id=waits)
        assert (await orchestrator.wait(done, PATIENCE)).status == "completed"
        async with asyncio.timeout(PATIENCE):
            while "a signal" not in (await orchestrator.get(waits)).reason:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await listed(orchestrator, done, f"{done}/2", waits, f"{waits}/2")
        assert await orchestrator.cleaner.sweep() == 0, "one sweep alone deletes nothing"
        before = place.stored()
        assert await sweep(orchestrator) == 1
        assert before - place.stored() == {orphan.key}

        assert await orchestrator.purge(RunFilter(ids=(done, f"{done}/2"))) == 2
        await gone(orchestrator, done, f"{done}/2")
        assert await sweep(orchestrator) > 0
        assert uploaded.key in place.stored(), "another run refers to it"
        await orchestrator.signal(waits, "more", Raw(msgspec.json.encode(place.text())))
        found: Run = await orchestrator.wait(waits, PATIENCE)
        assert found.status == "completed", (found.reason, found.error)
        for key in artifact_keys(bytes(found.result or b"")):
            assert key in place.stored()

        await listed(orchestrator, waits, f"{waits}/2")
        assert await orchestrator.purge(RunFilter()) == 2
        await gone(orchestrator, waits, f"{waits}/2")
        await sweep(orchestrator)
        assert place.stored() == set()


async def test_runs_past_their_retention_are_purged(server: TemporalServer, tmp_path: Path) -> None:
    place = Place(server, tmp_path, 'retention = "2s"')
    async with place.open(stay=True) as orchestrator:
        name = f"old{next(_numbers)}"
        await start(orchestrator, "x", True, id=f"{name}-waits")
        await start(orchestrator, "x", id=name)
        assert (await orchestrator.wait(name, PATIENCE)).status == "completed"
        await gone(orchestrator, name)
        assert (await orchestrator.get(f"{name}-waits")).ended_at is None


async def test_a_store_of_another_system_is_left_alone(
    server: TemporalServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(server, tmp_path)
    place.store.claim("somebody else")
    async with place.open() as orchestrator:
        orphan = await Artifact.save(place.text())
        with caplog.at_level(logging.WARNING):
            assert await sweep(orchestrator) == 0
        assert place.stored() == {orphan.key}
    assert "cleaned up by another system" in caplog.text
