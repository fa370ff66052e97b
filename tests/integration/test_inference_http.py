"""The OpenAI-compatible endpoint against an upstream that misbehaves, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from tests.ports import free_port
from ziggurat.errors import (
    AuthenticationFailed,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    ModelNotFound,
    OutputRefused,
    RateLimited,
    SettingsError,
)
from ziggurat.inference.backends import openai_compatible
from ziggurat.inference.interface import Endpoint, EndpointConfig, ModelConfig, Timeouts, allow_network
from ziggurat.inference.router import Router
from ziggurat.records import ChatMessage, Chunk, Prompt
from ziggurat.testing.models import FaultyUpstream, Reply, event, hang_up

KEY = "sk-a-very-secret-key"
Raw = Callable[[web.Request], Awaitable[web.StreamResponse]]


def user(content: str = "hi", **more: Any) -> Prompt:
    return Prompt(messages=[ChatMessage(role="user", content=content)], **more)


def endpoint(url: str, **more: Any) -> Endpoint:
    return openai_compatible.create(EndpointConfig(name="up", base_url=url, api_key=KEY, **more))


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with FaultyUpstream() as running:
        yield running


def answers(upstream: FaultyUpstream, raw: Raw) -> None:
    async def handler(request: web.Request, prompt: Prompt) -> web.StreamResponse:
        return await raw(request)

    upstream.raw = handler


def body(
    upstream: FaultyUpstream, data: bytes, content_type: str = "application/json", status: int = 200, **headers: str
) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def raw(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, status=status, headers={"Content-Type": content_type, **named})

    answers(upstream, raw)


def sse(upstream: FaultyUpstream, *pieces: bytes | float, end: bool = True) -> None:
    """Let the upstream stream these bytes; a number is a pause in seconds."""

    async def raw(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                await response.write(piece)
        if end:
            await response.write_eof()
        else:
            hang_up(request)
        return response

    answers(upstream, raw)


async def collect(up: Endpoint, prompt: Prompt | None = None) -> list[Chunk]:
    return [chunk async for chunk in up.stream(prompt or user(), "m")]


KEEP_ALIVES: list[bytes | float] = [b": keep-alive\n\n", b"\n", 0.02]
DONE = b"data: [DONE]\n\n"
HELLO = event({"content": "hel"}) + event({"content": "lo"}) + event({}, finish="stop")


# -- what goes well --------------------------------------------------------------------------------------------------


async def test_connections_are_used_again_and_streams_give_theirs_back(upstream: FaultyUpstream) -> None:
    up = endpoint(upstream.base_url)
    for number in range(5):
        await up.complete(user(str(number)), "m")
        assert [c.finish for c in await collect(up, user(f"s{number}")) if c.finish] == ["stop"]
    assert upstream.requests == 10 and len(upstream.connections) == 1
    await up.close()


async def test_headers_the_key_and_the_session_go_out(upstream: FaultyUpstream) -> None:
    up = endpoint(upstream.base_url, headers={"X-Organization-ID": "org"}, options={"session_header": "X-Session"})
    await up.complete(user(session="run-7"), "m")
    sent = upstream.headers[-1]
    assert (sent["Authorization"], sent["X-Organization-ID"], sent["X-Session"]) == (f"Bearer {KEY}", "org", "run-7")


async def test_usage_comes_at_the_end_of_a_stream_whether_before_or_after_the_finish(upstream: FaultyUpstream) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    together = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage}).encode()
    after = event({}, finish="stop") + b'data: {"choices":[],"usage":' + json.dumps(usage).encode() + b"}\n\n"
    for ending in (b"data: " + together + b"\n\n", after):
        sse(upstream, event({"content": "x"}) + ending + DONE)
        chunks = await collect(endpoint(upstream.base_url))
        assert [c.usage.output_tokens for c in chunks if c.usage is not None] == [2]


@pytest.mark.parametrize(
    "stream",
    [
        HELLO + DONE,
        HELLO,  # No end mark.
        HELLO + b"data: [DONE]",  # No blank line at the end.
        HELLO.replace(b"\n", b"\r\n") + DONE,
        b": keep-alive\n\n\n\n" + HELLO.replace(b"\n\n", b"\n\n: keep-alive\n\n") + DONE,
        HELLO.replace(b"data: ", b"event: chunk\nid: 1\ndata:") + DONE,
        event({"content": "hel"}) + event({"content": "lo"}) + DONE,  # No finish reason.
        HELLO + DONE + event({"content": "after the end"}),
    ],
)
async def test_streams_of_all_manners_are_read(upstream: FaultyUpstream, stream: bytes) -> None:
    for pieces in ([stream], [stream[i : i + 7] for i in range(0, len(stream), 7)]):
        sse(upstream, *pieces)
        assert "".join(c.text for c in await collect(endpoint(upstream.base_url))) == "hello"


async def test_a_server_that_cannot_stream_is_read_whole(upstream: FaultyUpstream) -> None:
    body(upstream, json.dumps({"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}).encode())
    chunks = await collect(endpoint(upstream.base_url))
    assert ("".join(c.text for c in chunks), chunks[-1].finish) == ("whole", "stop")


async def test_a_compressed_answer_is_read_although_nobody_asked_for_it(upstream: FaultyUpstream) -> None:
    data = gzip.compress(json.dumps({"choices": [{"message": {"content": "small"}}]}).encode())
    body(upstream, data, Content_Encoding="gzip")
    assert (await endpoint(upstream.base_url).complete(user(), "m")).text == "small"


async def test_the_models_are_listed_and_the_health_is_a_sentence(upstream: FaultyUpstream) -> None:
    up = endpoint(upstream.base_url)
    assert await up.models() == ["scripted"]
    assert "lists 1 models" in await up.check()
    assert upstream.requests == 0


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "data", "kind"),
    [
        (401, b'{"error":{"message":"bad key"}}', AuthenticationFailed),
        (402, b'{"error":{"message":"Insufficient Balance"}}', AuthenticationFailed),
        (404, b"No matching target server found", ModelNotFound),
        (404, b"<html><title>Nothing here</title></html>", ModelNotFound),
        (429, b'{"error":{"message":"slow"}}', RateLimited),
        (500, b"<html>", EndpointFailed),
        (503, b"", EndpointFailed),
        (302, b"", EndpointFailed),
        (200, b"", EndpointFailed),
        (200, b"not json", EndpointFailed),
        (200, b'{"choices":[]}', EndpointFailed),
        (200, b'{"error":{"message":"upstream is down","code":502}}', EndpointFailed),
        (200, b'{"error":{"message":"slow","code":429}}', RateLimited),
    ],
)
async def test_every_bad_answer_is_an_error_of_its_kind(
    upstream: FaultyUpstream, streamed: bool, status: int, data: bytes, kind: type[InferenceError]
) -> None:
    body(upstream, data, status=status)
    up = endpoint(upstream.base_url)
    with pytest.raises(kind) as caught:
        await (collect(up) if streamed else up.complete(user(), "m"))
    assert type(caught.value) is kind and "'up'" in str(caught.value)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_website_in_the_place_of_an_api_is_recognised(upstream: FaultyUpstream, streamed: bool) -> None:
    body(upstream, b"<!doctype html><title>Welcome</title>" + b" " * 100_000, "text/html")
    up = endpoint(upstream.base_url)
    with pytest.raises(EndpointFailed, match="base_url"):
        await (collect(up) if streamed else up.complete(user(), "m"))


async def test_a_retry_after_comes_with_the_error(upstream: FaultyUpstream) -> None:
    body(upstream, b"{}", status=429, Retry_After="17")
    with pytest.raises(RateLimited) as caught:
        await endpoint(upstream.base_url).complete(user(), "m")
    assert caught.value.retry_after == 17.0


@pytest.mark.parametrize(
    ("pieces", "kind", "words"),
    [
        ([event({"content": "half"})], EndpointFailed, "cut the stream after 1 pieces"),
        ([b""], EndpointFailed, "cut the stream after 0 pieces"),
        ([DONE], EndpointFailed, "cut the stream"),
        ([event({"content": "x"}), b"data: {broken\n\n"], EndpointFailed, "no answer"),
        ([event({"content": "x"}), b'data: {"error":{"message":"overloaded","code":503}}\n\n'], EndpointFailed, "overloaded"),
        ([event({"content": "x"}), event({}, finish="error")], EndpointFailed, "stopped with 'error'"),
        (
            [event({"refusal": "I will "}), event({"refusal": "not."}), event({}, finish="stop"), DONE],
            OutputRefused,
            "I will not.",
        ),
    ],
)
async def test_a_stream_that_goes_wrong_is_an_error(
    upstream: FaultyUpstream, pieces: list[bytes], kind: type[InferenceError], words: str
) -> None:
    sse(upstream, *pieces)
    with pytest.raises(kind, match=words):
        await collect(endpoint(upstream.base_url))


async def test_a_connection_that_is_cut_counts_as_sent(upstream: FaultyUpstream) -> None:
    sse(upstream, event({"content": "half"}), 0.01, end=False)
    with pytest.raises(InferenceError) as caught:
        await collect(endpoint(upstream.base_url))
    assert caught.value.sent and caught.value.retryable
    upstream.raw = None
    upstream.script = FaultyUpstream(lambda prompt, asked: Reply(fault="cut")).script
    with pytest.raises(EndpointFailed) as cut:
        await endpoint(upstream.base_url).complete(user(), "m")
    assert cut.value.sent


async def test_keep_alives_are_not_data(upstream: FaultyUpstream) -> None:
    sse(upstream, *KEEP_ALIVES * 500, HELLO)
    up = endpoint(upstream.base_url, timeouts=Timeouts(first_token=1.0, idle=60.0))
    with pytest.raises(EndpointUnreachable, match="no data, whatever keep-alives came") as caught:
        await collect(up)
    assert caught.value.sent


async def test_keep_alives_before_an_answer_do_no_harm(upstream: FaultyUpstream) -> None:
    sse(upstream, *KEEP_ALIVES * 10, HELLO)
    up = endpoint(upstream.base_url, timeouts=Timeouts(first_token=30.0, idle=0.1))
    assert "".join(c.text for c in await collect(up)) == "hello"


async def test_blank_lines_before_a_whole_answer_do_no_harm(upstream: FaultyUpstream) -> None:
    # DeepSeek sends them while a request waits in its queue.
    body(upstream, b"\n\n\n\n" + json.dumps({"choices": [{"message": {"content": "at last"}}]}).encode())
    assert (await endpoint(upstream.base_url).complete(user(), "m")).text == "at last"


async def test_silence_in_the_middle_is_noticed(upstream: FaultyUpstream) -> None:
    sse(upstream, event({"content": "half"}), *KEEP_ALIVES * 500)
    with pytest.raises(EndpointUnreachable, match="fell silent"):
        await collect(endpoint(upstream.base_url, timeouts=Timeouts(idle=0.2)))


async def test_a_slow_reader_is_not_taken_for_a_silent_upstream(upstream: FaultyUpstream) -> None:
    sse(upstream, event({"content": "a"}), event({"content": "b"}), event({}, finish="stop"))
    up = endpoint(upstream.base_url, timeouts=Timeouts(idle=0.2, first_token=60.0))
    text = ""
    async for chunk in up.stream(user(), "m"):
        text += chunk.text
        await asyncio.sleep(0.5)
    assert text == "ab"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_prompts_time_ends_the_call(upstream: FaultyUpstream, streamed: bool) -> None:
    pieces: list[bytes | float] = [event({"content": "x"}), 0.01]
    sse(upstream, *pieces * 1000) if streamed else answers(upstream, _never)
    up = endpoint(upstream.base_url)
    with pytest.raises(EndpointUnreachable) as caught:
        await (collect(up, user(timeout=1.0)) if streamed else up.complete(user(timeout=1.0), "m"))
    assert caught.value.sent


async def _never(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_endless_answer_is_bounded(upstream: FaultyUpstream, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_compatible, "ANSWER_BYTES_MAX", 100_000)
    if streamed:
        sse(upstream, *[event({"content": "x" * 1000})] * 10_000)
    else:
        body(upstream, b'{"choices": "' + b"x" * 1_000_000)
    up = endpoint(upstream.base_url)
    with pytest.raises(EndpointFailed, match="more than 100,000 bytes"):
        await (collect(up) if streamed else up.complete(user(), "m"))


async def test_an_endless_error_is_cut(upstream: FaultyUpstream) -> None:
    body(upstream, b"x" * 5_000_000, status=500)
    with pytest.raises(EndpointFailed) as caught:
        await endpoint(upstream.base_url).complete(user(), "m")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("how", ["complete", "stream", "break"])
async def test_a_cancelled_call_is_closed_upstream(upstream: FaultyUpstream, how: str) -> None:
    started = asyncio.Event()

    async def raw(request: web.Request) -> web.StreamResponse:
        if how == "complete":
            started.set()
            return await _never(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        started.set()
        while True:
            await response.write(event({"content": "x"}))
            await asyncio.sleep(0.005)

    answers(upstream, raw)
    up = endpoint(upstream.base_url)
    if how == "break":
        stream = up.stream(user(), "m")
        await anext(stream)
        await stream.aclose()
    else:
        task = asyncio.create_task(up.complete(user(), "m") if how == "complete" else _collected(up))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(90):
        while upstream.open_requests:  # noqa: ASYNC110  # The upstream is the other side of a socket, not ours to notify.
            await asyncio.sleep(0.005)
    assert upstream.abandoned == 1
    await up.close()


async def _collected(up: Endpoint) -> Any:
    return await collect(up)


# -- no connection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_nobody_there_is_one_sentence_and_was_not_sent(streamed: bool) -> None:
    up = endpoint(f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(EndpointUnreachable, match="cannot be reached") as caught:
        await (collect(up) if streamed else up.complete(user(), "m"))
    assert not caught.value.sent and caught.value.retryable


async def test_a_server_that_speaks_no_http_or_no_tls_is_one_sentence(upstream: FaultyUpstream) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com ESMTP\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(shout, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(InferenceError):
            await endpoint(f"http://127.0.0.1:{port}/v1").complete(user(), "m")
    with pytest.raises(EndpointUnreachable, match="cannot be reached"):
        await endpoint(upstream.base_url.replace("http:", "https:")).complete(user(), "m")
    assert ssl.HAS_TLSv1_2


@pytest.mark.parametrize("url", ["", "api.example.com/v1", "ftp://x/v1", "http://"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="base_url"):
        endpoint(url)


# -- secrets and the network -----------------------------------------------------------------------------------------


async def test_the_key_is_never_shown(upstream: FaultyUpstream, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    strict = FaultyUpstream(api_key="another-key")
    async with strict:
        up = endpoint(
            strict.base_url.replace("http://", "http://name:url-password@") + "?token=url-token", headers={"X-Key": "header-key"}
        )
        with pytest.raises(AuthenticationFailed) as caught:
            await up.complete(user(), "m")
    shown = [str(caught.value), repr(caught.value), repr(up.config), *caplog.messages]
    for secret in (KEY, "url-password", "url-token", "header-key"):
        assert not any(secret in text for text in shown)


async def test_other_machines_are_not_called_in_tests() -> None:
    up = endpoint("https://api.openai.com/v1")
    for call in (up.complete(user(), "gpt-4o-mini"), collect(up), up.models()):
        with pytest.raises(EndpointUnreachable, match="ZIGGURAT_ALLOW_MODEL_REQUESTS") as caught:
            await call
        assert not caught.value.retryable


async def test_the_switch_and_the_variable_allow_what_tests_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # The name resolves nowhere, so what is allowed fails for another reason.
    up = endpoint("http://nowhere.invalid/v1", timeouts=Timeouts(connect=5.0))
    monkeypatch.setenv("ZIGGURAT_ALLOW_MODEL_REQUESTS", "1")
    with pytest.raises(EndpointUnreachable, match=r"cannot be reached|did not take a connection"):
        await up.complete(user(), "m")
    allow_network(False)
    try:
        with pytest.raises(EndpointUnreachable, match="are off in tests"):
            await up.complete(user(), "m")
    finally:
        allow_network(None)


# -- many loops, and scripts that never close ------------------------------------------------------------------------


async def test_several_loops_in_several_threads_use_one_endpoint(upstream: FaultyUpstream) -> None:
    models = Router({"up": endpoint(upstream.base_url)}, {"default": ModelConfig(routes=["up:m"])})
    errors: list[BaseException] = []

    async def many() -> None:
        await asyncio.gather(*(models.complete(user(f"{threading.get_ident()}-{n}")) for n in range(20)))

    def run() -> None:
        try:
            asyncio.run(many())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    await many()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert not errors and upstream.requests == 100
    await models.close()


async def test_loops_that_ended_are_let_go(upstream: FaultyUpstream) -> None:
    up = endpoint(upstream.base_url)
    loops = weakref.WeakSet[asyncio.AbstractEventLoop]()

    async def call() -> None:
        loops.add(asyncio.get_running_loop())
        await up.complete(user(), "m")

    for _ in range(10):
        await asyncio.to_thread(asyncio.run, call())
    gc.collect()
    assert len(loops) <= 2
    await up.close()


async def test_an_endpoint_works_after_it_was_closed(upstream: FaultyUpstream) -> None:
    up = endpoint(upstream.base_url)
    await up.complete(user(), "m")
    await up.close()
    await up.close()
    assert (await up.complete(user(), "m")).text
    await up.close()


async def test_a_script_that_closes_nothing_ends_without_a_warning(upstream: FaultyUpstream) -> None:
    script = f"""
import asyncio
from ziggurat.inference.backends.openai_compatible import create
from ziggurat.inference.interface import EndpointConfig, ModelConfig
from ziggurat.inference.router import Router
from ziggurat.program import llm
up = create(EndpointConfig(name="up", base_url={upstream.base_url!r}))
llm.use_models(Router({{"up": up}}, {{"default": ModelConfig(routes=["up:m"])}}))
async def main():
    print(len(await llm.text("hi")) > 0)
    async for piece in llm.stream("hi"):
        break
for _ in range(2):
    asyncio.run(main())
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120, check=False)
    slow = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.returncode, done.stdout, slow) == (0, "True\nTrue\n", [])
