"""The memory ceiling of a worker process: over it, the worker finishes what it has and asks for a fresh process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ziggurat.telemetry.process import resident_bytes

logger = logging.getLogger("ziggurat.workers")

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
    logger.warning(
        "The worker %s uses %d MiB, over its ceiling of %d MiB; it finishes what it has and asks for a fresh process.",
        worker, used >> 20, ceiling >> 20,
    )  # fmt: skip
    return True
