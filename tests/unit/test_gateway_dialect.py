"""The gateway's dialect, without a server: bodies into prompts, completions into bodies, errors into refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ziggurat.doors.gateway import answers
from ziggurat.doors.gateway.refusals import Refusal, refusal_of
from ziggurat.doors.gateway.requests import chat_prompt
from ziggurat.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ContextTooLong,
    EndpointFailed,
    EndpointUnreachable,
    MissingExtra,
    ModelNotFound,
    Overloaded,
    RateLimited,
    RequestRejected,
    ZigguratError,
)
from ziggurat.records import ChatMessage, Chunk, Completion, Prompt, Tool, ToolCall, Usage

HELLO: dict[str, Any] = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def prompt(**body: Any) -> Prompt:
    return chat_prompt(json.dumps({"model": "m", "messages": [HELLO], **body}).encode())[1]


def refusal(**body: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        prompt(**body)
    return caught.value


def test_a_plain_request() -> None:
    read = prompt(temperature=0.5, top_p=0.9, max_completion_tokens=7, stop="x", seed=3, prompt_cache_key="s")
    assert read == Prompt(
        messages=[ChatMessage(role="user", content="hello")],
        model="m",
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop=["x"],
        seed=3,
        session="s",
    )


def test_fields_that_are_not_known_go_to_the_endpoint_as_they_are() -> None:
    assert prompt(top_k=5, chat_template_kwargs={"thinking": True}).extra == {
        "top_k": 5,
        "chat_template_kwargs": {"thinking": True},
    }
    assert prompt(temperature=None, tools=None, n=1, logprobs=False).extra == {}


def test_a_conversation_with_tools() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA, "strict": True}}
    read = prompt(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "add"}},
    )
    assert read.messages == [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="hello"),
        ChatMessage(role="assistant", tool_calls=[ToolCall(id="c1", name="add", arguments='{"a":1}')]),
        ChatMessage(role="tool", content="3", tool_call_id="c1"),
    ]
    assert read.tools == [Tool(name="add", description="Adds.", parameters=SCHEMA, strict=True)]
    assert read.tool_choice == "add"


def test_response_formats() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    read = prompt(response_format=form)
    assert (read.schema, read.schema_name, read.extra) == (SCHEMA, "n", {})
    assert prompt(response_format={"type": "json_object"}).extra == {"response_format": {"type": "json_object"}}
    assert prompt(response_format={"type": "text"}).extra == {}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"model": 5}, "model"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0]"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "sometimes"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_named(body: dict[str, Any], param: str) -> None:
    said = refusal(**body)
    assert said.status == 400
    assert said.param == param
    assert said.message.endswith(".")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'{"model":"m"}', b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        chat_prompt(data)
    assert caught.value.status == 400


def test_a_whole_answer() -> None:
    usage = Usage(calls=1, input_tokens=5, output_tokens=3, cached_tokens=2, reasoning_tokens=1, cost_usd=0.1)
    body = json.loads(answers.chat_body(Completion(text="hi", usage=usage, reasoning="hm"), "id", 7, "m"))
    assert body == {
        "id": "chatcmpl-id",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None, "reasoning_content": "hm"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }


def test_an_answer_that_calls_tools_and_one_that_declines() -> None:
    called = json.loads(answers.chat_body(Completion(tool_calls=[ToolCall("c", "f", "{}")], finish="tool_calls"), "i", 1, "m"))
    message = called["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    declined = json.loads(answers.chat_body(Completion(refusal="No."), "i", 1, "m"))["choices"][0]["message"]
    assert (declined["content"], declined["refusal"]) == (None, "No.")


def events(data: bytes) -> list[Any]:
    return [json.loads(line[6:]) if line != b"data: [DONE]" else "DONE" for line in data.split(b"\n\n") if line]


def test_a_stream_with_its_usage() -> None:
    writer = answers.ChatStream("i", 1, "m", usage=True)
    data = writer.chunk(Chunk(text="a")) + writer.chunk(Chunk(text="b"))
    data += writer.chunk(Chunk(finish="stop", usage=Usage(calls=1, input_tokens=2, output_tokens=2)))
    first, second, last, usage, done = events(data)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
    assert second["choices"][0]["delta"] == {"content": "b"}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 4)
    assert all(event["usage"] is None for event in (first, second, last))
    assert done == "DONE"


def test_a_stream_of_tool_calls_without_usage() -> None:
    writer = answers.ChatStream("i", 1, "m", usage=False)
    data = writer.chunk(Chunk(tool_calls=[(0, "c", "f", "")])) + writer.chunk(Chunk(tool_calls=[(0, "", "", '{"a":')]))
    data += writer.chunk(Chunk(tool_calls=[(0, "", "", "1}")], finish="tool_calls"))
    found = events(data)
    deltas = [event["choices"][0]["delta"] for event in found[:-1]]
    assert deltas[0]["tool_calls"] == [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]
    assert deltas[1]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a":'}}]
    assert deltas[2]["tool_calls"] == [{"index": 0, "function": {"arguments": "1}"}}]
    assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert "usage" not in found[-2]


@pytest.mark.parametrize(
    ("error", "status", "code", "again"),
    [
        (RateLimited("x", retry_after=1.2), 429, "rate_limit_exceeded", None),
        (BudgetExceeded("x"), 429, "insufficient_quota", False),
        (ModelNotFound("x"), 404, "model_not_found", False),
        (ContextTooLong("x"), 400, "context_length_exceeded", False),
        (RequestRejected("x"), 400, "request_rejected", False),
        (AuthenticationFailed("x"), 502, "upstream_authentication_failed", False),
        (EndpointFailed("x"), 502, "upstream_failed", False),
        (EndpointUnreachable("x"), 503, "upstream_unreachable", False),
        (Overloaded("x"), 429, "rate_limit_exceeded", None),
        (MissingExtra("x", "local"), 500, "misconfigured", False),
        (ZigguratError("x"), 500, "internal_error", False),
    ],
)
def test_errors_and_the_status_that_clients_act_on(error: ZigguratError, status: int, code: str, again: bool | None) -> None:
    said = refusal_of(error)
    assert (said.status, said.code, said.again) == (status, code, again)
    assert json.loads(said.body())["error"].keys() == {"message", "type", "param", "code"}


def test_an_answer_that_did_not_come_is_a_504() -> None:
    late = EndpointUnreachable("x")
    late.sent = True
    assert refusal_of(late).status == 504


def test_seconds_to_wait_are_rounded_up() -> None:
    assert refusal_of(RateLimited("x", retry_after=1.2)).headers()["Retry-After"] == "2"
    assert refusal_of(RateLimited("x", retry_after=0.0)).headers()["Retry-After"] == "1"
