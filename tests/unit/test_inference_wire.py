"""The dialect: requests out, answers in, events cut anywhere, errors named, secrets kept."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from ziggurat.errors import (
    AuthenticationFailed,
    ContextTooLong,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    ModelNotFound,
    RateLimited,
    RequestRejected,
)
from ziggurat.inference import wire
from ziggurat.inference.failures import Failures, retry_after
from ziggurat.inference.sse import EVENT_BYTES_MAX, Events, EventTooLong
from ziggurat.records import ChatMessage, Prompt, Tool, ToolCall

NOW = 1_700_000_000.0
KEYS = st.sampled_from(
    [
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "text",
        "type",
        "refusal",
        "message",
        "code",
        "prompt_tokens",
    ]
)


def asked(prompt: Prompt, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(wire.request_body(prompt, "m", stream=stream))
    return body


def answer(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}).encode()


def test_a_request_says_what_the_prompt_says_and_nothing_else() -> None:
    assert asked(Prompt(messages=[ChatMessage(role="user", content="hi")])) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_a_request_carries_every_option() -> None:
    body = asked(
        Prompt(
            messages=[
                ChatMessage(role="assistant", tool_calls=[ToolCall(id="c1", name="add", arguments='{"a":1}')]),
                ChatMessage(role="tool", content="2", tool_call_id="c1", name="add"),
            ],
            tools=[Tool(name="add", description="Adds.")],
            tool_choice="add",
            schema={"type": "object"},
            schema_name="My answer!",
            temperature=0.5,
            top_p=0.9,
            max_tokens=7,
            stop=["x"],
            seed=3,
            extra={"thinking": {"type": "enabled"}},
        ),
        stream=True,
    )
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    assert body["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    assert body["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["response_format"]["json_schema"] == {"name": "My_answer_", "schema": {"type": "object"}}
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["stop"], body["seed"]) == (0.5, 0.9, 7, ["x"], 3)
    assert body["thinking"] == {"type": "enabled"}
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_an_extra_field_cannot_turn_a_whole_answer_into_a_stream() -> None:
    body = asked(Prompt(messages=[], extra={"stream": True, "stream_options": {}}))
    assert "stream" not in body and "stream_options" not in body


def test_a_whole_answer_is_read() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    completion = wire.decode_completion(answer({"content": "hello", "reasoning_content": "hm"}, usage=usage, service_tier="x"))
    assert (completion.text, completion.reasoning, completion.finish) == ("hello", "hm", "stop")
    used = completion.usage
    assert (used.calls, used.input_tokens, used.output_tokens, used.cached_tokens, used.reasoning_tokens) == (1, 10, 5, 4, 2)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, (0, 0, 0, 0)),
        ({}, (0, 0, 0, 0)),
        ({"prompt_tokens": 10, "completion_tokens": None}, (1, 10, 0, 0)),
        # DeepSeek's name; more cached than there was is a provider's mistake and must not make a negative bill.
        ({"prompt_tokens": 10, "completion_tokens": 1, "prompt_cache_hit_tokens": 99}, (1, 10, 1, 10)),
        ({"prompt_tokens": 10.0, "completion_tokens": -3}, (1, 10, 0, 0)),
    ],
)
def test_odd_usages_are_read(usage: Any, expected: tuple[int, int, int, int]) -> None:
    used = wire.decode_completion(answer({"content": "x"}, usage=usage)).usage
    assert (used.calls, used.input_tokens, used.output_tokens, used.cached_tokens) == expected


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        (None, "stop"),
        ("length", "length"),
        ("function_call", "tool_calls"),
        ("content_filter", "content_filter"),
    ],
)
def test_finish_reasons(said: str | None, finish: str) -> None:
    assert wire.decode_completion(answer({"content": "x"}, said)).finish == finish


def test_the_first_of_several_choices_is_taken_whatever_their_order() -> None:
    choices = [{"index": 1, "message": {"content": "second"}}, {"index": 0, "message": {"content": "first"}}]
    assert wire.decode_completion(json.dumps({"choices": choices}).encode()).text == "first"


def test_content_as_parts_is_joined() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert wire.decode_completion(answer({"content": parts})).text == "ab"


def test_tool_calls_are_read_however_they_are_written() -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "a", "arguments": '{"x":1}'}},
        {"function": {"name": "b", "arguments": {"y": 2}}},
    ]
    completion = wire.decode_completion(answer({"content": None, "tool_calls": calls}, "stop"))
    assert completion.tool_calls == [ToolCall("c1", "a", '{"x":1}'), ToolCall("call_1", "b", '{"y":2}')]
    assert completion.finish == "tool_calls"


def test_a_refusal_and_a_filtered_answer_are_refusals() -> None:
    assert wire.decode_completion(answer({"refusal": "I will not."})).refusal == "I will not."
    assert "filter" in wire.decode_completion(answer({"content": ""}, "content_filter")).refusal
    assert wire.decode_completion(answer({"content": "half"}, "content_filter")).refusal == ""


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b"\xff\xfe", b"<html>", b"{" * 5000]
)
def test_what_is_no_answer_is_nonsense(data: bytes) -> None:
    with pytest.raises(wire.Nonsense) as caught:
        wire.decode_completion(data)
    assert len(str(caught.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)
CHOICE = st.fixed_dictionaries({}, optional={"index": JSON, "message": JSON, "delta": JSON, "finish_reason": JSON})
ANSWERS = JSON | st.fixed_dictionaries(
    {}, optional={"choices": JSON | st.lists(CHOICE, max_size=3), "usage": JSON, "error": JSON}
)


@given(ANSWERS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_whatever_comes_is_an_answer_an_error_or_nonsense(data: bytes) -> None:
    for decode in (wire.decode_completion, wire.decode_event):
        with contextlib.suppress(wire.Nonsense, wire.ErrorBody):
            decode(data)
    assert isinstance(failures.of_status(500, CIMultiDict(), data, "m", NOW), InferenceError)


def test_an_error_inside_a_200_is_an_error() -> None:
    with pytest.raises(wire.ErrorBody) as caught:
        wire.decode_completion(b'{"error": {"message": "overloaded", "code": 503}, "choices": "x"}')
    assert (caught.value.message, caught.value.code) == ("overloaded", "503")


def test_a_provider_that_ran_out_of_resources_is_an_error() -> None:
    with pytest.raises(wire.ErrorBody, match="insufficient_system_resource"):
        wire.decode_completion(answer({"content": "half"}, "insufficient_system_resource"))


def test_events_of_a_stream_are_read() -> None:
    chunk, _ = wire.decode_event(b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}')
    assert chunk is not None and chunk.text == "a" and chunk.finish is None
    chunk, _ = wire.decode_event(b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}')
    assert chunk is not None and chunk.usage is not None and chunk.usage.output_tokens == 2
    assert wire.decode_event(b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}') == (None, "")
    assert wire.decode_event(b'{"choices":[{"index":0,"delta":{"refusal":"No."}}]}') == (None, "No.")
    piece = b'{"choices":[{"delta":{"tool_calls":[{"index":2,"function":{"arguments":"{\\"a"}}]}}]}'
    chunk, _ = wire.decode_event(piece)
    assert chunk is not None and chunk.tool_calls == [(2, "", "", '{"a')]


# -- events ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b and b"\r" not in b), max_size=8),
    st.sampled_from([b"\n", b"\r\n"]),
    st.lists(st.sampled_from([b": keep-alive", b"event: x", b"id: 1", b"retry: 5", b""]), max_size=3),
    st.data(),
)
def test_events_are_the_same_wherever_the_bytes_are_cut(
    payloads: list[bytes], end: bytes, noise: list[bytes], data: st.DataObject
) -> None:
    stream = b"\xef\xbb\xbf" * data.draw(st.booleans())
    for payload in payloads:
        stream += b"".join(line + end for line in noise) + b"data: " + payload + end + end
    cuts = sorted(data.draw(st.lists(st.integers(3, len(stream)), max_size=6))) if len(stream) > 3 else []
    events, found = Events(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += events.feed(stream[start:stop])
    assert found + events.end() == payloads


def test_an_event_of_several_lines_is_joined_and_the_last_may_lack_its_blank_line() -> None:
    events = Events()
    assert events.feed(b"data: a\ndata:b\n\ndata: last") == [b"a\nb"]
    assert events.end() == [b"last"]


def test_an_endless_event_is_refused() -> None:
    events = Events()
    for _ in range(EVENT_BYTES_MAX // 65_536):
        events.feed(b"x" * 65_536)
    with pytest.raises(EventTooLong):
        events.feed(b"x")


# -- errors ----------------------------------------------------------------------------------------------------------

failures = Failures("up", "https://api.example.com/v1", ("sk-very-secret", "x"))


def of(status: int, body: Any = None, headers: dict[str, str] | None = None) -> InferenceError:
    data = (
        body if isinstance(body, bytes) else json.dumps(body if body is not None else {"error": {"message": "Sorry."}}).encode()
    )
    return failures.of_status(status, CIMultiDict(headers or {}), data, "m", NOW)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "Invalid value", RequestRejected),
        (401, "Incorrect API key", AuthenticationFailed),
        (402, "Insufficient Balance", AuthenticationFailed),
        (403, "Forbidden", AuthenticationFailed),
        (404, "No matching target server found", ModelNotFound),
        (404, "The model `x` does not exist", ModelNotFound),
        (400, "unknown model m", ModelNotFound),
        (408, "timeout", EndpointUnreachable),
        (409, "conflict", EndpointFailed),
        (422, "field required", RequestRejected),
        (429, "slow down", RateLimited),
        (429, "You exceeded your current quota, please check your plan and billing details.", AuthenticationFailed),
        (500, "oops", EndpointFailed),
        (502, "bad gateway", EndpointFailed),
        (503, "overloaded", EndpointFailed),
        (504, "gateway timeout", EndpointUnreachable),
        (529, "overloaded", EndpointFailed),
        (418, "teapot", RequestRejected),
    ],
)
def test_statuses(status: int, message: str, kind: type[InferenceError]) -> None:
    error = of(status, {"error": {"message": message}})
    assert type(error) is kind
    assert (error.endpoint, error.model) == ("up", "m")
    assert "'up'" in str(error) and message.rstrip(".") in str(error)
    assert str(error)[-1] in ".!?"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "request (5031 tokens) exceeds the available context size (4096 tokens), try increasing it"),
        (400, "Please reduce the length of the messages or completion."),
        (413, "Request too large: too many tokens"),
        (422, "Input is too long for requested model"),
        (400, "The input token count (40000) exceeds the maximum number of tokens allowed (32768)."),
        (500, "the request exceeds the context window"),
    ],
)
def test_contexts_that_are_too_long_are_recognised(status: int, message: str) -> None:
    assert type(of(status, {"error": {"message": message}})) is ContextTooLong


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "plain"}, "plain"),
        ({"message": "from a gateway"}, "from a gateway"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "field required"),
        ([{"error": {"message": "Google's list"}}], "Google's list"),
        (b"<html><head><title>502 Bad\n Gateway</title></head>" + b"x" * 10_000, "an HTML page titled '502 Bad Gateway'"),
        (b"", "no text"),
        (b"\xff\xfe\x00", "failed (500)"),
    ],
)
def test_error_bodies_of_all_kinds_become_a_short_sentence(body: Any, words: str) -> None:
    text = str(of(500, body))
    assert words in text and len(text) < 600


def test_a_404_that_is_a_page_says_that_the_base_url_is_wrong() -> None:
    assert "base_url" in str(of(404, b"<html><title>Not Found</title></html>"))


def test_a_redirect_says_where_to_and_is_not_tried_again() -> None:
    error = of(301, b"", {"Location": "https://new.example.com/v1"})
    assert "https://new.example.com/v1" in str(error) and not error.retryable


def test_secrets_are_never_quoted() -> None:
    text = str(of(401, {"error": {"message": "Incorrect API key provided: sk-very-secret."}}))
    assert "sk-very-secret" not in text and "***" in text
    assert "e***ample" not in text  # The short header value "x" is no secret.


def test_an_error_in_a_stream_is_named_by_its_code_or_its_type() -> None:
    assert type(failures.of_error(wire.ErrorBody("slow down", "429", ""), "m", NOW)) is RateLimited
    assert type(failures.of_error(wire.ErrorBody("slow down", "", "rate_limit_error"), "m", NOW)) is RateLimited
    assert type(failures.of_error(wire.ErrorBody("what", "", ""), "m", NOW)) is EndpointFailed


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:30 GMT"}, 10.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "999999999"}, 86_400.0),
        ({"retry-after-ms": "1500", "Retry-After": "60"}, 1.5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12ms"}, 0.012),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m30s"}, 90.0),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1m30s"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(CIMultiDict(headers), NOW) == (pytest.approx(seconds) if seconds is not None else None)
