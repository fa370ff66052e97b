"""POST /v1/chat/completions, and the streaming that the other doors share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from aiohttp import web

from ziggurat.doors.gateway import answers
from ziggurat.doors.gateway.exchange import Exchange
from ziggurat.doors.gateway.refusals import Refusal, refusal_of
from ziggurat.doors.gateway.requests import chat_prompt
from ziggurat.errors import OutputRefused, ZigguratError
from ziggurat.inference.router import Router
from ziggurat.records import Chunk, Prompt

#: A comment, which clients of server-sent events pass over (WHATWG HTML, §9.2).
KEEP_ALIVE = b": keep-alive\n\n"


async def chat(x: Exchange, models: Router) -> web.StreamResponse:
    """Answer a chat completion, whole or as a stream."""
    asked, prompt = chat_prompt(await x.body())
    x.admit(prompt.model)
    prompt = x.demanding(prompt)
    if not asked.stream:
        completion = await models.complete(prompt)
        return x.served(answers.chat_body(completion, x.id, x.created, prompt.model), completion.call)
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    writer = answers.ChatStream(x.id, x.created, prompt.model, usage=usage)
    return await relay(x, models, prompt, writer.chunk, writer.refused)


def _error(refusal: Refusal) -> bytes:
    return answers.error_event(refusal.shape())


async def relay(
    x: Exchange,
    models: Router,
    prompt: Prompt,
    write: Callable[[Chunk], bytes],
    refused: Callable[[str], bytes],
    failed: Callable[[Refusal], bytes] = _error,
) -> web.StreamResponse:
    """Stream an answer. What fails before its first piece is an error with a status; what fails later is an event.

    Args:
        write: returns the events of a chunk; those of the last one end the stream.
        refused: returns the events of a model that declined to answer.
        failed: returns the events of a call that broke off.
    """
    async with aclosing(models.stream(prompt)) as chunks:
        try:
            first = await _first(x, chunks)
        except OutputRefused as refusal:
            await x.begin()
            await x.write(refused(_said(refusal)))
            return await x.end()
        except ZigguratError as error:
            if x.response is None:
                raise
            x.failed = refusal_of(error)
            await x.write(failed(x.failed))
            return await x.end()
        await x.begin()
        await x.write(write(first))
        try:
            async for chunk in chunks:
                await x.write(write(chunk))
        except OutputRefused as refusal:
            await x.write(refused(_said(refusal)))
        except ZigguratError as error:
            x.failed = refusal_of(error)
            await x.write(failed(x.failed))
    return await x.end()


async def _first(x: Exchange, chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    """Return the first piece. A client that waits long for it gets comments, or a proxy between would take its connection for dead.

    With the first comment the status has been given: an error after it is an event.
    """
    waiting = asyncio.ensure_future(anext(chunks))
    try:
        while not (await asyncio.wait({waiting}, timeout=x.keep_alive))[0]:
            await x.begin()
            await x.write(KEEP_ALIVE)
    finally:
        if not waiting.done():  # The client is gone: so is its call, before its stream is closed.
            waiting.cancel()
            await asyncio.wait({waiting})
    return waiting.result()


def _said(refusal: OutputRefused) -> str:
    """Return the model's own words of a refusal."""
    return str(refusal).partition("declined to answer: ")[2] or str(refusal)
