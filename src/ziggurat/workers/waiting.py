"""Waiting on the event loop for something that may also be looked at in vain."""

from __future__ import annotations

import asyncio


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, at most so long; then set it, because everyone who waits looks for himself."""
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
