"""The chat-completions dialect that OpenAI began and everybody speaks: requests out, answers, stream events and errors in.

Decoding is typed where it pays (text, tools, usage) and deaf to everything else, since every provider adds fields. Shapes follow
https://platform.openai.com/docs/api-reference/chat; the deviations that are understood here: `reasoning_content` (DeepSeek, vLLM) and
`reasoning` (OpenRouter), content as a list of parts (Mistral), `usage` on every event of a stream, unknown finish reasons, tool calls
without an id or an index.
"""

from __future__ import annotations

import base64
import struct
from typing import Any, NoReturn

import msgspec
from msgspec import Struct

from ziggurat.records import (
    ChatMessage,
    Chunk,
    Completion,
    EmbeddingPrompt,
    Embeddings,
    FinishReason,
    Prompt,
    Tool,
    ToolCall,
    Usage,
)

_Content = str | list[dict[str, Any]] | None


class Nonsense(Exception):
    """The bytes are not an answer of this dialect; the text says what is wrong, without quoting more than a little."""


class ErrorBody(Exception):
    """The answer is well-formed and reports an error: its message, its code (may be an HTTP status) and its type."""

    def __init__(self, message: str, code: str, type_: str) -> None:
        super().__init__(message)
        self.message, self.code, self.type = message, code, type_


# -- requests out ----------------------------------------------------------------------------------------------------


def request_body(prompt: Prompt, upstream: str, *, stream: bool) -> bytes:
    """Return the JSON of a request. The prompt is already shaped: a schema in it goes out as the endpoint's own response format."""
    body: dict[str, Any] = {"model": upstream, "messages": [message(m) for m in prompt.messages]}
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    if prompt.top_p is not None:
        body["top_p"] = prompt.top_p
    if prompt.max_tokens is not None:
        body["max_tokens"] = prompt.max_tokens
    if prompt.stop:
        body["stop"] = prompt.stop
    if prompt.seed is not None:
        body["seed"] = prompt.seed
    if prompt.schema is not None:
        body["response_format"] = response_format(prompt.schema_name, prompt.schema)
    if prompt.tools:
        body["tools"] = [_tool(t) for t in prompt.tools]
        if prompt.tool_choice != "auto":
            body["tool_choice"] = _choice(prompt.tool_choice)
    if prompt.extra:
        body.update(prompt.extra)
    if stream:
        body["stream"] = True
        body.setdefault("stream_options", {"include_usage": True})
    else:
        body.pop("stream", None)
        body.pop("stream_options", None)
    return _encode(body)


def embedding_body(prompt: EmbeddingPrompt, upstream: str) -> bytes:
    """Return the JSON of a request for embeddings."""
    body: dict[str, Any] = {"model": upstream, "input": prompt.inputs}
    if prompt.dimensions is not None:
        body["dimensions"] = prompt.dimensions
    return _encode({**body, **prompt.extra})


def message(m: ChatMessage) -> dict[str, Any]:
    """Return one message as the dialect writes it."""
    out: dict[str, Any] = {"role": m.role, "content": m.content}
    if m.tool_calls:
        out["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in m.tool_calls
        ]
    if m.tool_call_id is not None:
        out["tool_call_id"] = m.tool_call_id
    if m.name is not None and m.role != "tool":
        out["name"] = m.name
    return out


