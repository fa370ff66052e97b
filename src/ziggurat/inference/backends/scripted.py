"""Scripted models: deterministic answers, delays and failures, for tests and for load, with no network.

An answer is decided by the seed, the prompt, and how often that prompt was asked, so that a run repeats whatever the order in which its
calls happen to be made. `Script` decides; `ScriptedEndpoint` acts it out in process; `ziggurat.testing.models.FaultyUpstream` acts the
same script out over HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import re
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ziggurat.errors import (
    AuthenticationFailed,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    ModelNotFound,
    RateLimited,
    RequestRejected,
    SettingsError,
)
from ziggurat.inference.backends.sample_json import sample, words
from ziggurat.inference.interface import Capabilities, Endpoint, EndpointConfig, Structured, ToolSupport
from ziggurat.inference.tokens import raw_tokens
from ziggurat.records import ChatMessage, Chunk, Completion, EmbeddingPrompt, Embeddings, Prompt, ToolCall, Usage

#: What can go wrong on demand. "rate_limited" is a 429, "failed" a 500, "timeout" no answer at all, "cut" a stream that ends early,
#: "nonsense" a 200 that is no JSON; the others are a 401, a 404 and a 400.
Fault = Literal["rate_limited", "failed", "timeout", "cut", "nonsense", "unauthorized", "not_found", "rejected"]
FAULTS: tuple[Fault, ...] = ("rate_limited", "failed", "timeout", "cut", "nonsense", "unauthorized", "not_found", "rejected")


class Reply(Struct, frozen=True, kw_only=True):
    """What a scripted model does with one call."""

    text: str = ""
    tool_calls: list[ToolCall] = []
    refusal: str = ""
    fault: Fault | None = None
    #: Seconds of a 429's Retry-After; None sends none.
    retry_after: float | None = None
    #: Seconds until the first token, and for each token after it; None takes the script's distribution.
    first_token: float | None = None
    per_token: float | None = None
    #: Tokens to report; None counts the prompt and the text. `no_usage` reports none.
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    no_usage: bool = False


#: Numbers of an embedding that names no other length.
VECTOR_LENGTH = 64

#: Decides a call from the prompt and how often it was asked before. Text, a value to be written as JSON, or a Reply; None: no opinion.
Behaviour = Callable[[Prompt, int], "Reply | str | dict[str, Any] | list[Any] | None"]


class ScriptOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of [inference.endpoints.NAME] with kind = "scripted". Durations are seconds."""

    seed: int = 0
    #: Median of the time to the first token, and the spread of its logarithm; 0.25 puts p99 at 1.8 times the median.
    latency: float = 0.0
    spread: float = 0.25
    #: Tokens per second after the first.
    tokens_per_second: float = 0.0
    #: Words of an answer that nothing else decides.
    answer_words: int = 24
    #: Fill the arguments of tools with the numbers and quoted words of the last message, as a model that reads would.
    reads: bool = False
    #: What is answered to a prompt that a regular expression finds: [{match = "...", answer = "..."}], the first that matches. The
    #: answer is text, or a table that is sent as JSON.
    answers: list[dict[str, Any]] = []
    #: The share of calls that end in each fault, such as {rate_limited = 0.01, failed = 0.005}.
    faults: dict[str, float] = {}
    #: What the calls end in, one after the other, and "ok" after the last: ["rate_limited", "ok", "cut"].
    schedule: list[str] = []
    retry_after: float | None = None
    #: How the model can be held to a schema and offered tools, to try the router's ways.
    structured: Structured = "json_schema"
    tools: ToolSupport = "native"
    context: int = 0
    #: Whether it takes images and files, as far as it says; it understands neither.
    vision: bool = True
    files: bool = True
    models: list[str] = msgspec.field(default_factory=lambda: ["scripted"])
    #: Report no usage, as some endpoints do.
    no_usage: bool = False


