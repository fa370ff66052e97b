"""Budgets: reserved before a call, settled after it, over trees of runs; a spent one parks, a larger one resumes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_inference_router import Attempt
from ziggurat import Client, RunParked, llm, task, workflow
from ziggurat.clock import Clock
from ziggurat.errors import BudgetExceeded, ConfigurationError, EndpointUnreachable, InferenceError, RateLimited
from ziggurat.inference.backends.scripted import Behaviour, Reply, create
from ziggurat.inference.interface import EndpointConfig, ModelConfig, Price
from ziggurat.inference.ledger import Attribution, attributing, costs, day_of
from ziggurat.inference.limits import budgets as waiting
from ziggurat.inference.limits.budgets import BudgetOptions
from ziggurat.inference.limits.caller import Caller, calling
from ziggurat.inference.retrying import RetryOptions
from ziggurat.inference.router import Router
from ziggurat.program.context import TaskInfo, attempting, current_attempt
from ziggurat.program.llm import ModelCaller, use_models
from ziggurat.records import Allowance, CallRecord, ChatMessage, Chunk, Completion, Prompt, Usage
from ziggurat.testing import FakeClock


class Dear(ModelCaller):
    """Every call costs a cent."""

    def __init__(self) -> None:
        self.calls = 0

    async def complete(self, prompt: Prompt) -> Completion:
        self.calls += 1
        usage = Usage(calls=1, input_tokens=10, output_tokens=5, cost_usd=0.01)
        call = CallRecord(id=f"call-{self.calls}", model=prompt.model, endpoint="e", upstream="u", usage=usage)
        attempt = current_attempt()
        assert attempt is not None
        attempt.record_call(call)
        return Completion(text="ok", usage=usage, call=call)

    async def stream(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        yield Chunk(text="ok", finish="stop")


@workflow(budget="$0.02")
async def three_calls() -> int:
    for _ in range(3):
        await llm.text("hello")
    return 3


async def test_a_spent_budget_parks_and_a_larger_one_resumes(tmp_path: Path) -> None:
    models = Dear()
    async with Client.local(tmp_path / "state.db") as client:
        use_models(models)
        handle = await client.start(three_calls)
        with pytest.raises(RunParked, match=r"has spent .* of its budget"):
            await handle.result(20)
        assert models.calls == 2
        with pytest.raises(ConfigurationError):
            await handle.resume(budget="much")
        await handle.resume(budget="+$0.05")
        assert await handle.result(20) == 3
        assert models.calls == 3
        assert (await handle.info()).usage.cost_usd == pytest.approx(0.03)


# -- reserve and settle ----------------------------------------------------------------------------------------------


def router(
    behaviour: Behaviour | None = None,
    *,
    budgets: BudgetOptions | None = None,
    cheap: float = 1.0,
    clock: Clock | None = None,
    **options: Any,
) -> Router:
    """Models that cost $10 for a thousand tokens, and a cheap one, with a record of their calls."""
    endpoint = create(EndpointConfig(name="s", kind="scripted", options={"models": ["m", "c"], **options}), behaviour)
    price, low = Price(input=10_000, output=10_000), Price(input=cheap, output=cheap)
    models = {"default": ModelConfig(routes=["s:m"], price=price), "cheap": ModelConfig(routes=["s:c"], price=low)}
    return Router({"s": endpoint}, models, budgets=budgets, ledger=RECORDS.append, seed=1, clock=clock)


RECORDS: list[CallRecord] = []

#: Each level at which a budget holds, with what the settings say of it, for the same limit in dollars.
LIMIT = 4.0
LEVELS = [
    ("run", BudgetOptions()),
    ("step", BudgetOptions(step=LIMIT)),
    ("workflow", BudgetOptions(workflows={"w": LIMIT})),
    ("tenant", BudgetOptions(tenants={"acme": LIMIT})),
    ("day", BudgetOptions(day=LIMIT)),
    ("all", BudgetOptions(call=LIMIT, step=LIMIT, workflows={"w": LIMIT}, tenants={"*": LIMIT}, day=LIMIT)),
]


def ask(content: str = "hi", **more: Any) -> Prompt:
    return Prompt(messages=[ChatMessage(role="user", content=content)], **more)


def spends(*, limit: float, spent: float = 0.0) -> Any:
    """Make calls that draw on the budget of a run."""
    return calling(Caller(budgets=(Allowance("run:r", limit, spent),)))


async def test_a_call_that_would_pass_the_limit_is_not_made() -> None:
    models = router()
    with (
        spends(limit=0.04),
        pytest.raises(BudgetExceeded, match=r"has been spent of the budget of the run r\. Resume it") as caught,
    ):
        await models.complete(ask(max_tokens=50))
    assert (caught.value.run_id, caught.value.budget) == ("r", "run:r")
    with spends(limit=1.0):
        await models.complete(ask(max_tokens=50))
    spent, reserved = models.keeper.store.purse("run:r")
    assert spent == pytest.approx(RECORDS[-1].usage.cost_usd)
    assert reserved == 0.0
    # What the history knows counts although the store has never seen it.
    with spends(limit=1.0, spent=0.99), pytest.raises(BudgetExceeded):
        await models.complete(ask(max_tokens=50))


@pytest.mark.parametrize("bounded", [True, False])
async def test_many_calls_at_once_overshoot_by_one_estimates_error_at_most(bounded: bool) -> None:
    chance = random.Random(7)

    def answers(prompt: Prompt, asked: int) -> Reply:
        return Reply(text="word " * chance.randint(1, 120), first_token=0.001)

    models = router(answers)
    RECORDS.clear()
    refused = 0

    async def call() -> None:
        nonlocal refused
        try:
            await models.complete(ask(max_tokens=60 if bounded else None))
        except BudgetExceeded:
            refused += 1

    limit = 6.0
    with spends(limit=limit):
        await asyncio.gather(*(call() for _ in range(60)))
    spent = sum(record.usage.cost_usd for record in RECORDS)
    assert refused
    assert spent > 0.5 * limit
    dearest = max(record.usage.cost_usd for record in RECORDS)
    assert spent <= limit + (0.0 if bounded else dearest) + 1e-9
    assert models.keeper.store.purse("run:r") == pytest.approx((spent, 0.0))


async def test_a_budget_past_its_soft_share_asks_the_cheaper_model() -> None:
    models = router(budgets=BudgetOptions(soft=0.5, downgrade="cheap"))
    RECORDS.clear()
    with spends(limit=3.0):
        for _ in range(12):
            await models.complete(ask(max_tokens=20))
    upstreams = [record.upstream for record in RECORDS]
    assert upstreams == sorted(upstreams, reverse=True)
    assert {"m", "c"} == set(upstreams)
    assert {record.model for record in RECORDS} == {"default"}
    with spends(limit=3.0, spent=2.0):
        chunks = [chunk async for chunk in models.stream(ask(max_tokens=20))]
    assert chunks[-1].usage is not None
    assert RECORDS[-1].upstream == "c"


@pytest.mark.parametrize(
    ("budgets", "said", "named"),
    [
        (BudgetOptions(call=0.1), "for one call", "call"),
        (BudgetOptions(day=0.5), "the day's budget. A new day begins", "day"),
        (BudgetOptions(workflows={"w": 0.5}), "the day's budget of the workflow 'w'", "workflow:w"),
        (BudgetOptions(tenants={"*": 0.5}), "the day's budget of the tenant 'acme'", "tenant:acme"),
    ],
)
async def test_limits_of_the_settings(budgets: BudgetOptions, said: str, named: str) -> None:
    models = router(budgets=budgets)
    with attributing(Attribution(workflow="w", namespace="acme")), pytest.raises(BudgetExceeded, match=said) as caught:
        await models.complete(ask(max_tokens=60))
    assert (caught.value.run_id, caught.value.budget) == ("", named)
    free = router(budgets=budgets, cheap=0.0)
    await free.complete(ask(model="cheap"))


async def spent_by(models: Router, attempt: Attempt, calls: int) -> int:
    """Make so many calls in an attempt; returns how many were made before the money was gone."""
    by = Attribution(run="r", workflow="w", step=attempt.info.step, attempt=attempt.info.attempt)
    with attempting(attempt), attributing(by):
        for number in range(calls):
            try:
                await models.complete(ask(max_tokens=10))
            except BudgetExceeded:
                return number
    return calls


def of_step(step: int, attempt: int = 1) -> Attempt:
    made = Attempt()
    made.info = TaskInfo(task="t", run="r", workflow="w", step=step, attempt=attempt, idempotency_key=f"r~0.{step}")
    return made


async def test_a_step_spends_its_budget_over_all_its_attempts_and_another_has_its_own() -> None:
    models = router(lambda prompt, asked: Reply(text="word " * 10), budgets=BudgetOptions(step=0.6))
    RECORDS.clear()
    first = await spent_by(models, of_step(1), 2)
    assert first == 2
    second = await spent_by(models, of_step(1, attempt=2), 20)
    assert 0 < second < 20
    with (
        attempting(of_step(1, attempt=3)),
        attributing(Attribution(run="r", step=1)),
        pytest.raises(
            BudgetExceeded, match=r"of the budget of a step\. Raise step in \[inference\.budgets\], and resume the run\."
        ),
    ):
        await models.complete(ask(max_tokens=10))
    assert sum(record.usage.cost_usd for record in RECORDS) <= 0.6
    assert await spent_by(models, of_step(2), 2) == 2


@pytest.mark.parametrize(("level", "budgets"), LEVELS, ids=[level for level, _ in LEVELS])
@given(
    words=st.lists(st.integers(0, 150), min_size=5, max_size=25),
    bounded=st.booleans(),
    at_once=st.integers(1, 8),
    unanswered=st.sets(st.integers(0, 24), max_size=3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_level_is_overspent_by_more_than_the_error_of_one_estimate(
    level: str,
    budgets: BudgetOptions,
    words: list[int],
    bounded: bool,
    at_once: int,
    unanswered: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever answers come, whichever are never answered, and however many calls are made at a time."""
    # Calls that wait for others to settle ask again at once.
    monkeypatch.setattr(waiting, "ASK_AGAIN", 0.0)
    monkeypatch.setattr(waiting, "ASK_AGAIN_MOST", 0.0)
    asyncio.run(overspends(level, budgets, words, bounded, at_once, unanswered))


