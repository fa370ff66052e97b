"""The queue for several processes on one machine, with no server: one SQLite file.

Every verb is one transaction, run by the one thread that owns the connection. A call that waits is woken by this process's own verbs
at once, and by those of other processes through SQLite's data version, which one task looks at every 1 to 20 ms for as long as any call
waits. Nothing runs while none does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import QueueUnavailable
from ziggurat.queues.backends import sqlite_presences
from ziggurat.queues.backends.sqlite_store import NEVER, SqliteStore
from ziggurat.queues.bell import Bell
from ziggurat.queues.contest import Turns
from ziggurat.queues.interface import Capabilities, Queue, QueueOptions
from ziggurat.queues.refusals import too_large
from ziggurat.queues.scheduling import LevelTurns
from ziggurat.records import DeadLetter, Delivery, Depth, Message, Outcome, Presence, Progress, encode

T = TypeVar("T")

#: Seconds between looks at what other processes wrote: soon after there was something, then less and less often.
LOOK_MIN, LOOK_MAX = 0.001, 0.02
#: Receivers that name other queues take turns of their own; past this many kinds they start anew.
VIEWS_KEPT = 256


class SqliteQueue(Queue):
    """A queue in a file.

    Args:
        path: the file; it and its folder are made when missing. It must be on a local disk: SQLite's shared memory does not cross a
            network.
        options: the policy; processes that share the file should share it too.
        clock: the time; tests move it.
    """

    capabilities = Capabilities(durable=True, shared=True, presence=True, tells_suspects=True)

    def __init__(self, path: str | Path, options: QueueOptions | None = None, *, clock: Clock | None = None) -> None:
        self.options = options or QueueOptions()
        self.path = Path(path)
        self._clock = clock or SystemClock()
        self._store = SqliteStore(self.path, self.options, self._clock)
        self._thread: ThreadPoolExecutor | None = None
        self._turns: dict[tuple[tuple[str, ...], str], Turns] = {}
        #: Rung by everything that may have brought something to any call that waits.
        self._bell = Bell()
        self._rings = 0
        self._version = 0
        self._due = NEVER
        self._waiting = 0
        self._watcher: asyncio.Task[None] | None = None
        self._stop_watching: Callable[[], None] | None = None

    async def open(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "ziggurat-queue")
            self._stop_watching = self._clock.watch(self._ring)
        try:
            await self._call(self._store.file.open)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._stop_watching is not None:
            self._stop_watching()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        # In the thread, after what is under way: a connection belongs to the thread that made it.
        await asyncio.wrap_future(thread.submit(self._store.file.close))
        thread.shutdown(wait=False)
        self._ring()

    # -- the orchestrator's side ---------------------------------------------------------------------------------

    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        largest = self.capabilities.largest_message
        bodies = []
        for message in messages:
            body = encode(message)
            if len(body) > largest:
                raise too_large(message, largest)
            bodies.append(body)
        if bodies:
            await self._change(lambda: self._store.send(messages, bodies, delay))

    async def outcomes(self, limit: int, wait: float) -> list[Outcome]:
        return await self._first(lambda: self._call(lambda: self._store.outcomes(limit), undo=self._store.offer), wait)

    async def ack_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            await self._call(lambda: self._store.acknowledge(outcomes))

    async def cancel(self, ids: Collection[str]) -> None:
        await self._change(lambda: self._store.cancel(ids))

    async def missing(self, ids: Collection[str]) -> set[str]:
        return await self._call(lambda: self._store.missing(ids))

    async def progress(self, limit: int, wait: float) -> list[Progress]:
        return await self._first(lambda: self._call(lambda: self._store.progress(limit)), wait)

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        key = (tuple(queues), region)
        if key not in self._turns:
            if len(self._turns) >= VIEWS_KEPT:
                self._turns.clear()
            self._turns[key] = Turns(queues, LevelTurns(self.options.weights, self.options.ageing))
        turns = self._turns[key]

        async def take() -> list[Delivery]:
            taken, rate_due = await self._call(
                lambda: self._store.receive(turns, limit, worker, region),
                undo=lambda found: self._store.release(found[0], 0.0, ""),
            )
            self._due = min(self._due, rate_due)
            return taken

        return await self._first(take, wait)

    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        return await self._call(lambda: self._store.extend(deliveries, details or {}))

    async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        bodies = [encode(outcome) for _, outcome in settled]
        return await self._change(lambda: self._store.settle(settled, bodies))

    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        return await self._change(lambda: self._store.release(deliveries, delay, reason))

    async def cancellations(self, worker: str, wait: float) -> list[str]:
        return await self._first(lambda: self._call(lambda: self._store.cancellations(worker), undo=self._store.untell), wait)

    async def publish(self, progress: Sequence[Progress]) -> None:
        if progress:
            bodies = [encode(record) for record in progress]
            await self._change(lambda: self._store.publish(bodies))

    # -- everyone's ----------------------------------------------------------------------------------------------

    async def depth(self, queues: Iterable[str] | None = None) -> dict[str, Depth]:
        return await self._call(lambda: self._store.depth(queues))

    async def announce(self, presences: Sequence[Presence], *, ttl: float) -> None:
        if presences:
            await self._call(lambda: sqlite_presences.announce(self._store.file, self._clock, presences, ttl))

    async def workers(self) -> list[Presence]:
        return await self._call(lambda: sqlite_presences.present(self._store.file, self._clock))

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return await self._call(lambda: self._store.dead_letters(limit))

    async def redrive(self, ids: Collection[str]) -> int:
        return await self._change(lambda: self._store.redrive(ids))

    async def discard(self, ids: Collection[str]) -> int:
        return await self._call(lambda: self._store.discard(ids))

    async def stored(self) -> int:
        """Return how many rows the file holds, of every kind: what must return to where it was when all work is done."""
        return await self._call(self._store.stored)

    # -- the thread ----------------------------------------------------------------------------------------------

    async def _call(self, verb: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
        """Run a verb in the thread. If the caller is cancelled meanwhile, `undo` gives back what nobody will get to see."""
        if self._thread is None:
            raise QueueUnavailable(f"The queue file {self.path} is not open. Open the queue, or connect a new client.")
        running = self._thread.submit(self._attempt, verb)
        try:
            version, result = await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if undo is not None and not running.cancelled() and self._thread is not None:
                self._thread.submit(self._undo, running, undo)
            raise
        if version != self._version:
            # Another process wrote since we last looked, and not only this call may have waited for that.
            self._version = version
            self._ring()
        return result

    async def _change(self, verb: Callable[[], T]) -> T:
        """Run a verb that may bring something to the calls that wait in this process: the data version tells only of others."""
        result = await self._call(verb)
        self._ring()
        return result

    def _attempt(self, verb: Callable[[], T]) -> tuple[int, T]:
        result = self._store.file.attempt(verb)
        return self._store.file.attempt(self._store.version), result

    def _undo(self, running: concurrent.futures.Future[tuple[int, T]], undo: Callable[[T], object]) -> None:
        if running.exception() is None:
            self._store.file.attempt(lambda: undo(running.result()[1]))

    # -- waiting -------------------------------------------------------------------------------------------------

    async def _first(self, look: Callable[[], Awaitable[list[T]]], wait: float) -> list[T]:
        """Return what `look` finds, looking again whenever something may have come, for up to `wait` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            rings = self._rings
            found = await look()
            left = deadline - loop.time()
            if found or left <= 0:
                return found
            self._due = min(self._due, await self._call(self._store.next_due))
            if rings == self._rings:
                self._waiting += 1
                if self._watcher is None:
                    self._watcher = asyncio.create_task(self._watch())
                try:
                    await self._bell.wait(left)
                finally:
                    self._waiting -= 1

    def _ring(self) -> None:
        self._rings += 1
        self._due = NEVER
        self._bell.ring()

    async def _watch(self) -> None:
        """Look for what other processes wrote and for what became due, while any call waits."""
        pause = LOOK_MIN
        try:
            while self._waiting:
                await asyncio.sleep(pause)
                rings = self._rings
                if self._clock.time() >= self._due:
                    self._ring()
                else:
                    await self._call(_nothing)
                pause = LOOK_MIN if rings != self._rings else min(pause * 1.5, LOOK_MAX)
        except QueueUnavailable:
            self._ring()  # Each call that waits meets the error itself, and tells its caller.
        finally:
            if self._watcher is asyncio.current_task():
                self._watcher = None


def _nothing() -> None:
    pass
