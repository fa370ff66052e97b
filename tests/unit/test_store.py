"""The state file: who owns it, what is wrong with it in one sentence, and that nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Raw

from tests.unit.embedded_system import system
from ziggurat.errors import LayerUnreachable, StateLocked, StateUnusable
from ziggurat.orchestrator.embedded import store
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.orchestrator.embedded.lock import StateLock, read_owner
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import Run, RunFilter, StartRequest
from ziggurat.testing import orchestrator_programs as p

HOLDER = """
    import sys, time
    from pathlib import Path
    from ziggurat.orchestrator.embedded.lock import StateLock
    StateLock(Path(sys.argv[1])).acquire(1.0)
    print("held", flush=True)
    sys.stdin.read()
"""


def _engine(state: Path) -> EmbeddedOrchestrator:
    return EmbeddedOrchestrator(state, MemoryQueue(), Registry())


def _one_sentence(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith((".", "ziggurat-agents"))
    assert "Traceback" not in text


# -- the lock --------------------------------------------------------------------------------------------------------


async def test_the_lock_names_the_process_that_owns_the_file(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(HOLDER), str(state)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    with pytest.raises(StateLocked, match=f"process {holder.pid} on ") as caught:
        await _engine(state).open()
    _one_sentence(caught.value)
    owner = read_owner(state)
    assert owner is not None
    assert owner.pid == holder.pid
    holder.kill()
    await holder.wait()
    # The kernel frees what a killed process held.
    assert read_owner(state) is None
    engine = _engine(state)
    await engine.open()
    await engine.close()


async def test_one_process_cannot_open_a_file_twice(tmp_path: Path) -> None:
    first, second = _engine(tmp_path / "state.db"), _engine(tmp_path / "state.db")
    await first.open()
    with pytest.raises(StateLocked, match=str(os.getpid())):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


def test_a_lock_that_is_released_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        lock = StateLock(tmp_path / "state.db")
        lock.acquire(1.0)
        lock.release()
        lock.release()


# -- files that cannot be used -----------------------------------------------------------------------------------------


def _nonsense(state: Path) -> None:
    state.write_bytes(b"This is no database at all. " * 100)


def _newer(state: Path) -> None:
    connection = sqlite3.connect(state)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _folder(state: Path) -> None:
    state.mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(_nonsense, "damaged"), (_newer, "newer Ziggurat"), (_folder, "cannot be opened")],
    ids=lambda v: getattr(v, "__name__", ""),
)
async def test_a_file_that_cannot_be_used_is_said_in_a_sentence_and_left_alone(
    spoil: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    state = tmp_path / "state.db"
    spoil(state)
    before = state.read_bytes() if state.is_file() else None
    for _ in range(2):
        with pytest.raises(StateUnusable, match=says) as caught:
            await _engine(state).open()
        _one_sentence(caught.value)
        assert str(state) in str(caught.value)
    assert (state.read_bytes() if state.is_file() else None) == before
    assert read_owner(state) is None


async def test_a_file_that_was_cut_short_is_said_to_be_damaged(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    async with system(state) as s:
        for i in range(60):
            assert await s.result(p.line, f"cut-{i}") == 3
    assert set(os.listdir(tmp_path)) == {"state.db", "state.db.lock"}  # Closed in order, the file is whole without its log.
    data = state.read_bytes()
    state.write_bytes(data[: 4096 * 2] + os.urandom(len(data) - 4096 * 2))
    with pytest.raises(StateUnusable) as caught:
        await _look(state)
    _one_sentence(caught.value)


async def _look(state: Path) -> None:
    engine = _engine(state)
    try:
        await engine.open()
        await engine.list(RunFilter())
    finally:
        await engine.close()


async def test_a_folder_that_cannot_be_made_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnusable, match="cannot be written") as caught:
        await _engine(tmp_path / "file" / "state.db").open()
    _one_sentence(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_without_write_permission_is_said_in_a_sentence(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    try:
        with pytest.raises(StateUnusable, match="permission") as caught:
            await _engine(tmp_path / "state.db").open()
        _one_sentence(caught.value)
    finally:
        os.chmod(tmp_path, 0o700)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("database or disk is full", "disk is full"),
        ("attempt to write a readonly database", "permission"),
        ("unable to open database file", "cannot be opened"),
        ("database disk image is malformed", "damaged"),
        ("disk I/O error", "disk I/O error"),
    ],
)
def test_every_error_of_sqlite_becomes_a_sentence(text: str, says: str) -> None:
    error = store.unusable(Path("state.db"), sqlite3.OperationalError(text))
    assert says in str(error)
    _one_sentence(error)


# -- a disk that fails on the way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_full_disk_stops_the_engine_and_loses_nothing(when: str, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    broken = False

    def strike(at: str) -> None:
        if broken and at == when:
            raise sqlite3.OperationalError("database or disk is full")

    async with system(state) as s:
        done = await s.run(p.line, "full-done")
        waiting = await s.start(p.signals, ["a"], id="waiting")
        await s.rests(waiting)
        s.engine._journal.writer.fault = strike
        waits = asyncio.create_task(s.engine.wait(waiting))
        watches = asyncio.create_task(_last(s.engine, waiting))
        await asyncio.sleep(0.01)
        broken = True
        for _ in range(2):
            with pytest.raises(StateUnusable, match="disk is full") as caught:
                await s.signal(waiting, "a", 1)
            _one_sentence(caught.value)
        for task in (waits, watches):
            with pytest.raises(StateUnusable, match="disk is full"):
                await task
        with pytest.raises(StateUnusable):
            await s.engine.start(StartRequest(workflow=p.line.name, payload=Raw(b'{"name": "x"}')))
        assert (await s.engine.get(done.id)).status == "completed"
    async with system(state) as s:
        if when == "before":
            await s.signal(waiting, "a", 1)
        assert bytes((await s.engine.wait(waiting, 60)).result or b"") == b"[1]"
        assert (await s.engine.get(done.id)).result == done.result


async def _last(engine: EmbeddedOrchestrator, run: str) -> None:
    async for _ in engine.watch(run):
        pass


async def test_closing_ends_every_wait(tmp_path: Path) -> None:
    async with system(tmp_path / "state.db") as s:
        run = await s.start(p.signals, ["a"])
        await s.rests(run)
        tasks = [asyncio.create_task(s.engine.wait(run)), asyncio.create_task(_last(s.engine, run))]
        await asyncio.sleep(0.01)
        await s.engine.close()
        for task in tasks:
            with pytest.raises(LayerUnreachable, match="closed"):
                await task
        with pytest.raises(LayerUnreachable, match="closed"):
            await s.engine.start(StartRequest(workflow=p.line.name, payload=Raw(b'{"name": "x"}')))


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_runs_that_wait_do_not_stay_in_memory(tmp_path: Path) -> None:
    async with system(tmp_path / "state.db", max_resident_runs=10) as s:
        runs = [await s.start(p.signals, ["a"], id=f"run-{i}") for i in range(60)]
        for run in runs:
            await s.rests(run)
        async with asyncio.timeout(60):
            while len(s.engine.driver.residents) > 10:  # noqa: ASYNC110  # The last is let go a moment after it rests.
                await asyncio.sleep(0.002)
        for run in runs:
            await s.signal(run, "a", 1)
        for run in runs:
            assert (await s.engine.wait(run, 60)).status == "completed"
        assert len(s.engine.driver.residents) <= 10


async def test_runs_that_wait_are_not_loaded_when_the_engine_opens(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    async with system(state) as s:
        runs = [await s.start(p.signals, ["a"], id=f"run-{i}") for i in range(20)]
        for run in runs:
            await s.rests(run)
    async with system(state) as s:
        await asyncio.sleep(0.05)
        assert not s.engine.driver.residents
        await s.signal(runs[7], "a", 7)
        assert bytes((await s.engine.wait(runs[7], 60)).result or b"") == b"[7]"


def test_rows_keep_a_run_as_it_is(tmp_path: Path) -> None:
    connection = store.connect(tmp_path / "state.db", write=True)
    run = Run(
        id="r", workflow="w", status="completed", payload=Raw(b'{"a":1}'), result=Raw(b"null"), state=Raw(b"[]"), tags={"k": "v"}
    )
    connection.execute(store.INSERT_RUN + store.RUN_VALUES + store.ON_RUN_CONFLICT, store.run_row(1, run))
    connection.close()
    reader = store.Reader(tmp_path / "state.db")
    assert reader.run("r") == (1, run)
    assert [r.id for r in reader.runs(RunFilter(tags={"k": "v"}))] == ["r"]
    assert reader.runs(RunFilter(tags={"k": "other"})) == []
    reader.close()


async def _fill(state: Path, recorded: list[str]) -> None:
    async with system(state) as s:
        for i in range(500):
            payload = Raw(p.signals.arguments.encode(([f"signal-{j}" for j in range(500)],), {}))
            await s.engine.start(StartRequest(workflow=p.signals.name, payload=payload, id=f"run-{i}"))
            recorded.append(f"run-{i}")


async def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    os.mkdir(folder)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or (await (await asyncio.create_subprocess_exec(*mount)).wait()):
        pytest.skip("only root can make a small disk")
    try:
        recorded: list[str] = []
        with pytest.raises(StateUnusable, match="disk is full") as caught:
            await _fill(folder / "state.db", recorded)
        _one_sentence(caught.value)
        assert recorded
        shutil.move(folder / "state.db", tmp_path / "state.db")  # To where there is space.
        if "state.db-wal" in os.listdir(folder):
            shutil.move(folder / "state.db-wal", tmp_path / "state.db-wal")
        async with system(tmp_path / "state.db") as s:
            for run in recorded:
                assert (await s.engine.get(run)).workflow == p.signals.name
            assert await s.result(p.line, "after") == 3
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(folder))).wait()
