"""OpenAI's own Python client against the gateway, unmodified: only its base_url and key are ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.integration.gateway_world import World, world
from ziggurat.records import Prompt, ToolCall
from ziggurat.testing.models import FaultyUpstream, Reply

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Fields(BaseModel):
    title: str
    pages: int


def behaviour(prompt: Prompt, asked: int) -> Reply | dict[str, Any] | None:
    """Call the tool when there is one and no result yet, say the result otherwise, and fill in schemas."""
    last = prompt.messages[-1]
    if prompt.tools and last.role != "tool":
        return Reply(tool_calls=[ToolCall("call_1", "weather", '{"city": "Ur"}')])
    if last.role == "tool":
        return Reply(text=f"It is {last.content} in Ur.")
    if prompt.schema is not None:
        return {"title": "Ur", "pages": 7}
    return Reply(text="one two three", input_tokens=5, output_tokens=3)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, FaultyUpstream(behaviour)) as running:
        yield running


@pytest.fixture
async def client(w: World) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=w.url, api_key="any", max_retries=2) as made:
        yield made


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["m", "s"]


async def test_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], temperature=0)
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)
    assert answer._request_id


async def test_chat_from_a_thread(w: World) -> None:
    def ask() -> str | None:
        with OpenAI(base_url=w.url, api_key="any") as made:
            return (
                made.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}]).choices[0].message.content
            )

    assert await asyncio.to_thread(ask) == "one two three"


async def test_chat_as_a_stream(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
    async with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hi"}]) as events:
        final = await events.get_final_completion()
    assert final.choices[0].message.content == "one two three"


async def test_chat_with_tools(client: AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Ur?"}]
    first = await client.chat.completions.create(model="m", messages=messages, tools=[WEATHER])
    message = first.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Ur"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "dry"}]
    second = await client.chat.completions.create(model="m", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "It is dry in Ur."
    async with client.chat.completions.stream(model="m", messages=messages[:1], tools=[WEATHER]) as events:
        streamed = await events.get_final_completion()
    assert streamed.choices[0].message.tool_calls is not None
    assert streamed.choices[0].message.tool_calls[0].function.name == "weather"


async def test_parse(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="m", messages=[{"role": "user", "content": "Read it."}], response_format=Fields
    )
    assert answer.choices[0].message.parsed == Fields(title="Ur", pages=7)


async def test_embeddings(client: AsyncOpenAI) -> None:
    packed = await client.embeddings.create(model="m", input=["a", "b"], dimensions=4)
    plain = await client.embeddings.create(model="m", input=["a", "b"], dimensions=4, encoding_format="float")
    assert len(packed.data) == 2
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == 2


async def test_completions(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="m", prompt="hi")
    assert answer.choices[0].text == "one two three"
    pieces = [c async for c in await client.completions.create(model="m", prompt="hi", stream=True)]
    assert "".join(c.choices[0].text for c in pieces) == "one two three"


async def test_responses(client: AsyncOpenAI) -> None:
    answer = await client.responses.create(model="m", input="hi", instructions="Be brief.")
    assert answer.output_text == "one two three"
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    parsed = await client.responses.parse(model="m", input="Read it.", text_format=Fields)
    assert parsed.output_parsed == Fields(title="Ur", pages=7)


async def test_responses_as_a_stream(client: AsyncOpenAI, w: World) -> None:
    events = [event async for event in await client.responses.create(model="m", input="hi", stream=True)]
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "one two three"
    async with client.responses.stream(model="m", input="Read it.", text_format=Fields) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Fields(title="Ur", pages=7)


async def test_responses_with_tools(client: AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **WEATHER["function"]}
    asked: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "How is the weather?"}]}]
    first = await client.responses.create(model="m", input=asked, tools=[tool])
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Ur"}
    asked += [call.model_dump(), {"type": "function_call_output", "call_id": call.call_id, "output": "dry"}]
    second = await client.responses.create(model="m", input=asked, tools=[tool])
    assert second.output_text == "It is dry in Ur."
    async with client.responses.stream(model="m", input=asked[:1], tools=[tool]) as stream:
        streamed = await stream.get_final_response()
    assert streamed.output[0].type == "function_call"
    assert streamed.output[0].arguments == '{"city": "Ur"}'


async def test_responses_that_lean_on_something_kept_are_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Nothing is kept"):
        await client.responses.create(model="m", input="hi", previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="run at OpenAI"):
        await client.responses.create(model="m", input="hi", tools=[{"type": "web_search"}])


async def test_an_answer_that_is_cut_by_max_tokens(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=1)
    assert chat.choices[0].finish_reason == "length"
    whole = await client.responses.create(model="m", input="hi", max_output_tokens=1)
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("fault", "kind", "attempts"),
    [
        ("rejected", openai.BadRequestError, 1),
        ("not_found", openai.NotFoundError, 1),
        ("failed", openai.InternalServerError, 3),
    ],
)
async def test_errors_are_the_clients_own_and_are_not_retried_twice_over(
    tmp_path: Path, fault: str, kind: type[openai.APIStatusError], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ziggurat.inference.calls.backoff", lambda *_: 0.0)
    async with (
        world(tmp_path, FaultyUpstream(faults={fault: 1.0})) as w,
        AsyncOpenAI(base_url=w.url, api_key="any", max_retries=2) as client,
    ):
        with pytest.raises(kind):
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        # The client's two retries would have made it three times as many.
        assert w.upstream.requests == attempts


async def test_a_stream_that_breaks_off_raises_in_the_client(tmp_path: Path) -> None:
    upstream = FaultyUpstream(lambda prompt, asked: Reply(text="one two three four five", fault="cut"))
    async with world(tmp_path, upstream) as w, AsyncOpenAI(base_url=w.url, api_key="any") as client:
        stream = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        with pytest.raises(openai.APIError, match="before the end"):
            async for _ in stream:
                pass
        events = [event async for event in await client.responses.create(model="m", input="hi", stream=True)]
    assert events[-1].type == "response.failed"


async def test_a_wrong_key_is_an_authentication_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "right")
    async with world(tmp_path, keys={"one": {"key": "env:THE_KEY"}}) as w:
        async with AsyncOpenAI(base_url=w.url, api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="not known here"):
                await client.models.list()
        async with AsyncOpenAI(base_url=w.url, api_key="right") as client:
            assert [model.id async for model in client.models.list()] == ["m", "s"]
