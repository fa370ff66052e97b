"""Which route is tried first, by price and by pace."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_inference_router import SkippingRouter, always, collect, scripted, user
from ziggurat.inference.interface import ModelConfig, Price
from ziggurat.inference.policies import Pace, cheapest_first, quickest_first


def router(policy: Any, **endpoints: Any) -> SkippingRouter:
    routes = [f"{name}:m" for name in endpoints]
    return SkippingRouter(endpoints, {"default": ModelConfig(routes=routes, policy=policy)})


def priced(name: str, dollars: float, **more: Any) -> Any:
    return scripted(name, config={"prices": {"m": Price(input=dollars, output=dollars)}}, **more)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_the_cheapest_comes_first_and_the_unknown_last(costs: list[float | None]) -> None:
    found = cheapest_first(range(len(costs)), costs)
    assert sorted(found) == list(range(len(costs)))
    known = [costs[n] for n in found if costs[n] is not None]
    assert known == sorted(c for c in costs if c is not None)
    assert [costs[n] for n in found][len(known) :] == [None] * (len(costs) - len(known))


@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_go_to_the_cheapest_route_and_fall_back_to_the_next(streamed: bool) -> None:
    models = router("price", dear=priced("dear", 9.0), cheap=priced("cheap", 1.0), middle=priced("middle", 5.0))
    for _ in range(3):
        await (collect(models, user()) if streamed else models.complete(user()))
    assert {call.endpoint for call in models.journal} == {"cheap"}
    broken = scripted("cheap", always(fault="not_found"), config={"prices": {"m": Price(input=1.0, output=1.0)}})
    models = router("price", dear=priced("dear", 9.0), cheap=broken, middle=priced("middle", 5.0))
    assert (await models.complete(user())).endpoint == "middle"


async def test_as_they_are_written_is_the_default() -> None:
    models = router("order", dear=priced("dear", 9.0), cheap=priced("cheap", 1.0))
    assert (await models.complete(user())).endpoint == "dear"


async def test_every_route_is_tried_once_and_then_the_quickest() -> None:
    slow, quick = Pace(), Pace()
    rng = random.Random(1)
    assert quickest_first(["slow", "quick"], [slow, quick], rng)[0] == "slow"
    slow.answered(10.0, 10)
    assert quickest_first(["slow", "quick"], [slow, quick], rng)[0] == "quick"
    quick.answered(1.0, 10)
    first = [quickest_first(["slow", "quick"], [slow, quick], rng)[0] for _ in range(1000)]
    assert 20 < first.count("slow") < 100, "now and then the other one is looked at"
    for _ in range(40):
        quick.answered(100.0, 10)
    assert quickest_first(["slow", "quick"], [slow, quick], random.Random(3))[0] == "slow"


async def test_a_route_that_answers_is_known_and_an_answer_without_tokens_says_nothing() -> None:
    models = router("latency", a=scripted("a"), b=scripted("b"))
    served = {(await models.complete(user(str(n)))).endpoint for n in range(2)}
    assert served <= {"a", "b"}
    pace = Pace()
    pace.answered(5.0, 0)
    assert pace.seconds is None