async def overspends(
    level: str, budgets: BudgetOptions, words: list[int], bounded: bool, at_once: int, unanswered: set[int]
) -> None:
    def answers(prompt: Prompt, asked: int) -> Reply:
        number = int(str(prompt.messages[-1].content))
        if number in unanswered:
            error = EndpointUnreachable("It was sent and not answered.", endpoint="s")
            error.sent = True
            raise error
        return Reply(text="word " * words[number])

    # A day that ends on the way would be two budgets.
    models = router(answers, budgets=budgets, clock=FakeClock())
    models.options = RetryOptions(attempts=1)
    RECORDS.clear()
    turns, refused = asyncio.Semaphore(at_once), 0

    async def call(number: int) -> None:
        nonlocal refused
        async with turns:
            try:
                await models.complete(ask(str(number), max_tokens=160 if bounded else None))
            except BudgetExceeded:
                refused += 1
            except InferenceError:
                assert number in unanswered

    run = Caller(budgets=(Allowance("run:r", LIMIT, 0.0),) if level == "run" else ())
    step = of_step(1) if level == "step" else of_step(0)
    with calling(run), attempting(step), attributing(Attribution(namespace="acme", workflow="w", run="r", step=step.info.step)):
        await asyncio.gather(*(call(number) for number in range(len(words))))
    spent = sum(record.usage.cost_usd + record.held_usd for record in RECORDS)
    # The last call may turn out dearer than was likely; never a second one.
    dearest = max((record.usage.cost_usd for record in RECORDS), default=0.0)
    assert spent <= LIMIT + dearest + 1e-9
    # What was paid was recorded, and no reservation is left.
    for key in (
        "run:r",
        "step:r~0.1",
        *(f"{kind}:{day_of(models.clock.time())}" for kind in ("workflow:w", "tenant:acme", "day:")),
    ):
        known, reserved = models.keeper.store.purse(key)
        assert reserved == pytest.approx(0.0)
        assert known in (0.0, pytest.approx(spent))
    # A call that was not answered may have been billed: its estimate is held.
    assert [record.held_usd > 0 for record in RECORDS] == [record.status == "unanswered" for record in RECORDS]
    if not refused:
        assert len(RECORDS) == len(words)