def response_format(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the response format that holds an answer to a schema; `more` may say strict=True."""
    return {"type": "json_schema", "json_schema": {"name": schema_name(name), "schema": schema, **more}}


def schema_name(name: str) -> str:
    """Return a name that response formats accept: letters, digits, _ and -, at most 64."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)[:64] or "answer"


def _tool(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": parameters}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice(choice: str) -> Any:
    return choice if choice in ("none", "required") else {"type": "function", "function": {"name": choice}}


_encode = msgspec.json.Encoder().encode


# -- answers in ------------------------------------------------------------------------------------------------------


class _Function(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    """A whole message, or a delta of one."""

    content: _Content = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct):
    index: int | None = 0
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None


class _InputDetails(Struct):
    cached_tokens: int | float | None = None


class _OutputDetails(Struct):
    reasoning_tokens: int | float | None = None


class _Usage(Struct):
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    #: DeepSeek's name for cached tokens.
    prompt_cache_hit_tokens: int | float | None = None


class _Answer(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class _Vector(Struct):
    embedding: list[float] | str
    index: int = 0


class _Vectors(Struct):
    data: list[_Vector] | None = None
    usage: _Usage | None = None
    error: Any = None


_vectors = msgspec.json.Decoder(_Vectors)

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "error": "error",
    # DeepSeek: the answer was interrupted because the system had no room left.
    "insufficient_system_resource": "error",
}


def finish_of(reason: str | None) -> FinishReason | None:
    """Return our finish reason; one that nobody knows ("eos", "end_turn") is a normal stop."""
    return _FINISH.get(reason, "stop") if reason else None


def decode_completion(data: bytes) -> Completion:
    """Return a whole answer. Raises ErrorBody if it reports an error, Nonsense if it is none of the dialect."""
    answer = _decode(data)
    if not answer.choices or answer.choices[0].message is None:
        raise Nonsense("the answer has no choices")
    # The first choice: nobody asks for several, and those who send several number them in any order.
    choice = min(answer.choices, key=lambda c: c.index or 0)
    said = choice.message or _Message()
    finish = finish_of(choice.finish_reason) or "stop"
    if finish == "error":
        raise ErrorBody(f"the model stopped with {choice.finish_reason!r}", "", "server_error")
    calls = [
        ToolCall(id=c.id or f"call_{number}", name=c.function.name or "", arguments=_arguments(c.function.arguments))
        for number, c in enumerate(said.tool_calls or [])
        if c.function is not None
    ]
    return Completion(
        text=_text(said.content),
        tool_calls=calls,
        finish="tool_calls" if calls and finish == "stop" else finish,
        refusal=refusal_of(said.refusal, finish, bool(said.content or calls)),
        reasoning=said.reasoning_content or said.reasoning or "",
        usage=usage_of(answer.usage),
    )


def decode_embeddings(data: bytes, count: int) -> Embeddings:
    """Return the vectors of an answer, in the order of the inputs. Raises as `decode_completion`."""
    try:
        answer = _vectors.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _raise_misfit(data, error)
    if answer.error:
        raise error_of(answer.error)
    if len(answer.data or ()) != count:
        raise Nonsense(f"it has {len(answer.data or ())} vectors for {count} inputs")
    entries = sorted(answer.data or (), key=lambda entry: entry.index)
    vectors = [e.embedding if isinstance(e.embedding, list) else _unpacked(e.embedding) for e in entries]
    return Embeddings(vectors=vectors, usage=usage_of(answer.usage))


def _unpacked(packed: str) -> list[float]:
    """Return a vector that came as base64 of little-endian float32, OpenAI's encoding_format "base64"."""
    try:
        data = base64.b64decode(packed, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    except (ValueError, struct.error):
        raise Nonsense("a vector is neither a list of numbers nor base64") from None


def decode_event(data: bytes) -> tuple[Chunk | None, str]:
    """Return one event of a stream as a chunk, None if it holds nothing, and the text of a refusal in it. Raises as above.

    A chunk with a usage and nothing else ends most streams; some providers send the running usage with every event.
    """
    answer = _decode(data)
    usage = usage_of(answer.usage) if answer.usage is not None else None
    choice = next((c for c in answer.choices if not c.index), None) if answer.choices else None
    if choice is None:
        return (Chunk(usage=usage) if usage is not None else None), ""
    finish = finish_of(choice.finish_reason)
    if finish == "error":
        raise ErrorBody(f"the model stopped with {choice.finish_reason!r}", "", "server_error")
    delta = choice.delta or choice.message or _Message()
    text = delta.content if type(delta.content) is str else _text(delta.content)
    reasoning = delta.reasoning_content or delta.reasoning or ""
    calls = [_piece(number, c) for number, c in enumerate(delta.tool_calls)] if delta.tool_calls else []
    if not (text or reasoning or calls or finish or usage):
        return None, delta.refusal or ""
    return Chunk(text=text, reasoning=reasoning, tool_calls=calls, finish=finish, usage=usage), delta.refusal or ""


def refusal_of(said: str | None, finish: str | None, answered: bool) -> str:
    """Return the text of a refusal: the model's own, or one for an answer that the provider's filter left empty."""
    if said:
        return said
    return "The provider's content filter stopped the answer." if finish == "content_filter" and not answered else ""


def usage_of(usage: _Usage | None) -> Usage:
    """Return the usage that an endpoint reports; `calls` is 0 where it reports none."""
    if usage is None or usage.prompt_tokens is None:
        return Usage()
    details, spent = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = details.cached_tokens if details is not None else None
    if cached is None:
        cached = usage.prompt_cache_hit_tokens
    input_tokens = _count(usage.prompt_tokens)
    output_tokens = _count(usage.completion_tokens)
    return Usage(
        calls=1,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        # Cached tokens are part of the input, reasoning tokens part of the output: counted twice is the classic of wrong bills.
        cached_tokens=min(_count(cached), input_tokens),
        reasoning_tokens=min(_count(spent.reasoning_tokens if spent is not None else None), output_tokens),
    )


def error_of(error: Any) -> ErrorBody:
    """Return an `error` field, an object or a text, as ErrorBody."""
    if isinstance(error, dict):
        text = error.get("message") or error.get("detail") or error.get("code") or "no message"
        return ErrorBody(_short(text), str(error.get("code") or ""), str(error.get("type") or ""))
    return ErrorBody(_short(error), "", "")


def error_body(data: bytes) -> ErrorBody | None:
    """Return the error that a body reports, or None if it is not JSON: {"error": …}, {"message": …} or {"detail": …}."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(body, list) and body:
        body = body[0]  # Google wraps its errors in a list.
    if not isinstance(body, dict):
        return ErrorBody(_short(body), "", "")
    if body.get("error"):
        return error_of(body["error"])
    text = body.get("message") or body.get("detail") or body.get("msg") or "no message"
    return ErrorBody(_short(text), str(body.get("code") or ""), str(body.get("type") or ""))


def _decode(data: bytes) -> _Answer:
    try:
        answer = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _raise_misfit(data, error)
    if answer.error:
        raise error_of(answer.error)
    return answer


def _raise_misfit(data: bytes, error: Exception) -> NoReturn:
    reported = error_body(data)
    if reported is not None and b'"error"' in data:
        raise reported from None
    raise Nonsense(f"{error}; it begins with {_short(data[:80].decode(errors='replace'))!r}") from None


def _piece(number: int, call: _ToolCall) -> tuple[int, str, str, str]:
    function = call.function or _Function()
    arguments = "" if function.arguments is None else _arguments(function.arguments)
    return (number if call.index is None else call.index, call.id or "", function.name or "", arguments)


def _text(content: _Content) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content if part.get("type", "text") in ("text", "output_text"))


def _arguments(arguments: str | dict[str, Any] | None) -> str:
    if isinstance(arguments, str):
        return arguments
    return _encode(arguments or {}).decode()


def _count(number: int | float | None) -> int:
    return max(0, int(number)) if number is not None and number == number and number != float("inf") else 0


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else _encode(value).decode()
    text = " ".join(text.split())
    return text if len(text) <= 400 else text[:400] + "…"
