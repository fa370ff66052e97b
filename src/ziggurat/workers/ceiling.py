"""The memory ceiling of a worker process: over it, the worker finishes what it has and asks for a fresh process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ziggurat.telemetry import events
from ziggurat.telemetry.process import resident_bytes

#: Seconds between two looks at the memory that the process uses.
INTERVAL = 5.0


async def keep_checking(check: Callable[[], None]) -> None:
    """Call `check` now and then until cancelled."""
    while True:
        await asyncio.sleep(INTERVAL)
        check()


def over_ceiling(worker: str, ceiling: int) -> bool:
    """Say whether the process uses more memory than `ceiling` bytes (0: no ceiling), and log it if so."""
    used = resident_bytes()
    if not ceiling or used <= ceiling:
        return False
    events.MEMORY_CEILING(worker=worker, used=used >> 20, ceiling=ceiling >> 20)
    return True
