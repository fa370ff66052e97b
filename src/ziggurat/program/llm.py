"""`llm`: model calls for programs.

`llm.text`, `llm.chat`, `llm.parse` and `llm.stream` all make one `Prompt` and hand it to the same place. In a workflow that is a durable
step (the task "ziggurat.llm"), so an answer that was recorded is never bought again; in a task or a plain script it is a direct call of
the inference layer.
"""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from ziggurat.artifacts import Artifact
from ziggurat.codec import ArgumentsCodec, Codec, type_hints
from ziggurat.errors import InferenceError, InvalidData, OutputInvalid, OutputRefused, OutputTruncated, UnknownName
from ziggurat.program.contents import with_parts
from ziggurat.program.context import current_attempt, current_run
from ziggurat.program.definitions import Task, task
from ziggurat.program.options import Retry
from ziggurat.records import ChatMessage, Chunk, Completion, Prompt, Tool, ToolCall
from ziggurat.units import Duration, seconds

T = TypeVar("T")

#: A conversation: one user message as text, or as a list of its parts, which are text, artifacts, files by their path, or bytes; or
#: messages as records or OpenAI-style dicts, whose content may be such a list.
Messages = str | Artifact | Path | bytes | Sequence[ChatMessage | dict[str, Any] | str | Artifact | Path | bytes]
#: A tool that a model may ask for: a task, or any function with annotations and a docstring.
ToolLike = Task[Any, Any] | Callable[..., Any]


