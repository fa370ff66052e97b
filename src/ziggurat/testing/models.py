"""Scripted models for tests: in process, or behind real HTTP with an upstream that misbehaves on demand.

```python
models = scripted_models(answers=[{"match": "colour", "answer": "red"}])
use_models(models)                      # llm.text("Which colour?") is now "red"

async with FaultyUpstream(schedule=["rate_limited", "ok"]) as upstream:
    config = EndpointConfig(name="up", base_url=upstream.base_url)
```

`python -m ziggurat.testing.models --port 8080` serves one for benchmarks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

import msgspec
from aiohttp import web

from ziggurat.inference import wire
from ziggurat.inference.backends.scripted import (
    Behaviour,
    Fault,
    Reply,
    Script,
    ScriptOptions,
    create,
    embedding_question,
    embedding_tokens,
    tokens_of,
    usage_for,
    vectors_of,
    within,
)
from ziggurat.inference.interface import EndpointConfig, ModelConfig
from ziggurat.inference.router import Router
from ziggurat.records import ChatMessage, EmbeddingPrompt, Prompt, Tool, ToolCall, Usage
from ziggurat.testing.batches import BatchDesk

__all__ = ["Behaviour", "Fault", "FaultyUpstream", "Reply", "Script", "ScriptOptions", "scripted_models"]

#: Answers a request in a way that no script can; None lets the script answer.
RawHandler = Callable[[web.Request, Prompt], Awaitable[web.StreamResponse | None]]


def scripted_models(
    behaviour: Behaviour | None = None, *, aliases: tuple[str, ...] = ("default", "fast"), **options: Any
) -> Router:
    """Return an inference layer whose every alias is one scripted model; give it to `ziggurat.program.llm.use_models`.

    Args:
        behaviour: decides calls, as a function of the prompt and how often it was asked before.
        aliases: the models that programs may name.
        options: those of `ScriptOptions`, such as answers, faults, latency and seed.
    """
    endpoint = create(EndpointConfig(name="scripted", kind="scripted", options=options), behaviour)
    return Router({"scripted": endpoint}, {alias: ModelConfig(routes=["scripted:scripted"]) for alias in aliases})


class FaultyUpstream:
    """An OpenAI-compatible server on loopback that acts a script out, faults included, over real HTTP.

    Args:
        behaviour: decides calls, as for `scripted_models`.
        raw: answers below the script, for faults of the wire: pages, cuts, silence, nonsense.
        api_key: refuse requests without it; empty takes all.
        port: 0 takes a free one.
        options: those of `ScriptOptions`.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        raw: RawHandler | None = None,
        api_key: str = "",
        port: int = 0,
        **options: Any,
    ) -> None:
        self.script = Script(msgspec.convert(options, ScriptOptions), behaviour)
        self.raw = raw
        self._api_key, self._port = api_key, port
        #: Bodies of the chat requests, as JSON values, newest last; the last 1,000.
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        #: Chat requests in all and under way, those whose client went away, and the connections that were made.
        self.requests = self.open_requests = self.abandoned = 0
        self.connections: set[int] = set()
        #: As a server of one's own: the status of GET /health (404 for none), the text of GET /metrics, and max_model_len by model.
        self.health, self.metrics = 404, ""
        self.contexts: dict[str, int] = {}
        #: Its Batch API.
        self.batches = BatchDesk(self._answer_line, self._refusal)
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """The URL before /chat/completions."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self.batches.add_to(app)
        # Cancelling the handler when its client goes away is how the tests see that a cancelled call is closed upstream.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        address: tuple[str, int] = self._runner.addresses[0]
        self._port = address[1]

    async def stop(self) -> None:
        """Stop listening and cut what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> FaultyUpstream:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    # -- handlers ----------------------------------------------------------------------------------------------------

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._api_key and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            given = request.headers.get("Authorization", "nothing").removeprefix("Bearer ")
            return _error(401, f"Incorrect API key provided: {given}.", "invalid_api_key")
        return None

    def _answer_line(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = prompt_of(body)
        reply = self.script.reply(prompt)
        if reply.fault is None:
            return 200, answer_body(prompt, reply, str(body.get("model", "")))
        status, message, code = _STATUS.get(reply.fault, _STATUS["failed"])
        return status, {"error": {"message": message, "type": code, "code": code}}

    async def _models(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        listed: list[dict[str, Any]] = [{"id": name, "object": "model"} for name in self.script.options.models]
        listed += [{"id": name, "object": "model", "max_model_len": context} for name, context in self.contexts.items()]
        return refusal or _json({"object": "list", "data": listed})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics, status=200 if self.metrics else 404)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests += 1
        self.bodies = [*self.bodies[-999:], body]
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        prompt = EmbeddingPrompt(inputs=inputs, model=body.get("model", ""), dimensions=body.get("dimensions"))
        reply = self.script.reply(embedding_question(prompt))
        await asyncio.sleep(reply.first_token or 0.0)
        if reply.fault is not None:
            return await self._fault(reply)
        data = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(vectors_of(prompt))]
        tokens = embedding_tokens(prompt)
        usage = {} if reply.no_usage else {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        return _json({"object": "list", "data": data, "model": prompt.model, **usage})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests += 1
        self.open_requests += 1
        self.connections.add(id(request.transport))
        self.bodies = [*self.bodies[-999:], body]
        self.headers = [*self.headers[-999:], request.headers]
        try:
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            prompt = prompt_of(body)
            raw = await self.raw(request, prompt) if self.raw is not None else None
            if raw is not None:
                return raw
            reply = self.script.reply(prompt)
            return await (self._stream if body.get("stream") else self._whole)(request, prompt, reply, body)
        except (asyncio.CancelledError, ConnectionError):
            self.abandoned += 1
            raise
        finally:
            self.open_requests -= 1

    async def _whole(self, request: web.Request, prompt: Prompt, reply: Reply, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep((reply.first_token or 0.0) + (reply.per_token or 0.0) * len(tokens_of(reply.text)))
        if reply.fault == "cut":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100000"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"message": {"content": "half of')
            hang_up(request)
            return response
        if reply.fault is not None:
            return await self._fault(reply)
        return _json(answer_body(prompt, reply, str(body.get("model", ""))))

    async def _stream(self, request: web.Request, prompt: Prompt, reply: Reply, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(reply.first_token or 0.0)
        if reply.fault not in (None, "cut"):
            return await self._fault(reply)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        text, finish = within(reply.text, prompt.max_tokens)
        events = [{"content": piece} for piece in tokens_of(text)] or [{"refusal": reply.refusal}] * bool(reply.refusal)
        cut_after = len(events) // 2 if reply.fault == "cut" else None
        for number, delta in enumerate(events):
            if number == cut_after:
                hang_up(request)
                return response
            if number and reply.per_token:
                await asyncio.sleep(reply.per_token)
            await response.write(event(delta))
        for number, call in enumerate(reply.tool_calls):
            function = {"name": call.name, "arguments": call.arguments}
            await response.write(
                event({"tool_calls": [{"index": number, "id": call.id, "type": "function", "function": function}]})
            )
        if reply.fault == "cut":
            hang_up(request)
            return response
        usage = usage_for(prompt, reply)
        await response.write(event({}, finish="tool_calls" if reply.tool_calls else finish))
        if usage.calls and body.get("stream_options", {}).get("include_usage"):
            await response.write(b"data: " + json.dumps({"choices": [], "usage": usage_body(usage)}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _fault(self, reply: Reply) -> web.StreamResponse:
        if reply.fault == "timeout":
            await asyncio.sleep(3600)
        if reply.fault == "nonsense":
            return web.Response(body=b"\x00\x01 this is no JSON", content_type="application/json")
        status, message, code = _STATUS[reply.fault or "failed"]
        headers = {"Retry-After": f"{reply.retry_after:g}"} if reply.retry_after is not None else {}
        return _error(status, message, code, headers)


_STATUS: dict[str, tuple[int, str, str]] = {
    "rate_limited": (429, "Rate limit reached.", "rate_limit_exceeded"),
    "failed": (500, "The server had an error.", "server_error"),
    "unauthorized": (401, "Incorrect API key provided.", "invalid_api_key"),
    "not_found": (404, "No matching target server found", "model_not_found"),
    "rejected": (400, "Invalid value for 'messages'.", "invalid_request_error"),
}


def hang_up(request: web.Request) -> None:
    """Cut the connection without the courtesies of HTTP."""
    if request.transport is not None:
        request.transport.abort()


def event(delta: dict[str, Any], *, finish: str | None = None) -> bytes:
    """Return one event of a stream."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def prompt_of(body: dict[str, Any]) -> Prompt:
    """Return the prompt that a chat request carries."""
    form = body.get("response_format") or {}
    choice = body.get("tool_choice", "auto")
    named = form.get("json_schema", {})
    return Prompt(
        messages=[_message_of(m) for m in body["messages"]],
        model=body.get("model", ""),
        tools=[_tool_of(t["function"]) for t in body.get("tools", ())],
        tool_choice=choice if isinstance(choice, str) else choice["function"]["name"],
        schema=named.get("schema"),
        schema_name=named.get("name", "answer"),
        temperature=body.get("temperature"),
        max_tokens=body.get("max_tokens") or body.get("max_completion_tokens"),
        extra={"response_format": form} if form.get("type") == "json_object" else {},
    )


def answer_body(prompt: Prompt, reply: Reply, model: str) -> dict[str, Any]:
    """Return a reply as a whole answer of the dialect."""
    text, ended = within(reply.text, prompt.max_tokens)
    said: dict[str, Any] = {"role": "assistant", "content": text or None}
    if reply.refusal:
        said["refusal"] = reply.refusal
    if reply.tool_calls:
        said["tool_calls"] = wire.message(ChatMessage(role="assistant", tool_calls=reply.tool_calls))["tool_calls"]
    usage = usage_for(prompt, reply)
    finish = "tool_calls" if reply.tool_calls else ended
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        **({"usage": usage_body(usage)} if usage.calls else {}),
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return a usage as the dialect reports it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _message_of(m: dict[str, Any]) -> ChatMessage:
    calls = [
        ToolCall(id=c["id"], name=c["function"]["name"], arguments=c["function"]["arguments"]) for c in m.get("tool_calls") or ()
    ]
    return ChatMessage(role=m["role"], content=m.get("content"), tool_calls=calls, tool_call_id=m.get("tool_call_id"))


def _tool_of(function: dict[str, Any]) -> Tool:
    return Tool(name=function["name"], description=function.get("description", ""), parameters=function.get("parameters", {}))


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, headers=headers, content_type="application/json")


def _error(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return _json({"error": {"message": message, "type": code, "code": code}}, status, headers)


async def _serve(port: int, options: dict[str, Any]) -> None:
    async with FaultyUpstream(port=port, **options) as upstream:
        # The one line that whoever started this process reads, to learn the port.
        print(upstream.base_url, flush=True)  # noqa: T201
        await asyncio.Event().wait()


def main() -> None:
    """Serve a scripted upstream until interrupted; prints its base URL. Options are those of ScriptOptions, as JSON."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server that acts out a script.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--options", type=json.loads, default={}, help='such as {"latency": 0.5, "faults": {"rate_limited": 0.01}}'
    )
    given = parser.parse_args()
    try:
        asyncio.run(_serve(given.port, given.options))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
