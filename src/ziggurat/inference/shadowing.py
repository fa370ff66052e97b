"""Shadow calls: a copy of a call for a route that is being tried, whose answer nobody waits for."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec.structs import replace

from ziggurat.errors import ZigguratError
from ziggurat.records import Completion, Prompt
from ziggurat.telemetry import events

#: Shadow calls under way in a process; past that, calls go without, so that a slow shadow costs nobody anything.
MOST = 16


class Shadows:
    """Sends copies. They are billed, limited and in the ledger like any call, under the route's own name and of no run."""

    def __init__(self, complete: Callable[[Prompt], Coroutine[Any, Any, Completion]]) -> None:
        self._complete = complete
        self._under_way: set[asyncio.Task[None]] = set()

    def cast(self, route: str, prompt: Prompt) -> None:
        """Send a copy of a prompt to "endpoint:upstream", and come back at once."""
        if len(self._under_way) >= MOST:
            return
        # In a context of its own, so that what it costs is not the step's: no budget of a run pays for a try.
        copy = self._ask(replace(prompt, model=route))
        task = asyncio.get_running_loop().create_task(copy, context=contextvars.Context(), name="ziggurat-shadow")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _ask(self, prompt: Prompt) -> None:
        try:
            await self._complete(prompt)
        except ZigguratError as error:
            events.SHADOW_FAILED(model=prompt.model, error=error)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way)
        for task in tasks:
            if task.get_loop() is asyncio.get_running_loop():
                task.cancel()
        await asyncio.gather(*(t for t in tasks if t.get_loop() is asyncio.get_running_loop()), return_exceptions=True)
