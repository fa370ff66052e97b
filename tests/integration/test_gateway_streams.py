"""The gateway before upstreams that are slow to begin, cut their words, or are asked for more than they hold."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from tests.integration.gateway_world import World, world
from ziggurat.records import Prompt
from ziggurat.testing.models import FaultyUpstream, event

#: What some providers send while a request waits in their queue.
IDLE: list[bytes | float] = [b": keep-alive\n\n", 0.05]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_too_long_is_the_clients_to_shorten(tmp_path: Path, stream: bool) -> None:
    async def too_long(request: web.Request, prompt: Prompt) -> web.StreamResponse:
        text = "This model's maximum context length is 8192 tokens, and the messages are 9000."
        body = {"error": {"message": text, "type": "invalid_request_error", "code": "context_length_exceeded"}}
        return web.json_response(body, status=400)

    async with world(tmp_path, FaultyUpstream(raw=too_long)) as w:
        status, body, headers = await w.chat(stream=stream)
        assert (status, body["error"]["code"], w.upstream.requests) == (400, "context_length_exceeded", 1)
        assert "maximum context length is 8192 tokens" in body["error"]["message"]
        assert headers["x-should-retry"] == "false"
    # One that is known to be too long is not sent.
    async with world(tmp_path / "known", model={"capabilities": {"context": 100}}) as w:
        status, body, _ = await w.chat(messages=[{"role": "user", "content": "long " * 1000}], stream=stream)
        assert (status, body["error"]["code"], w.upstream.requests) == (400, "context_length_exceeded", 0)


def streaming(*pieces: bytes | float) -> FaultyUpstream:
    """An upstream whose every answer is a stream of these bytes, with pauses of so many seconds."""

    async def answer(request: web.Request, prompt: Prompt) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await (asyncio.sleep(piece) if isinstance(piece, float) else response.write(piece))
        await response.write_eof()
        return response

    return FaultyUpstream(raw=answer)


async def lines(w: World) -> tuple[int, list[str]]:
    """Return the status and the lines of a streamed answer, comments and all."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    async with w.http.post(w.url + "/chat/completions", json=body) as response:
        return response.status, [line for line in (await response.text()).splitlines() if line]


async def test_an_upstream_that_only_says_that_it_is_there_keeps_the_clients_connection_alive(tmp_path: Path) -> None:
    upstream = streaming(*IDLE * 12, event({"content": "at last"}), event({}, finish="stop"), b"data: [DONE]\n\n")
    async with world(tmp_path, upstream, keep_alive="0.1s") as w:
        status, said = await lines(w)
    assert status == 200
    assert ": keep-alive" in said[0]
    texts = [json.loads(line[6:])["choices"][0]["delta"].get("content") for line in said if line.startswith("data: {")]
    assert [text for text in texts if text] == ["at last"]
    assert said[-1] == "data: [DONE]"
    # One that never says more is given up; the status has been given, so the error is an event.
    silent = streaming(*IDLE * 200)
    async with world(tmp_path / "silent", silent, endpoint={"timeouts": {"first_token": 0.5}}, keep_alive="0.1s") as w:
        status, said = await lines(w)
        assert status == 200
        assert ": keep-alive" in said[0]
        assert json.loads(said[-1].removeprefix("data: "))["error"]["code"] == "upstream_timeout"
    # Each try was sent and may have been billed.
    (row,) = w.bill("status")
    assert row.group == ("unanswered",)
    assert row.unanswered == w.upstream.requests


@pytest.mark.parametrize("late", [False, True])
async def test_a_stream_that_is_no_stream_is_an_error(tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.inference.calls.backoff", lambda *_: 0.0)
    upstream = streaming(*[event({"content": "half "})] * late, b"data: {this is no JSON\n\n", b"data: [DONE]\n\n")
    async with world(tmp_path, upstream) as w:
        if late:
            status, said = await lines(w)
            assert (status, json.loads(said[-1].removeprefix("data: "))["error"]["code"]) == (200, "upstream_failed")
        else:
            status, body, _ = await w.chat(stream=True)
            assert (status, body["error"]["code"]) == (502, "upstream_failed")
    if late:
        (row,) = w.bill()
        assert row.calls == 1  # What came before is billed.


async def test_a_client_that_hangs_up_before_the_first_piece_closes_the_upstream_call(tmp_path: Path) -> None:
    async with world(tmp_path, streaming(*IDLE * 2000), keep_alive="0.1s") as w:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        async with w.http.post(w.url + "/chat/completions", json=body) as response:
            assert await response.content.readline() == b": keep-alive\n"
            response.close()
        async with asyncio.timeout(60):
            while w.upstream.open_requests or w.gateway.in_flight:  # noqa: ASYNC110 - aiohttp tells nobody.
                await asyncio.sleep(0.01)
        assert w.upstream.abandoned == 1
