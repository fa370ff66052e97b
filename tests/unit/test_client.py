"""The client: what programs call, on a system in this process and on one in another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ziggurat import RunCancelled, RunFailed, emit, signal, state, task, workflow
from ziggurat.client import Client, Handle
from ziggurat.errors import Conflict, InvalidData, StateUnusable, UnknownName


class Point(BaseModel):
    x: int
    y: int = 0


@task
async def client_add(a: int, b: int) -> int:
    return a + b


@task(retry=1)
async def client_refuse(text: str) -> str:
    raise ValueError(f"no {text}")


@workflow(tags={"kind": "sum"})
async def client_sum(point: Point) -> dict[str, int]:
    return {"total": await client_add(point.x, point.y)}


@workflow
async def client_ask(question: str) -> str:
    state(question=question)
    emit({"asked": question})
    answer = await signal("answer", str)
    return f"{question} {answer}"


@workflow
async def client_gate(point: Point) -> int:
    await signal("open", bool)
    return await client_add(point.x, point.y)


@workflow
async def client_fail(text: str) -> str:
    return await client_refuse(text)


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture(params=["hosted", "remote"])
async def client(request: pytest.FixtureRequest, state_file: Path) -> AsyncIterator[Client]:
    """A client that owns the system, and one that talks to the owner: the tests cannot tell them apart."""
    async with Client.local(state_file) as owner:
        assert owner.attachment.hosted
        if request.param == "hosted":
            yield owner
            return
        async with Client.local(state_file) as other:
            assert not other.attachment.hosted
            yield other


async def until(handle: Handle[Any], status: str) -> None:
    """Wait until the run has a status, without sleeping: its events say so."""
    async for happening in handle.events():
        if happening.status == status:
            return


async def test_a_run_gives_its_typed_result(client: Client) -> None:
    assert await client.run(client_sum, Point(x=1, y=2)) == {"total": 3}
    handle = await client.start(client_sum, Point(x=2), id="two", tags={"team": "a"})
    assert handle.id == "two"
    assert await handle.result() == {"total": 2}
    assert await handle.status() == "completed"
    assert (await handle.info()).tags == {"kind": "sum", "team": "a"}


async def test_starting_an_id_twice_starts_once(client: Client) -> None:
    first = await client.start(client_sum, Point(x=1), id="same")
    second = await client.start(client_sum, Point(x=100), id="same")
    assert await first.result() == await second.result() == {"total": 1}
    assert len(await client.runs()) == 1
    with pytest.raises(Conflict, match="belongs to a run of 'client_sum'"):
        await client.start(client_ask, "why?", id="same")


async def test_a_workflow_can_be_named(client: Client) -> None:
    assert await client.run("client_sum", Point(x=4)) == {"total": 4}
    with pytest.raises(UnknownName, match="no workflow 'client_sun'"):
        await client.start("client_sun", Point(x=4))


async def test_input_as_a_person_gives_it(client: Client) -> None:
    by_name = await client.start_with(client_sum, {"point": {"x": 1, "y": 1}})
    by_field = await client.start_with(client_sum, {"x": 1, "y": 1})
    assert await by_name.result() == await by_field.result() == {"total": 2}
    for wrong in ({"x": "one"}, {"point": {"x": 1}, "more": 2}, [1], "x", None):
        with pytest.raises(InvalidData, match="client_sum"):
            await client.start_with(client_sum, wrong)


async def test_a_failed_run_raises_what_failed_and_can_be_taken_up_again(client: Client) -> None:
    handle = await client.start(client_fail, "way", id="failing")
    with pytest.raises(RunFailed, match=r"The run failing failed: ValueError: no way\.") as caught:
        await handle.result()
    assert caught.value.run_id == "failing"
    assert caught.value.error.type == "ValueError"
    await handle.retry()
    with pytest.raises(RunFailed):
        await handle.result()
    kinds = [event.kind for event in await handle.history()]
    assert kinds.count("run_retried") == 1
    with pytest.raises(Conflict):
        await (await client.start(client_sum, Point(x=1))).retry()


async def test_a_signal_reaches_the_run_and_its_state_is_readable(client: Client) -> None:
    handle = await client.start(client_ask, "why?")
    await until(handle, "waiting")
    assert await handle.state() == {"question": "why?"}
    assert [step.kind for step in await handle.steps()] == ["signal"]
    await handle.signal("answer", "because")
    assert await handle.result() == "why? because"
    with pytest.raises(Conflict):
        await handle.signal("answer", "too late")
    with pytest.raises(InvalidData, match="signal's value"):
        await handle.signal("answer", object())


async def test_a_cancelled_run_says_so(client: Client) -> None:
    handle = await client.start(client_ask, "why?")
    await until(handle, "waiting")
    await handle.cancel("nobody knows")
    with pytest.raises(RunCancelled, match="was cancelled"):
        await handle.result()
    await handle.cancel()  # Cancelling an ended run changes nothing.


async def test_a_paused_run_holds_until_it_is_resumed(client: Client) -> None:
    handle = await client.start(client_gate, Point(x=1, y=2))
    await until(handle, "waiting")
    await handle.pause("for lunch")
    assert await handle.status() == "paused"
    assert (await handle.info()).reason == "for lunch"
    await handle.signal("open", True)
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0.05)
    await handle.resume()
    assert await handle.result() == 3
    with pytest.raises(Conflict):
        await handle.resume()


async def test_events_come_in_order_and_end_with_the_run(client: Client) -> None:
    handle = await client.start(client_ask, "why?")
    seen = []
    async for happening in handle.events():
        seen.append(happening)
        if happening.status == "waiting":
            await handle.signal("answer", "so")
    assert seen[-1].status == "completed"
    offsets = [happening.offset for happening in seen if happening.kind == "history"]
    assert offsets == list(range(1, len(offsets) + 1))
    again = [happening async for happening in handle.events(after=1) if happening.kind == "history"]
    assert [happening.offset for happening in again] == offsets[1:]


async def test_a_fork_shares_what_was_recorded(client: Client) -> None:
    handle = await client.start(client_sum, Point(x=1, y=1))
    await handle.result()
    forked = await handle.fork(1, input={"x": 10, "y": 1}, id="other")
    assert forked.id == "other"
    assert await forked.result() == {"total": 11}
    assert (await forked.info()).forked_from == handle.id


async def test_runs_are_found_by_what_they_are(client: Client) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    await client.run(client_sum, Point(x=1), id="sum-1", tags={"team": "a"})
    await client.run(client_sum, Point(x=2), id="sum-2", tags={"team": "b"})
    asking = await client.start(client_ask, "why?", id="ask-1")
    await until(asking, "waiting")

    async def found(**where: object) -> set[str]:
        return {run.id for run in await client.runs(**where)}  # type: ignore[arg-type]

    assert await found() == {"sum-1", "sum-2", "ask-1"}
    assert await found(status="completed") == {"sum-1", "sum-2"}
    # The row in the file follows the run's status by one commit.
    while not await found(status="waiting"):
        pass
    assert await found(status=("completed", "waiting"), workflow="client_ask") == {"ask-1"}
    assert await found(tags={"team": "b"}) == {"sum-2"}
    assert await found(search="um-1") == {"sum-1"}
    assert await found(since=before) == {"sum-1", "sum-2", "ask-1"}
    assert await found(until=before) == set()
    assert [run.id for run in await client.runs(limit=1)] == ["ask-1"]
    assert (await client.get("sum-1")).status == "completed"


async def test_ended_runs_are_purged_and_others_stay(client: Client) -> None:
    await client.run(client_sum, Point(x=1), id="over")
    asking = await client.start(client_ask, "why?", id="asking")
    await until(asking, "waiting")
    assert await client.purge() == 1
    assert {run.id for run in await client.runs()} == {"asking"}
    with pytest.raises(UnknownName, match="no run 'over'"):
        await client.get("over")


async def test_an_unknown_run_is_named(client: Client) -> None:
    handle: Handle[str] = client.handle("nowhere")
    for verb in (handle.info, handle.steps, handle.history, handle.cancel, handle.retry, handle.result):
        with pytest.raises(UnknownName, match="no run 'nowhere'"):
            await verb()


async def test_dead_letters_are_empty_at_first(client: Client) -> None:
    assert await client.dead_letters() == []
    assert await client.discard(["nothing"]) == 0


async def test_a_payload_with_line_breaks_crosses_the_wire(client: Client) -> None:
    handle = await client.start(client_ask, "line one\nline two\u2028")
    await handle.signal("answer", "a\nb")
    assert await handle.result() == "line one\nline two\u2028 a\nb"


# -- owners come and go ---------------------------------------------------------------------------------------------


async def test_a_waiting_client_takes_over_when_the_owner_ends(state_file: Path) -> None:
    owner = Client.local(state_file)
    await owner.__aenter__()
    async with Client.local(state_file) as other:
        handle = await other.start(client_ask, "why?", id="inherited")
        await until(handle, "waiting")
        waiting = asyncio.create_task(handle.result())

        async def watch() -> list[str]:
            return [happening.status async for happening in handle.events()]

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await owner.__aexit__(None, None, None)
        await handle.signal("answer", "because")
        assert await waiting == "why? because"
        assert (await watching)[-1] == "completed"
        assert other.attachment.hosted


async def test_only_one_of_many_clients_takes_over(state_file: Path) -> None:
    owner = Client.local(state_file)
    await owner.__aenter__()
    others = [Client.local(state_file) for _ in range(5)]
    for other in others:
        await other.__aenter__()
    handles = [await other.start(client_ask, str(number)) for number, other in enumerate(others)]
    await owner.__aexit__(None, None, None)
    for handle in handles:
        await handle.signal("answer", "ok")
    assert await asyncio.gather(*(handle.result() for handle in handles)) == [f"{number} ok" for number in range(5)]
    assert sum(other.attachment.hosted for other in others) == 1
    # The new owner must go last, or its leaving is one more take-over.
    for other in sorted(others, key=lambda o: o.attachment.hosted):
        await other.__aexit__(None, None, None)


async def test_an_unfinished_run_goes_on_with_the_next_client(state_file: Path) -> None:
    async with Client.local(state_file) as client:
        handle = await client.start(client_ask, "why?", id="later")
        await until(handle, "waiting")
    async with Client.local(state_file) as client:
        again: Handle[str] = client.handle("later")
        await again.signal("answer", "now")
        assert await again.result() == "why? now"


async def test_observing_reads_without_an_owner_and_changes_nothing(state_file: Path) -> None:
    async with Client(Client.local(state_file).settings, mode="observe") as observer:
        assert await observer.runs() == []
        with pytest.raises(UnknownName):
            await observer.get("x")
    assert not state_file.exists()  # noqa: ASYNC240
    async with Client.local(state_file) as client:
        handle = await client.start(client_ask, "why?", id="seen")
        await until(handle, "waiting")
    async with Client(client.settings, mode="observe") as observer:
        assert [run.id for run in await observer.runs()] == ["seen"]
        with pytest.raises(Conflict, match="only read"):
            await observer.handle("seen").cancel()


async def test_control_changes_runs_without_executing_tasks(state_file: Path) -> None:
    settings = Client.local(state_file).settings
    async with Client(settings, mode="control") as control:
        handle = await control.start(client_sum, Point(x=1, y=1), id="held")
        assert await handle.status() == "running"
    async with Client(settings, mode="observe") as observer:
        assert (await observer.get("held")).status == "running"
    async with Client(settings) as client:
        assert await client.handle("held", client_sum).result() == {"total": 2}


async def test_a_file_that_is_no_state_file_is_refused(state_file: Path) -> None:
    state_file.write_text("this is not a database, and long enough to tell" * 100)  # noqa: ASYNC240
    with pytest.raises(StateUnusable, match="is not a state file"):
        async with Client.local(state_file):
            pass


async def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    async with Client.local(tmp_path / "what? 100% #1 ü" / "state.db") as client:
        assert await client.run(client_sum, Point(x=1)) == {"total": 1}
        assert len(await client.runs()) == 1


async def test_what_is_no_workflow_is_refused(client: Client) -> None:
    with pytest.raises(InvalidData, match="is not a workflow"):
        await client.start(client_add, 1, 2)  # type: ignore[arg-type]


def test_a_client_that_is_not_open_says_so(state_file: Path) -> None:
    with pytest.raises(RuntimeError, match="not open"):
        _ = Client.local(state_file).attachment
