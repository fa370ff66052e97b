"""What Temporal adds to the suite: large payloads, the same results as the embedded engine, histories read right, replays, mistakes."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from tests.conformance.temporal_servers import TemporalServer, needed, temporal_server
from ziggurat.artifacts import INLINE
from ziggurat.assembly import System
from ziggurat.assembly.replaying import check_recording
from ziggurat.doors.api.control_file import ControlFile
from ziggurat.doors.api.standstills import SELDOM, Standstills
from ziggurat.errors import Conflict, LayerUnreachable, UnknownName
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.orchestrator.temporal import wire
from ziggurat.program.definitions import task, workflow
from ziggurat.program.primitives import patched, signal, state
from ziggurat.program.registry import Registry
from ziggurat.records import Run, RunFilter, StartRequest
from ziggurat.settings import load_settings
from ziggurat.testing import orchestrator_programs as p
from ziggurat.testing.generator import Generator
from ziggurat.testing.programs import Surroundings, run_program
from ziggurat.testing.worker_tasks import gates

PATIENCE = 120.0
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    needed()
    with temporal_server(tmp_path_factory.mktemp("temporal")) as running:
        yield running


def settings_text(server: TemporalServer, more: str = "") -> str:
    """Return settings with a task queue that no other test uses."""
    return f"""
[orchestrator]
backend = "temporal"
url = "{server.address}"
temporal = {{ task_queue = "i{next(_numbers)}" }}
{more}
"""


@asynccontextmanager
async def system(folder: Path, text: str) -> AsyncIterator[Orchestrator]:
    """Run a whole system of these settings."""
    file = folder / "ziggurat.toml"
    file.write_text(text)
    async with System(load_settings(file, {})) as running:
        assert running.orchestrator is not None
        yield running.orchestrator


async def run_to_end(orchestrator: Orchestrator, flow: Any, *args: Any, id: str = "") -> Run:
    """Start a run, and return it once it has ended."""
    payload = Raw(flow.arguments.encode(args, {}))
    run = await orchestrator.start(StartRequest(workflow=flow.name, payload=payload, id=id))
    return await orchestrator.wait(run.id, PATIENCE)


@task(name="tmp.double")
async def double(text: str) -> str:
    return text + text


@workflow(name="tmp.large")
async def large(text: str) -> str:
    """Pass much through a task, twice."""
    return await double(await double(text))


@pytest.mark.parametrize("queue", ["", '[queue]\nbackend = "memory"'], ids=["temporal", "memory"])
async def test_inputs_and_results_of_twenty_megabytes_just_work(server: TemporalServer, tmp_path: Path, queue: str) -> None:
    async with system(tmp_path, settings_text(server, queue)) as orchestrator:
        found = await run_to_end(orchestrator, large, "x" * 5_000_000)
        assert found.status == "completed", (found.reason, found.error)
        assert len(msgspec.json.decode(found.result or b"null")) == 20_000_000
        # What Temporal holds of it is a few references.
        recording = await orchestrator.record(found.id)
        assert len(bytes(recording.temporal or b"")) < 100_000


@task(name="tmp.reply")
async def reply(messages: list[str]) -> str:
    return f"{len(messages)} " + "r" * 10_000


@workflow(name="tmp.conversation")
async def conversation(turns: int) -> int:
    """Hand on all that was said, at each turn."""
    messages: list[str] = []
    for turn in range(turns):
        messages.append(f"{turn} " + "q" * 10_000)
        messages.append(await reply(messages))
    return sum(len(message) for message in messages)


@pytest.mark.parametrize("queue", ["", '[queue]\nbackend = "memory"'], ids=["temporal", "memory"])
async def test_a_long_conversation_is_kept_about_once(server: TemporalServer, tmp_path: Path, queue: str) -> None:
    async with system(tmp_path, settings_text(server, queue)) as orchestrator:
        found = await run_to_end(orchestrator, conversation, 60)
        assert found.status == "completed", (found.reason, found.error)
        said = msgspec.json.decode(found.result or b"null", type=int)
        assert said > 1_200_000
        # At each turn all of it is handed on: thirty times what was said, in all.
        inputs = [len(data) for data in _payloads(msgspec.json.decode((await orchestrator.record(found.id)).temporal or b"null"))]
        assert sum(inputs) < 2.5 * said
        assert sum(f.stat().st_size for f in (tmp_path / ".ziggurat" / "artifacts").rglob("*") if f.is_file()) < 3.5 * said


@workflow(name="tmp.secretive")
async def secretive(text: str) -> str:
    """Hand a secret to a task, a child run and a signal's taker, and keep it as state."""
    state(secret=text)
    once = await double(text)
    return await large(once) + str(await signal("more"))


