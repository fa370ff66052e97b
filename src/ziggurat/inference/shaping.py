"""Shapes a prompt to what a model can do, and its answer back: pure functions, the same for every endpoint.

A program asks for a schema or for tools; models differ in how they can be held to them. The strongest way that the capabilities name is
used, and the answer always comes back in one form: the JSON as text, the calls as tool calls. Validation and the one re-ask happen
above, in `ziggurat.program.llm`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec
from msgspec.structs import replace

from ziggurat.inference.interface import Capabilities
from ziggurat.inference.wire import response_format, schema_name
from ziggurat.records import ChatMessage, Chunk, Completion, FinishReason, Prompt, Tool, ToolCall

_encode = msgspec.json.Encoder().encode


class Unshaping:
    """Turns one answer back. Made anew for every attempt; `chunk` sees a stream's chunks in order."""

    __slots__ = ("_answer_as_json", "_buffer", "_calls_by_schema", "_forced", "_number")

    def __init__(self, *, forced: str = "", calls_by_schema: bool = False, answer_as_json: bool = False, number: int = 0) -> None:
        #: The tool that carries the answer in its arguments.
        self._forced = forced
        self._calls_by_schema = calls_by_schema
        self._answer_as_json = answer_as_json
        self._number = number
        self._buffer: list[str] = []

    def completion(self, completion: Completion) -> Completion:
        """Return a whole answer in the form that the program asked for."""
        if self._forced:
            carried = next((c for c in completion.tool_calls if c.name == self._forced), None)
            if carried is not None:
                others = [c for c in completion.tool_calls if c.name != self._forced]
                finish: FinishReason = "tool_calls" if others else "stop"
                finish = "length" if completion.finish == "length" else finish
                completion = replace(completion, text=carried.arguments, tool_calls=others, finish=finish)
        if self._calls_by_schema:
            text, calls = self._read(completion.text)
            finish = "tool_calls" if calls else completion.finish
            completion = replace(completion, text=text, tool_calls=calls, finish=finish)
        return completion

    def chunk(self, chunk: Chunk) -> Chunk:
        """Return one piece of a streamed answer in the form that the program asked for."""
        if self._calls_by_schema:
            # Whether this is a call or an answer, and where the answer's text begins, is known at the end.
            self._buffer.append(chunk.text)
            if chunk.finish is None:
                return replace(chunk, text="")
            text, calls = self._read("".join(self._buffer))
            pieces = [(number, call.id, call.name, call.arguments) for number, call in enumerate(calls)]
            return replace(chunk, text=text, tool_calls=pieces, finish="tool_calls" if calls else chunk.finish)
        if self._forced and (chunk.tool_calls or chunk.finish == "tool_calls"):
            text = chunk.text + "".join(piece[3] for piece in chunk.tool_calls if piece[0] == 0)
            return replace(chunk, text=text, tool_calls=[], finish="stop" if chunk.finish == "tool_calls" else chunk.finish)
        return chunk

    def _read(self, text: str) -> tuple[str, list[ToolCall]]:
        """Read {"tool": …, "arguments": …} or {"answer": …}; anything else is the answer as it stands."""
        try:
            said = msgspec.json.decode(text[text.find("{") : text.rfind("}") + 1])
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            return (text if self._answer_as_json else _begun(text)), []
        if isinstance(said, dict) and isinstance(said.get("tool"), str):
            arguments = _encode(said.get("arguments") or {}).decode()
            return "", [ToolCall(id=f"call_{self._number}", name=said["tool"], arguments=arguments)]
        if isinstance(said, dict) and "answer" in said:
            answer = said["answer"]
            return (answer if isinstance(answer, str) and not self._answer_as_json else _encode(answer).decode()), []
        return text, []


def _begun(text: str) -> str:
    """Return the text of {"answer": "… that was cut by max_tokens, or the text as it stands."""
    match = re.match(r'\s*\{\s*"answer"\s*:\s*"', text)
    if match is None:
        return text
    begun = text[match.end() :]
    for end in range(len(begun), max(-1, len(begun) - 8), -1):  # The cut may be inside an escape of up to six characters.
        try:
            answer: str = msgspec.json.decode(f'"{begun[:end]}"', type=str)
        except msgspec.MsgspecError:
            continue
        return answer
    return text


