"""Model calls as OpenTelemetry names them: the attributes `gen_ai.*`, here and nowhere else, because the convention still changes.

Source: semantic conventions for generative AI, version 0.1.0, "Span: gen_ai.client.inference"
(https://github.com/open-telemetry/semantic-conventions-genai/blob/v0.1.0/docs/gen-ai/client-inference.md). The span covers the call as the
program sees it, with its retries and fallbacks; the tries at endpoints are spans of our own inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from ziggurat.records import CallRecord, ChatMessage, Prompt, ToolCall
from ziggurat.telemetry.tracing import Attribute

VERSION = "0.1.0"
#: What is asked of a model.
Operation = Literal["chat", "embeddings"]


def span_name(operation: Operation, model: str) -> str:
    """Return the name of the span of a call of a model."""
    return f"{operation} {model}"


def of_prompt(prompt: Prompt, operation: Operation, *, stream: bool) -> dict[str, Attribute]:
    """Return what is known when a call begins; no text of it."""
    found: dict[str, Attribute] = {"gen_ai.operation.name": operation, "gen_ai.request.model": prompt.model}
    if operation == "embeddings":
        return found
    found["gen_ai.output.type"] = "json" if prompt.schema is not None else "text"
    given: dict[str, Any] = {
        "gen_ai.request.temperature": prompt.temperature,
        "gen_ai.request.top_p": prompt.top_p,
        "gen_ai.request.max_tokens": prompt.max_tokens,
        "gen_ai.request.seed": prompt.seed,
        "gen_ai.request.stop_sequences": prompt.stop or None,
        "gen_ai.conversation.id": prompt.session or None,
        "gen_ai.request.stream": stream or None,
    }
    return found | {name: value for name, value in given.items() if value is not None}


def of_call(call: CallRecord, finish: str | None) -> dict[str, Attribute]:
    """Return what is known once an endpoint answered."""
    usage = call.usage
    found: dict[str, Attribute] = {
        "gen_ai.provider.name": call.endpoint,
        "gen_ai.request.model": call.upstream,
        "gen_ai.response.model": call.upstream,
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    if usage.cached_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    if call.first_token is not None:
        found["gen_ai.response.time_to_first_chunk"] = call.first_token
    if finish:
        found["gen_ai.response.finish_reasons"] = [finish]
    return found


def of_error(kind: str) -> dict[str, Attribute]:
    """Return what marks a call that failed."""
    return {"error.type": kind}


def asked(prompt: Prompt) -> dict[str, Attribute]:
    """Return the text that a model is asked, as JSON in the convention's form. Only where content may be recorded."""
    return {"gen_ai.input.messages": _json([_message(message) for message in prompt.messages])}


def answered(text: str, calls: Sequence[ToolCall], finish: str) -> dict[str, Attribute]:
    """Return what a model answered, as JSON in the convention's form. Only where content may be recorded."""
    parts = [{"type": "text", "content": text}] if text else []
    message = {"role": "assistant", "parts": [*parts, *map(_tool_call, calls)], "finish_reason": finish}
    return {"gen_ai.output.messages": _json([message])}


def _message(message: ChatMessage) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if message.role == "tool":
        parts.append({"type": "tool_call_response", "id": message.tool_call_id, "result": message.content})
    elif isinstance(message.content, str):
        parts.append({"type": "text", "content": message.content})
    else:
        # Images and files may be megabytes of base64: that they were there is recorded, not what they hold.
        for part in message.content or ():
            text = part.get("text")
            kind = str(part.get("type", "unknown"))
            parts.append({"type": "text", "content": text} if isinstance(text, str) else {"type": kind})
    return {"role": message.role, "parts": parts + [_tool_call(call) for call in message.tool_calls]}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
