"""An endpoint of several replicas: one URL each, one model, one set of limits. Calls are balanced among those that are well.

    well ──▶ ill      its health says so, no connection is taken, or three calls in a row fail
     ▲        │
     └────────┘       its health says so, or, where it has none, a call that tries it after a pause

The router asks `place` for a replica at each attempt and makes the attempt there; a call that is tried again goes elsewhere. Replicas in
use are asked for their health every few seconds, beside the calls; ill ones are passed over while another is well, and if none is, they
are asked all the same: it may be the looks that fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import EndpointFailed, EndpointUnreachable, InferenceError
from ziggurat.inference.balance import by_load, by_session
from ziggurat.inference.interface import Capabilities, Endpoint, EndpointConfig, Look, ReplicaView, Reported, shown_url
from ziggurat.inference.retrying import Breaker
from ziggurat.inference.sessions import session_of
from ziggurat.records import Chunk, Completion, EmbeddingPrompt, Embeddings, Prompt
from ziggurat.telemetry import events

#: Seconds that a look at a replica may take, whatever its own limits are, and that pass between two looks at least, even when calls fail.
LOOK_SECONDS, LOOKS_APART = 30.0, 0.25
#: A load that a replica reported is believed for so many times the seconds between two looks.
BELIEVED = 3.0
#: Calls in a row that fail until a replica is left alone, and the pause then, in seconds, at first and at most.
FAILURES, PAUSE, PAUSE_MAX = 3, 1.0, 30.0


class Replica(Endpoint):
    """One replica: makes the attempts that are placed there, and counts and judges them."""

    def __init__(self, inner: Endpoint, clock: Clock) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.replica = shown_url(inner.config.base_url) or inner.name
        self.breaker = Breaker(FAILURES, PAUSE, PAUSE_MAX)
        self.in_flight = 0
        #: Why its health is bad; empty while it is good or was not looked at.
        self.trouble = ""
        #: What it told of itself last; and whether a call was answered there.
        self.told: Look | None = None
        self.answered = False
        #: True from a failure to the next look.
        self.suspect = False
        self._looked_at = 0.0
        self._own_then = 0
        self._clock = clock
        self._lock = threading.Lock()

    def well(self, now: float) -> bool:
        """Say whether a call may go there now."""
        return not self.trouble and self.breaker.wait(now) <= 0

    def load(self, now: float) -> float:
        """Return the calls under way there: ours, and those of others as far as the server tells of them."""
        look = self.told
        if look is None or look.running is None or now - self._looked_at > BELIEVED * max(1.0, self.config.probe):
            return self.in_flight
        return self.in_flight + max(0, look.running + (look.waiting or 0) - self._own_then)

    def state(self, now: float) -> str:
        """Return the word that people see."""
        if self.trouble or self.breaker.state(now) == "open":
            return "ill"
        if self.breaker.state(now) == "half-open":
            return "trying"
        return "well" if self.told is not None or self.answered else "unknown"

    def looked(self, look: Look | InferenceError, now: float, *, tell: bool) -> None:
        """Take in what a look found, and tell of a change in the log if whoever looked does not."""
        before, self.suspect = self.trouble, False
        if isinstance(look, InferenceError):
            self.trouble = " ".join(str(look).split())
            if tell and not before:
                events.REPLICA_ILL(endpoint=self.name, replica=self.replica, error=look)
            return
        self.told, self._looked_at, self._own_then = look, now, self.in_flight
        self.trouble = ""
        if before:
            if tell:
                events.REPLICA_WELL(endpoint=self.name, replica=self.replica)
            # It was lost and is back, so what its calls met before says nothing.
            self.breaker.success()

    # -- the attempts ------------------------------------------------------------------------------------------------

    def capabilities(self, upstream: str) -> Capabilities:
        return self.inner.capabilities(upstream)

    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        with self._under_way():
            return await self.inner.complete(prompt, upstream)

    async def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        with self._under_way():
            async with aclosing(self.inner.stream(prompt, upstream)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def embed(self, prompt: EmbeddingPrompt, upstream: str) -> Embeddings:
        with self._under_way():
            return await self.inner.embed(prompt, upstream)

    async def models(self) -> list[str]:
        return await self.inner.models()

    async def check(self) -> str:
        return await self.inner.check()

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        """Count an attempt while it lasts, and take in how it ended."""
        with self._lock:
            self.in_flight += 1
        self.breaker.begin(self._clock.monotonic())
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            self.in_flight -= 1
        if isinstance(error, (EndpointUnreachable, EndpointFailed)) and error.retryable:
            # Nobody takes a connection: the next call would find the same.
            gone = isinstance(error, EndpointUnreachable) and not error.sent
            self.suspect = True
            self.breaker.failure(self._clock.monotonic(), sure=gone)
        elif error is None or isinstance(error, InferenceError):
            self.answered = self.answered or error is None
            self.breaker.success()
        else:
            self.breaker.abandon()


class Replicated(Endpoint):
    """An endpoint of several replicas.

    Args:
        config: of all of them together.
        replicas: one endpoint each, of the same name.
        clock: for tests.
        seed: for the draws, in tests.
    """

    def __init__(
        self, config: EndpointConfig, replicas: Sequence[Endpoint], clock: Clock | None = None, seed: int | None = None
    ) -> None:
        super().__init__(config)
        self._clock = clock or SystemClock()
        self._replicas = {replica.replica: replica for replica in (Replica(inner, self._clock) for inner in replicas)}
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._looks: set[asyncio.Task[None]] = set()

    # -- the choice --------------------------------------------------------------------------------------------------

    def place(self, prompt: Prompt, upstream: str, avoid: Collection[str] = ()) -> Replica:
        now = self._clock.monotonic()
        self._look_soon(now)
        found = [replica for replica in self._replicas.values() if replica.well(now) and replica.replica not in avoid]
        if not found:
            found = [replica for replica in self._replicas.values() if replica.well(now)]
        if not found:
            # None is known to be well. Ask one that was not asked yet by this call, or any.
            found = [r for r in self._replicas.values() if r.replica not in avoid] or list(self._replicas.values())
        loads = {replica.replica: replica.load(now) for replica in found}
        session = "" if self.config.balance == "load" else session_of(prompt)
        return self._replicas[by_session(session, loads) if session else by_load(loads, self._rng)]

    def spare(self) -> bool:
        now = self._clock.monotonic()
        return any(replica.well(now) for replica in self._replicas.values())

    def choices(self, avoid: Collection[str]) -> bool:
        now = self._clock.monotonic()
        return any(replica.well(now) and replica.replica not in avoid for replica in self._replicas.values())

    def replicas(self) -> list[ReplicaView]:
        now = self._clock.monotonic()
        with contextlib.suppress(RuntimeError):  # No loop runs here, so nobody can look; what is known is shown.
            self._look_soon(now)
        return [
            ReplicaView(
                url=replica.replica,
                health=replica.state(now),
                in_flight=replica.in_flight,
                running=replica.told.running if replica.told is not None else None,
                waiting=replica.told.waiting if replica.told is not None else None,
                trouble=replica.trouble,
            )
            for replica in self._replicas.values()
        ]

    # -- looking after them ------------------------------------------------------------------------------------------

    def _look_soon(self, now: float) -> None:
        """Begin to look at the replicas, if it is time; a failure that was met makes it time."""
        if not self.config.probe:
            return
        loop = asyncio.get_running_loop()
        suspect = any(replica.suspect for replica in self._replicas.values())
        with self._lock:
            if now < self._look_at and not (suspect and now >= self._look_at - self.config.probe + LOOKS_APART):
                return
            # A moment, not a flag that a loop which ends in between would leave standing.
            self._look_at = now + self.config.probe
        task = loop.create_task(self.look_at_all(tell=True), name="ziggurat-replicas")
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def look_at_all(self, *, tell: bool = False) -> None:
        """Look at every replica, now; `tell` logs what has changed."""
        await asyncio.gather(*(self._look_at_one(replica, tell) for replica in self._replicas.values()))

    async def _look_at_one(self, replica: Replica, tell: bool) -> None:
        found: Look | InferenceError
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                found = await replica.inner.look()
        except TimeoutError:
            found = EndpointUnreachable(
                f"The endpoint {self.name!r} ({replica.replica}) did not tell of its health within {LOOK_SECONDS:g} s.",
                endpoint=self.name,
            )
        except InferenceError as error:
            found = error
        replica.looked(found, self._clock.monotonic(), tell=tell)

    def context(self, upstream: str) -> int:
        known = [look.contexts.get(upstream, 0) for r in self._replicas.values() if (look := r.told) is not None]
        return min((context for context in known if context), default=0)

    # -- as one endpoint ---------------------------------------------------------------------------------------------

    def capabilities(self, upstream: str) -> Capabilities:
        return next(iter(self._replicas.values())).capabilities(upstream)

    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        return await self.place(prompt, upstream).complete(prompt, upstream)

    async def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        async with aclosing(self.place(prompt, upstream).stream(prompt, upstream)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, prompt: EmbeddingPrompt, upstream: str) -> Embeddings:
        return await self.place(Prompt(messages=[]), upstream).embed(prompt, upstream)

    async def models(self) -> list[str]:
        return await self.place(Prompt(messages=[]), "").models()

    async def check(self) -> str:
        await self.look_at_all()
        ill = [replica for replica in self._replicas.values() if replica.trouble]
        count = len(self._replicas)
        if len(ill) == count:
            raise EndpointUnreachable(
                f"None of the {count} replicas of the endpoint {self.name!r} is well: {ill[0].trouble}", endpoint=self.name
            )
        said = f" Ill: {' '.join(replica.trouble for replica in ill)}" if ill else ""
        return f"{count - len(ill)} of {count} replicas are well.{said}"

    def reported(self, upstream: str) -> Reported | None:
        said = (replica.inner.reported(upstream) for replica in self._replicas.values())
        return next((one for one in said if one is not None), None)

    def free(self, upstream: str) -> bool:
        return next(iter(self._replicas.values())).inner.free(upstream)

    async def close(self) -> None:
        here = asyncio.get_running_loop()
        looks = [task for task in list(self._looks) if task.get_loop() is here]
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        for replica in self._replicas.values():
            await replica.inner.close()
