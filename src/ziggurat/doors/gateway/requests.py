"""Requests in OpenAI's dialect, read into prompts: what the chat, completions and responses doors share.

Known fields are typed and checked, with the place of a misfit in the message. Fields that are not known here go to the endpoint as they
are (`Prompt.extra`), as vLLM's and SGLang's own are meant to. What could only be half kept is refused: several choices, log
probabilities, audio.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from ziggurat.doors.gateway.refusals import Refusal
from ziggurat.program.contents import ARTIFACT
from ziggurat.records import ChatMessage, Prompt, Tool, ToolCall

T = TypeVar("T")

_raw = msgspec.json.Decoder(dict[str, Raw])


class Function(Struct):
    """A tool's name and schema, or a call of it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    arguments: str | None = None


class ToolEntry(Struct):
    """One of `tools`, or one of a message's `tool_calls`."""

    type: str = "function"
    function: Function | None = None
    id: str = ""


class Message(Struct):
    """One of `messages`."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolEntry] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class SchemaForm(Struct):
    """The schema of a response format."""

    name: str = "answer"
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct):
    """How the answer must look."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaForm | None = None


class StreamOptions(Struct):
    """What a stream brings beside the answer."""

    include_usage: bool | None = None


class ChatRequest(Struct):
    """The body of POST /v1/chat/completions, as far as it is understood here."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[ToolEntry] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: list[str] | None = None
    prompt_cache_key: str | None = None
    functions: list[Any] | None = None
    function_call: Any = None


_chat = msgspec.json.Decoder(ChatRequest)
_KNOWN = frozenset(ChatRequest.__struct_fields__)
_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    # What reasoning models call the system message; endpoints other than OpenAI's know only the old name.
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return a body as its type. Raises Refusal, which says where it does not fit."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")
        param = place.strip("`.") or None
        where = f" in {param!r}" if param else ""
        raise Refusal(400, f"The request does not fit{where}: {what[:1].lower()}{what[1:]}.", param=param) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        text = str(error) or type(error).__name__
        raise Refusal(400, f"The request body is not JSON: {text[:1].lower()}{text[1:]}.", code="invalid_json") from None


def extra_of(data: bytes, known: frozenset[str]) -> dict[str, Any]:
    """Return the fields of a body that are not known here. The body has been decoded before, so it is an object."""
    fields = _raw.decode(data)
    if fields.keys() <= known:
        return {}
    return {key: msgspec.json.decode(value) for key, value in fields.items() if key not in known}


def chat_prompt(data: bytes) -> tuple[ChatRequest, Prompt]:
    """Return a chat request and the prompt that it asks for. Raises Refusal."""
    asked = decode(data, _chat)
    _refuse_unsupported(asked)
    extra = extra_of(data, _KNOWN)
    schema, name = None, "answer"
    form = asked.response_format
    if form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema is None:
            raise Refusal(400, "A json_schema response format needs a schema.", param="response_format.json_schema")
        schema, name = form.json_schema.schema, form.json_schema.name
    elif form is not None and form.type == "json_object":
        extra["response_format"] = {"type": "json_object"}
    limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    return asked, Prompt(
        messages=[message_of(m, number) for number, m in enumerate(asked.messages)],
        model=asked.model,
        tools=[tool_of(t, number) for number, t in enumerate(asked.tools)] if asked.tools else [],
        tool_choice=choice_of(asked.tool_choice, asked.tools or []),
        schema=schema,
        schema_name=name,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=positive(limit, "max_tokens"),
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        seed=asked.seed,
        session=asked.prompt_cache_key or "",
        extra=extra,
    )


def _refuse_unsupported(asked: ChatRequest) -> None:
    if not asked.messages:
        raise Refusal(400, "A conversation needs at least one message.", param="messages")
    if asked.n not in (None, 1):
        raise Refusal(400, "One answer is given to a request; send it n times for n answers.", param="n", code="unsupported")
    if asked.logprobs or asked.top_logprobs:
        text = "Log probabilities are not relayed: not every route of a model has them. Leave logprobs out."
        raise Refusal(400, text, param="logprobs", code="unsupported")
    if asked.modalities and asked.modalities != ["text"]:
        raise Refusal(400, "Answers are text; leave modalities out.", param="modalities", code="unsupported")
    if asked.functions or asked.function_call:
        raise Refusal(
            400, "The field functions is of the past; use tools and tool_choice.", param="functions", code="unsupported"
        )


def positive(limit: int | None, param: str) -> int | None:
    """Return a limit of tokens. Raises Refusal unless it is above 0."""
    if limit is not None and limit < 1:
        raise Refusal(400, f"The field {param} is {limit} and must be at least 1.", param=param)
    return limit


def message_of(m: Message, number: int) -> ChatMessage:
    """Return a message of the conversation. Raises Refusal."""
    role = _ROLES.get(m.role)
    if role is None:
        known = ", ".join(_ROLES)
        raise Refusal(400, f"The role {m.role!r} is not known; it is one of: {known}.", param=f"messages[{number}].role")
    if role == "tool" and not m.tool_call_id:
        raise Refusal(400, "A tool's message needs the tool_call_id that it answers.", param=f"messages[{number}].tool_call_id")
    content = m.content
    if isinstance(content, list):
        if any(part.get("type") == ARTIFACT for part in content):
            # Artifacts belong to whoever runs the gateway; a client that could name one could read it.
            text = "Artifacts cannot be named here; send the content itself, as an image_url or file part with a data URL."
            raise Refusal(400, text, param=f"messages[{number}].content", code="unsupported")
        if len(content) == 1 and content[0].get("type") == "text" and isinstance(content[0].get("text"), str):
            content = content[0]["text"]  # Many endpoints take text only.
        elif role == "assistant":
            content = [part for part in content if part.get("type") != "refusal"] or None
    calls = [_call_of(c, number, at) for at, c in enumerate(m.tool_calls)] if m.tool_calls else []
    return ChatMessage(role=role, content=content, tool_calls=calls, tool_call_id=m.tool_call_id, name=m.name)


def _call_of(call: ToolEntry, number: int, at: int) -> ToolCall:
    if call.function is None:
        param = f"messages[{number}].tool_calls[{at}]"
        raise Refusal(400, f"Tools are functions; a tool call of type {call.type!r} is not known.", param=param)
    return ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments or "{}")


def tool_of(entry: ToolEntry, number: int) -> Tool:
    """Return a tool. Raises Refusal unless it is a function."""
    f = entry.function
    if entry.type != "function" or f is None:
        raise Refusal(400, f"Tools are functions; the type {entry.type!r} is not known.", param=f"tools[{number}]")
    return Tool(name=f.name, description=f.description or "", parameters=f.parameters or {}, strict=bool(f.strict))


def choice_of(choice: str | dict[str, Any] | None, tools: list[ToolEntry]) -> str:
    """Return the tool choice as prompts name it. Raises Refusal."""
    if choice is None or choice == "auto" or not tools:
        return "auto"
    if isinstance(choice, str):
        if choice in ("none", "required"):
            return choice
        raise Refusal(
            400, f"The tool_choice {choice!r} is not known; it is auto, none, required or a function.", param="tool_choice"
        )
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type") != "function" or name not in {t.function.name for t in tools if t.function is not None}:
        raise Refusal(400, "The tool_choice names no function of tools.", param="tool_choice")
    return str(name)
