"""The client over HTTP: the same verbs as at home, answered by another process's system, with its errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from tests.integration.api_server import PATIENCE, Caller, api
from tests.integration.test_api_runs import PROGRAM, Boxes, ask_someone, read_document
from tests.ports import free_port
from ziggurat.client import Client, Handle
from ziggurat.doors.api.shapes import moment
from ziggurat.errors import AccessDenied, Conflict, InvalidData, LayerUnreachable, RunFailed, UnknownName
from ziggurat.orchestrator.http.client import HttpOrchestrator
from ziggurat.records import Run, RunFilter, StartRequest
from ziggurat.settings import ScheduleSettings


@pytest.fixture
async def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caller]:
    monkeypatch.chdir(tmp_path)
    Boxes.empty()
    async with api(tmp_path, *PROGRAM) as served:
        yield served


@pytest.fixture
async def client(caller: Caller) -> AsyncIterator[Client]:
    async with Client.connect(caller.server.url) as connected:
        yield connected


async def test_a_program_starts_runs_elsewhere_and_gets_their_results(client: Client) -> None:
    handle: Handle[Any] = await client.start_with(
        "anywhere:read_document", {"title": "x", "pages": 3}, id="one", tags={"a": "b"}, budget="$1"
    )
    assert await handle.result(PATIENCE) == {"pages": 3}
    # With the workflow itself at hand, its arguments are checked before they leave.
    with pytest.raises(InvalidData):
        await client.start(ask_someone, 5)
    found = await handle.info()
    assert (found.status, found.tags, found.budget_usd) == ("completed", {"team": "docs", "a": "b"}, 1.0)
    assert [step.name for step in await handle.steps()] == ["count_pages"]
    assert [event.kind for event in await handle.history()] == ["run_started", "step_completed", "run_completed"]
    assert [run.id for run in await client.runs(search="on", tags={"a": "b"}, status="completed")] == ["one"]
    assert await client.runs(since=found.created_at + 100) == []


async def test_records_come_over_the_wire_as_they_are(client: Client, caller: Caller) -> None:
    await client.start_with(read_document, {"title": "broken"}, id="bad")
    away, here = client.attachment.orchestrator, caller.server.hub.orchestrator
    await away.wait("bad", PATIENCE)

    def plain(name: str, value: object) -> object:
        # A moment travels to the nearest microsecond, and stays there; to round it again at another place would meet its edges.
        if isinstance(value, float) and name.endswith("_at"):
            return moment(value)
        return bytes(value) if isinstance(value, Raw) else value

    def near(run: Run) -> object:
        return {name: plain(name, value) for name, value in msgspec.structs.asdict(run).items()}

    assert near(await away.get("bad")) == near(await here.get("bad"))
    theirs, ours = await away.history("bad"), await here.history("bad")
    assert [(e.seq, e.kind, e.name, e.error, e.attempt, moment(e.at)) for e in theirs] == [
        (e.seq, e.kind, e.name, e.error, e.attempt, moment(e.at)) for e in ours
    ]
    async with asyncio.timeout(PATIENCE):
        # Counts are those of the file, which hears of an end a moment later than those who wait for it.
        while await away.count(RunFilter()) != {"failed": 1}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await client.queues() == await caller.server.hub.queue.depth()
    assert [w.worker for w in await client.workers()] == [w.worker for w in await caller.server.hub.queue.workers()]


async def test_every_verb_works_and_fails_as_at_home(client: Client) -> None:
    handle: Handle[Any] = await client.start_with("ask_someone", {"question": "Why?"}, id="q")
    await handle.pause("lunch")
    assert (await handle.info()).reason == "lunch"
    await handle.resume(budget="$2")
    await handle.signal("answer", "Because.")
    assert await handle.result(PATIENCE) == "Why? Because."
    with pytest.raises(Conflict, match="cannot be resumed"):
        await handle.resume()
    forked = await handle.fork(1, input={"question": "How?"}, id="q2")
    await forked.cancel("enough")
    assert (await forked.wait(PATIENCE)).status == "cancelled"
    with pytest.raises(Conflict, match="only a failed run"):
        await forked.retry()
    with pytest.raises(UnknownName, match="'nobody'"):
        await client.get("nobody")
    with pytest.raises(UnknownName, match="no workflow 'nothing'"):
        await client.start_with("nothing", {})
    with pytest.raises(InvalidData, match="document"):
        await client.start_with("read_document", {"pages": 1})
    with pytest.raises(RunFailed, match="no pages in"):
        await (await client.start_with("read_document", {"title": "broken"})).result(PATIENCE)
    assert await client.purge(status="cancelled") == 1
    assert [run.id for run in await client.runs(workflow="ask_someone")] == ["q"]
    assert await client.dead_letters() == []
    assert await client.redrive([]) == 0


async def test_any_id_can_be_reached(client: Client, caller: Caller) -> None:
    odd = "a/b c?d#e%2F/history é"
    request = StartRequest(workflow="ask_someone", payload=Raw(b'{"question": "?"}'), id=odd)
    await caller.server.hub.orchestrator.start(request)
    handle: Handle[Any] = client.handle(odd)
    assert (await handle.info()).id == odd
    assert [event.kind for event in await handle.history()] == ["run_started"]
    await handle.signal("answer", "yes")
    assert await handle.result(PATIENCE) == "? yes"
    assert [event.kind for event in await handle.history()][-1] == "run_completed"


async def test_schedules_are_kept_elsewhere_too(client: Client) -> None:
    wanted = ScheduleSettings(workflow="anywhere:ask_someone", input={"question": "Well?"}, every=86_400.0, tags={"a": "b"})
    made = await client.schedule("daily", wanted)
    assert (made.workflow, made.every, made.tags, made.origin) == ("ask_someone", 86_400.0, {"a": "b"}, "hand")
    assert [schedule.name for schedule in await client.schedules()] == ["daily"]
    await client.pause_schedule("daily", "later")
    assert [(one.paused, one.reason) for one in await client.schedules()] == [(True, "later")]
    await client.resume_schedule("daily")
    handle = await client.trigger("daily")
    assert (await handle.info()).workflow == "ask_someone"
    assert await client.backfill("daily", 0.0, 3 * 86_400.0) == 3
    await client.unschedule("daily")
    with pytest.raises(UnknownName, match="daily"):
        await client.trigger("daily")


async def test_a_watcher_sees_tokens_and_the_end(client: Client) -> None:
    handle: Handle[Any] = await client.start_with("recite", {"words": 2}, id="poem")
    tokens = []
    async for event in handle.events():
        Boxes.heard.set()
        if event.progress is not None:
            tokens.append(msgspec.json.decode(event.progress.data))
            if tokens[-1] == "1:1 ":
                Boxes.gate.set()
    assert tokens == ["1:0 ", "1:1 ", "2:0 ", "2:1 "]


async def test_a_waiter_times_out_and_the_run_goes_on(client: Client) -> None:
    handle: Handle[Any] = await client.start_with("ask_someone", {"question": "?"})
    with pytest.raises(TimeoutError):
        await handle.wait(0.2)
    async with asyncio.timeout(PATIENCE):
        while await handle.status() != "waiting":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_watcher_outlives_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Boxes.empty()
    seen: list[int] = []
    port = free_port()
    async with api(tmp_path, *PROGRAM, port=port) as first:
        client = Client.connect(first.server.url)
        await client.__aenter__()
        handle: Handle[Any] = await client.start_with("ask_someone", {"question": "Still there?"}, id="patient")
        await first.until("patient", "waiting")

        async def watch() -> None:
            async for event in handle.events():
                seen.extend([event.event.seq] if event.event is not None else [])

        watching = asyncio.create_task(watch())
        while not seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with api(tmp_path, *PROGRAM, port=port):
        await handle.signal("answer", "Yes.")
        await asyncio.wait_for(watching, PATIENCE)
        assert await handle.result(PATIENCE) == "Still there? Yes."
        assert seen == sorted(set(seen)) and len(seen) == (await handle.info()).events
        await client.__aexit__()


async def test_who_may_not_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with api(tmp_path, *PROGRAM, auth="always") as served:
        with pytest.raises(AccessDenied, match="needs an API key"):
            await Client.connect(served.server.url).__aenter__()
        with pytest.raises(AccessDenied, match="unknown, revoked or expired"):
            await Client.connect(served.server.url, api_key="zk_wrong").__aenter__()
        key = served.server.hub.keyring.create("look", "viewer", "acme")[1]
        connecting = Client.connect(served.server.url, api_key=key)
        assert key not in repr(connecting) + repr(vars(connecting.settings))
        async with connecting as client:
            assert await client.runs() == []
            with pytest.raises(AccessDenied, match="needs the role operator"):
                await client.start_with("ask_someone", {"question": "?"})
            with pytest.raises(AccessDenied, match="whole system"):
                await client.queues()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nothing.invalid:8400"])
async def test_a_server_that_is_not_there_is_said_so_at_once(url: str) -> None:
    with pytest.raises(LayerUnreachable, match="does not answer"):
        await HttpOrchestrator(url).open()


async def test_a_server_that_is_no_ziggurat_is_said_so() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LayerUnreachable, match="not its API"):
            await HttpOrchestrator(f"http://127.0.0.1:{port}").open()