async def test_what_was_not_billed_is_given_back_and_what_may_have_been_is_held() -> None:
    models = router(faults={"rate_limited": 1.0})
    models.options = RetryOptions(attempts=1, limited_attempts=1)
    with spends(limit=1.0), pytest.raises(RateLimited):
        await models.complete(ask(max_tokens=10))
    assert models.keeper.store.purse("run:r") == (0.0, 0.0)
    slow = router(latency=30.0)
    RECORDS.clear()
    with spends(limit=1.0), pytest.raises(InferenceError):
        await slow.complete(ask(max_tokens=10, timeout=1.0))
    [record] = RECORDS
    assert record.status == "unanswered"
    assert record.held_usd > 0.1
    assert slow.keeper.store.purse("run:r") == pytest.approx((record.held_usd, 0.0))


# -- trees of runs ---------------------------------------------------------------------------------------------------


@task
async def buys(number: int) -> str:
    return await llm.text(f"item {number}", max_tokens=20)


@workflow
async def child(number: int) -> str:
    return await buys(number) + await buys(number + 1)


@workflow(budget="$2.00")
async def parent() -> int:
    answers = await asyncio.gather(*(child(number * 10) for number in range(4)))
    return len(answers)


async def test_children_draw_on_their_parents_budget_and_the_tree_parks_and_resumes(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    models = router(lambda prompt, asked: Reply(text="word " * 20))
    RECORDS.clear()
    async with Client.local(state) as client:
        use_models(models)
        handle = await client.start(parent)
        with pytest.raises(RunParked, match=rf"spent of the budget of the run {handle.id}|has spent") as caught:
            await handle.result(20)
        assert f"ziggurat resume {handle.id} --budget" in str(caught.value)
        found = await handle.info()
        assert found.status == "parked" and found.error is not None
        assert (found.error.run_id, found.error.budget) == (handle.id, f"run:{handle.id}")
        bought = len([r for r in RECORDS if r.usage.calls])
        assert 0 < bought < 8
        assert sum(r.usage.cost_usd for r in RECORDS) <= 2.0
        await handle.resume(budget="+$1000")
        assert await handle.result(20) == 4
        total = (await handle.info()).usage
        assert total.calls == 8
    assert len([r for r in RECORDS if r.usage.calls]) == 8
    rows = costs([state], ("workflow",))
    assert [(r.group, r.calls) for r in rows] == [(("child",), 8)]
    assert rows[0].cost_usd == pytest.approx(total.cost_usd) == pytest.approx(sum(r.usage.cost_usd for r in RECORDS))


@task
async def buys_many() -> int:
    for number in range(50):
        await llm.text(f"item {number}", max_tokens=20)
    return 50


@workflow(budget="$2.00")
async def one_long_task() -> int:
    return await buys_many()


async def test_a_task_that_runs_out_of_money_on_the_way_parks_its_run_and_its_calls_are_in_the_ledger(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    models = router(lambda prompt, asked: Reply(text="word " * 20))
    RECORDS.clear()
    async with Client.local(state) as client:
        use_models(models)
        handle = await client.start(one_long_task)
        with pytest.raises(RunParked, match="spent of the budget of the run"):
            await handle.result(20)
        spent = (await handle.info()).usage.cost_usd
        assert 1.5 < spent <= 2.0
        assert costs([state], ())[0].cost_usd == pytest.approx(spent)
        history = await handle.history()
        assert [e.detail for e in history if e.kind == "attempt_failed"] == ["budget"]
        await handle.resume(budget="$100")
        assert await handle.result(20) == 50
        assert [e.attempt for e in await handle.history() if e.kind == "step_completed"] == [2]
