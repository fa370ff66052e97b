"""Requests of /v1/responses, read into prompts (platform.openai.com/docs/api-reference/responses/create).

The gateway keeps no conversations: a request brings all of its input, as with `store: false`. What leans on something kept, or on tools
that run at OpenAI, is refused by name.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ziggurat.doors.gateway.refusals import Refusal
from ziggurat.doors.gateway.requests import (
    Function,
    Message,
    ToolEntry,
    choice_of,
    decode,
    extra_of,
    message_of,
    positive,
    tool_of,
)
from ziggurat.records import ChatMessage, Prompt, ToolCall


class ResponseTool(Struct):
    """One of `tools`: a function, written flat here."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(Struct):
    """How the answer must look."""

    type: str = "text"
    name: str = "answer"
    schema: dict[str, Any] | None = None


class TextConfig(Struct):
    """`text`."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Struct):
    """The body, as far as it is understood here."""

    model: str
    input: str | list[dict[str, Any]] = ""
    instructions: str | None = None
    stream: bool | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    # Taken and without effect: they steer what OpenAI keeps, bills and reports.
    store: bool | None = None
    truncation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    max_tool_calls: int | None = None
    prompt_cache_retention: str | None = None
    stream_options: Any = None


_decoder = msgspec.json.Decoder(ResponsesRequest)
_KNOWN = frozenset(ResponsesRequest.__struct_fields__)


def responses_prompt(data: bytes) -> tuple[ResponsesRequest, Prompt]:
    """Return a request and the prompt that it asks for. Raises Refusal."""
    asked = decode(data, _decoder)
    _refuse_unsupported(asked)
    extra = extra_of(data, _KNOWN)
    schema, name = None, "answer"
    form = asked.text.format if asked.text is not None else None
    if form is not None and form.type == "json_schema":
        if form.schema is None:
            raise Refusal(400, "A json_schema format needs a schema.", param="text.format.schema")
        schema, name = form.schema, form.name
    elif form is not None and form.type == "json_object":
        extra["response_format"] = {"type": "json_object"}
    elif form is not None and form.type != "text":
        raise Refusal(400, f"The format {form.type!r} is not known.", param="text.format.type")
    if asked.reasoning and asked.reasoning.get("effort"):
        extra["reasoning_effort"] = asked.reasoning["effort"]
    if asked.text is not None and asked.text.verbosity:
        extra["verbosity"] = asked.text.verbosity
    tools = [_entry(tool, number) for number, tool in enumerate(asked.tools or ())]
    if tools and asked.parallel_tool_calls is not None:
        extra["parallel_tool_calls"] = asked.parallel_tool_calls
    return asked, Prompt(
        messages=conversation(asked),
        model=asked.model,
        tools=[tool_of(entry, number) for number, entry in enumerate(tools)],
        tool_choice=choice_of(_choice(asked.tool_choice), tools),
        schema=schema,
        schema_name=name,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=positive(asked.max_output_tokens, "max_output_tokens"),
        session=asked.prompt_cache_key or "",
        extra=extra,
    )


def _refuse_unsupported(asked: ResponsesRequest) -> None:
    kept = "Nothing is kept between requests here: send the whole input each time."
    for field, used, why in (
        ("previous_response_id", asked.previous_response_id, kept),
        ("conversation", asked.conversation, kept),
        ("background", asked.background, "Answers are given at once; leave background out."),
        ("prompt", asked.prompt, "Prompts that are kept at OpenAI are not known here; send the text."),
        ("top_logprobs", asked.top_logprobs, "Log probabilities are not relayed; leave top_logprobs out."),
        ("include", "message.output_text.logprobs" in (asked.include or ()), "Log probabilities are not relayed."),
    ):
        if used:
            raise Refusal(400, why, param=field, code="unsupported")


def _entry(tool: ResponseTool, number: int) -> ToolEntry:
    if tool.type != "function" or not tool.name:
        text = f"Tools are functions with a name; tools of type {tool.type!r} run at OpenAI and are not known here."
        raise Refusal(400, text, param=f"tools[{number}].type", code="unsupported")
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return ToolEntry(function=function)


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


# -- the conversation ------------------------------------------------------------------------------------------------


def conversation(asked: ResponsesRequest) -> list[ChatMessage]:
    """Return the input items as messages. Calls of tools join the assistant's message before them. Raises Refusal."""
    messages = [ChatMessage(role="system", content=asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        if not asked.input and not messages:
            raise Refusal(400, "A response needs some input.", param="input")
        return [*messages, ChatMessage(role="user", content=asked.input)]
    if not asked.input:
        raise Refusal(400, "A response needs some input.", param="input")
    for number, item in enumerate(asked.input):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_message(item, number))
        elif kind == "function_call":
            call = ToolCall(
                id=_text(item, "call_id", number), name=_text(item, "name", number), arguments=_text(item, "arguments", number)
            )
            if messages and messages[-1].role == "assistant":
                messages[-1] = replace(messages[-1], tool_calls=[*messages[-1].tool_calls, call])
            else:
                messages.append(ChatMessage(role="assistant", tool_calls=[call]))
        elif kind == "function_call_output":
            output = item.get("output", "")
            content = output if isinstance(output, str) else _parts(output, number)
            messages.append(ChatMessage(role="tool", content=content, tool_call_id=_text(item, "call_id", number)))
        elif kind != "reasoning":  # What a model thought is its own; another route could not read it.
            text = f"An input item of type {kind!r} is not known here."
            raise Refusal(400, text, param=f"input[{number}].type", code="unsupported")
    return messages


def _message(item: dict[str, Any], number: int) -> ChatMessage:
    content = item.get("content")
    if not isinstance(content, (str, list)):
        raise Refusal(400, "A message's content is text or a list of parts.", param=f"input[{number}].content")
    parts = content if isinstance(content, str) else _parts(content, number)
    try:
        return message_of(Message(role=str(item.get("role")), content=parts), number)
    except Refusal as refusal:
        refusal.param = (refusal.param or "").replace("messages[", "input[") or None
        raise


def _parts(content: list[Any], number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            found.append({"type": "text", "text": str(part.get("text", ""))})
        elif kind == "input_image" and part.get("image_url"):
            found.append({"type": "image_url", "image_url": {"url": part["image_url"], "detail": part.get("detail") or "auto"}})
        elif kind == "input_file" and part.get("file_data"):
            file = {key: part[key] for key in ("file_data", "filename") if part.get(key)}
            found.append({"type": "file", "file": file})
        elif kind != "refusal":
            text = f"A content part of type {kind!r}, or one that names a file kept at OpenAI, is not known here."
            raise Refusal(400, text, param=f"input[{number}].content", code="unsupported")
    return found


def _text(item: dict[str, Any], field: str, number: int) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        raise Refusal(400, f"The field {field} must be text.", param=f"input[{number}].{field}")
    return value
