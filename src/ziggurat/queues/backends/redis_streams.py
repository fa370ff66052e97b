"""The queue on Redis Streams, for any number of processes and machines. Works on Redis 7.0 and newer, and on Valkey.

Messages wait on one stream per lane, read by one consumer group; every verb is one Lua script, and so one round trip for a batch and one
atomic step: a fence is checked in the same breath as what it guards. `redis_lua/common.lua` explains keys and states, and
docs/decisions/0008-the-redis-queue-is-scripts-over-streams.md why it is built so.

    send ─▶ stream ─XREADGROUP─▶ pending under the worker ─settle─▶ outcome stream ─ack_outcomes─▶ gone
              ▲                        │
       due    │                        ├─ release, lease over (idle ≥ lease) ─▶ pending under ":ready" ─XCLAIM─▶ the next worker
    delayed ──┘                        └─ after max_deliveries ─▶ dead-letter stream, with an outcome

The epoch of a delivery is the number of deliveries that the group counts for its entry. The server's clock decides everything: a client's
clock may be minutes off.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from math import ceil
from typing import Any, TypeVar
from urllib.parse import quote, unquote
from uuid import uuid4

from msgspec.structs import replace

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import Overloaded, PayloadTooLarge, QueueUnavailable
from ziggurat.queues.backends import redis_wire as wire
from ziggurat.queues.backends.redis_connection import Server, end
from ziggurat.queues.backends.redis_wakes import GLANCE, Waiting, Wakes
from ziggurat.queues.interface import Capabilities, Queue, QueueOptions
from ziggurat.records import DeadLetter, Delivery, Depth, Message, Outcome, Presence, Progress, encode
from ziggurat.settings.redis_url import read_url
from ziggurat.telemetry import events

T = TypeVar("T")

#: Most messages and bytes that one script takes or gives; a larger batch is several, so that nobody else waits for long.
BATCH, BATCH_BYTES = 2_000, 8 * 1024 * 1024
#: Most seconds between two looks for leases that ran out, and their part of a lease when that is less.
RECLAIM_MOST, RECLAIM_PART = 5.0, 6
#: Entries that one look for ended leases visits.
RECLAIM_BUDGET = 2_000
#: Seconds after which the server forgets a worker that holds nothing and was not seen.
WORKER_SECONDS = 600.0
#: Batches of progress kept for an orchestrator that does not fetch them, and for how many seconds.
PROGRESS_KEPT, PROGRESS_SECONDS = 2_000, 60
#: Seconds that closing waits for calls that were given up while the server worked on them.
CLOSING = 2.0


class RedisQueue(Queue):
    """A queue on a Redis or Valkey server.

    All processes that share one must have the same options.

    Args:
        url: where it is; see `ziggurat.settings.redis_url`.
        patience: seconds for which a call waits for a server that is away, before it raises QueueUnavailable.

    Raises SettingsError for a URL that cannot be read, MissingExtra without redis-py.
    """

    capabilities = Capabilities(durable=True, shared=True, presence=True, tells_suspects=True)

    def __init__(
        self, url: str, options: QueueOptions | None = None, *, clock: Clock | None = None, patience: float = 5.0
    ) -> None:
        self.options = options or QueueOptions()
        self._clock = clock or SystemClock()
        self._address = read_url(url)
        self._patience = patience
        self._server = Server(self._address, patience=patience)
        self._wakes = Wakes(self._server, self._pass_on)
        self._lease_ms = max(1, round(self.options.lease * 1000))
        self._weights = "".join(f"{level}:{weight}," for level, weight in self.options.weights.items())
        self._lines = wire.Lines()
        self._progress: deque[Progress] = deque()
        self._strays: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._next_tick = 0.0
        #: Seconds by which the server's clock is ahead of ours, if it is by much.
        self._skew = 0.0
        self._tick_sooner: asyncio.Event = asyncio.Event()

    async def open(self) -> None:
        if self._keeper is not None:
            return
        if self._server.closed:
            self._server = Server(self._address, patience=self._patience)
            self._wakes = Wakes(self._server, self._pass_on)
        try:
            await self._tick()
            await self._wakes.start()
        except BaseException:
            await self._server.close()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="ziggurat-redis-keeper")

    async def close(self) -> None:
        if self._keeper is not None:
            await end(self._keeper)
            self._keeper = None
        if self._strays:
            await asyncio.wait(list(self._strays), timeout=CLOSING)
        await self._server.close()
        await self._wakes.stop()

    # -- the orchestrator's side ---------------------------------------------------------------------------------

    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        batches: list[wire.Batch] = []
        lines = self._lines
        largest = self.capabilities.largest_message
        batch = wire.Batch()
        for message in messages:
            if len(message.payload) > largest:
                raise PayloadTooLarge(
                    f"The message {message.id!r} carries {len(message.payload):,} bytes, and the queue takes {largest:,}; store the bulk "
                    "as an artifact or a file and pass a reference."
                )
            if batch.count >= BATCH or batch.size >= BATCH_BYTES:
                batches.append(batch)
                batch = wire.Batch()
            batch.add(message.id, lines.of(message), encode(self._in_time(message, self._skew)))
        batches.append(batch)
        # A server's milliseconds are cut off, so a message would be early by a part of one.
        delay_ms = ceil(delay * 1000) + 1 if delay > 0 else 0
        capacity = self.options.capacity
        if len(batches) > 1:
            # None is taken unless all fit: so they are weighed together first.
            self._refuse_if_full(await self._server.run("send", capacity, -1, *wire.without_bodies(batches)))
            capacity = -1
        for batch in batches:
            if batch.count:
                self._refuse_if_full(await self._server.run("send", capacity, delay_ms, *batch.arguments()))

    def _refuse_if_full(self, lane: bytes) -> None:
        if lane:
            queue, priority, namespace, _ = (unquote(part) for part in lane.decode().split("/"))
            raise Overloaded(
                f"The lane {namespace}/{queue} at priority {priority} is full: it holds up to {self.options.capacity:,} messages. "
                "Send again later, or add workers."
            )

    async def outcomes(self, limit: int, wait: float) -> list[Outcome]:
        async def look(token: str) -> list[Outcome]:
            return wire.read_outcomes(await self._server.run("outcomes", limit, self._lease_ms, token, BATCH_BYTES))

        return await self._first("o", look, wait)

    async def ack_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        for start in range(0, len(outcomes), BATCH):
            part = outcomes[start : start + BATCH]
            await self._server.run("ack", *[field for outcome in part for field in (outcome.message, outcome.status)])

    async def cancel(self, ids: Collection[str]) -> None:
        for part in wire.parts(ids, BATCH):
            await self._server.run("cancel", *part)

    async def missing(self, ids: Collection[str]) -> set[str]:
        missing: set[str] = set()
        for part in wire.parts(ids, BATCH):
            missing.update(part[place] for place in await self._server.run("missing", *part))
        return missing

    async def progress(self, limit: int, wait: float) -> list[Progress]:
        kept = self._progress

        async def look(token: str) -> bool:
            for batch in await self._server.run("progress", 100, token, once=True):
                kept.extend(wire.read_progress(batch))
            return bool(kept)

        if not kept:
            await self._first("p", look, wait)
        return [kept.popleft() for _ in range(min(limit, len(kept)))]

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        if limit <= 0 or not queues:
            return []
        names = [quote(queue, safe="") for queue in queues]
        place = quote(region, safe="")
        view = ",".join(sorted(names)) + "/" + place
        rest = (place, view, self._weights, round(self.options.ageing * 1000), BATCH_BYTES, self.options.trusted, *names)

        async def look(token: str) -> list[Delivery]:
            # By our own clock, and from before the server's: so the lease is never longer than we say.
            until, asked = self._clock.time() + self.options.lease, list[float]()
            answer = await self._server.run("receive", wire.consumer(worker), limit, token, *rest, asked=asked)
            held_until = asked[-1] + self.options.lease
            due, deliveries, unreadable = wire.read_deliveries(answer, worker, (until, held_until), self.options.trusted)
            self._note_due(due)
            if unreadable:
                await self._return_unreadable(unreadable)
            if self._skew:
                deliveries = [replace(it, message=self._in_time(it.message, -self._skew)) for it in deliveries]
            return deliveries

        return await self._first("w:" + view, look, wait, give_back=self.release)

    @staticmethod
    def _in_time(message: Message, skew: float) -> Message:
        """Return a message whose deadline is told by the server's clock, or with the skew negated by ours: clocks may be minutes apart."""
        return replace(message, deadline=message.deadline + skew) if skew and message.deadline is not None else message

    async def _return_unreadable(self, unreadable: list[tuple[Delivery, str]]) -> None:
        """Leave messages that this version cannot read to others; after their last delivery they are dead letters."""
        for delivery, reason in unreadable:
            await self.release([delivery], delay=1.0, reason=reason)

    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        details = details or {}
        rows = [(*wire.lease(delivery), details.get(delivery.message.id, b"")) for delivery in deliveries]
        return await self._fenced("extend", (self._lease_ms,), rows)

    async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        rows = [(*wire.lease(delivery), outcome.status, encode(outcome)) for delivery, outcome in settled]
        return await self._fenced("settle", (self._lease_ms, uuid4().hex), rows)

    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        delay_ms = ceil(delay * 1000) + 1 if delay > 0 else 0
        fixed = (self._lease_ms, self.options.max_deliveries, delay_ms, reason)
        return await self._fenced("release", fixed, [wire.lease(delivery) for delivery in deliveries])

    async def _fenced(self, verb: str, fixed: tuple[Any, ...], rows: Sequence[tuple[Any, ...]]) -> set[str]:
        """Apply a verb to leased messages and return the ids that it reports as fenced."""
        fenced: set[str] = set()
        for part in wire.batches(rows, BATCH, BATCH_BYTES):
            answer = await self._server.run(verb, *fixed, *[field for row in part for field in row])
            fenced.update(id_.decode() for id_ in answer)
        return fenced

    async def cancellations(self, worker: str, wait: float) -> list[str]:
        consumer = wire.consumer(worker)

        async def look(token: str) -> list[str]:
            return [id_.decode() for id_ in await self._server.run("cancellations", consumer, token)]

        return await self._first("c:" + worker, look, wait)

    async def publish(self, progress: Sequence[Progress]) -> None:
        if progress:
            # Once: progress may be lost, and must not come twice.
            await self._server.run("publish", PROGRESS_KEPT, PROGRESS_SECONDS * 1000, wire.write_progress(progress), once=True)

    # -- everyone's ----------------------------------------------------------------------------------------------

    async def depth(self, queues: Iterable[str] | None = None) -> dict[str, Depth]:
        names = None if queues is None else [quote(queue, safe="") for queue in queues]
        if names == []:
            return {}
        found = {}
        for name, ready, leased, delayed, dead, age_ms in await self._server.run("depth", *(names or ())):
            found[unquote(name.decode())] = Depth(ready, leased, delayed, dead, age_ms / 1000)
        return found

    async def announce(self, presences: Sequence[Presence], *, ttl: float) -> None:
        if presences:
            rows = [field for presence in presences for field in (presence.worker, encode(presence))]
            await self._server.run("announce", ceil(ttl * 1000), *rows)

    async def workers(self) -> list[Presence]:
        return wire.read_presences(await self._server.run("workers"))

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return wire.read_dead_letters(await self._server.run("dead", limit))[:limit]

    async def redrive(self, ids: Collection[str]) -> int:
        return sum([await self._server.run("bring_back", "redrive", *part) for part in wire.parts(ids, BATCH)])

    async def discard(self, ids: Collection[str]) -> int:
        return sum([await self._server.run("bring_back", "discard", *part) for part in wire.parts(ids, BATCH)])

    # -- waiting and keeping -------------------------------------------------------------------------------------

    async def _first(
        self,
        what: str,
        look: Callable[[str], Awaitable[T]],
        wait: float,
        *,
        give_back: Callable[[Any], Awaitable[Any]] | None = None,
    ) -> T:
        """Look until something is found or `wait` seconds are over, and return what the last look found."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        with self._wakes.waiting(what) as call:
            while True:
                call.arm()
                left = deadline - loop.time()
                found = await self._look(look, call if left > 0 else None, give_back)
                if found:
                    call.found()
                    return found
                left = deadline - loop.time()
                if left <= 0:
                    return found
                await call.wait(min(left, GLANCE * random.uniform(0.8, 1.0)))
                if deadline - loop.time() <= 0:
                    return found

    async def _look(
        self, look: Callable[[str], Awaitable[T]], call: Waiting | None, give_back: Callable[[Any], Awaitable[Any]] | None
    ) -> T:
        """Look once. A caller that gives up meanwhile does not take along what the server hands out to it."""
        looking = asyncio.ensure_future(look(call.token if call else ""))
        try:
            return await asyncio.shield(looking)
        except asyncio.CancelledError:
            self._stray(self._put_back(looking, give_back))
            raise

    async def _put_back(self, looking: asyncio.Future[Any], give_back: Callable[[Any], Awaitable[Any]] | None) -> None:
        found = await looking
        if found and give_back is not None:
            await give_back(found)

    def _pass_on(self, topic: str) -> None:
        if not self._server.closed:
            self._stray(self._server.run("pass_on", topic))

    def _stray(self, doing: Any) -> None:
        """Do something that nobody waits for."""
        task: asyncio.Task[Any] = asyncio.ensure_future(_forgiving(doing))
        self._strays.add(task)
        task.add_done_callback(self._strays.discard)

    def _note_due(self, due_ms: float) -> None:
        """Let the keeper look when the server says that something will be due."""
        due = asyncio.get_running_loop().time() + due_ms / 1000
        if due_ms >= 0 and due < self._next_tick:
            self._next_tick = due
            self._tick_sooner.set()

    async def _keep(self) -> None:
        """Do what is due on time, on idle queues too: ended leases, delayed messages, rates."""
        loop = asyncio.get_running_loop()
        while True:
            while (left := self._next_tick - loop.time()) > 0:
                self._tick_sooner.clear()
                try:
                    async with asyncio.timeout(left):
                        await self._tick_sooner.wait()
                except TimeoutError:
                    pass
            try:
                await self._tick()
            except QueueUnavailable as error:
                events.UPKEEP_FAILED(error=error)
                self._next_tick = loop.time() + GLANCE

    async def _tick(self) -> None:
        interval = min(RECLAIM_MOST, self.options.lease / RECLAIM_PART)
        asked = self._clock.time()
        due, server_ms = await self._server.run(
            "tick",
            self._lease_ms,
            self.options.max_deliveries,
            ceil(interval * 1000),
            RECLAIM_BUDGET,
            round(WORKER_SECONDS * 1000),
        )
        skew = server_ms / 1000 - (asked + self._clock.time()) / 2
        # Less than a second may be the answer's way, and no deadline depends on it.
        self._skew = skew if abs(skew) >= 1.0 else 0.0
        now = asyncio.get_running_loop().time()
        self._next_tick = now + min(interval, GLANCE) * random.uniform(0.8, 1.0)
        self._note_due(due)


async def _forgiving(doing: Awaitable[Any]) -> None:
    try:
        await doing
    except QueueUnavailable as error:
        events.LEFT_TO_LEASE(error=error)
