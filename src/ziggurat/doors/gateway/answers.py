"""Answers in OpenAI's dialect, written from completions and chunks (platform.openai.com/docs/api-reference/chat).

A stream's events differ in their delta only, so what surrounds it is encoded once for each stream.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ziggurat.records import Chunk, Completion, Usage

encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return a usage as chat completions report it; cached tokens are part of the prompt's, reasoning tokens of the completion's."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def chat_body(completion: Completion, id_: str, created: int, model: str) -> bytes:
    """Return a whole chat completion. `model` is the alias that was asked for: which model serves it is the operator's business."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": completion.text or (None if completion.tool_calls or completion.refusal else ""),
        "refusal": completion.refusal or None,
    }
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    if completion.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in completion.tool_calls
        ]
    return encode(
        {
            "id": f"chatcmpl-{id_}",
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish}],
            "usage": usage_body(completion.usage),
        }
    )


class ChatStream:
    """Writes one streamed chat completion, event by event."""

    __slots__ = ("_after", "_before", "_head", "_started", "_usage")

    def __init__(self, id_: str, created: int, model: str, *, usage: bool) -> None:
        head = encode({"id": f"chatcmpl-{id_}", "object": "chat.completion.chunk", "created": created, "model": model})
        self._head = b"data: " + head[:-1]
        self._before = self._head + b',"choices":[{"index":0,"delta":'
        # With include_usage, all events but the last have a usage that is null.
        self._usage = usage
        self._after = b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null}\n\n' if usage else b"}\n\n")
        self._started = False

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk; those of the last one end the stream."""
        delta: dict[str, Any] = {}
        if not self._started:
            self._started = True
            delta["role"] = "assistant"
            delta["content"] = chunk.text
        elif chunk.text:
            delta["content"] = chunk.text
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.tool_calls:
            delta["tool_calls"] = [_piece(*piece) for piece in chunk.tool_calls]
        if chunk.finish is None:
            return self._before + encode(delta) + self._after
        out = self._before + encode(delta) + self._after if delta else b""
        last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": chunk.finish}
        out += self._head + b',"choices":' + encode([last]) + (b',"usage":null}\n\n' if self._usage else b"}\n\n")
        if self._usage:
            out += self._head + b',"choices":[],"usage":' + encode(usage_body(chunk.usage or Usage())) + b"}\n\n"
        return out + DONE

    def refused(self, text: str) -> bytes:
        """Return the events of a model that declined after the stream began, or before."""
        delta = self._before + encode({"role": "assistant", "refusal": text}) + self._after
        return delta + self.chunk(Chunk(finish="stop"))


def _piece(index: int, id_: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return (
        {"index": index, "id": id_, "type": "function", "function": function}
        if id_ or name
        else {"index": index, "function": function}
    )


def error_event(shape: dict[str, Any]) -> bytes:
    """Return the event that tells of an error in the middle of a stream, as OpenAI sends it and its clients raise it."""
    return b"data: " + encode({"error": shape}) + b"\n\n"
