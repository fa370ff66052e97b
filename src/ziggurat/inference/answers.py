"""Answers that need not be bought twice: the journal of an attempt's calls, and a cache that programs ask for.

**The journal.** A worker that is killed after three of five model calls leaves its message to another, which runs the task from its
beginning. Each answer was noted under the attempt, the request and how often it was asked, so that whoever runs the attempt
again takes the three from the journal and buys the other two. Their records come with them: the killed worker could not tell of its
bills, and a record has an id, so that they are in the ledger once. So it is with an attempt that ended to wait for an answer, and is
made again when that is there. An attempt that failed is another matter: its successor may need
another answer, and asks anew.

**The cache.** `cache="1h"` on a call gives the answer of an equal request of the same tenant, if there is one that old or younger. Equal
means all of it: messages, model, tools, schema, sampling. What comes from the cache costs nothing and is no call.

Both are kept beside the calls, never in their way: a store that cannot be reached means that the call is made. An answer that was
streamed is kept once its end has come, before its last piece is handed on; it is given again in few pieces. One that broke off, or that
nobody read to its end, is not kept: its reader saw a part, and the rest was never bought. What is kept is sealed like every payload, so
that with a key in use it is encrypted.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ziggurat.errors import ZigguratError
from ziggurat.inference.parts import by_content
from ziggurat.program.context import AttemptContext, current_attempt
from ziggurat.records import Chunk, Completion, Prompt, ToolCall, Usage
from ziggurat.telemetry import events

#: Seconds for which an attempt's answers are kept: longer than a message goes from worker to worker.
JOURNAL_KEPT = 86_400.0
#: Characters of a piece of an answer that is streamed again: what watchers are shown at once is bounded.
PIECE = 4_000


class AnswerStore(ABC):
    """Keeps bytes under names for a while. Called from threads; may raise ZigguratError, and then nothing is kept."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return what is kept under a name and not past its time, or None."""

    @abstractmethod
    def put(self, key: str, data: bytes, ttl: float) -> None:
        """Keep something for `ttl` seconds, in the place of what was there."""

    def close(self) -> None:
        """Let go."""
        return


class Seal(Protocol):
    """What `artifacts.Payloads` does, as far as it is needed here."""

    def seal_inline(self, data: bytes, run: str) -> bytes: ...
    def open_now(self, data: bytes, run: str) -> bytes: ...


class Place(Struct, frozen=True):
    """Where the answer of one call is kept."""

    key: str
    ttl: float
    #: The answer is the tenant's, from the cache, rather than the attempt's own.
    cached: bool


class Answers:
    """Recalls and keeps answers for a router.

    Args:
        store: where they are kept.
        seal: seals what is kept.
        journal: False keeps only what programs ask for with `cache`.
    """

    def __init__(self, store: AnswerStore, seal: Seal, *, journal: bool = True) -> None:
        self._store, self._seal, self._journal = store, seal, journal
        self._silent = False

    @property
    def journal(self) -> bool:
        """True if the answers that an attempt gets are noted."""
        return self._journal

    def place(self, prompt: Prompt) -> Place | None:
        """Return where the answer of a call is kept, or None if it is not."""
        attempt = current_attempt()
        if prompt.cache is not None:
            tenant = attempt.info.namespace if attempt is not None else "default"
            return Place(f"cache:{tenant}:{digest_of(prompt)}", prompt.cache, cached=True)
        if not self._journal or attempt is None or not attempt.info.run:
            return None
        digest = digest_of(prompt)
        info = attempt.info
        # How often this very request was asked, and not the place of the call: calls side by side come in any order.
        nth = attempt.asked(digest)
        key = f"call:{info.idempotency_key}.{info.attempt - info.deferred}:{digest}:{nth}"
        return Place(key, JOURNAL_KEPT, cached=False)

    async def recall(self, place: Place) -> Completion | None:
        """Return the answer that is kept there, if any."""
        data = await asyncio.to_thread(self._get, place.key)
        if data is None:
            return None
        answer = msgspec.json.decode(data, type=Completion)
        if place.cached:
            return replace(answer, usage=Usage(), call=None)
        attempt: AttemptContext | None = current_attempt()
        if attempt is not None and answer.call is not None:
            attempt.record_call(answer.call)
        if attempt is not None and attempt.info.deferred:
            await self.keep(place, answer)  # It waits for another answer, perhaps for longer than notes are kept.
        return answer

    async def keep(self, place: Place, answer: Completion) -> None:
        """Keep an answer there, before the program goes on with it."""
        await asyncio.to_thread(self._put, place, msgspec.json.encode(answer))

    async def through(self, place: Place, buy: Callable[[], AsyncGenerator[Chunk, None]]) -> AsyncGenerator[Chunk, None]:
        """Yield the answer that is kept there, or else what `buy` streams, which is kept once it is whole."""
        known = await self.recall(place)
        if known is not None:
            calls = [(number, c.id, c.name, c.arguments) for number, c in enumerate(known.tool_calls)]
            for at in range(0, len(known.text), PIECE):
                yield Chunk(text=known.text[at : at + PIECE])
            if known.reasoning or calls:
                yield Chunk(reasoning=known.reasoning, tool_calls=calls)
            yield Chunk(finish=known.finish, usage=known.usage, call=known.call)
            return
        gathered = Gathered()
        async with aclosing(buy()) as chunks:
            async for chunk in chunks:
                gathered.take(chunk)
                if chunk.finish is not None:
                    await self.keep(place, gathered.completion(chunk))
                yield chunk

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    def _get(self, key: str) -> bytes | None:
        try:
            data = self._store.get(key)
            return None if data is None else self._seal.open_now(data, key)
        except ZigguratError as error:
            self._say(error)
            return None

    def _put(self, place: Place, data: bytes) -> None:
        try:
            self._store.put(place.key, self._seal.seal_inline(data, place.key), place.ttl)
            self._silent = False
        except ZigguratError as error:
            self._say(error)

    def _say(self, error: ZigguratError) -> None:
        if not self._silent:
            events.ANSWERS_NOT_KEPT(error=error)
        self._silent = True


class Gathered:
    """The pieces of a streamed answer, put together."""

    __slots__ = ("_calls", "_reasoning", "_text")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        #: By index: id, name, and the pieces of the arguments.
        self._calls: dict[int, list[str]] = {}

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Completion:
        """Return the answer of a whole stream."""
        gathered = cls()
        for chunk in chunks:
            gathered.take(chunk)
        return gathered.completion(chunks[-1])

    def take(self, chunk: Chunk) -> None:
        """Take in a piece."""
        if chunk.text:
            self._text.append(chunk.text)
        if chunk.reasoning:
            self._reasoning.append(chunk.reasoning)
        for at, id_, name, arguments in chunk.tool_calls:
            call = self._calls.setdefault(at, ["", "", ""])
            call[0], call[1], call[2] = call[0] or id_, call[1] or name, call[2] + arguments

    def completion(self, last: Chunk) -> Completion:
        """Return the whole answer, of which this was the last piece."""
        call = last.call
        return Completion(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tool_calls=[ToolCall(*self._calls[at]) for at in sorted(self._calls)],
            finish=last.finish or "stop",
            usage=last.usage or Usage(),
            model=call.model if call is not None else "",
            endpoint=call.endpoint if call is not None else "",
            upstream=call.upstream if call is not None else "",
            call=call,
        )


def digest_of(prompt: Prompt) -> str:
    """Return a digest of all that an answer depends on: not how long one waits for it, nor how long it is kept."""
    same = replace(by_content(prompt), timeout=None, session="", cache=None, due=None)
    return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()[:32]
