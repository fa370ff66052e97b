"""POST /v1/completions: the older door, for programs that send one text and want one back.

The models behind the gateway are chat models, so a text is sent as a user's message. What only a base model can do is refused: echoing,
filling in before a suffix, choosing the best of several, log probabilities.
"""

from __future__ import annotations

import asyncio
from functools import reduce
from operator import add
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from ziggurat.doors.gateway import answers
from ziggurat.doors.gateway.chat import relay
from ziggurat.doors.gateway.exchange import Exchange
from ziggurat.doors.gateway.refusals import Refusal
from ziggurat.doors.gateway.requests import StreamOptions, decode, extra_of, positive
from ziggurat.inference.router import Router
from ziggurat.records import ChatMessage, Chunk, Completion, Prompt, Usage

#: Texts of one request at most; each is a call of its own.
TEXTS_MAX = 64


class CompletionRequest(Struct):
    """The body, as far as it is understood here."""

    model: str
    prompt: str | list[Any]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


_decoder = msgspec.json.Decoder(CompletionRequest)
_KNOWN = frozenset(CompletionRequest.__struct_fields__)


async def completions(x: Exchange, models: Router) -> web.StreamResponse:
    """Answer a text completion, whole or as a stream."""
    data = await x.body()
    asked = decode(data, _decoder)
    texts = _texts(asked)
    x.admit(asked.model)
    prompt = Prompt(
        messages=[],
        model=asked.model,
        temperature=asked.temperature,
        top_p=asked.top_p,
        max_tokens=positive(asked.max_tokens, "max_tokens"),
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
        seed=asked.seed,
        extra=extra_of(data, _KNOWN),
    )
    prompt = x.demanding(prompt)
    prompts = [replace(prompt, messages=[ChatMessage(role="user", content=text)]) for text in texts]
    if asked.stream:
        if len(prompts) > 1:
            raise Refusal(400, "A stream answers one prompt; send the others in requests of their own.", param="prompt")
        writer = _TextStream(x, asked)
        return await relay(x, models, prompts[0], writer.chunk, writer.refused)
    found = await _all(models, prompts)
    return x.served(_body(x, asked.model, found), found[0].call if len(found) == 1 else None)


def _texts(asked: CompletionRequest) -> list[str]:
    for field, used in (("suffix", asked.suffix), ("echo", asked.echo), ("logprobs", asked.logprobs)):
        if used:
            text = f"The field {field} needs a base model, and those behind this door are chat models; leave it out."
            raise Refusal(400, text, param=field, code="unsupported")
    for field, count in (("n", asked.n), ("best_of", asked.best_of)):
        if count not in (None, 1):
            text = f"One answer is given to a prompt; leave {field} out."
            raise Refusal(400, text, param=field, code="unsupported")
    texts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if not texts or len(texts) > TEXTS_MAX:
        raise Refusal(400, f"The prompt has {len(texts)} texts and must have 1 to {TEXTS_MAX}.", param="prompt")
    if not all(isinstance(text, str) for text in texts):
        text = "The prompt must be text; token numbers mean something to one model only."
        raise Refusal(400, text, param="prompt", code="unsupported")
    return texts


async def _all(models: Router, prompts: list[Prompt]) -> list[Completion]:
    if len(prompts) == 1:
        return [await models.complete(prompts[0])]
    try:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(models.complete(prompt)) for prompt in prompts]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None  # One answer, one status: that of the first that failed.
    return [call.result() for call in calls]


def _body(x: Exchange, model: str, found: list[Completion]) -> bytes:
    choices = [
        {"text": c.text or c.refusal, "index": number, "logprobs": None, "finish_reason": c.finish}
        for number, c in enumerate(found)
    ]
    usage = answers.usage_body(reduce(add, (c.usage for c in found), Usage()))
    head = {"id": f"cmpl-{x.id}", "object": "text_completion", "created": x.created, "model": model}
    return answers.encode({**head, "choices": choices, "usage": usage})


class _TextStream:
    """Writes a streamed text completion."""

    def __init__(self, x: Exchange, asked: CompletionRequest) -> None:
        self._head = {"id": f"cmpl-{x.id}", "object": "text_completion", "created": x.created, "model": asked.model}
        self._usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk."""
        choice = {"text": chunk.text, "index": 0, "logprobs": None, "finish_reason": chunk.finish}
        out = self._event({**self._head, "choices": [choice]})
        if chunk.finish is None:
            return out
        if self._usage:
            out += self._event({**self._head, "choices": [], "usage": answers.usage_body(chunk.usage or Usage())})
        return out + answers.DONE

    def refused(self, text: str) -> bytes:
        """Return the events of a model that declined."""
        return self.chunk(Chunk(text=text)) + self.chunk(Chunk(finish="stop"))

    def _event(self, body: dict[str, Any]) -> bytes:
        return b"data: " + answers.encode(body) + b"\n\n"
