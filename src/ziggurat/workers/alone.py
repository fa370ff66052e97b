"""A suspect runs with nothing beside it.

A task that kills its worker takes along whatever ran beside it, and all of that returns together, often to one worker, to be killed
together again: after `max_deliveries` the innocent would be dead letters like the guilty. So after half of its deliveries a message is a
suspect. A worker that gets one while something else runs hands it back unharmed, lets what it has end, and only then asks for more; and
while it runs one, it asks for nothing. The guilty then harms nobody, and the innocent comes through.

It is handed back rather than held, because what runs beside it may be what kills workers. A queue never gives two of them at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from ziggurat.records import Delivery
from ziggurat.workers.attempt import Attempt

#: Seconds after which what was handed back is offered again, so that not every worker makes room for it.
APART = 1.0
#: Seconds for which a worker waits for what runs to end. What has run for so long has not killed it.
COMPANY_ENDS = 60.0
#: After so many refusals a message runs in company: others may always be served before it.
REFUSALS_MOST = 5


class Isolation:
    """Sees to it that a suspect is alone.

    Args:
        held: everything leased to the worker, by message id.
        pause: waits until something of it has ended, and at most so many seconds.
    """

    def __init__(self, held: Mapping[str, Attempt], pause: Callable[[float], Awaitable[None]]) -> None:
        self._held, self._pause = held, pause
        self._refused: Counter[str] = Counter()
        self._making_room = False
        #: The attempt that is to be alone.
        self.attempt: Attempt | None = None

    def refuses(self, delivery: Delivery) -> bool:
        """Say whether a suspect must go back because it would have company; `run` then makes room."""
        id_ = delivery.message.id
        if not self._held or self._refused[id_] >= REFUSALS_MOST:
            self._refused.clear()
            return False
        self._refused[id_] += 1
        self._making_room = True
        return True

    async def run(self, stopping: asyncio.Event) -> None:
        """Return when the worker may ask for more: when what is alone has ended, or room is made for it."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + COMPANY_ENDS
        if self.attempt is not None:
            while not self.attempt.done and not stopping.is_set():
                await self._pause(0.2)
            self.attempt = None
        elif self._making_room:
            while self._held and not stopping.is_set() and loop.time() < give_up:
                await self._pause(0.2)
            self._making_room = False
