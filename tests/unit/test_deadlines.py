"""`deadline` on a model call: read once, counted by the run's own time, and no part of what an answer depends on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from ziggurat import llm
from ziggurat.errors import ConfigurationError, InvalidData
from ziggurat.inference.answers import digest_of
from ziggurat.program.llm import _prompt, use_models
from ziggurat.testing.clock import START, FakeClock
from ziggurat.testing.models import scripted_models


@pytest.fixture(autouse=True)
def models() -> Any:
    router = scripted_models()
    router.clock = FakeClock()
    use_models(router)
    yield
    use_models(None)


@pytest.mark.parametrize("deadline", ["6h", 21_600, 21_600.0, timedelta(hours=6)])
def test_a_deadline_becomes_the_moment_it_means(deadline: Any) -> None:
    assert _prompt("x", "fast", {"deadline": deadline}).due == START + 21_600.0


def test_a_call_without_a_deadline_is_wanted_at_once() -> None:
    assert _prompt("x", "fast", {}).due is None
    assert _prompt("x", "fast", {"deadline": None}).due is None


@pytest.mark.parametrize(("deadline", "says"), [(0, "more than zero"), ("soon", "soon"), (-5, "zero or more"), (True, "True")])
def test_a_deadline_that_means_nothing_is_refused(deadline: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        _prompt("x", "fast", {"deadline": deadline})


def test_the_moment_itself_is_no_option() -> None:
    with pytest.raises(InvalidData, match=r"no option 'due'.*deadline"):
        _prompt("x", "fast", {"due": 5.0})


def test_an_answer_does_not_depend_on_its_deadline() -> None:
    assert digest_of(_prompt("x", "fast", {"deadline": "6h"})) == digest_of(_prompt("x", "fast", {}))


async def test_a_call_with_a_deadline_is_answered_where_there_is_nothing_to_wait_for() -> None:
    assert await llm.text("Hello", deadline="6h")


async def test_a_stream_takes_no_deadline() -> None:
    pieces = llm.stream("Hello", deadline="6h")
    with pytest.raises(InvalidData, match=r"llm\.text"):
        await anext(pieces)
