"""Keeps leases: renews those of a worker's deliveries, and carries heartbeat details to the queue.

A lease must be renewed even while a task computes on the event loop and lets nothing else run. So a worker of a queue with a server
renews from a thread with a loop and a connection of its own. A queue in the same process needs no such thread: if the loop stands
still, so does the queue, and no lease can end; there the renewal runs on the worker's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection

from ziggurat.clock import Clock
from ziggurat.errors import QueueUnavailable
from ziggurat.queues.interface import Queue
from ziggurat.records import Delivery
from ziggurat.telemetry import events
from ziggurat.workers.attempt import Attempt

#: Longest time in seconds that heartbeat details wait before the queue has them; a shorter lease shortens it.
DETAILS_WAIT = 1.0
#: Seconds past its limit after which an attempt's lease is no longer renewed: the loop is stuck, or it would have been stopped.
OVERDUE = 30.0


class LeaseKeeper:
    """Renews the leases of what `held` returns, every third of a lease, and reports the lost ones.

    Args:
        held: returns the attempts that hold a lease now; called from the thread that runs the keeper.
        lost: is told which deliveries are someone else's now; called from that thread.
        patience: seconds past its limit for which an attempt's lease is renewed nevertheless.
    """

    def __init__(
        self,
        held: Callable[[], Collection[Attempt]],
        lost: Callable[[list[Delivery]], None],
        clock: Clock,
        patience: float = OVERDUE,
    ) -> None:
        self._held = held
        self._lost = lost
        self._clock = clock
        self._patience = patience
        #: True lets leases run out, as in a worker that is stopped in its tracks; for tests.
        self.muted = False

    async def run(self, queue: Queue) -> None:
        """Keep renewing until cancelled. An unavailable queue is tried again at the next turn."""
        interval = queue.options.lease / 3
        pause = min(interval, DETAILS_WAIT)
        since = 0.0
        while True:
            await asyncio.sleep(pause)
            since += pause
            everything = since >= interval * 0.999
            try:
                await self.renew(queue, everything=everything)
            except QueueUnavailable:
                continue  # The worker's own calls report the outage. Not renewed in time, the lease is lost, and the queue will say so.
            except Exception:
                events.LEASES_NOT_RENEWED(trace_of=True, seconds=pause)
                continue
            if everything:
                since = 0.0

    async def renew(self, queue: Queue, *, everything: bool = True) -> None:
        """Renew all leases, or only those of attempts with new heartbeat details. Raises QueueUnavailable."""
        now = self._clock.monotonic()
        details: dict[str, bytes] = {}
        deliveries: list[Delivery] = []
        renewed: list[Attempt] = []
        told: list[Attempt] = []
        for attempt in self._held():
            if self.muted or attempt.stop_reason == "lost" or now > attempt.expires + self._patience:
                continue
            if attempt.beat_dirty and attempt.details is not None:
                attempt.beat_dirty = False
                details[attempt.message.id] = attempt.details
                told.append(attempt)
            elif not everything:
                continue
            deliveries.append(attempt.delivery)
            renewed.append(attempt)
        if not deliveries:
            return
        until = time.monotonic() + queue.options.lease
        try:
            lost = await queue.extend(deliveries, details)
        except BaseException:
            for attempt in told:
                attempt.beat_dirty = True
            raise
        for attempt in renewed:
            if attempt.message.id not in lost and attempt.held_until < until:
                attempt.held_until = until
        if lost:
            self._lost([delivery for delivery in deliveries if delivery.message.id in lost])


class LeaseThread:
    """A LeaseKeeper in a thread with an event loop and a connection of its own, which no task can block.

    Args:
        connect: makes the thread's own queue object; called and opened in the thread.
    """

    def __init__(self, keeper: LeaseKeeper, connect: Callable[[], Queue]) -> None:
        self._keeper = keeper
        self._connect = connect
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        #: Set by `stop`, which may come before the thread has a loop.
        self._stopped = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="ziggurat-leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread soon; safe to call from any thread, and more than once."""
        self._stopped = True
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # Its loop has ended already.
                self._loop.call_soon_threadsafe(self._stop.set)

    def join(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for the thread's end."""
        self._thread.join(timeout)

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._stopped:
            return
        keeping = asyncio.create_task(self._keep())
        await self._stop.wait()
        keeping.cancel()
        await asyncio.wait([keeping], timeout=5.0)

    async def _keep(self) -> None:
        queue = self._connect()
        pause = 0.1
        while True:
            try:
                await queue.open()
                break
            except QueueUnavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
        try:
            await self._keeper.run(queue)
        finally:
            await queue.close()