class Script:
    """Decides what a scripted model does. Safe to use from several threads."""

    def __init__(self, options: ScriptOptions | None = None, behaviour: Behaviour | None = None) -> None:
        self.options = options or ScriptOptions()
        self._behaviour = behaviour
        self._answers = [(re.compile(rule["match"], re.DOTALL), rule["answer"]) for rule in self.options.answers]
        self._asked: dict[bytes, int] = {}
        self._calls = 0
        self._lock = threading.Lock()
        unknown = [f for f in [*self.options.faults, *self.options.schedule] if f not in FAULTS and f != "ok"]
        if unknown:
            raise SettingsError(f"A scripted endpoint knows no fault {unknown[0]!r}; the faults are: {', '.join(FAULTS)}.")

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._calls

    def reply(self, prompt: Prompt) -> Reply:
        """Decide one call: the schedule, the function, the shares of faults, the canned answers, then whatever fits the request."""
        key = hashlib.blake2b(_encode([self.options.seed, prompt.messages, prompt.schema]), digest_size=8).digest()
        with self._lock:
            number = self._calls
            self._calls += 1
            asked = self._asked.get(key, 0)
            # Bounded: a load test asks millions of prompts, once each.
            if len(self._asked) > 100_000:
                self._asked.clear()
            self._asked[key] = asked + 1
        rng = random.Random(int.from_bytes(key) + asked)
        reply = self._decided(prompt, number, asked, rng)
        if reply.first_token is None:
            median = self.options.latency
            reply = replace(reply, first_token=median * math.exp(rng.gauss(0.0, self.options.spread)) if median else 0.0)
        if reply.per_token is None:
            speed = self.options.tokens_per_second
            reply = replace(reply, per_token=1.0 / speed if speed else 0.0)
        return replace(reply, no_usage=reply.no_usage or self.options.no_usage)

    def _decided(self, prompt: Prompt, number: int, asked: int, rng: random.Random) -> Reply:
        if number < len(self.options.schedule) and self.options.schedule[number] != "ok":
            return Reply(fault=_fault(self.options.schedule[number]), retry_after=self.options.retry_after)
        if self._behaviour is not None:
            decided = self._behaviour(prompt, asked)
            if decided is not None:
                return decided if isinstance(decided, Reply) else Reply(text=_text(decided))
        drawn = rng.random()
        for fault, share in self.options.faults.items():
            drawn -= share
            if drawn < 0:
                return Reply(fault=_fault(fault), text=words(6, rng), retry_after=self.options.retry_after)
        said = "\n".join(text_of(m) for m in prompt.messages)
        for pattern, answer in self._answers:
            if pattern.search(said):
                return Reply(text=_text(answer))
        return natural(prompt, rng, self.options.answer_words, reads=self.options.reads)


def natural(prompt: Prompt, rng: random.Random, length: int = 24, *, reads: bool = False) -> Reply:
    """Return what fits the request: a tool call where one is due, JSON that fits the schema, or a few words."""
    tools = prompt.tools
    answered = bool(prompt.messages) and prompt.messages[-1].role == "tool"
    named = next((t for t in tools if t.name == prompt.tool_choice), None)
    if tools and (named is not None or prompt.tool_choice == "required" or (prompt.tool_choice == "auto" and not answered)):
        tool = named or rng.choice(tools)
        arguments = sample(tool.parameters or {"type": "object"}, rng)
        if reads:
            arguments = _read_from(text_of(prompt.messages[-1]), arguments)
        return Reply(
            tool_calls=[ToolCall(id=f"call_{rng.getrandbits(32):08x}", name=tool.name, arguments=_encode(arguments).decode())]
        )
    if prompt.schema is not None:
        return Reply(text=_encode(sample(prompt.schema, rng)).decode())
    form = prompt.extra.get("response_format")
    if isinstance(form, dict):
        schema = form.get("json_schema", {}).get("schema") or {"type": "object"}
        return Reply(text=_encode(sample(schema, rng)).decode())
    return Reply(text=words(length, rng).capitalize() + ".")


_QUOTED = re.compile(r"['\"“](.+?)['\"”]")
_NUMBER = re.compile(r"-?\d+")


