"""What a call needs of a route: a region that is never left, a quality that is never undercut, a context that the prompt fits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_inference_router import SkippingRouter, always, collect, scripted, user
from ziggurat import llm
from ziggurat.errors import ContextTooLong, InvalidData, RequestRejected
from ziggurat.inference.interface import EndpointConfig, ModelConfig, Price
from ziggurat.inference.ledger import Attribution, attributing
from ziggurat.inference.limits.budgets import BudgetOptions
from ziggurat.inference.needs import Needs, Residency, unmet
from ziggurat.inference.policies import SLACK, best_first, by_slack, preferred_first
from ziggurat.program.llm import use_models
from ziggurat.records import ChatMessage, Prompt


def at(name: str, region: str = "", quality: int = 0, dollars: float = 0.0, **more: Any) -> Any:
    config: dict[str, Any] = {"region": region, "quality": {"*": quality} if quality else {}}
    if dollars:
        config["prices"] = {"m": Price(input=dollars, output=dollars)}
    return scripted(name, more.pop("behaviour", None), config=config, **more)


def router(
    *endpoints: Any, residency: Residency | None = None, budgets: BudgetOptions | None = None, **model: Any
) -> SkippingRouter:
    models = {"default": ModelConfig(routes=[f"{e.name}:m" for e in endpoints], **model)}
    return SkippingRouter({e.name: e for e in endpoints}, models, residency=residency, budgets=budgets)


async def ask(models: SkippingRouter, streamed: bool, **more: Any) -> str:
    if streamed:
        await collect(models, user(**more))
        return models.journal[-1].endpoint
    return (await models.complete(user(**more))).endpoint


# -- regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_must_stay_in_a_region_goes_nowhere_else(streamed: bool) -> None:
    us, eu, nowhere = at("us", "us"), at("eu", "eu"), at("nowhere")
    models = router(us, nowhere, eu)
    assert await ask(models, streamed) == "us"
    assert await ask(models, streamed, region="eu") == "eu"
    assert (us.script.calls, nowhere.script.calls) == (1, 0)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", ["failed", "rate_limited", "unauthorized", "not_found", "timeout"])
async def test_a_required_region_is_not_left_whatever_fails(streamed: bool, fault: Any) -> None:
    eu = scripted("eu", always(fault=fault, retry_after=0.1), config={"region": "eu", "timeouts": _short()})
    us = at("us", "us")
    models = router(eu, us)
    with pytest.raises(Exception, match="No route of the model 'default' answered") as caught:
        await ask(models, streamed, region="eu")
    assert us.script.calls == 0 and eu.script.calls > 0
    assert "'us'" in str(caught.value) and "the call must stay in 'eu'" in str(caught.value)


def _short() -> Any:
    from ziggurat.inference.interface import Timeouts

    return Timeouts(first_token=0.01, total=0.05)


async def test_the_alias_the_workflow_and_the_tenant_each_may_demand_regions_and_all_must_be_satisfied() -> None:
    endpoints = [at("us", "us"), at("de", "de"), at("ch", "ch")]
    residency = Residency(tenants={"acme": ["de", "ch"], "*": ["us", "de"]}, workflows={"audit": ["ch"]})
    models = router(*endpoints, residency=residency)

    async def by(**who: str) -> str:
        with attributing(Attribution(**who)):  # type: ignore[arg-type]
            return (await models.complete(user())).endpoint

    assert await by(namespace="acme") == "de"
    assert await by(namespace="acme", workflow="audit") == "ch"
    assert await by(namespace="other") == "us"
    with (
        attributing(Attribution(namespace="acme")),
        pytest.raises(RequestRejected, match="the tenant 'acme' must stay in 'de' or 'ch'"),
    ):
        await models.complete(user(region="us"))
    narrow = router(*endpoints, regions=("ch", "de"), residency=residency)
    assert (await narrow.complete(user())).endpoint == "de"


async def test_an_endpoint_named_directly_is_under_the_same_demands() -> None:
    us = at("us", "us")
    models = router(us, residency=Residency(tenants={"*": ["eu"]}))
    with pytest.raises(RequestRejected, match="must stay in 'eu'"):
        await models.complete(user(model="us:other"))
    assert us.script.calls == 0


async def test_a_shadow_is_no_way_out_of_a_region() -> None:
    eu, us = at("eu", "eu"), at("us", "us")
    models = router(eu, us, shadow="us:m", regions=("eu",))
    await models.complete(user())
    await models.close()
    assert (eu.script.calls, us.script.calls) == (1, 0)
    free = router(eu, us, shadow="us:m")
    await free.complete(user())
    for _ in range(100):
        await asyncio.sleep(0)
    assert us.script.calls == 1


async def test_a_batch_is_no_way_out_of_a_region() -> None:
    us, eu = at("us", "us"), at("eu", "eu")
    models = router(us, eu)
    models.lanes = SimpleNamespace(apis={"us": None, "eu": None})  # type: ignore[assignment]
    for region in ("us", "eu"):
        first = await models._first(user(region=region))
        assert first is not None and first[0].region == region
    assert await models._first(user(region="ch")) is None


async def test_a_cheaper_model_for_a_budgets_sake_does_not_leave_the_region_or_the_quality() -> None:
    eu, us = at("eu", "eu", 4, 1000.0), at("us", "us", 2, 1.0)
    models = SkippingRouter(
        {"eu": eu, "us": us},
        {"default": ModelConfig(routes=["eu:m"], regions=("eu",)), "cheap": ModelConfig(routes=["us:m"])},
        budgets=BudgetOptions(day=1.0, soft=0.0, downgrade="cheap"),
    )
    assert (await models.complete(user(max_tokens=5))).endpoint == "eu"
    assert (await models.complete(user(model="default", max_tokens=5, quality=3))).endpoint == "eu"
    assert us.script.calls == 0


async def test_preferred_regions_come_first_and_others_after_them() -> None:
    models = router(
        at("us", "us", dollars=1.0), at("eu", "eu", dollars=9.0), at("eu2", "eu", dollars=5.0), prefer_regions=("eu",)
    )
    assert (await models.complete(user())).endpoint == "eu"
    models = router(
        at("us", "us", dollars=1.0),
        at("eu", "eu", dollars=9.0),
        at("eu2", "eu", dollars=5.0),
        prefer_regions=("eu",),
        policy="price",
    )
    assert (await models.complete(user())).endpoint == "eu2"
    models = router(at("us", "us"), at("eu", "eu", behaviour=always(fault="not_found")), prefer_regions=("eu",))
    assert (await models.complete(user())).endpoint == "us"


@given(st.lists(st.sampled_from(["eu", "us", ""]), max_size=6), st.lists(st.sampled_from(["eu", "us"]), max_size=3))
def test_a_route_satisfies_a_demand_only_if_its_region_is_named_in_each(regions: list[str], demanded: list[str]) -> None:
    needs = Needs(regions=tuple(("someone", (region,)) for region in demanded))
    for region in regions:
        assert (unmet(needs, region, 0) == "") == all(region == one for one in demanded)
    found = preferred_first(regions, regions, ["us"])
    assert sorted(found) == sorted(regions) and found == sorted(regions, key=lambda region: region != "us")


# -- quality ---------------------------------------------------------------------------------------------------------


async def test_routes_below_the_quality_that_is_asked_for_are_not_asked() -> None:
    low, middle, unknown, high = (
        at("low", quality=1, dollars=1.0),
        at("middle", quality=3, dollars=5.0),
        at("none"),
        at("high", quality=5, dollars=9.0),
    )
    models = router(low, middle, unknown, high, policy="price", quality=2)
    assert (await models.complete(user())).endpoint == "middle"
    assert (await models.complete(user(quality=4))).endpoint == "high"
    assert (await models.complete(user(quality=1))).endpoint == "middle", "a call does not widen what the alias allows"
    with pytest.raises(RequestRejected, match="no quality is set for it at its endpoint, and 3 is asked for"):
        await router(unknown).complete(user(quality=3))


async def test_the_best_comes_first_and_of_equals_the_cheapest() -> None:
    models = router(
        at("cheap", quality=2, dollars=1.0),
        at("dear", quality=4, dollars=9.0),
        at("best", quality=4, dollars=5.0),
        policy="quality",
    )
    assert (await models.complete(user())).endpoint == "best"
    assert best_first("abc", [0, 1, 1], [0.0, None, 2.0]) == ["c", "b", "a"]


async def test_quality_and_region_are_options_of_every_call_and_are_checked() -> None:
    eu = at("eu", "eu", 4)
    models = router(at("us", "us", 5), eu)
    use_models(models)
    try:
        assert await llm.text("hi", region="eu", quality=4)
        assert eu.prompts[-1].region == "eu" and eu.prompts[-1].quality == 4
        for wrong in (0, 6, "high", 2.5, None):
            with pytest.raises(InvalidData, match="whole number from 1 to 5"):
                await llm.text("hi", quality=wrong)
    finally:
        use_models(None)


# -- slack -----------------------------------------------------------------------------------------------------------


async def test_a_call_with_time_to_spare_takes_the_cheapest_and_one_without_the_quickest() -> None:
    slow, quick = at("slow", dollars=1.0), at("quick", dollars=9.0)
    models = router(quick, slow, policy="slack")
    for route in models._table.of("default"):
        route.pace.answered({"slow": 10.0, "quick": 0.1}[route.lane.endpoint.name], 100)
    assert (await models.complete(user(timeout=600.0, max_tokens=100))).endpoint == "slow"
    assert (await models.complete(user(timeout=5.0, max_tokens=100))).endpoint == "quick"
    now = models.clock.time()
    assert (await models.complete(user(due=now + 3600.0, max_tokens=100))).endpoint == "slow"
    assert (await models.complete(user(due=now + 5.0, max_tokens=100))).endpoint == "quick", "its deadline is near"


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 9)), st.floats(0, 100)), max_size=6),
    st.floats(0, 1000),
)
def test_routes_that_leave_slack_come_by_cost_and_the_rest_by_pace(routes: list[tuple[float | None, float]], left: float) -> None:
    found = by_slack(routes, [cost for cost, _ in routes], [seconds for _, seconds in routes], left)
    assert sorted(map(repr, found)) == sorted(map(repr, routes))
    slack = [route for route in routes if route[1] * SLACK <= left]
    costs = [float("inf") if cost is None else cost for cost, _ in found[: len(slack)]]
    assert costs == sorted(costs)
    rest = [seconds for _, seconds in found[len(slack) :]]
    assert rest == sorted(rest) and all(seconds * SLACK > left for seconds in rest)


# -- context ---------------------------------------------------------------------------------------------------------


class Knowing(type(scripted())):  # type: ignore[misc]
    """Learns its context from its server, as a dedicated endpoint does."""

    learned = 0

    def context(self, upstream: str) -> int:
        return self.learned


async def test_a_context_that_the_endpoint_told_of_counts_like_one_of_the_table() -> None:
    from ziggurat.inference.backends.scripted import Script

    small, large = Knowing(EndpointConfig(name="small"), Script()), scripted("large", context=100_000)
    models = router(small, large)
    long = Prompt(messages=[ChatMessage(role="user", content="word " * 2000)])
    assert (await models.complete(long)).endpoint == "small"
    small.learned = 500
    assert (await models.complete(long)).endpoint == "large"
    assert models.routes("default")[0].context == 500
    with pytest.raises(ContextTooLong, match="does not fit its context of 500"):
        await router(small).complete(long)
