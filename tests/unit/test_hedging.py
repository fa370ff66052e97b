"""Hedges: sent when a call takes long, to another place, seldom; the loser is closed upstream and recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_inference_router import Attempt, collect, user
from ziggurat.errors import EndpointFailed, InferenceError, OutputRefused, RateLimited
from ziggurat.inference import admission
from ziggurat.inference.backends.scripted import Reply, Script, ScriptedEndpoint
from ziggurat.inference.hedging import ENOUGH, REMEMBERED, Tail
from ziggurat.inference.interface import EndpointConfig, Limits, ModelConfig, Price
from ziggurat.inference.limits.budgets import BudgetOptions
from ziggurat.inference.limits.caller import Caller, calling
from ziggurat.inference.replicas import Replicated
from ziggurat.inference.retrying import RetryOptions
from ziggurat.inference.router import Router
from ziggurat.program.context import attempting
from ziggurat.records import Allowance, CallRecord, Chunk, Completion, Prompt
from ziggurat.testing.clock import FakeClock


class Server(ScriptedEndpoint):
    """Answers at once, or when it is let: `held` keeps the next calls until `release`. `error` is raised instead."""

    def __init__(self, name: str, **config: Any) -> None:
        prices = {"m": Price(input=1.0, output=1.0)}
        super().__init__(
            EndpointConfig(name=name, prices=prices, **config), Script(behaviour=lambda p, n: Reply(text="one two three"))
        )
        self.held = False
        self.release = asyncio.Event()
        self.error: InferenceError | None = None
        self.began = self.closed = 0

    async def _turn(self) -> None:
        self.began += 1
        try:
            if self.held:
                await self.release.wait()
        except asyncio.CancelledError:
            self.closed += 1
            raise
        if self.error is not None:
            raise self.error

    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        await self._turn()
        return await super().complete(prompt, upstream)

    async def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        await self._turn()
        async for chunk in super().stream(prompt, upstream):
            yield chunk


def looked_up(models: Router, *names: str) -> None:
    """Look the prices of models up now, so that no thread decides when an attempt begins."""
    for route in [route for name in names for route in models._table.of(name)]:
        assert route.tariff.version


class World:
    """A router over two servers, and a clock that the test moves."""

    def __init__(self, *servers: Server, hedge: Any = 2.0, budgets: BudgetOptions | None = None, **model: Any) -> None:
        self.clock, self.journal = FakeClock(), list[CallRecord]()
        self.servers = servers or (Server("a"), Server("b"))
        model = {"hedge_budget": 1.0, **model}
        self.models = Router(
            {s.name: s for s in self.servers},
            {"default": ModelConfig(routes=[f"{s.name}:m" for s in self.servers], hedge=hedge, **model)},
            ledger=self.journal.append,
            options=RetryOptions(budget_floor=1000),
            clock=self.clock,
            budgets=budgets,
            seed=1,
        )
        looked_up(self.models, "default", *(f"{s.name}:m" for s in self.servers))

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    def ask(self, streamed: bool = False) -> asyncio.Task[str]:
        async def call() -> str:
            if streamed:
                return "".join(chunk.text for chunk in await collect(self.models, user(max_tokens=100)))
            return (await self.models.complete(user(max_tokens=100))).text

        return asyncio.create_task(call())

    async def slow_call(self, streamed: bool = False, after: float = 2.0) -> asyncio.Task[str]:
        """Begin a call whose first attempt hangs at the first server until `after` has passed."""
        self.servers[0].held = True
        call = self.ask(streamed)
        await self.settle()
        self.clock.advance(after)
        await self.settle()
        return call

    def statuses(self) -> list[tuple[str, str, bool]]:
        return [(call.endpoint, call.status, call.hedge) for call in self.journal]


both = pytest.mark.parametrize("streamed", [False, True])


@both
async def test_a_quick_answer_is_not_hedged(streamed: bool) -> None:
    world = World()
    assert await world.ask(streamed) == "one two three"
    assert world.statuses() == [("a", "ok", False)]


@both
async def test_a_slow_call_is_answered_by_the_next_route_and_the_first_request_is_closed_and_recorded(streamed: bool) -> None:
    world = World()
    attempt = Attempt()
    with attempting(attempt):
        call = await world.slow_call(streamed, after=1.9)
        assert world.servers[1].began == 0
        world.clock.advance(0.1)
        assert await call == "one two three"
    assert sorted(world.statuses()) == [("a", "unanswered", False), ("b", "ok", True)]
    assert (world.servers[0].began, world.servers[0].closed) == (1, 1)
    lost = next(record for record in world.journal if record.status == "unanswered")
    assert lost.held_usd > 0 and lost.usage.cost_usd == 0
    assert {record.id for record in attempt.calls} == {record.id for record in world.journal}, "the step's account has both"
    assert all(route.in_flight == 0 for route in world.models.routes("default"))


@both
async def test_if_the_first_request_is_answered_first_the_hedge_is_closed(streamed: bool) -> None:
    world = World()
    world.servers[1].held = True
    call = await world.slow_call(streamed)
    assert world.servers[1].began == 1 and not call.done()
    world.servers[0].release.set()
    assert await call == "one two three"
    assert sorted(world.statuses()) == [("a", "ok", False), ("b", "unanswered", True)]
    assert world.servers[1].closed == 1


@both
async def test_a_hedge_that_fails_costs_the_call_nothing(streamed: bool) -> None:
    world = World()
    world.servers[1].error = EndpointFailed("failed (500).", endpoint="b")
    call = await world.slow_call(streamed)
    assert not call.done()
    world.servers[0].release.set()
    assert await call == "one two three"


@both
async def test_if_the_first_fails_while_the_hedge_is_under_way_the_hedge_is_waited_for(streamed: bool) -> None:
    world = World()
    world.servers[1].held = True
    world.servers[0].error = EndpointFailed("failed (500).", endpoint="a")
    call = await world.slow_call(streamed)
    world.servers[0].release.set()
    await world.settle()
    assert not call.done()
    world.servers[1].release.set()
    assert await call == "one two three"
    assert world.servers[0].began == 1, "nothing was tried again"


@both
async def test_if_both_fail_the_call_goes_on_as_after_any_failure(streamed: bool) -> None:
    world = World()
    world.servers[0].error = RateLimited("limits (429).", endpoint="a", retry_after=1000.0)
    world.servers[1].held = True
    world.servers[1].error = EndpointFailed("failed (500).", endpoint="b")
    call = await world.slow_call(streamed)
    for server in world.servers:
        server.release.set()
    await world.settle()
    world.servers[1].error = None
    world.clock.advance(1.0)
    assert await call == "one two three"
    assert world.statuses()[-1][:2] == ("b", "ok")


async def test_a_refusal_is_an_answer_and_no_reason_to_wait_for_another() -> None:
    world = World()
    world.servers[0].error = OutputRefused("declined.", endpoint="a")
    world.servers[1].held = True
    call = await world.slow_call(True)
    world.servers[0].release.set()
    with pytest.raises(OutputRefused):
        await call
    assert world.servers[1].closed == 1


@both
async def test_a_caller_that_goes_away_closes_both(streamed: bool) -> None:
    world = World()
    world.servers[1].held = True
    call = await world.slow_call(streamed)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [server.closed for server in world.servers] == [1, 1]
    assert {status for _, status, _ in world.statuses()} == {"unanswered"}
    assert all(route.in_flight == 0 for route in world.models.routes("default"))


async def test_a_stream_is_not_hedged_after_its_first_piece() -> None:
    world = World()
    stream = world.models.stream(user())
    await anext(stream)
    world.clock.advance(60.0)
    await world.settle()
    await stream.aclose()
    assert world.statuses() == [("a", "stopped", False)]


async def test_a_call_is_hedged_once() -> None:
    world = World()
    world.servers[1].held = True
    call = await world.slow_call()
    world.clock.advance(60.0)
    await world.settle()
    assert [server.began for server in world.servers] == [1, 1]
    world.servers[1].release.set()
    await call


async def test_without_another_place_the_same_one_is_asked_again() -> None:
    world = World(Server("a"))
    call = await world.slow_call()
    assert world.servers[0].began == 2
    world.servers[0].release.set()
    await call


async def test_another_replica_is_asked_before_another_model() -> None:
    replicas = [Server("pool", base_url=f"http://10.0.0.{n}/v1") for n in range(3)]
    pool = Replicated(EndpointConfig(name="pool", probe=0.0), replicas)
    other = Server("other")
    models = Router(
        {"pool": pool, "other": other},
        {"default": ModelConfig(routes=["pool:m", "other:m"], hedge=2.0, hedge_budget=1.0)},
        options=RetryOptions(budget_floor=1000),
        clock=(clock := FakeClock()),
    )
    looked_up(models, "default")
    for replica in replicas:
        replica.held = True
    call = asyncio.create_task(models.complete(user(session="s")))
    for _ in range(50):
        await asyncio.sleep(0)
    clock.advance(2.0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sorted(replica.began for replica in replicas) == [0, 1, 1] and other.began == 0
    for replica in replicas:
        replica.release.set()
    await call


# -- when there is none ----------------------------------------------------------------------------------------------


async def test_no_more_calls_are_hedged_than_their_share() -> None:
    world = World(hedge_budget=0.05)
    for _ in range(100):
        call = await world.slow_call()
        world.servers[0].release.set()
        await call
        world.servers[0].release.clear()
    assert world.servers[1].began == 5
    assert sum(server.began for server in world.servers) <= 1.1 * 100


async def test_hedges_and_retries_share_the_retry_budget() -> None:
    world = World()
    models = world.models
    for lane in models._table.lanes.values():
        lane.budget._floor, lane.budget._ratio = 3, 0.0
    for _ in range(10):
        call = await world.slow_call()
        world.servers[0].release.set()
        await call
        world.servers[0].release.clear()
    assert world.servers[1].began == 3


@pytest.mark.parametrize("what", ["waiting", "full", "cooling"])
async def test_no_hedge_goes_where_limits_are_short(what: str) -> None:
    second = Server("b", limits=Limits(concurrency=1)) if what in ("full", "waiting") else Server("b")
    world = World(Server("a"), second)
    others: list[asyncio.Task[Any]] = []
    if what == "cooling":
        world.models._table.lanes["b"].gate.limited(60.0)
    else:
        second.held = True
        others = [asyncio.create_task(world.models.complete(user(model="b:m"))) for _ in range(2 if what == "waiting" else 1)]
        await world.settle()
    began = second.began
    call = await world.slow_call()
    assert second.began == began and not call.done()
    for server in world.servers:
        server.release.set()
    await asyncio.gather(call, *others)


async def test_a_hedge_draws_on_limits_last_and_does_not_wait_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HEDGE_PATIENCE", 0.0)
    world = World(Server("a"), Server("b", limits=Limits(requests_per_minute=60, burst=10.0)), hedge=0.1)
    # The lowest priority may draw above four tenths of the burst only, and others go on.
    for _ in range(6):
        await world.models.complete(user(model="b:m"))
    began = world.servers[1].began
    call = await world.slow_call(after=0.1)
    assert not call.done() and world.servers[1].began == began
    assert world.models.routes("default")[1].waiting == 0, "it has given up"
    await world.models.complete(user(model="b:m"))
    world.servers[0].release.set()
    assert await call == "one two three"


async def test_no_hedge_is_paid_from_a_budget_past_its_soft_share() -> None:
    world = World(budgets=BudgetOptions(soft=0.5))
    with calling(Caller(budgets=(Allowance(key="run:r", limit_usd=1.0, spent_usd=0.6),))):
        call = await world.slow_call()
    assert world.servers[1].began == 0 and not call.done()
    world.servers[0].release.set()
    assert await call == "one two three"
    assert world.statuses() == [("a", "ok", False)]


async def test_a_call_without_the_time_for_a_hedge_has_none() -> None:
    world = World(hedge=30.0)
    world.servers[0].held = True
    call = asyncio.create_task(world.models.complete(user(timeout=20.0)))
    await world.settle()
    world.clock.advance(30.0)
    await world.settle()
    assert world.servers[1].began == 0
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_a_call_that_can_wait_is_not_hedged() -> None:
    world = World()
    world.servers[0].held = True
    call = asyncio.create_task(world.models.complete(user(due=world.clock.time() + 3600.0)))
    await world.settle()
    world.clock.advance(10.0)
    await world.settle()
    assert world.servers[1].began == 0
    world.servers[0].release.set()
    await call


# -- the percentile --------------------------------------------------------------------------------------------------


async def test_p95_hedges_once_enough_is_known() -> None:
    world = World(hedge="p95")
    server = world.servers[0]
    for _ in range(ENOUGH):
        call = await world.slow_call(after=1.0)
        assert not call.done() and world.servers[1].began == 0
        server.release.set()
        await call
        server.release.clear()
    call = await world.slow_call(after=0.9)
    assert world.servers[1].began == 0
    world.clock.advance(0.2)
    await call
    assert world.servers[1].began == 1


@given(st.lists(st.floats(0, 1000), max_size=300))
def test_the_percentile_is_that_of_the_newest(seconds: list[float]) -> None:
    tail = Tail()
    for one in seconds:
        tail.took(one)
    newest = sorted(seconds[-REMEMBERED:])
    found = tail.p95()
    assert (found is None) == (len(newest) < ENOUGH)
    if found is not None:
        assert newest[0] <= found <= newest[-1]
        assert sum(one <= found for one in newest) >= 0.95 * len(newest)