def shape(prompt: Prompt, capabilities: Capabilities) -> tuple[Prompt, Unshaping | None]:
    """Return the prompt as the model can take it, and how to turn its answer back (None: it needs no turning)."""
    changes: dict[str, Any] = {}
    unshaping: Unshaping | None = None
    if not capabilities.sampling and (prompt.temperature is not None or prompt.top_p is not None):
        changes = {"temperature": None, "top_p": None}
    if prompt.max_tokens is not None and capabilities.max_tokens_field != "max_tokens":
        changes["max_tokens"] = None
        changes["extra"] = {capabilities.max_tokens_field: prompt.max_tokens, **prompt.extra}
    if prompt.session and capabilities.session_field:
        changes["extra"] = {capabilities.session_field: prompt.session, **changes.get("extra", prompt.extra)}
    if changes:
        prompt = replace(prompt, **changes)
    if capabilities.tools == "schema" and _mentions_tools(prompt):
        prompt, unshaping = _tools_by_schema(prompt)
    if prompt.schema is not None:
        prompt, forced = _structured(prompt, prompt.schema, capabilities)
        unshaping = forced or unshaping
    return prompt, unshaping


# -- schemas ---------------------------------------------------------------------------------------------------------


def _structured(prompt: Prompt, schema: dict[str, Any], capabilities: Capabilities) -> tuple[Prompt, Unshaping | None]:
    how = capabilities.structured
    if how == "tool" and capabilities.tools == "schema":
        how = "json_object"
    if how == "json_schema":
        if not capabilities.strict:
            return prompt, None
        strict = strict_schema(schema)
        form = response_format(prompt.schema_name, strict or schema, strict=strict is not None)
        return replace(prompt, schema=None, extra={"response_format": form, **prompt.extra}), None
    if how == "tool" and not prompt.tools:
        name = schema_name(prompt.schema_name)
        answer = Tool(name=name, description="Gives the answer.", parameters=schema)
        return replace(prompt, schema=None, tools=[answer], tool_choice=name), Unshaping(forced=name)
    text = _encode(schema).decode()
    # OpenAI's json_object refuses prompts that do not contain the word JSON; this sentence does.
    prompt = _with_system(prompt, f"Answer with one JSON object that fits this JSON schema, and with nothing else:\n{text}")
    extra = {"response_format": {"type": "json_object"}, **prompt.extra} if how == "json_object" else prompt.extra
    return replace(prompt, schema=None, extra=extra), None


