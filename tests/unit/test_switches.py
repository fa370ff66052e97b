"""Switches of aliases: what a book holds, what a router makes of it, and what it costs to try a route in the shadow."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_inference_router import SkippingRouter, always, scripted, user
from ziggurat.errors import Conflict, InvalidData, UnknownName
from ziggurat.inference.interface import ModelConfig
from ziggurat.inference.switches import Book, FileSwitches, Follower, Switch, applied, check_routes, parse_switch


def switched(router: SkippingRouter, **switch: Any) -> None:
    """Point the alias "default" elsewhere."""
    book = Book().switched("default", Switch(**switch), at=1.0, by="ada")
    router.set_models(applied({"default": ModelConfig(routes=["a:m"])}, book))


def pair() -> SkippingRouter:
    return SkippingRouter({name: scripted(name) for name in "ab"}, {"default": ModelConfig(routes=["a:m"])})


@pytest.mark.parametrize(
    ("text", "routes", "weights"),
    [
        ("gmi:deepseek-ai/DeepSeek-V4-Pro", ["gmi:deepseek-ai/DeepSeek-V4-Pro"], []),
        ("a:x, b:y", ["a:x", "b:y"], []),
        ("90%:a:x,10%:b:y:z", ["a:x", "b:y:z"], [0.9, 0.1]),
        ("33.3%:a:x,66.7%:b:y", ["a:x", "b:y"], [0.333, 0.667]),
    ],
)
def test_a_switch_is_read(text: str, routes: list[str], weights: list[float]) -> None:
    found = parse_switch(text)
    assert found.routes == routes
    assert found.weights == pytest.approx(weights)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("model", "write endpoint:model"),
        ("a:x,,b:y", "cannot be read"),
        ("90%:a:x,b:y", "every route has a share"),
        ("90%:a:x,20%:b:y", "make 110% together"),
    ],
)
def test_a_switch_that_means_nothing_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(InvalidData, match=said):
        parse_switch(text)


def test_a_route_to_nowhere_is_refused() -> None:
    with pytest.raises(UnknownName, match="the endpoints are: a, b"):
        check_routes(["c:x"], {"a": 1, "b": 2})


@given(st.lists(st.sampled_from(["switch", "back"]), max_size=30))
def test_rollbacks_go_back_the_way_that_the_switches_came(steps: list[str]) -> None:
    book, model = Book(), []
    for number, step in enumerate(steps):
        if step == "switch":
            model.append(f"x:{number}")
            book = book.switched("m", Switch(routes=[f"x:{number}"]), at=1.0, by="ada")
        elif model:
            model.pop()
            book = book.rolled_back("m", at=2.0, by="bob")
        else:
            with pytest.raises(Conflict, match="never switched"):
                book.rolled_back("m", at=2.0, by="bob")
        standing = book.standing().get("m")
        assert (standing.routes if standing is not None else []) == model[-1:]


async def test_calls_follow_a_switch_and_record_which_one_it_was() -> None:
    router = pair()
    assert (await router.complete(user())).endpoint == "a"
    switched(router, routes=["b:n"])
    answer = await router.complete(user())
    assert (answer.endpoint, answer.upstream) == ("b", "n")
    assert [call.switch for call in router.journal] == [0, 1]


async def test_calls_are_shared_out_by_weight_and_fall_back_to_the_others() -> None:
    router = pair()
    switched(router, routes=["a:m", "b:m"], weights=[0.2, 0.8])
    served = [(await router.complete(user(str(n)))).endpoint for n in range(400)]
    assert 0.12 < served.count("a") / len(served) < 0.28
    router = SkippingRouter(
        {"a": scripted("a", always(fault="not_found")), "b": scripted("b")}, {"default": ModelConfig(routes=["a:m"])}
    )
    switched(router, routes=["a:m", "b:m"], weights=[1.0, 0.0])
    assert (await router.complete(user())).endpoint == "b"


async def test_a_shadow_gets_a_copy_whose_failure_nobody_hears_of() -> None:
    router = pair()
    switched(router, routes=["a:m"], shadow="b:new")
    assert (await router.complete(user())).endpoint == "a"
    async with asyncio.timeout(60):
        while len(router.journal) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert sorted((call.endpoint, call.model) for call in router.journal) == [("a", "default"), ("b", "b:new")]
    broken = SkippingRouter(
        {"a": scripted("a"), "b": scripted("b", always(fault="not_found"))}, {"default": ModelConfig(routes=["a:m"])}
    )
    switched(broken, routes=["a:m"], shadow="b:new")
    assert (await broken.complete(user())).endpoint == "a"
    await broken.close()


def test_a_process_follows_the_book_and_passes_over_what_it_cannot(tmp_path: Path) -> None:
    router, path = pair(), tmp_path / "models.json"
    configured = {"default": ModelConfig(routes=["a:m"])}
    follower = Follower(FileSwitches(path), lambda book: router.set_models(applied(configured, book)), every=0.01)
    follower.start()
    store = FileSwitches(path)
    try:
        store.change(lambda book: book.switched("default", Switch(routes=["b:n"]), at=1.0, by="ada"))
        _until(lambda: router.routes("default")[0].upstream == "n")
        store.change(lambda book: book.switched("default", Switch(routes=["elsewhere:x"]), at=1.0, by="ada"))
        store.change(lambda book: book.switched("new", Switch(routes=["a:y"]), at=1.0, by="ada"))
        follower.look()
        assert router.routes("default")[0].upstream == "n"
        store.change(lambda book: book.rolled_back("default", at=2.0, by="ada"))
        _until(lambda: "new" in router.aliases())
        follower.look()
        path.unlink()
        follower.look()
        assert "new" in FileSwitches(path).read().standing(), "a book that was lost is put back by those who know it"
        path.write_text("spoiled")
        follower.look()
        assert "new" in router.aliases()
    finally:
        follower.close()


def _until(holds: Any) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.005)