class ModelCaller(ABC):
    """The inference layer as programs see it."""

    @abstractmethod
    async def complete(self, prompt: Prompt) -> Completion:
        """Return the whole answer. Raises InferenceError."""

    @abstractmethod
    def stream(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        """Yield the answer as it is written. Raises InferenceError."""

    def time(self) -> float:
        """Return the time by which deadlines are counted, in seconds since the epoch."""
        return time.time()


_caller: ContextVar[ModelCaller | None] = ContextVar("ziggurat_models", default=None)
_process_caller: list[ModelCaller] = []

#: Names the function that builds an inference layer from ziggurat.toml for plain scripts. A name, because imports only look down.
_DEFAULT_CALLER = "ziggurat.assembly:script_models"


def use_models(caller: ModelCaller | None) -> None:
    """Set the inference layer that direct calls in this process use; None forgets it."""
    _process_caller[:] = [caller] if caller is not None else []


def models() -> ModelCaller:
    """Return the inference layer in use; for a plain script it is built from ziggurat.toml, or the defaults."""
    caller = _caller.get() or (_process_caller[0] if _process_caller else None)
    if caller is None:
        module, _, name = _DEFAULT_CALLER.partition(":")
        built: ModelCaller = getattr(importlib.import_module(module), name)()
        use_models(built)
        return built
    return caller


# A model call's own retries and fallbacks belong to the router, the one retry owner; the step is tried again only after a crash or when
# every route was unreachable, with long delays.
@task(name="ziggurat.llm", retry=Retry(4, initial="2s", factor=3.0, maximum="2m"), timeout="15m", queue="default")
async def call_model(prompt: Prompt) -> Completion:
    """Call a model: the durable step behind `llm` in workflows. Streams tokens to watchers where the prompt asks for it."""
    if not prompt.extra.get("ziggurat_stream"):
        return await models().complete(prompt)
    attempt = current_attempt()
    extra = {key: value for key, value in prompt.extra.items() if key != "ziggurat_stream"}
    return await _collect(replace(prompt, extra=extra), attempt.emit if attempt is not None else None)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer in a conversation."""

    text: str
    tool_calls: list[ToolCall]
    completion: Completion

    @property
    def message(self) -> ChatMessage:
        """The assistant's message, to append to the conversation."""
        return ChatMessage(role="assistant", content=self.text or None, tool_calls=self.tool_calls)


async def text(prompt: Messages, *, model: str = "default", **options: Any) -> str:
    """Return a model's answer as text.

    Args:
        prompt: one user message, as text or a list of parts (text, artifacts, paths of files, bytes), or a conversation.
        model: an alias of [inference.models].
        options: system, temperature, top_p, max_tokens, stop, seed, timeout, deadline, session, region, quality, cache, extra. `session`
            names the conversation, whose calls are kept on one replica of a dedicated endpoint (the run, by default); `region="eu"` asks
            no endpoint elsewhere; `quality=4` asks no route below it (1 to 5). `cache="1h"` takes the answer of an equal request that is
            no older, if there is one. `deadline="6h"` lets the call wait for what is cheaper, such as a batch, as long as the answer is
            there within six hours; a run holds no worker meanwhile.

    Raises InferenceError: OutputRefused if the model declines, and whatever the router could not recover from.
    """
    completion = await complete(_prompt(await with_parts(prompt), model, options))
    _check_refusal(completion)
    return completion.text


async def chat(
    messages: Messages, *, model: str = "default", tools: Sequence[ToolLike] = (), tool_choice: str = "auto", **options: Any
) -> Reply:
    """Return a model's reply, which may ask for tools.

    Append `reply.message` to the conversation, then for each of `reply.tool_calls` the message that `call_tool` returns, and go on.

    Args:
        messages: the conversation.
        model: an alias of [inference.models].
        tools: tasks or annotated functions that the model may ask for; their docstrings tell it what they do.
        tool_choice: "auto", "none", "required", or a tool's name.
        options: as for `text`.

    Raises InferenceError.
    """
    prompt = replace(
        _prompt(await with_parts(messages), model, options), tools=[tool_of(t) for t in tools], tool_choice=tool_choice
    )
    completion = await complete(prompt)
    return Reply(text=completion.text, tool_calls=completion.tool_calls, completion=completion)


async def parse(schema: type[T], prompt: Messages, *, model: str = "default", **options: Any) -> T:
    """Return a model's answer as a validated value of `schema`: a pydantic model, dataclass, TypedDict, enum or plain type.

    An answer that does not fit is shown to the model with the reason, once; the second misfit raises.

    Args:
        schema: the type of the answer.
        prompt: one user message, or a conversation.
        model: an alias of [inference.models].
        options: as for `text`.

    Raises InferenceError: OutputInvalid, OutputRefused, OutputTruncated (the answer did not end within max_tokens), and others.
    """
    codec: Codec[T] = Codec(schema, "The model's answer")
    json_schema, wrapped = _object_schema(codec.json_schema())
    name = getattr(schema, "__name__", "answer")
    asked = replace(_prompt(await with_parts(prompt), model, options), schema=json_schema, schema_name=name)
    for last in (False, True):
        completion = await complete(asked)
        _check_refusal(completion)
        try:
            if completion.finish == "length":
                raise InvalidData("The model's answer stopped at max_tokens, before it was complete.")
            return _decode_answer(codec, completion.text, wrapped)
        except InvalidData as misfit:
            if last:
                kind = OutputTruncated if completion.finish == "length" else OutputInvalid
                raise kind(
                    f"The model {model!r} gave no valid {name} after a second try: {misfit} Its answer began: {completion.text[:200]!r}",
                    endpoint=completion.endpoint,
                    model=model,
                ) from misfit
            again = f"That answer is not valid. {misfit} Answer again, with only the JSON that fits the schema."
            said = [ChatMessage(role="assistant", content=completion.text or "{}"), ChatMessage(role="user", content=again)]
            asked = replace(asked, messages=[*asked.messages, *said])
    raise AssertionError("unreachable")


async def stream(prompt: Messages, *, model: str = "default", **options: Any) -> AsyncIterator[str]:
    """Yield a model's answer piece by piece.

    In a workflow the call is one durable step: watchers of the run see the pieces live, the workflow itself receives the recorded
    whole as one piece, since a replay could not repeat when each piece came.

    Args: as for `text`, but for `deadline`: whoever reads a stream waits for it. Raises InferenceError, InvalidData.
    """
    if options.get("deadline") is not None:
        raise InvalidData("A stream takes no deadline, since somebody reads it now; use llm.text(..., deadline=...).")
    asked = _prompt(await with_parts(prompt), model, options)
    if current_run() is not None:
        completion = await call_model(replace(asked, extra={**asked.extra, "ziggurat_stream": True}))
        yield completion.text
        return
    attempt = current_attempt()
    async with _closing(models().stream(asked)) as chunks:
        async for chunk in chunks:
            if chunk.text:
                if attempt is not None:
                    attempt.emit("token", msgspec.json.encode(chunk.text))
                yield chunk.text


async def complete(prompt: Prompt) -> Completion:
    """Return the answer to a whole `Prompt` record: what all functions here are made of. Raises InferenceError."""
    if current_run() is not None:
        if prompt.timeout is not None:
            return await call_model.options(timeout=prompt.timeout + 5.0)(prompt)
        return await call_model(prompt)
    return await models().complete(prompt)


async def call_tool(call: ToolCall, tools: Sequence[ToolLike]) -> ChatMessage:
    """Run the tool that a model asked for and return the message to answer with.

    A tool that is a task becomes a durable step in a workflow. Arguments that do not fit, an unknown tool and a failing tool are
    answered with the error's text, so that the model can correct itself.
    """
    try:
        found = next((t for t in tools if tool_of(t).name == call.name), None)
        if found is None:
            raise UnknownName(f"There is no tool {call.name!r}; the tools are: {', '.join(tool_of(t).name for t in tools)}.")
        codec = found.arguments if isinstance(found, Task) else _tool_arguments(found)
        args, kwargs = codec.decode(call.arguments.encode() or b"{}")
        result = found(*args, **kwargs)
        if hasattr(result, "__await__"):
            result = await result
        answer = found.result.encode(result) if isinstance(found, Task) else Codec(Any, "The tool's result").encode(result)
        content = answer.decode()
    except Exception as error:
        content = msgspec.json.encode({"error": f"{type(error).__name__}: {error}"}).decode()
    return ChatMessage(role="tool", content=content, tool_call_id=call.id, name=call.name)


def tool_of(function: ToolLike) -> Tool:
    """Return the description of a tool that a model sees: name, docstring, and the JSON schema of its arguments."""
    if isinstance(function, Task):
        return Tool(
            name=function.name, description=(function.fn.__doc__ or "").strip(), parameters=function.arguments.json_schema()
        )
    name = getattr(function, "__name__", "tool")
    return Tool(name=name, description=(function.__doc__ or "").strip(), parameters=_tool_arguments(function).json_schema())


def _tool_arguments(function: Callable[..., Any]) -> ArgumentsCodec:
    name = getattr(function, "__name__", "tool")
    return ArgumentsCodec(function, f"the tool {name!r}", type_hints(function) or {})


def _prompt(messages: Messages, model: str, options: dict[str, Any]) -> Prompt:
    if isinstance(messages, str):
        conversation = [ChatMessage(role="user", content=messages)]
    else:
        try:
            said = cast(Sequence[Any], messages)
            conversation = [m if isinstance(m, ChatMessage) else msgspec.convert(m, ChatMessage) for m in said]
        except msgspec.ValidationError as error:
            raise InvalidData(f"A message of the conversation is malformed: {error}.") from error
    options = dict(options)
    system = options.pop("system", None)
    if system:
        conversation.insert(0, ChatMessage(role="system", content=system))
    timeout: Duration | None = options.pop("timeout", None)
    if timeout is not None:
        options["timeout"] = seconds(timeout, what="timeout of the model call")
    cache: Duration | None = options.pop("cache", None)
    if cache is not None:
        options["cache"] = seconds(cache, what="cache of the model call")
    deadline: Duration | None = options.pop("deadline", None)
    due = _due(deadline) if deadline is not None else None
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    known = {"temperature", "top_p", "max_tokens", "stop", "seed", "timeout", "session", "region", "quality", "cache", "extra"}
    if unknown := options.keys() - known:
        listed = ", ".join(sorted(known | {"system", "deadline"}))
        raise InvalidData(f"A model call has no option {min(unknown)!r}; the options are: {listed}.")
    quality = options.get("quality", 0)
    if "quality" in options and (not isinstance(quality, int) or not 1 <= quality <= 5):
        raise InvalidData(f"The quality of a model call is {quality!r}, and must be a whole number from 1 to 5.")
    return Prompt(messages=conversation, model=model, due=due, **options)


def _due(deadline: Duration) -> float:
    """Return the moment that a deadline means: in a run by its own time, which a replay repeats."""
    within = seconds(deadline, what="deadline of the model call")
    if within <= 0:
        raise InvalidData("The deadline of the model call must be more than zero; leave it out for an answer at once.")
    run = current_run()
    return (run.time() if run is not None else models().time()) + within


async def _collect(prompt: Prompt, show: Callable[[str, bytes], None] | None) -> Completion:
    """Stream a call, showing tokens as they come, and return the whole."""
    pieces: list[str] = []
    final = Completion(model=prompt.model)
    async with _closing(models().stream(prompt)) as chunks:
        async for chunk in chunks:
            if chunk.text:
                pieces.append(chunk.text)
                if show is not None:
                    show("token", msgspec.json.encode(chunk.text))
            if chunk.finish is not None or chunk.usage is not None:
                final = replace(final, finish=chunk.finish or final.finish, usage=chunk.usage or final.usage)
            if (call := chunk.call) is not None:
                final = replace(final, endpoint=call.endpoint, upstream=call.upstream, call=call)
    return replace(final, text="".join(pieces))


@asynccontextmanager
async def _closing(chunks: AsyncIterator[Chunk]) -> AsyncIterator[AsyncIterator[Chunk]]:
    """Close a stream at once when its reader leaves it, which ends the upstream call, instead of when it is collected."""
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _check_refusal(completion: Completion) -> None:
    if completion.refusal:
        raise OutputRefused(
            f"The model {completion.model!r} declined to answer: {completion.refusal[:300]}",
            endpoint=completion.endpoint,
            model=completion.model,
        )


def _object_schema(schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a schema whose root is an object, as endpoints demand, and whether the value was wrapped as {"value": ...}."""
    if schema.get("type") == "object" or ("$ref" in schema and schema["$ref"].startswith("#/$defs/")):
        return schema, False
    definitions = schema.pop("$defs", None)
    wrapped: dict[str, Any] = {
        "type": "object",
        "properties": {"value": schema},
        "required": ["value"],
        "additionalProperties": False,
    }
    if definitions:
        wrapped["$defs"] = definitions
    return wrapped, True


def _decode_answer(codec: Codec[T], answer: str, wrapped: bool) -> T:
    """Decode an answer, forgiving a fence or prose around the JSON."""
    start, end = answer.find("{"), answer.rfind("}")
    body = answer[start : end + 1] if 0 <= start < end else answer
    if wrapped:
        try:
            body = msgspec.json.encode(msgspec.json.decode(body)["value"]).decode()
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise InvalidData("The model's answer is not the JSON object that was asked for.") from error
    return codec.decode(body.encode())


__all__ = ["InferenceError", "Reply", "call_tool", "chat", "complete", "parse", "stream", "text", "tool_of"]
