"""The last delivery of a message runs with nothing beside it.

A task that kills its worker takes along whatever ran beside it, and all of that returns together, often to one worker, to be killed
together again: after `max_deliveries` the innocent would be dead letters like the guilty. So a message on its last delivery is held until
what runs here has ended, runs alone, and only then does the worker take other work. The guilty one then harms nobody, and the innocent
one comes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from ziggurat.records import Delivery
from ziggurat.workers.attempt import Attempt

#: Seconds for which a last delivery waits for what runs beside it. What has run for so long has not killed its worker.
COMPANY_ENDS = 60.0


class Isolation:
    """Holds one attempt at a time back until it is alone.

    Args:
        held: everything leased to the worker, by message id.
        pause: waits until something has ended, and at most a moment.
        go: begins the attempt.
    """

    def __init__(
        self, held: Mapping[str, Attempt], pause: Callable[[float], Awaitable[None]], go: Callable[[Attempt], None]
    ) -> None:
        self._held, self._pause, self._go = held, pause, go
        self.attempt: Attempt | None = None

    def refuses(self, delivery: Delivery) -> bool:
        """Say whether a delivery goes back for another worker, or for later: one last delivery at a time."""
        return delivery.last and self.attempt is not None

    def _others(self) -> bool:
        return any(attempt is not self.attempt for attempt in self._held.values())

    async def run(self, stopping: asyncio.Event) -> None:
        """Let the attempt that is held begin when it may, and return when it has ended."""
        attempt = self.attempt
        if attempt is None:
            return
        loop = asyncio.get_running_loop()
        give_up = loop.time() + COMPANY_ENDS
        while self._others() and not attempt.done and not stopping.is_set() and loop.time() < give_up:
            await self._pause(0.2)
        if not stopping.is_set():
            self._go(attempt)
        while not attempt.done and not stopping.is_set():
            await self._pause(0.2)
        self.attempt = None
