"""Calls that may wait: bought in batches at half the price, each once, and answered by their deadlines whatever the provider does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.batch_world import HOUR, Step, World
from tests.unit.test_inference_router import user
from ziggurat.errors import Deferred
from ziggurat.inference.backends.shelf_sqlite import SqliteShelf
from ziggurat.program.context import attempting
from ziggurat.telemetry.catalogue import BATCH_CALLS, BATCHES
from ziggurat.testing.batches import _error


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path) as made:
        yield made


def step(world: World, name: str = "r", hours: float = 6.0, **more: Any) -> Step:
    return Step(name, due=world.now + hours * HOUR, **more)


async def test_calls_of_many_runs_go_into_one_batch_at_half_the_price(world: World) -> None:
    world.upstream.batches.takes = 1200.0
    steps = [step(world, f"r{n}") for n in range(5)]
    await world.run(world.process(), *steps)
    (batch,) = world.upstream.batches.made.values()
    assert len(world.upstream.batches.lines_of(batch)) == 5
    assert world.upstream.requests == 0, "nothing was bought at the full price"
    for one in steps:
        assert one.answer is not None
        (call,) = one.calls.values()
        assert call.usage.cost_usd == pytest.approx(0.5 * (call.usage.input_tokens + call.usage.output_tokens) / 1000.0)
        assert (call.status, call.price_version, one.answer.call) == ("ok", "settings batch", call)
    assert BATCH_CALLS.labels("up", "answered").value >= 5
    assert BATCHES.labels("up", "completed").value >= 1


async def test_what_a_call_waits_for_is_said(world: World) -> None:
    world.upstream.batches.takes = 3000.0
    one = step(world)
    await world.run(world.process(), one)
    assert one.waits[0] == "It waits for a batch of up:m that fills, answered within 6h."
    assert any("the batch batch-2 of up:m" in waits for waits in one.waits)


async def test_a_full_batch_is_sent_at_once_and_a_single_call_after_the_window(tmp_path: Path) -> None:
    async with World(tmp_path, lines=3) as world:
        process, began = world.process(), world.now
        for n in range(3):
            await world.attempt(process, step(world, f"r{n}"))
        assert [batch["created_at"] for batch in world.upstream.batches.made.values()] == [int(began)]
        alone = step(world, "alone")
        await world.run(process, alone)
        assert list(world.upstream.batches.made.values())[-1]["created_at"] >= began + world.options.window


async def test_a_call_with_too_little_time_is_made_at_once(world: World) -> None:
    one = step(world, hours=0.9)
    await world.run(world.process(), one)
    assert (one.waits, world.upstream.requests, world.upstream.batches.made) == ([], 1, {})


async def test_a_call_leaves_a_batch_that_takes_too_long_and_is_made_at_once_in_time(world: World) -> None:
    world.upstream.batches.takes = None
    one = step(world)
    await world.run(world.process(), one)
    (batch,) = world.upstream.batches.made.values()
    assert batch["status"] == "cancelled"
    assert one.due - world.options.margin <= one.answered_at <= one.due - world.options.margin / 3
    assert (world.upstream.requests, sum(world.upstream.batches.answered.values())) == (1, 0), "bought once"
    (call,) = one.calls.values()
    assert call.price_version == "settings"


async def test_what_a_cancelled_batch_has_answered_is_taken(world: World) -> None:
    world.upstream.batches.takes = None
    world.upstream.batches.cancel_share = 0.5
    steps = [step(world, f"r{n}") for n in range(4)]
    await world.run(world.process(), *steps)
    assert (sum(world.upstream.batches.answered.values()), world.upstream.requests) == (2, 2)


async def test_a_cancellation_that_is_too_slow_is_not_waited_for_and_what_it_may_cost_is_written_down(world: World) -> None:
    world.upstream.batches.takes = None
    world.upstream.batches.cancel_takes = 10 * HOUR
    one = step(world)
    await world.run(world.process(), one)
    assert one.answered_at <= one.due
    statuses = sorted(call.status for call in one.calls.values())
    assert statuses == ["ok", "unanswered"]
    (maybe,) = (call for call in one.calls.values() if call.status == "unanswered")
    assert maybe.held_usd > 0 == maybe.usage.cost_usd


async def test_neighbours_of_a_call_that_leaves_go_into_another_batch(world: World) -> None:
    world.upstream.batches.takes = None
    soon, later = step(world, "soon", hours=4.1), step(world, "later", hours=7.9)
    process = world.process()
    for one in (soon, later):
        await world.attempt(process, one)
    await world.run(process, soon)
    world.upstream.batches.takes = 60.0
    await world.run(process, later)
    assert later.answered_at < later.due - world.options.margin
    assert [batch["status"] for batch in world.upstream.batches.made.values()] == ["cancelled", "completed"]
    assert (world.upstream.requests, sum(world.upstream.batches.answered.values())) == (1, 1)


@pytest.mark.parametrize("how", ["expired", "failed"])
async def test_calls_of_a_batch_that_came_to_nothing_are_made_at_once(world: World, how: str) -> None:
    world.upstream.batches.takes, world.upstream.batches.ends = 600.0, how
    world.upstream.batches.share = 0.5 if how == "expired" else 0.0
    steps = [step(world, f"r{n}") for n in range(4)]
    await world.run(world.process(), *steps)
    done = sum(world.upstream.batches.answered.values())
    assert (done, world.upstream.requests) == ((2, 2) if how == "expired" else (0, 4))
    assert all(one.answered_at < one.due - HOUR for one in steps)


async def test_a_line_that_fails_is_made_as_any_other_call(world: World) -> None:
    failing = step(world, "failing", text="fault:rejected")
    fine = step(world, "fine")
    desk = world.upstream.batches
    plain = desk._answer
    desk._answer = lambda body: (400, {"error": {"message": "no"}}) if "fault" in str(body) else plain(body)
    await world.run(world.process(), failing, fine)
    assert (sum(desk.answered.values()), world.upstream.requests) == (1, 1)
    assert failing.answer is not None


@pytest.mark.parametrize(
    ("faults", "made"),
    [
        ({"create": ["made"]}, 1),
        ({"create": ["cut"]}, 1),
        ({"create": ["made"], "list": ["fails", "fails"]}, 1),
        ({"create": ["fails"]}, 1),
        ({"create": ["limited", "limited"]}, 1),
        ({"upload": ["cut"]}, 1),
        ({"upload": ["fails", "limited"]}, 1),
        ({"look": ["fails", "cut", "limited"]}, 1),
        ({"content": ["fails", "cut"]}, 1),
    ],
    ids=str,
)
async def test_faults_of_the_provider_buy_nothing_twice(world: World, faults: dict[str, list[str]], made: int) -> None:
    world.upstream.batches.takes = 600.0
    world.upstream.batches.faults = faults
    steps = [step(world, f"r{n}") for n in range(3)]
    await world.run(world.process(), *steps)
    assert not any(faults.values()), "every fault was met"
    assert len(world.upstream.batches.made) == made
    assert set(world.upstream.batches.bought.values()) == {1}
    assert world.upstream.requests == 0
    assert all(one.answered_at < one.due - HOUR for one in steps)


async def test_an_endpoint_without_batches_answers_at_once(world: World) -> None:
    desk = world.upstream.batches
    do = desk._do

    async def refuse(request: Any, verb: str, act: Any) -> Any:
        return _error(404, "Not found.") if verb == "upload" else await do(request, verb, act)

    desk._do = refuse  # type: ignore[method-assign]
    one = step(world)
    await world.run(world.process(), one)
    assert (world.upstream.requests, desk.made) == (1, {})
    assert one.answered_at < one.due - HOUR


async def test_every_process_finds_the_line_again(world: World) -> None:
    world.upstream.batches.takes = 600.0
    one = step(world)
    processes = [world.process() for _ in range(3)]
    for turn in range(100):
        world.clock.advance(max(0.0, one.at - world.now))
        if await world.attempt(processes[turn % 3], one):
            break
    assert one.answer is not None
    assert set(world.upstream.batches.bought.values()) == {1}


async def test_a_message_that_is_delivered_twice_takes_the_same_answer_under_the_same_bill(world: World) -> None:
    one = step(world)
    process = world.process()
    await world.run(process, one)
    again = Step("r", due=one.due)
    again.number, again.deferred = one.number, one.deferred
    process.answers = None
    await world.attempt(world.process(), again)
    assert again.calls == one.calls


async def test_an_attempt_after_one_that_failed_asks_anew(world: World) -> None:
    process, one = world.process(), step(world)
    await world.run(process, one)
    one.number, one.deferred, first = one.number + 1, 0, one.calls
    one.calls = {}
    await world.run(process, one)
    assert not set(first) & set(one.calls)
    assert sorted(world.upstream.batches.bought.values()) == [1, 1]


async def test_a_task_that_waits_takes_from_the_journal_what_it_had_bought(world: World) -> None:
    world.upstream.batches.takes = 600.0
    process, one = world.process(), step(world, task="mine")
    bought: list[str] = []

    async def body() -> str:
        first = await process.complete(user("now"))
        bought.append(first.text)
        second, third = await asyncio.gather(*(process.complete(user(text, due=one.due)) for text in ("a", "b")))
        return second.text + third.text

    while True:
        try:
            with attempting(one.attempt()):
                await body()
            break
        except Deferred as wait:
            one.number, one.deferred = one.number + 1, one.deferred + 1
            world.clock.advance(wait.retry_after)
    assert len(bought) > 1 == world.upstream.requests
    (batch,) = world.upstream.batches.made.values()
    assert len(world.upstream.batches.lines_of(batch)) == 2, "calls side by side are in one batch"


async def test_without_a_journal_a_task_does_not_wait(world: World) -> None:
    process, one = world.process(), step(world, task="mine")
    process.answers = None
    await world.run(process, one)
    assert (one.waits, world.upstream.requests) == ([], 1)


async def test_outside_of_runs_a_call_waits_where_it_is(world: World) -> None:
    world.upstream.batches.takes = 600.0
    process = world.process()
    answers = await asyncio.gather(*(process.complete(user(f"q{n}", due=world.now + 6 * HOUR)) for n in range(3)))
    assert len({answer.call.id for answer in answers if answer.call is not None}) == 3
    assert world.upstream.requests == 0
    assert {call.id for call in process.ledger} == {answer.call.id for answer in answers if answer.call is not None}


async def test_a_call_that_nobody_waits_for_any_more_is_not_bought(world: World) -> None:
    process = world.process()
    gone, stays = step(world, "gone"), step(world, "stays")
    for one in (gone, stays):
        await world.attempt(process, one)
    assert process.lanes is not None
    await process.lanes.drop("gone~0.1")
    await world.run(process, stays)
    (batch,) = world.upstream.batches.made.values()
    assert len(world.upstream.batches.lines_of(batch)) == 1


async def test_a_batch_that_nobody_waits_for_any_more_is_cancelled_and_its_answers_are_billed(world: World) -> None:
    desk = world.upstream.batches
    desk.takes, desk.cancel_share = None, 0.5
    process = world.process()
    gone = [step(world, f"gone{n}") for n in range(2)]
    for one in gone:
        await world.attempt(process, one)
    world.clock.advance(world.options.window)
    for one in gone:
        await world.attempt(process, one)
    assert process.lanes is not None
    await process.lanes.drop("gone0~0.1")
    assert [batch["status"] for batch in desk.made.values()] == ["in_progress"]
    await process.lanes.drop("gone1~0.1")
    assert [batch["status"] for batch in desk.made.values()] == ["cancelling"]
    # Whoever comes next brings in what is left behind.
    world.clock.advance(2 * HOUR)
    desk.takes = 60.0
    await world.run(process, step(world, "other"))
    billed = [call for call in process.ledger if call.id in desk.bought and desk.answered[call.id]]
    assert len(billed) == 2, "the one that was answered before its batch was cancelled, and the other run's"


async def test_a_shelf_that_cannot_be_reached_is_waited_for_and_not_bought_around(world: World, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    one = step(world)
    await world.run(world.process(SqliteShelf(blocked / "batches.db")), one)
    assert "cannot be used" in one.waits[0]
    assert one.due - world.options.margin <= one.answered_at <= one.due
    assert world.upstream.requests == 1


async def test_an_answer_that_nobody_takes_is_in_the_ledger(world: World) -> None:
    gone, other = step(world, "gone"), step(world, "other")
    process = world.process()
    for one in (gone, other):
        await world.attempt(process, one)
    await world.run(process, other)
    assert len(process.ledger) == 1
    world.clock.advance(7 * HOUR)
    await world.run(process, step(world, "another"))
    billed = [call.id for call in process.ledger]
    assert len(billed) == len(set(billed)) == 3