def strict_schema(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema as strict mode wants it, or None if it cannot be said so (a dictionary with free keys).

    Every property is required and no others are allowed; a default is dropped, since the model now always names the value
    (platform.openai.com/docs/guides/structured-outputs, "supported schemas").
    """
    return _strict_cached(_encode(schema))


@lru_cache(maxsize=256)
def _strict_cached(schema: bytes) -> dict[str, Any] | None:
    try:
        strict: dict[str, Any] = _strict(msgspec.json.decode(schema))
    except _NotStrict:
        return None
    return strict


class _NotStrict(Exception):
    pass


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: value for key, value in node.items() if key not in ("default", "title")}
    if "properties" in node or node.get("type") == "object":
        if not node.get("properties") or node.get("additionalProperties") not in (None, False):
            raise _NotStrict
        out["properties"] = {name: _strict(value) for name, value in node["properties"].items()}
        out["required"] = list(node["properties"])
        out["additionalProperties"] = False
    for key in ("items", "anyOf", "oneOf", "allOf", "prefixItems"):
        if key in node:
            out[key] = _strict(node[key])
    if "oneOf" in out:
        out["anyOf"] = out.pop("oneOf")
        out.pop("discriminator", None)
    if "$defs" in node:
        out["$defs"] = {name: _strict(value) for name, value in node["$defs"].items()}
    if not (out.keys() & {"type", "enum", "const", "$ref", "anyOf", "allOf", "properties"}):
        raise _NotStrict  # "Any" cannot be said in strict mode.
    return out


# -- tools for models that know none ---------------------------------------------------------------------------------


def _mentions_tools(prompt: Prompt) -> bool:
    return bool(prompt.tools) or any(m.tool_calls or m.role == "tool" for m in prompt.messages)


def _tools_by_schema(prompt: Prompt) -> tuple[Prompt, Unshaping | None]:
    """Offer tools by a schema that fits a call of one of them or, where the choice allows, an answer.

    One call at a time: a model that needs this is small, and loses count of several.
    """
    messages = [_as_text(m) for m in prompt.messages]
    may_answer = prompt.tool_choice == "auto"
    tools = [] if prompt.tool_choice == "none" else prompt.tools
    if prompt.tool_choice not in ("auto", "none", "required"):
        tools = [t for t in tools if t.name == prompt.tool_choice]
    prompt = replace(prompt, messages=messages, tools=[], tool_choice="auto")
    if not tools:
        return prompt, None
    definitions: dict[str, Any] = {}
    forms = [_call_form(t, definitions) for t in tools]
    answer: dict[str, Any] = {"type": "string"} if prompt.schema is None else _hoisted(prompt.schema, "answer", definitions)
    if may_answer:
        forms.append(_closed({"answer": answer}))
    schema: dict[str, Any] = {"anyOf": forms} if len(forms) > 1 else forms[0]
    if definitions:
        schema = {**schema, "$defs": definitions}
    # Of the wordings that were tried on SmolLM2-135M, the shortest chose best.
    listed = "\n".join(f"{_signature(t)}: {' '.join(t.description.split())}" for t in tools)
    text = f'Tools:\n{listed}\n\nIf a tool can help, call it: {{"tool": "name", "arguments": {{...}}}}'
    if may_answer:
        text += '\nOtherwise answer: {"answer": ...}'
    shaped = replace(_with_system(prompt, text), schema=schema, schema_name="call_or_answer")
    number = sum(m.role == "user" for m in messages)
    return shaped, Unshaping(calls_by_schema=True, answer_as_json=prompt.schema is not None, number=number)


def _signature(tool: Tool) -> str:
    """Return a tool as name(argument: type, …); an argument whose type is no single word is shown as its schema."""
    shown = []
    for name, schema in tool.parameters.get("properties", {}).items():
        type_ = schema.get("type") if isinstance(schema, dict) else None
        plain = isinstance(type_, str) and type_ not in ("object", "array")
        shown.append(f"{name}: {type_ if plain else _encode(schema).decode()}")
    return f"{tool.name}({', '.join(shown)})"


def _call_form(tool: Tool, definitions: dict[str, Any]) -> dict[str, Any]:
    arguments = _hoisted(tool.parameters, tool.name, definitions) if tool.parameters else {"type": "object", "properties": {}}
    return _closed({"tool": {"const": tool.name}, "arguments": arguments})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _hoisted(schema: dict[str, Any], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema for use inside another: its definitions move to the root, under names of their own."""
    own = schema.get("$defs", {})
    if not own:
        return schema

    def moved(node: Any) -> Any:
        if isinstance(node, list):
            return [moved(item) for item in node]
        if not isinstance(node, dict):
            return node
        out = {key: moved(value) for key, value in node.items() if key != "$defs"}
        reference = out.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/$defs/"):
            out["$ref"] = f"#/$defs/{prefix}.{reference.removeprefix('#/$defs/')}"
        return out

    definitions.update({f"{prefix}.{name}": moved(value) for name, value in own.items()})
    hoisted: dict[str, Any] = moved(schema)
    return hoisted


def _as_text(m: ChatMessage) -> ChatMessage:
    """Return a message of a conversation with tools as one that a model without tools understands."""
    if m.role == "tool":
        content = m.content if isinstance(m.content, str) else _encode(m.content).decode()
        return ChatMessage(role="user", content=f"Result of {m.name or 'the tool'}: {content}")
    if m.tool_calls:
        calls = "\n".join(f'{{"tool": {_encode(c.name).decode()}, "arguments": {c.arguments or "{}"}}}' for c in m.tool_calls)
        said = f"{m.content}\n" if isinstance(m.content, str) and m.content else ""
        return ChatMessage(role="assistant", content=said + calls)
    return m


def _with_system(prompt: Prompt, text: str) -> Prompt:
    """Return the prompt with a sentence added to its system message, or with one of its own."""
    first = prompt.messages[0] if prompt.messages else None
    if first is not None and first.role == "system" and isinstance(first.content, str):
        system = replace(first, content=f"{first.content}\n\n{text}")
        return replace(prompt, messages=[system, *prompt.messages[1:]])
    return replace(prompt, messages=[ChatMessage(role="system", content=text), *prompt.messages])