async def test_with_a_key_temporal_sees_sealed_payloads_only(
    server: TemporalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIGGURAT_TEST_KEY", base64.b64encode(bytes(range(32))).decode())
    keys = '[encryption]\nuse = "k"\n[encryption.keys]\nk = "env:ZIGGURAT_TEST_KEY"\n'
    async with system(tmp_path, settings_text(server, keys)) as orchestrator:
        name = f"secret{next(_numbers)}"
        payload = Raw(secretive.arguments.encode(("hush",), {}))
        await orchestrator.start(StartRequest(workflow=secretive.name, payload=payload, id=name))
        await orchestrator.signal(name, "more", Raw(b'"hush"'))
        found = await orchestrator.wait(name, PATIENCE)
        assert msgspec.json.decode(found.result or b"null") == "hush" * 9
        assert msgspec.json.decode(found.state or b"null") == {"secret": "hush"}
        for run in (name, f"{name}/2"):
            kept = msgspec.json.decode((await orchestrator.record(run)).temporal or b"null")
            assert b"hush" not in b"".join(_payloads(kept))


def _payloads(value: Any) -> Iterator[bytes]:
    """Yield the data of all payloads in a history in Temporal's JSON form."""
    if isinstance(value, dict):
        if isinstance(value.get("data"), str):
            yield base64.b64decode(value["data"])
        for part in value.values():
            yield from _payloads(part)
    elif isinstance(value, list):
        for part in value:
            yield from _payloads(part)


async def test_what_others_keep_in_the_namespace_is_neither_listed_nor_deleted(server: TemporalServer, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    async with system(tmp_path / "theirs", settings_text(server)) as theirs, system(tmp_path, settings_text(server)) as ours:
        name = f"theirs{next(_numbers)}"
        assert (await run_to_end(theirs, p.line, name, id=name)).status == "completed"
        async with asyncio.timeout(PATIENCE):
            while not await theirs.list(RunFilter(search=name)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await ours.list(RunFilter(ids=(name,))) == []
        assert await ours.list(RunFilter(search=name)) == []
        assert await ours.purge(RunFilter(ids=(name,))) == 0
        assert await ours.purge(RunFilter(workflow=p.line.name)) == 0
        assert (await theirs.get(name)).status == "completed"


@workflow(name="tmp.many_steps")
async def many_steps(name: str) -> int:
    """Fail at the end of a history that is too long to be an input of its own."""
    for number in range(40):
        await double(f"{name}{number}" + "y" * 40_000)
    await p.fail(name)
    return 40


async def test_a_retry_hands_a_long_history_on(server: TemporalServer, tmp_path: Path) -> None:
    async with system(tmp_path, settings_text(server)) as orchestrator:
        name = f"long{next(_numbers)}"
        failed = await run_to_end(orchestrator, many_steps, name)
        assert failed.status == "failed"
        gates[f"{name}.mended"].set()
        await orchestrator.retry(failed.id)
        found = await orchestrator.wait(failed.id, PATIENCE)
        assert (found.status, found.result) == ("completed", Raw(b"40"))


async def _program(orchestrator: Orchestrator, seed: int, id: str) -> Any:
    """Run a random program to its end, and return its result."""
    generator = Generator(seed)
    generations = generator.program()

    async def send(run: str, name: str, value: int, signal_id: str) -> None:
        await orchestrator.signal(run, name, Raw(msgspec.json.encode(value)), signal_id=signal_id)

    Surroundings.send = send
    payload = Raw(run_program.arguments.encode((generations,), {}))
    await orchestrator.start(StartRequest(workflow=run_program.name, payload=payload, id=id))
    for name, value in generator.signals:
        with suppress(Conflict):
            await send(id, name, value, name)
    found = await orchestrator.wait(id, PATIENCE)
    assert found.status == "completed", (seed, found.status, found.reason, found.error)
    return msgspec.json.decode(found.result or b"null")


@pytest.mark.parametrize("queue", ["", '[queue]\nbackend = "memory"'], ids=["temporal", "memory"])
async def test_random_programs_end_as_on_the_embedded_engine(server: TemporalServer, tmp_path: Path, queue: str) -> None:
    seeds = range(int(os.environ.get("ZIGGURAT_PROGRAMS", "3")))
    (tmp_path / "embedded").mkdir()
    async with system(tmp_path / "embedded", "") as orchestrator:
        expected = [await _program(orchestrator, seed, f"p{seed}") for seed in seeds]
    async with system(tmp_path, settings_text(server, queue)) as orchestrator:
        name = f"p{next(_numbers)}"
        found = [await _program(orchestrator, seed, f"{name}-{seed}") for seed in seeds]
        for seed in seeds:
            await _reads_as_it_was_driven(orchestrator, f"{name}-{seed}")
    assert found == expected


async def _reads_as_it_was_driven(orchestrator: Any, run: str) -> None:
    """Check that the history, read without the program, has the positions that the program's machine counted."""
    answer = await orchestrator.client.get_workflow_handle(run).query(wire.POSITION, result_type=int)
    events = await orchestrator.history(run, limit=-1)
    # The end itself is the reader's only.
    assert events[-1].seq == answer + 1
    assert [e.seq for e in events] == sorted({e.seq for e in events})


@workflow(name="tmp.spends")
async def spends(name: str) -> int:
    """Make model calls of a quarter dollar each, the last by a child run."""
    for number in range(3):
        await p.pay(f"{name}-{number}")
    await p.pays_too(name)
    return 4


async def test_a_spent_budget_parks_the_run_until_it_is_resumed_with_more(server: TemporalServer, tmp_path: Path) -> None:
    async with system(tmp_path, settings_text(server)) as orchestrator:
        name = f"budget{next(_numbers)}"
        payload = Raw(spends.arguments.encode((name,), {}))
        await orchestrator.start(StartRequest(workflow=spends.name, payload=payload, id=name, budget_usd=0.4))
        parked = await orchestrator.wait(name, PATIENCE)
        assert (parked.status, parked.usage.calls) == ("parked", 2)
        assert "$0.50 of its budget of $0.40" in parked.reason
        assert parked.error is not None and (parked.error.run_id, parked.error.budget) == (name, f"run:{name}")
        async with asyncio.timeout(PATIENCE):  # Lists hear of it some moments later.
            while not (listed := await orchestrator.list(RunFilter(status=("parked",), search=name))):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert [run.error for run in listed] == [parked.error]
        with pytest.raises(Conflict, match="parked"):
            await orchestrator.signal(name, "go", Raw(b"1"))
        await orchestrator.resume(name, budget_usd=10.0)
        found = await orchestrator.wait(name, PATIENCE)
        assert (found.status, found.usage.calls, found.budget_usd) == ("completed", 4, 10.0)
        kinds = [event.kind for event in await orchestrator.history(name)]
        assert kinds.index("run_parked") < kinds.index("run_resumed")
        await _reads_as_it_was_driven(orchestrator, name)


async def test_runs_that_stand_still_are_told_of_once(server: TemporalServer, tmp_path: Path) -> None:
    async with system(tmp_path, settings_text(server)) as orchestrator:
        names = [f"stands{next(_numbers)}" for _ in range(2)]
        file = ControlFile(tmp_path / "control.db")
        told, known = Standstills(file, orchestrator, ["parked", "waiting"]), 0.0

        async def look() -> list[tuple[str, str]]:
            nonlocal known
            known += SELDOM
            found = []
            for event, seen in await told.look(known):
                await file.write(lambda db, event=event, seen=seen: told.write(db, event, seen))  # type: ignore[misc]
                told.written(event, seen)
                found += [(event, one.run.id) for one in seen.new]
            return found

        async def until(wanted: set[tuple[str, str]]) -> None:
            heard: list[tuple[str, str]] = []
            async with asyncio.timeout(PATIENCE):  # Lists hear of it some moments later.
                while not wanted <= set(heard):
                    heard += await look()
                    await asyncio.sleep(0.1)
            assert sorted(heard) == sorted(wanted)

        assert await look() == []
        assert await told.look(known + SELDOM / 2) == []  # Each look costs questions.
        payload = Raw(p.signals.arguments.encode((["a"],), {}))
        await orchestrator.start(StartRequest(workflow=p.signals.name, payload=payload, id=names[0]))
        spending = Raw(spends.arguments.encode((names[1],), {}))
        await orchestrator.start(StartRequest(workflow=spends.name, payload=spending, id=names[1], budget_usd=0.4))
        await until({("waiting", names[0]), ("parked", names[1])})
        again = Standstills(file, orchestrator, ["parked", "waiting"])
        assert [seen.new for _, seen in await again.look(known + SELDOM)] == [[], []]
        for name in names:
            await orchestrator.cancel(name)
        file.close()


async def test_a_tree_that_was_parked_and_resumed_reads_and_replays_as_it_was_driven(
    server: TemporalServer, tmp_path: Path
) -> None:
    async with system(tmp_path, settings_text(server)) as orchestrator:
        name = f"tree{next(_numbers)}"
        payload = Raw(p.buys.arguments.encode((name, 2), {}))
        await orchestrator.start(StartRequest(workflow=p.buys.name, payload=payload, id=name, budget_usd=0.5))
        runs = (name, f"{name}/2", f"{name}/1")
        async with asyncio.timeout(PATIENCE):
            for run in reversed(runs):
                while not await _has_status(orchestrator, run, "parked"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        await orchestrator.resume(name, budget_usd=10.0)
        assert (await orchestrator.wait(name, PATIENCE)).status == "completed"
        registry = Registry()
        registry.add(p.buys)
        for run in runs:
            await _reads_as_it_was_driven(orchestrator, run)
            assert await check_recording(await orchestrator.record(run), registry, INLINE) == ""


async def _has_status(orchestrator: Orchestrator, run: str, status: str) -> bool:
    with suppress(UnknownName):
        return (await orchestrator.get(run)).status == status
    return False


async def test_other_clients_start_signal_and_query_runs(server: TemporalServer, tmp_path: Path) -> None:
    async with system(tmp_path, settings_text(server)) as orchestrator:
        client: Any = orchestrator.client  # type: ignore[attr-defined]
        queue = orchestrator.link.task_queue  # type: ignore[attr-defined]
        name = f"other{next(_numbers)}"
        handle = await client.start_workflow("orc.tells", {"name": name}, id=name, task_queue=queue)
        async with asyncio.timeout(PATIENCE):
            while (await handle.query("state"))["stage"] != "second":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await handle.signal("go", None)
        assert await handle.result() is None
        assert (await orchestrator.get(name)).status == "completed"


async def test_a_breaking_change_is_caught_by_a_replay(server: TemporalServer, tmp_path: Path) -> None:
    @workflow(name="tmp.changes")
    async def before(name: str) -> int:
        return await p.count(name, await p.count(name))

    recordings = []
    for number, text in enumerate((settings_text(server), "")):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with system(folder, text) as orchestrator:
            found = await run_to_end(orchestrator, before, "r")
            recordings.append(await orchestrator.record(found.id))

    @workflow(name="tmp.changes")
    async def breaks(name: str) -> int:
        return await p.stumble(name, await p.count(name))

    @workflow(name="tmp.changes")
    async def goes_on(name: str) -> int:
        value = await p.count(name, await p.count(name))
        return await p.count(name, value) if patched("third") else value

    for recording in recordings:
        for flow, said in ((before, ""), (goes_on, ""), (breaks, "at step 2 the history records task 'orc.count'")):
            registry = Registry()
            registry.add(flow)
            contradiction = await check_recording(recording, registry, INLINE)
            assert contradiction.startswith(said)
            assert bool(contradiction) == bool(said), contradiction


async def test_a_server_that_is_not_there_is_one_sentence_and_exit_code_three(tmp_path: Path) -> None:
    file = tmp_path / "ziggurat.toml"
    file.write_text('[orchestrator]\nbackend = "temporal"\nurl = "127.0.0.1:1"\n')
    with pytest.raises(LayerUnreachable, match=r"127\.0\.0\.1:1 cannot be reached"):
        async with System(load_settings(file, {})):
            pass
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "ziggurat", "list", "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "start it" in done.stderr
