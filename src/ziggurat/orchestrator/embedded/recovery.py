"""What an engine does with unfinished runs when it opens."""

from __future__ import annotations

import asyncio

from ziggurat.orchestrator.embedded.driver import Driver
from ziggurat.telemetry import events

#: Runs replayed between two looks at the event loop.
_AT_ONCE = 100


async def recover(driver: Driver) -> None:
    """Go on with every run that was not at rest. Runs that wait cost one heap entry each until their moment comes."""
    done = 0
    for run_id, status, wake_at in list(driver.reader.unfinished()):
        if run_id in driver.residents:
            continue
        if status == "waiting":
            if wake_at is not None:
                driver.timers.add(wake_at, run_id, 0)
        else:
            try:
                driver.resident(run_id)
            except Exception:
                events.RUN_LEFT(trace_of=True, run=run_id)
        done += 1
        if done % _AT_ONCE == 0:
            await asyncio.sleep(0)
