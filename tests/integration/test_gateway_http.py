"""The gateway over real HTTP: good requests, bad ones, upstreams that misbehave, and clients that do."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import clear_of_midnight
from tests.integration.gateway_world import HELLO, world
from ziggurat.doors.gateway.callers import Caller
from ziggurat.doors.gateway.keyring import create_key, revoke_key
from ziggurat.errors import ConfigurationError, LayerUnreachable
from ziggurat.records import Prompt
from ziggurat.testing.models import FaultyUpstream, Reply, event

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


async def until(true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is waited for happens in aiohttp and in the gateway, which tell nobody.
            await asyncio.sleep(0.005)


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_a_chat_completion_is_answered_priced_and_put_on_the_bill(tmp_path: Path) -> None:
    upstream = FaultyUpstream(lambda prompt, asked: Reply(text="hi there", input_tokens=10, output_tokens=20))
    async with world(tmp_path, upstream) as w:
        status, body, headers = await w.post(
            "/chat/completions",
            {"model": "m", "messages": HELLO},
            **{"X-Ziggurat-Run": "r1", "X-Ziggurat-Workflow": "flow", "X-Ziggurat-Tenant": "acme"},
        )
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "hi there"
    assert body["model"] == "m"
    assert body["usage"]["total_tokens"] == 30
    assert headers["x-ziggurat-route"] == "up:mock"
    assert float(headers["x-ziggurat-cost-usd"]) == pytest.approx(30e-6)
    assert upstream.bodies[0]["model"] == "mock"
    (row,) = w.bill("run", "workflow", "tenant", "key")
    assert row.group == ("r1", "flow", "acme", "")
    assert row.calls == 1
    assert row.cost_usd == pytest.approx(30e-6)


async def test_a_stream_brings_the_pieces_the_usage_and_the_end(tmp_path: Path) -> None:
    upstream = FaultyUpstream(lambda prompt, asked: Reply(text="one two three", input_tokens=4, output_tokens=3))
    async with world(tmp_path, upstream) as w:
        events = await w.events(stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"]["total_tokens"] == 7
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-2]) == "one two three"
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    (row,) = w.bill()
    assert (row.calls, row.input_tokens, row.output_tokens) == (1, 4, 3)


async def test_tools_and_schemas_reach_the_model_and_come_back(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with world(tmp_path) as w:
        _, called, _ = await w.chat(tools=[TOOL], tool_choice="required")
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        _, shaped, _ = await w.chat(response_format=form)
        streamed = await w.events(tools=[TOOL], tool_choice="required")
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "add"
    assert isinstance(json.loads(call["function"]["arguments"])["a"], int)
    assert called["choices"][0]["finish_reason"] == "tool_calls"
    assert isinstance(json.loads(shaped["choices"][0]["message"]["content"])["n"], int)
    pieces = [c for e in streamed[:-1] for c in e["choices"][0]["delta"].get("tool_calls", ())]
    assert pieces[0]["function"]["name"] == "add"
    assert json.loads("".join(p["function"]["arguments"] for p in pieces)).keys() == {"a"}


async def test_images_and_files_reach_the_model_and_artifacts_cannot_be_named(tmp_path: Path) -> None:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
    ]
    messages = [{"role": "user", "content": parts}]
    async with world(tmp_path) as w:
        assert (await w.chat(messages=messages))[0] == 200
        assert w.upstream.bodies[-1]["messages"] == messages
        asked = [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": parts[1]["image_url"]["url"], "detail": "low"},
            {"type": "input_file", **parts[2]["file"]},
        ]
        assert (await w.post("/responses", {"model": "m", "input": [{"role": "user", "content": asked}]}))[0] == 200
        assert w.upstream.bodies[-1]["messages"] == messages
        stolen = {"type": "artifact", "artifact": {"key": "zga_" + "0" * 32, "size": 1, "sha256": "", "media_type": "text/plain"}}
        status, refused, _ = await w.chat(messages=[{"role": "user", "content": [stolen]}])
        assert (status, refused["error"]["code"]) == (400, "unsupported")
    blind = {"capabilities": {"vision": False}}
    async with world(tmp_path / "blind", model=blind) as w:
        status, refused, _ = await w.chat(messages=messages)
        assert (status, w.upstream.requests) == (400, 0)
        assert "up:mock: it was not asked, since it takes no images" in refused["error"]["message"]


async def test_a_refusal_is_a_refusal_whole_and_streamed(tmp_path: Path) -> None:
    upstream = FaultyUpstream(lambda prompt, asked: Reply(refusal="I would rather not."))
    async with world(tmp_path, upstream) as w:
        _, body, _ = await w.chat()
        events = await w.events()
    assert body["choices"][0]["message"]["refusal"] == "I would rather not."
    assert events[0]["choices"][0]["delta"]["refusal"] == "I would rather not."
    assert events[-1] == "[DONE]"


async def test_embeddings_are_floats_or_packed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        _, plain, _ = await w.post("/embeddings", {"model": "m", "input": ["a", "b", "a"], "dimensions": 3})
        _, packed, _ = await w.post("/embeddings", {"model": "m", "input": "a", "dimensions": 3, "encoding_format": "base64"})
        none, body, _ = await w.post("/embeddings", {"model": "m", "input": []})
    first, second, third = (entry["embedding"] for entry in plain["data"])
    assert first == third != second
    assert len(first) == 3
    assert packed["data"][0]["embedding"] != first
    assert isinstance(packed["data"][0]["embedding"], str)
    assert (none, body["error"]["param"]) == (400, "input")
    (row,) = w.bill("model")
    assert (row.group, row.calls, row.output_tokens) == (("m",), 2, 0)


async def test_texts_are_completed_one_by_one(tmp_path: Path) -> None:
    async with world(tmp_path, FaultyUpstream(lambda prompt, asked: f"after {prompt.messages[0].content}")) as w:
        _, two, _ = await w.post("/completions", {"model": "m", "prompt": ["a", "b"]})
        async with w.http.post(w.url + "/completions", json={"model": "m", "prompt": "c", "stream": True}) as response:
            streamed = await response.text()
        status, refused, _ = await w.post("/completions", {"model": "m", "prompt": "a", "echo": True})
    assert [choice["text"] for choice in two["choices"]] == ["after a", "after b"]
    events = [json.loads(line[6:]) for line in streamed.split("\n\n") if line and not line.endswith("[DONE]")]
    assert "".join(event["choices"][0]["text"] for event in events) == "after c"
    assert streamed.endswith("data: [DONE]\n\n")
    assert (status, refused["error"]["param"]) == (400, "echo")
    assert w.bill()[0].calls == 3


# -- requests that are wrong -----------------------------------------------------------------------------------------


async def test_requests_that_are_wrong_are_told_what_is_wrong(tmp_path: Path) -> None:
    async with world(tmp_path, body_limit=10_000) as w:
        found = [
            await w.post("/chat/completions", b'{"model": "m", '),
            await w.chat(model="unknown"),
            await w.chat(n=3),
            await w.post("/chat/completions", b'{"model": "m", "messages": "' + b"x" * 20_000 + b'"}'),
            await w.post("/nothing", {}),
        ]
        async with w.http.get(w.url + "/chat/completions") as response:
            wrong_method = response.status
    told = [(status, body["error"]["code"]) for status, body, _ in found]
    assert told == [
        (400, "invalid_json"),
        (404, "model_not_found"),
        (400, "unsupported"),
        (413, "request_too_large"),
        (404, "unknown_url"),
    ]
    assert wrong_method == 405
    assert all(headers["x-request-id"] for _, _, headers in found)
    assert w.upstream.requests == 0
    assert w.bill() == []


async def test_a_body_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    async with world(tmp_path, body_limit=1_000_000) as w:
        status, body, _ = await w.post("/chat/completions", bomb, **{"Content-Encoding": "gzip"})
    assert (status, body["error"]["code"]) == (413, "request_too_large")


async def test_a_client_that_sends_too_slowly_is_let_go(tmp_path: Path) -> None:
    async with world(tmp_path, read_timeout=0.2) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.gateway.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n")
        writer.close()
    assert b"408" in head


async def test_a_client_that_never_ends_its_head_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.doors.gateway.server._KEEP_ALIVE", 0.3)
    async with world(tmp_path) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.gateway.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nX-Slow: 1")
        async with asyncio.timeout(60):
            rest = await reader.read()
        writer.close()
    assert rest == b""


async def test_attribution_headers_must_be_names(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        status, body, _ = await w.post("/chat/completions", {"model": "m", "messages": HELLO}, **{"X-Ziggurat-Run": "x" * 300})
    assert (status, body["error"]["param"]) == (400, "X-Ziggurat-Run")


# -- upstreams that misbehave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "code", "again"),
    [
        ("rejected", 400, "request_rejected", "false"),
        ("not_found", 404, "model_not_found", "false"),
        ("unauthorized", 502, "upstream_authentication_failed", "false"),
        ("nonsense", 502, "upstream_failed", "false"),
        ("failed", 502, "upstream_failed", "false"),
        ("cut", 502, "upstream_failed", "false"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_upstream_does_is_told_as_a_status(
    tmp_path: Path, fault: str, status: int, code: str, again: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "cut" and stream:
        return  # A stream that was cut began: see below.
    monkeypatch.setattr("ziggurat.inference.calls.backoff", lambda *_: 0.0)
    async with world(tmp_path, FaultyUpstream(faults={fault: 1.0})) as w:
        found, body, headers = await w.chat(stream=stream)
    assert (found, body["error"]["code"], headers["x-should-retry"]) == (status, code, again)
    # The router is the one that retries: three attempts at what may pass, one at what will not.
    assert w.upstream.requests == (3 if code == "upstream_failed" else 1)


async def test_a_limited_upstream_is_waited_for_and_billed_once(tmp_path: Path) -> None:
    upstream = FaultyUpstream(schedule=["rate_limited", "failed", "ok"], retry_after=0.05)
    async with world(tmp_path, upstream) as w:
        status, _, _ = await w.chat()
    assert (status, upstream.requests) == (200, 3)
    (row,) = w.bill()
    assert (row.calls, row.unanswered) == (1, 0)


async def test_an_upstream_that_stays_limited_is_a_429_with_the_time_to_wait(tmp_path: Path) -> None:
    upstream = FaultyUpstream(faults={"rate_limited": 1.0}, retry_after=3600)
    async with world(tmp_path, upstream) as w:
        status, body, headers = await w.chat()
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(headers["Retry-After"]) >= 3600
    assert upstream.requests == 1


async def test_a_silent_upstream_is_a_504_and_held_as_maybe_billed(tmp_path: Path) -> None:
    upstream = FaultyUpstream(faults={"timeout": 1.0})
    async with world(tmp_path, upstream, endpoint={"timeouts": {"total": 1.0}}) as w:
        status, body, headers = await w.chat(stream=True)
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (504, "upstream_timeout", "false")
    (row,) = w.bill()
    assert (row.calls, row.unanswered) == (0, upstream.requests)


async def test_nobody_upstream_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.inference.calls.backoff", lambda *_: 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with world(tmp_path, endpoint={"base_url": f"http://127.0.0.1:{taken.getsockname()[1]}/v1"}) as w:
            status, body, _ = await w.chat()
    assert (status, body["error"]["code"]) == (503, "upstream_unreachable")


async def test_a_stream_cut_in_the_middle_ends_in_an_error_event_and_what_came_is_billed(tmp_path: Path) -> None:
    upstream = FaultyUpstream(lambda prompt, asked: Reply(text="one two three four five six", fault="cut"))
    async with world(tmp_path, upstream) as w:
        events = await w.events()
    assert events[0]["choices"][0]["delta"]["content"]
    assert events[-1]["error"]["code"] == "upstream_failed"
    assert "[DONE]" not in events
    assert upstream.requests == 1
    (row,) = w.bill("status")
    assert (row.group, row.calls) == (("EndpointFailed",), 1)
    assert row.output_tokens > 0


# -- clients that misbehave ------------------------------------------------------------------------------------------


async def test_a_client_that_hangs_up_closes_the_upstream_call(tmp_path: Path) -> None:
    upstream = FaultyUpstream(lambda prompt, asked: Reply(text="word " * 1000, first_token=0.0, per_token=0.05))
    async with world(tmp_path, upstream) as w:
        body = {"model": "m", "messages": HELLO, "stream": True}
        async with w.http.post(w.url + "/chat/completions", json=body) as response:
            await response.content.readline()
            response.close()
        await until(lambda: upstream.abandoned == 1)
        waiting = asyncio.create_task(w.chat())
        await until(lambda: upstream.open_requests == 1)
        waiting.cancel()
        await until(lambda: upstream.abandoned == 2)
        await until(lambda: w.gateway.in_flight == 0)
    statuses = {row.group[0]: row for row in w.bill("status")}
    assert statuses["stopped"].output_tokens >= 1
    assert statuses["unanswered"].unanswered == 1


async def test_a_client_that_does_not_read_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.doors.gateway.server._SWEEP_SECONDS", 0.05)

    async def endless(request: web.Request, prompt: Prompt) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        piece = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'
        while True:
            await response.write(piece)

    upstream = FaultyUpstream(raw=endless)
    async with world(tmp_path, upstream, read_timeout=0.3) as w:
        _, writer = await asyncio.open_connection("127.0.0.1", w.gateway.port, limit=1024)
        body = json.dumps({"model": "m", "messages": HELLO, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: w.gateway.in_flight == 1)
        await until(lambda: w.gateway.in_flight == 0)
        await until(lambda: upstream.open_requests == 0)
        writer.close()


# -- keys ------------------------------------------------------------------------------------------------------------


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_keys_say_who_may_call_what_and_are_not_in_any_answer(tmp_path: Path) -> None:
    body = {"model": "m", "messages": HELLO}
    key = create_key(tmp_path / "gateway.db", Caller(name="alice", models=frozenset({"m"}), namespace="acme"), 1.0)
    any_alias = create_key(tmp_path / "gateway.db", Caller(name="bob"), 1.0)
    async with world(tmp_path) as w:
        right, _, _ = await w.post("/chat/completions", body, **bearer(key), **{"X-Ziggurat-Tenant": "other"})
        wrong, told, _ = await w.post("/chat/completions", body, **bearer(key + "x"))
        none, _, _ = await w.post("/chat/completions", body)
        other, denied, _ = await w.post("/chat/completions", {**body, "model": "s"}, **bearer(key))
        async with w.http.get(w.url + "/models", headers=bearer(key)) as response:
            data = (await response.json())["data"]
        listed = [entry["id"] for entry in data]
        direct, missing, _ = await w.post("/chat/completions", {**body, "model": "up:mock"}, **bearer(any_alias))
    assert (right, wrong, none, other, direct) == (200, 401, 401, 403, 404)
    assert missing["error"]["code"] == "model_not_found"
    assert told["error"]["code"] == "invalid_api_key"
    assert key not in str(told)
    assert denied["error"]["code"] == "model_not_allowed"
    assert listed == ["m"]
    (served,) = data[0]["ziggurat"]
    assert (served["route"], served["health"], served["replicas"]) == ("up:mock", "well", 1) and "http" not in str(data)
    (row,) = w.bill("key", "tenant")
    assert row.group == ("alice", "acme")
    assert key.encode() not in (tmp_path / "gateway.db").read_bytes()


async def test_a_revoked_key_stops_working_and_does_not_open_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.doors.gateway.server._SWEEP_SECONDS", 0.02)
    path = tmp_path / "gateway.db"
    key = create_key(path, Caller(name="alice"), 1.0)
    body = {"model": "m", "messages": HELLO}
    async with world(tmp_path) as w:
        assert (await w.post("/chat/completions", body, **bearer(key)))[0] == 200
        revoke_key(path, "alice", 2.0)
        async with asyncio.timeout(60):
            status = 200
            while status == 200:
                status, _, _ = await w.post("/chat/completions", body, **bearer(key))
        assert status == 401
        assert (await w.post("/chat/completions", body))[0] == 401
    async with world(tmp_path) as w:
        assert (await w.post("/chat/completions", body))[0] == 401


async def test_a_key_written_in_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "zgk-of-high-entropy")
    body = {"model": "m", "messages": HELLO}
    async with world(tmp_path, keys={"ci": {"key": "env:THE_KEY"}}) as w:
        assert (await w.post("/chat/completions", body, **bearer("zgk-of-high-entropy")))[0] == 200
        assert (await w.post("/chat/completions", body, **bearer("another")))[0] == 401
    assert w.bill("key")[0].group == ("ci",)


async def test_without_keys_the_door_is_for_this_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="without any key"):
        async with world(tmp_path, host="0.0.0.0"):
            raise AssertionError("it listens")
    async with world(tmp_path) as w:
        body = {"model": "m", "messages": HELLO}
        page, told, _ = await w.post("/chat/completions", body, Origin="https://evil.example")
        rebound, _, _ = await w.post("/chat/completions", body, Host="evil.example")
        local, _, _ = await w.post("/chat/completions", body, Origin="http://localhost:3000")
    assert (page, rebound, local) == (403, 403, 200)
    assert told["error"]["code"] == "not_local"


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(LayerUnreachable, match=f"127.0.0.1:{w.gateway.port}"):
            async with world(tmp_path, port=w.gateway.port):
                raise AssertionError("it listens")


# -- the process -----------------------------------------------------------------------------------------------------


async def test_draining_ends_what_is_under_way_and_refuses_the_rest(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def held(request: web.Request, prompt: Prompt) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(event({"content": "word"}))
        await go_on.wait()
        await response.write(event({}, finish="stop") + b"data: [DONE]\n\n")
        return response

    async with world(tmp_path, FaultyUpstream(raw=held)) as w:
        running = asyncio.create_task(w.events())
        await until(lambda: w.gateway.in_flight == 1)
        draining = asyncio.create_task(w.gateway.drain(60))
        await until(lambda: w.gateway.draining)
        status, body, headers = await w.chat()
        async with w.http.get(f"http://127.0.0.1:{w.gateway.port}/readyz") as response:
            ready = response.status
        async with w.http.get(f"http://127.0.0.1:{w.gateway.port}/healthz") as response:
            alive = response.status
        go_on.set()
        events = await running
        assert await draining
    assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "draining", "1")
    assert headers["Connection"] == "close"
    assert (ready, alive) == (503, 200)
    assert events[-1] == "[DONE]"


async def test_a_full_gateway_says_so(tmp_path: Path) -> None:
    upstream = FaultyUpstream(latency=30.0)
    async with world(tmp_path, upstream, max_in_flight=1) as w:
        held = asyncio.create_task(w.chat())
        await until(lambda: upstream.open_requests == 1)
        status, body, headers = await w.chat()
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (503, "overloaded", "true")


async def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.chat()
        await w.post("/nothing", {})
        async with w.http.get(f"http://127.0.0.1:{w.gateway.port}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            families = {family.name: family for family in text_string_to_metric_families(await response.text())}
    counted = {tuple(sorted(s.labels.items())): s.value for s in families["ziggurat_gateway_requests"].samples}
    assert counted[("path", "/v1/chat/completions"), ("status", "200")] >= 1
    assert counted[("path", "other"), ("status", "404")] >= 1
    assert "ziggurat_model_calls" in families


async def test_a_key_that_calls_too_often_waits_a_little_and_is_then_told_to_come_back(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    # Six a minute and at most one at once, by the burst of ten seconds.
    slow = create_key(path, Caller(name="slow", requests_per_minute=6), 1.0)
    free = create_key(path, Caller(name="free"), 1.0)
    body = {"model": "m", "messages": HELLO}
    async with world(tmp_path, patience=0.1) as w:
        first, _, _ = await w.post("/chat/completions", body, **bearer(slow))
        second, told, headers = await w.post("/chat/completions", body, **bearer(slow))
        streamed, _, _ = await w.post("/chat/completions", {**body, "stream": True}, **bearer(slow))
        other, _, _ = await w.post("/chat/completions", body, **bearer(free))
    assert (first, second, streamed, other) == (200, 429, 429, 200)
    assert (told["error"]["code"], headers["Retry-After"]) == ("rate_limit_exceeded", "1")
    assert w.upstream.requests == 2
    assert {row.group[0]: row.calls for row in w.bill("key")} == {"slow": 1, "free": 1}


async def test_a_key_spends_its_budget_and_no_more(tmp_path: Path) -> None:
    await clear_of_midnight()
    # A call costs a dollar: a million tokens at a dollar for a million.
    upstream = FaultyUpstream(lambda prompt, asked: Reply(text="hi", input_tokens=500_000, output_tokens=500_000))
    path = tmp_path / "gateway.db"
    daily = create_key(path, Caller(name="daily", budget=1.5), 1.0)
    whole = create_key(path, Caller(name="whole", budget=1.5, period="total"), 1.0)
    body = {"model": "m", "messages": HELLO}
    async with world(tmp_path, upstream) as w:
        found = [(await w.post("/chat/completions", body, **bearer(key)))[0] for key in (daily, daily, daily, whole)]
        status, told, headers = await w.post("/chat/completions", {**body, "stream": True}, **bearer(daily))
    # What is left is spent on one more call, whose cost is not known before; then nothing.
    assert found == [200, 200, 429, 200]
    assert (status, told["error"]["code"], headers["x-should-retry"]) == (429, "insufficient_quota", "false")
    assert "daily" in told["error"]["message"]
    async with world(tmp_path, upstream) as w:
        # A gateway that starts anew knows from the ledger what was spent.
        again = [(await w.post("/chat/completions", body, **bearer(key)))[0] for key in (daily, whole, whole)]
    assert again == [429, 200, 429]
    assert {row.group[0]: row.cost_usd for row in w.bill("key")} == pytest.approx({"daily": 2.0, "whole": 2.0})
    assert upstream.requests == 4


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses"])
async def test_headers_demand_a_region_and_a_quality(tmp_path: Path, path: str) -> None:
    body: dict[str, Any] = {"model": "m"}
    body |= {"/completions": {"prompt": "hi"}, "/responses": {"input": "hi"}}.get(path, {"messages": HELLO})
    async with world(tmp_path, endpoint={"region": "eu", "quality": {"*": 3}}) as w:
        fits, _, _ = await w.post(path, body, **{"X-Ziggurat-Region": "eu", "X-Ziggurat-Quality": "3"})
        elsewhere, told, _ = await w.post(path, body, **{"X-Ziggurat-Region": "us"})
        better, short, _ = await w.post(path, body, **{"X-Ziggurat-Quality": "4"})
        nonsense, refused, _ = await w.post(path, body, **{"X-Ziggurat-Quality": "high"})
        requests = w.upstream.requests
    assert (fits, elsewhere, better, nonsense, requests) == (200, 400, 400, 400, 1)
    assert "the call must stay in 'us'" in str(told) and "4 is asked for" in str(short)
    assert "whole number from 1 to 5" in str(refused)
