"""How a call waits for what another call of the same process brings: one future for each waiting call, none for a message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Bell:
    """Wakes the calls that wait for one kind of thing. Each looks again when woken, so a ring too many costs a look."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        """Wake every call that waits now."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                _wake(future)

    async def wait(self, seconds: float) -> None:
        """Return when the bell rings, or after so many seconds of real time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        timer = loop.call_later(seconds, _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            if future in self._waiting:
                self._waiting.remove(future)

    async def first(self, look: Callable[[], list[T]], wait: float) -> list[T]:
        """Return what `look` finds, looking again at each ring for up to `wait` seconds until it finds something.

        What was found is returned with no await in between, so a call that is cancelled while it waits has taken nothing.
        """
        found = look()
        if found or wait <= 0:
            return found
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not found and (left := deadline - loop.time()) > 0:
            await self.wait(left)
            found = look()
        return found


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