def _read_from(said: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with the numbers and the quoted words of a text in place of made-up ones, in their order."""
    words_said, numbers = iter(_QUOTED.findall(said)), iter(_NUMBER.findall(said))
    read: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, str):
            read[name] = next(words_said, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            read[name] = int(next(numbers, value))
        else:
            read[name] = value
    return read


def usage_for(prompt: Prompt, reply: Reply) -> Usage:
    """Return the usage that a reply reports; `calls` is 0 if it reports none."""
    if reply.no_usage:
        return Usage()
    written = reply.text or reply.refusal or "".join(c.arguments for c in reply.tool_calls)
    inputs = reply.input_tokens if reply.input_tokens is not None else max(1, round(raw_tokens(prompt)))
    outputs = reply.output_tokens if reply.output_tokens is not None else len(tokens_of(written))
    return Usage(calls=1, input_tokens=inputs, output_tokens=outputs, cached_tokens=min(reply.cached_tokens, inputs))


def embedding_question(prompt: EmbeddingPrompt) -> Prompt:
    """Return a request for embeddings as the prompt that decides its script."""
    texts = [text if isinstance(text, str) else str(text) for text in prompt.inputs]
    return Prompt(messages=[ChatMessage(role="user", content=text) for text in texts], model=prompt.model, timeout=prompt.timeout)


def embedding_tokens(prompt: EmbeddingPrompt) -> int:
    """Return the tokens that a request for embeddings reports."""
    return sum(len(text) if isinstance(text, list) else max(1, len(tokens_of(text))) for text in prompt.inputs)


def vectors_of(prompt: EmbeddingPrompt) -> list[list[float]]:
    """Return a unit vector for each input, made from its hash: equal texts have equal vectors, others nearly orthogonal ones."""
    found = []
    for text in prompt.inputs:
        rng = random.Random(hashlib.blake2b(_encode(text), digest_size=16).digest())
        drawn = [rng.gauss(0.0, 1.0) for _ in range(prompt.dimensions or VECTOR_LENGTH)]
        length = math.sqrt(sum(x * x for x in drawn)) or 1.0
        found.append([x / length for x in drawn])
    return found


def tokens_of(text: str) -> list[str]:
    """Cut a text into pieces as a stream would bring them; together they are the text."""
    return re.findall(r"\s*\S{1,6}|\s+$", text)


def text_of(message: ChatMessage) -> str:
    """Return the text of a message."""
    if isinstance(message.content, str):
        return message.content
    return "".join(str(part.get("text", "")) for part in message.content or ())


def create(config: EndpointConfig, behaviour: Behaviour | None = None) -> Endpoint:
    """Return a scripted endpoint; `config.options` are those of ScriptOptions. Raises SettingsError."""
    try:
        options = msgspec.convert(config.options, ScriptOptions)
    except msgspec.ValidationError as error:
        raise SettingsError(f"The options of the scripted endpoint {config.name!r} are wrong: {error}.") from error
    return ScriptedEndpoint(config, Script(options, behaviour))


class ScriptedEndpoint(Endpoint):
    """Acts a script out in this process."""

    def __init__(self, config: EndpointConfig, script: Script) -> None:
        super().__init__(config)
        self.script = script
        #: The prompts that were asked, newest last, for tests to look at.
        self.prompts: list[Prompt] = []
        #: Calls under way, and calls whose caller went away.
        self.open_calls = self.cancelled = 0

    def capabilities(self, upstream: str) -> Capabilities:
        options = self.script.options
        return Capabilities(
            structured=options.structured,
            tools=options.tools,
            context=options.context,
            vision=options.vision,
            files=options.files,
        )

    def free(self, upstream: str) -> bool:
        return True

    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        reply = self._begin(prompt)
        try:
            ends = self._ends(prompt)
            duration = (reply.first_token or 0.0) + (reply.per_token or 0.0) * len(tokens_of(reply.text))
            if reply.fault == "cut":
                # A whole answer that breaks off and a stream that does are the same failure.
                raise self._error(reply, upstream)
            await self._wait(duration, reply, ends, upstream)
            usage = usage_for(prompt, reply)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open_calls -= 1
        text, finish = within(reply.text, prompt.max_tokens)
        if finish == "length" and usage.calls:
            usage = replace(usage, output_tokens=prompt.max_tokens or 0)
        return Completion(
            text=text,
            tool_calls=reply.tool_calls,
            finish="tool_calls" if reply.tool_calls else finish,
            refusal=reply.refusal,
            usage=usage,
        )

    async def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        reply = self._begin(prompt)
        ended = False
        try:
            ends = self._ends(prompt)
            await self._wait(reply.first_token or 0.0, reply, ends, upstream)
            text, finish = within(reply.text, prompt.max_tokens)
            pieces = tokens_of(text)
            for number, piece in enumerate(pieces):
                if reply.fault == "cut" and number >= len(pieces) // 2:
                    raise self._error(reply, upstream)
                if number and reply.per_token:
                    await self._sleep(reply.per_token, ends, reply, upstream)
                yield Chunk(text=piece)
            if reply.fault == "cut":
                raise self._error(reply, upstream)
            for number, call in enumerate(reply.tool_calls):
                yield Chunk(tool_calls=[(number, call.id, call.name, "")])
                half = len(call.arguments) // 2
                yield Chunk(tool_calls=[(number, "", "", call.arguments[:half])])
                yield Chunk(tool_calls=[(number, "", "", call.arguments[half:])])
            usage = usage_for(prompt, reply)
            if finish == "length" and usage.calls:
                usage = replace(usage, output_tokens=prompt.max_tokens or 0)
            ended = True
            yield Chunk(finish="tool_calls" if reply.tool_calls else finish, usage=usage if usage.calls else None)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += not ended
            raise
        finally:
            self.open_calls -= 1

    async def embed(self, prompt: EmbeddingPrompt, upstream: str) -> Embeddings:
        asked = embedding_question(prompt)
        reply = self._begin(asked)
        try:
            await self._wait(reply.first_token or 0.0, reply, self._ends(asked), upstream)
            if reply.fault is not None:
                raise self._error(reply, upstream)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open_calls -= 1
        tokens = 0 if reply.no_usage else embedding_tokens(prompt)
        return Embeddings(vectors=vectors_of(prompt), usage=Usage(calls=1, input_tokens=tokens) if tokens else Usage())

    async def models(self) -> list[str]:
        return list(self.script.options.models)

    async def check(self) -> str:
        return "A scripted endpoint always answers."

    def _begin(self, prompt: Prompt) -> Reply:
        self.open_calls += 1
        self.prompts.append(prompt)
        del self.prompts[:-1000]
        return self.script.reply(prompt)

    def _ends(self, prompt: Prompt) -> float:
        """Return when the call has to end, by the loop's clock."""
        total = self.config.timeouts.total
        return asyncio.get_running_loop().time() + (total if prompt.timeout is None else min(prompt.timeout, total))

    async def _wait(self, seconds: float, reply: Reply, ends: float, upstream: str) -> None:
        """Let the time to the first token pass, and fail if that is the script."""
        first = min(ends, asyncio.get_running_loop().time() + self.config.timeouts.first_token)
        await self._sleep(math.inf if reply.fault == "timeout" else seconds, first, reply, upstream)
        if reply.fault not in (None, "cut"):
            raise self._error(reply, upstream)

    async def _sleep(self, seconds: float, ends: float, reply: Reply, upstream: str) -> None:
        left = ends - asyncio.get_running_loop().time()
        if seconds > 0:
            await asyncio.sleep(max(0.0, min(seconds, left)))
        if seconds > left:
            raise self._error(replace(reply, fault="timeout"), upstream)

    def _error(self, reply: Reply, upstream: str) -> InferenceError:
        fault = reply.fault or "failed"
        kind, what, sent = _ERRORS[fault]
        error = kind(
            f"The scripted endpoint {self.name!r} {what}.", endpoint=self.name, model=upstream, retry_after=reply.retry_after
        )
        error.sent = sent
        return error


_ERRORS: dict[str, tuple[type[InferenceError], str, bool]] = {
    "rate_limited": (RateLimited, "limits our rate (429)", False),
    "failed": (EndpointFailed, "failed (500)", False),
    "timeout": (EndpointUnreachable, "gave no answer in time", True),
    "cut": (EndpointFailed, "cut its answer before the end", True),
    "nonsense": (EndpointFailed, "sent something that is no answer", False),
    "unauthorized": (AuthenticationFailed, "refuses our credentials (401)", False),
    "not_found": (ModelNotFound, "does not serve the model (404)", False),
    "rejected": (RequestRejected, "refuses this request (400)", False),
}


def within(text: str, most: int | None) -> tuple[str, Literal["stop", "length"]]:
    """Return the text, cut after so many tokens, and how it finished."""
    pieces = tokens_of(text) if most is not None else ()
    if most is None or len(pieces) <= most:
        return text, "stop"
    return "".join(pieces[:most]), "length"


def _fault(name: str) -> Fault:
    return next(f for f in FAULTS if f == name)


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else _encode(answer).decode()


_encode = msgspec.json.Encoder().encode
