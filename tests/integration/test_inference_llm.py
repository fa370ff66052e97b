"""What programs call: llm.text, chat, parse and stream outside of a run, through a router over scripted models and real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from ziggurat.errors import (
    InvalidData,
    OutputInvalid,
    OutputRefused,
    OutputTruncated,
)
from ziggurat.inference.backends import openai_compatible
from ziggurat.inference.interface import CapabilityOverrides, EndpointConfig, ModelConfig
from ziggurat.inference.router import Router
from ziggurat.program import llm
from ziggurat.records import ChatMessage, Prompt, ToolCall
from ziggurat.testing.models import FaultyUpstream, Reply, scripted_models


class Label(BaseModel):
    kind: str
    pages: int


@pytest.fixture(autouse=True)
def _forget_models() -> Iterator[None]:
    yield
    llm.use_models(None)


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with FaultyUpstream() as running:
        up = openai_compatible.create(EndpointConfig(name="up", base_url=running.base_url))
        plain = CapabilityOverrides(json_schema=False)
        models = {"default": ModelConfig(routes=["up:m"]), "plain": ModelConfig(routes=["up:m"], capabilities=plain)}
        router = Router({"up": up}, models)
        llm.use_models(router)
        yield running
        await router.close()


def weather(city: str, days: int = 1) -> dict[str, Any]:
    """Forecasts the weather of a city."""
    return {"city": city, "rain": days > 1}


def agent(prompt: Prompt, asked: int) -> Reply:
    """Ask for the weather once, then answer with what the tool said."""
    last = prompt.messages[-1]
    if last.role == "tool":
        return Reply(text=f"The tool says {last.content}")
    return Reply(tool_calls=[ToolCall("c1", "weather", '{"city":"Oslo","days":2}'), ToolCall("c2", "weather", '{"city":7}')])


async def test_text_with_a_system_message_and_options(upstream: FaultyUpstream) -> None:
    assert await llm.text("hi", system="Be brief.", temperature=0.1, max_tokens=5, stop="x", seed=1, extra={"user": "u"})
    body = upstream.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["stop"], body["seed"], body["user"]) == (0.1, 5, ["x"], 1, "u")
    with pytest.raises(InvalidData, match="no option 'temprature'"):
        await llm.text("hi", temprature=0.1)


@pytest.mark.parametrize("model", ["default", "plain"])
async def test_parse_returns_a_validated_value(upstream: FaultyUpstream, model: str) -> None:
    answer = json.dumps({"kind": "letter", "pages": 2})
    upstream.script = FaultyUpstream(lambda prompt, asked: f"Here you are:\n```json\n{answer}\n```").script
    assert await llm.parse(Label, "Which kind?", model=model) == Label(kind="letter", pages=2)
    form = upstream.bodies[-1]["response_format"]
    assert form["type"] == ("json_schema" if model == "default" else "json_object")


async def test_parse_shows_the_model_its_mistake_once(upstream: FaultyUpstream) -> None:
    def mends(prompt: Prompt, asked: int) -> str:
        told = str(prompt.messages[-1].content)
        return (
            '{"kind": "letter", "pages": 2}' if "pages" in told and "not valid" in told else '{"kind": "letter", "pages": "two"}'
        )

    upstream.script = FaultyUpstream(mends).script
    assert (await llm.parse(Label, "Which kind?")).pages == 2
    assert upstream.requests == 2
    assert upstream.bodies[-1]["messages"][-2] == {"role": "assistant", "content": '{"kind": "letter", "pages": "two"}'}


async def test_parse_gives_up_after_the_second_misfit(upstream: FaultyUpstream) -> None:
    upstream.script = FaultyUpstream(lambda prompt, asked: '{"kind": 1}').script
    with pytest.raises(OutputInvalid, match="pages"):
        await llm.parse(Label, "Which kind?")
    assert upstream.requests == 2


async def test_an_answer_that_is_too_long_is_truncated_not_invalid(upstream: FaultyUpstream) -> None:
    upstream.script = FaultyUpstream(lambda prompt, asked: '{"kind": "' + "very " * 200 + '", "pages": 1}').script
    with pytest.raises(OutputTruncated, match="max_tokens"):
        await llm.parse(Label, "Which kind?", max_tokens=10)


async def test_a_refusal_is_an_error_of_its_own(upstream: FaultyUpstream) -> None:
    upstream.script = FaultyUpstream(lambda prompt, asked: Reply(refusal="I cannot help with that.")).script
    with pytest.raises(OutputRefused, match="cannot help"):
        await llm.text("hi")
    with pytest.raises(OutputRefused, match="cannot help"):
        await llm.parse(Label, "hi")
    with pytest.raises(OutputRefused, match="cannot help"):
        [piece async for piece in llm.stream("hi")]


async def test_stream_yields_pieces_that_are_the_text(upstream: FaultyUpstream) -> None:
    upstream.script = FaultyUpstream(lambda prompt, asked: "one two three").script
    assert [piece async for piece in llm.stream("hi")] == ["one", " two", " three"]
    assert upstream.bodies[-1]["stream_options"] == {"include_usage": True}


async def test_tools_go_there_and_back(upstream: FaultyUpstream) -> None:
    upstream.script = FaultyUpstream(agent).script
    conversation: list[Any] = [{"role": "user", "content": "Will it rain in Oslo?"}]
    reply = await llm.chat(conversation, tools=[weather])
    assert [call.id for call in reply.tool_calls] == ["c1", "c2"]
    conversation.append(reply.message)
    answers = [await llm.call_tool(call, [weather]) for call in reply.tool_calls]
    assert answers[0] == ChatMessage(role="tool", content='{"city":"Oslo","rain":true}', tool_call_id="c1", name="weather")
    assert "InvalidData" in str(answers[1].content)
    final = await llm.chat([*conversation, *reversed(answers)], tools=[weather])
    assert final.text == 'The tool says {"city":"Oslo","rain":true}' and not final.tool_calls
    function = upstream.bodies[0]["tools"][0]["function"]
    assert (function["name"], function["description"]) == ("weather", "Forecasts the weather of a city.")
    assert function["parameters"]["required"] == ["city"]


async def test_scripted_models_need_no_settings_and_repeat_themselves() -> None:
    said = []
    for _ in range(2):
        llm.use_models(scripted_models(answers=[{"match": "colour", "answer": "red"}], seed=5))
        assert await llm.text("Which colour?") == "red"
        said.append([await llm.text("hi"), await llm.text("hi"), str(await llm.parse(Label, "hi", model="fast"))])
    assert said[0] == said[1]
    assert said[0][0] != said[0][1]  # The same question twice is not the same call twice.


async def test_scripted_answers_may_be_values() -> None:
    llm.use_models(scripted_models(lambda prompt, asked: {"kind": "letter", "pages": asked}))
    assert (await llm.parse(Label, "hi")).pages == 0
    assert (await llm.parse(Label, "hi")).pages == 1
