"""The control socket: who may speak on it, what it does with nonsense, and what its clients see when it goes."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from ziggurat import emit, task, workflow
from ziggurat.client import Client
from ziggurat.errors import Conflict, LayerUnreachable, UnknownName
from ziggurat.orchestrator import control
from ziggurat.orchestrator.control import Arguments, Failure, Greeting, Reply, Request, socket_path, wire_line
from ziggurat.orchestrator.interface import Capabilities
from ziggurat.orchestrator.remote import OwnerGone, RemoteOrchestrator
from ziggurat.records import StartRequest


@task
async def control_text(size: int) -> str:
    return "x" * size


@workflow
async def control_many(count: int, size: int) -> int:
    return sum([len(await control_text(size)) for _ in range(count)])


@workflow
async def control_shout(count: int) -> int:
    for number in range(count):
        emit(number)
    return count


@pytest.fixture
async def owner(tmp_path: Path) -> AsyncIterator[Client]:
    async with Client.local(tmp_path / "state.db") as client:
        yield client


@pytest.fixture
def place(owner: Client) -> Path:
    return socket_path(owner.settings.state_path)


async def test_the_socket_belongs_to_the_user_alone(place: Path) -> None:
    assert stat.S_IMODE(place.stat().st_mode) == 0o600  # noqa: ASYNC240
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert len(str(place)) < 108


async def test_the_socket_goes_with_its_owner(tmp_path: Path) -> None:
    async with Client.local(tmp_path / "state.db") as client:
        place = socket_path(client.settings.state_path)
        assert place.exists()
    assert not place.exists()


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    with pytest.raises(LayerUnreachable, match="belongs to another user"):
        socket_path(tmp_path / "state.db")
    Path("/tmp/ziggurat-12345678").rmdir()


async def say(place: Path, *lines: bytes) -> list[bytes]:
    """Say lines to the server and return what it answers until it hangs up or has answered as many."""
    reader, writer = await asyncio.open_unix_connection(str(place))
    heard = [await reader.readline()]
    writer.writelines(lines)
    writer.write_eof()
    heard += [line async for line in reader]
    writer.close()
    return heard


async def test_nonsense_ends_the_connection_and_nothing_else(owner: Client, place: Path) -> None:
    for nonsense in (
        b"\n",
        b"{}\n",
        b"hello\n",
        b'{"id": "x", "verb": 1}\n',
        b"\xff\xfe\n",
        b"[" * 5000 + b"\n",
        b'{"x": ' + b"[" * 5000 + b"\n",
    ):
        greeting, *answers = await say(place, nonsense)
        assert msgspec.json.decode(greeting, type=Greeting).protocol == control.PROTOCOL
        assert answers == []
    assert await owner.run(control_many, 1, 3) == 3


async def test_an_unknown_verb_is_answered(place: Path) -> None:
    _, answer = await say(place, wire_line(Request(7, "explode")))
    reply = msgspec.json.decode(answer, type=Reply)
    assert reply.id == 7
    assert reply.failure is not None
    assert (reply.failure.type, "explode" in reply.failure.message) == ("UnknownName", True)


@settings(max_examples=50)
@given(st.binary(max_size=300))
async def test_any_bytes_are_survived(garbage: bytes) -> None:
    where = socket_path(Path("/nowhere/garbage.db"))
    server = control.ControlServer(RemoteOrchestrator(Path("/nowhere")), None)  # type: ignore[arg-type]
    server._orchestrator.capabilities = Capabilities()
    await server.open(where)
    try:
        greeting, *_ = await say(where, garbage, b"\n")
        assert greeting.endswith(b"\n")
    finally:
        await server.close()


async def test_requests_side_by_side_are_told_apart(place: Path) -> None:
    remote = RemoteOrchestrator(place)
    await remote.open()
    requests = [
        StartRequest(workflow="control_many", payload=Raw(f'{{"count": 1, "size": {n}}}'.encode()), id=f"r{n}") for n in range(30)
    ]
    await asyncio.gather(*(remote.start(request) for request in requests))
    ended = await asyncio.gather(*(remote.wait(f"r{n}") for n in range(30)))
    assert [bytes(run.result or b"") for run in ended] == [str(n).encode() for n in range(30)]
    await remote.close()


async def test_a_long_history_comes_in_pages(owner: Client, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HISTORY_BYTES", 10_000)
    await owner.run(control_many, 20, 3_000, id="long")
    remote = RemoteOrchestrator(place)
    await remote.open()
    history = await remote.history("long")
    assert [event.seq for event in history] == list(range(1, len(history) + 1))
    assert history == await owner.handle("long").history()
    assert len(await remote.history("long", limit=5)) == 5
    assert await remote.history("long", after=len(history)) == []
    await remote.close()


async def test_errors_keep_their_class_and_their_fields(place: Path) -> None:
    remote = RemoteOrchestrator(place)
    await remote.open()
    with pytest.raises(UnknownName, match="no run 'nobody'"):
        await remote.get("nobody")
    with pytest.raises(UnknownName, match="no workflow 'nothing'"):
        await remote.start(StartRequest(workflow="nothing", payload=Raw(b"{}")))
    await remote.start(StartRequest(workflow="control_many", payload=Raw(b'{"count": 1, "size": 1}'), id="r"))
    await remote.wait("r")
    with pytest.raises(Conflict, match="completed"):
        await remote.resume("r")
    await remote.close()


async def test_a_wait_can_be_given_up(owner: Client, place: Path) -> None:
    remote = RemoteOrchestrator(place)
    await remote.open()
    await owner.start(control_shout, 1, id="done")
    for _ in range(3):
        waiting = asyncio.create_task(remote.wait("done", 60.0))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (await remote.wait("done", 60.0)).status == "completed"
    await remote.close()


async def test_an_owner_that_goes_is_named_and_what_waits_hears_of_it(tmp_path: Path) -> None:
    owner = Client.local(tmp_path / "state.db")
    await owner.__aenter__()
    remote = RemoteOrchestrator(socket_path(owner.settings.state_path), "Process 7 (ziggurat serve)")
    await remote.open()
    await owner.start(control_shout, 1, id="r")
    await owner.handle("r").result()
    await owner.__aexit__(None, None, None)
    for _ in range(2):
        with pytest.raises(OwnerGone, match=r"Process 7 \(ziggurat serve\) has ended"):
            await remote.get("r")
    await remote.close()
    again = RemoteOrchestrator(socket_path(owner.settings.state_path), "Process 7")
    with pytest.raises(OwnerGone, match="does not answer"):
        await again.open()


async def test_another_version_is_told_at_once(tmp_path: Path) -> None:
    place = tmp_path / "s.sock"

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire_line(Greeting(control.PROTOCOL + 1, 1, Capabilities())))
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(greet, str(place))
    with pytest.raises(LayerUnreachable, match="another version of Ziggurat"):
        await RemoteOrchestrator(place).open()
    server.close()
    await server.wait_closed()


def test_a_payload_with_line_breaks_is_one_line() -> None:
    line = wire_line(Request(1, "signal", Arguments(run="r", payload=Raw(b'{\n  "a": "x\\ny"\n}'))))
    assert line.count(b"\n") == 1
    decoded = msgspec.json.decode(line, type=Request)
    assert msgspec.json.decode(bytes(decoded.arguments.payload or b"")) == {"a": "x\ny"}


def test_an_unexpected_failure_of_the_owner_is_told_as_such() -> None:
    from ziggurat.orchestrator.remote import exception_of

    error = exception_of(Failure("KeyError", "'x'"), "Process 7")
    assert "Process 7 met an unexpected KeyError" in str(error)
    assert isinstance(exception_of(Failure("TimeoutError", ""), "Process 7"), TimeoutError)
