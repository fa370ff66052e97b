"""Waiting for the Redis queue without polling it.

A call that finds nothing leaves its token with the topic it waits for, in the same script that looked. The script that adds something takes
a token off and publishes a wake for it, so that one message wakes one waiting call, however many wait, and none while all are busy. One
connection per process listens; waiting calls hold none. When that connection breaks, everyone looks again, and everyone looks once
in `GLANCE` seconds anyway: a wake may be lost, a message may not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

from ziggurat.errors import QueueUnavailable
from ziggurat.queues.backends.redis_connection import Server, Subscription, end
from ziggurat.telemetry import events

#: Seconds after which a waiting call looks even if nobody woke it.
GLANCE = 1.0


class Waiting:
    """One call that waits, with its token."""

    def __init__(self, token: str, waiting: dict[str, asyncio.Future[str]]) -> None:
        self.token = token
        self._waiting = waiting
        self._woken: asyncio.Future[str] | None = None

    def arm(self) -> None:
        """Be ready for a wake; call it before looking, so that none comes in between."""
        if self._woken is None or self._woken.done():
            self._woken = self._waiting[self.token] = asyncio.get_running_loop().create_future()

    async def wait(self, seconds: float) -> None:
        """Return when woken, or after so many seconds."""
        assert self._woken is not None
        await asyncio.wait([self._woken], timeout=seconds)

    def found(self) -> None:
        """Say that the last look found something: a wake that came by then was for what that look saw."""
        self._waiting.pop(self.token, None)
        self._woken = None

    def unused(self) -> str:
        """Return the topic of a wake that no look has followed, if there is one, and wait no more."""
        self._waiting.pop(self.token, None)
        return self._woken.result() if self._woken is not None and self._woken.done() else ""


class Wakes:
    """The waiting calls of one process. `pass_on` is called with a topic when a wake came for a call that has gone."""

    def __init__(self, server: Server, pass_on: Callable[[str], None]) -> None:
        self._server = server
        self._pass_on = pass_on
        self._name = uuid4().hex[:20]
        self._channel = f"{server.base}:wake:{self._name}"
        self._waiting: dict[str, asyncio.Future[str]] = {}
        #: Numbers of tokens that are free, by what their calls wait for: a call that follows another takes its token over, so that
        #: what that one left on the server does not go stale.
        self._free: dict[str, list[int]] = {}
        self._count = 0
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen from now on. Raises QueueUnavailable."""
        if self._listening is None:
            subscription = await self._server.subscribe(self._channel)
            self._listening = asyncio.create_task(self._listen(subscription), name="ziggurat-redis-wakes")

    async def stop(self) -> None:
        """Listen no more, and wake everyone to see it."""
        if self._listening is not None:
            await end(self._listening)
            self._listening = None
        self.ring()

    def ring(self) -> None:
        """Wake all calls."""
        waiting, self._waiting = list(self._waiting.values()), {}
        for woken in waiting:
            if not woken.done():
                woken.set_result("")

    @contextmanager
    def waiting(self, what: str) -> Iterator[Waiting]:
        """Give a call that may wait its token."""
        free = self._free.setdefault(what, [])
        if not free:
            self._count += 1
        number = free.pop() if free else self._count
        call = Waiting(f"{self._name}.{number}", self._waiting)
        try:
            yield call
        finally:
            if topic := call.unused():
                self._pass_on(topic)
            self._free.setdefault(what, []).append(number)
            if len(self._free) > 1024:
                self._free.clear()

    async def _listen(self, subscription: Subscription | None) -> None:
        while True:
            try:
                subscription = subscription or await self._server.subscribe(self._channel)
                self.ring()  # Whoever was to be woken meanwhile was not.
                await self._hear(subscription)
            except QueueUnavailable as error:
                if self._server.closed:
                    return
                events.WAKES_FAILED(error=error)
                await asyncio.sleep(random.uniform(0.5, 1.0))
            except Exception as error:
                events.WAKES_BROKE(error=error)
            finally:
                if subscription is not None:
                    await subscription.close()
                    subscription = None

    async def _hear(self, subscription: Subscription) -> None:
        while True:
            text = await subscription.next()
            if text is None:
                continue
            topic, _, token = text.rpartition(" ")
            woken = self._waiting.get(token)
            if woken is None:
                self._pass_on(topic)
            elif not woken.done():
                woken.set_result(topic)
