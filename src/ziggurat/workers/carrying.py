"""Payloads at the worker: arguments opened before the task sees them, results sealed before the queue does.

A store that cannot be used for a moment costs neither the arguments' attempt nor a result that was paid for: it is tried again for some
seconds, while the lease is renewed. What fails for good here is no fault of the task's, and another attempt may mend it: the orchestrator
stores arguments anew for each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Raw

from ziggurat.artifacts import INLINE, Payloads, is_sealed
from ziggurat.errors import ArtifactsUnreachable
from ziggurat.records import Message

T = TypeVar("T")

#: Pauses in seconds between tries while the artifact store cannot be used.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)


class Carrier:
    """Opens and seals for one worker. The plain methods block, for threads."""

    def __init__(self, payloads: Payloads = INLINE) -> None:
        self.payloads = payloads

    def check(self, message: Message) -> None:
        """Raise KeyMissing if the message is encrypted with a key that this worker has not; another may have it."""
        self.payloads.check_key(message.payload)

    async def open(self, message: Message) -> Raw | bytes:
        """Return the arguments of a message as JSON. Raises ArtifactError, ArtifactsUnreachable."""
        if not is_sealed(message.payload):
            return message.payload
        return await _insist(lambda: self.payloads.open(message.payload, message.run))

    def open_now(self, message: Message) -> Raw | bytes:
        """As `open`."""
        if not is_sealed(message.payload):
            return message.payload
        return _insist_now(lambda: self.payloads.open_now(message.payload, message.run))

    async def seal(self, message: Message, result: bytes) -> Raw:
        """Return what travels for a result. Raises ArtifactsUnreachable."""
        small = self.payloads.seal_small(result, message.run)
        return Raw(small if small is not None else await _insist(lambda: self.payloads.seal(result, message.run)))

    def seal_now(self, message: Message, result: bytes) -> Raw:
        """As `seal`."""
        return Raw(_insist_now(lambda: self.payloads.seal_now(result, message.run)))


async def _insist(move: Callable[[], Awaitable[T]]) -> T:
    for pause in PAUSES:
        try:
            return await move()
        except ArtifactsUnreachable:
            await asyncio.sleep(pause)
    return await move()


def _insist_now(move: Callable[[], T]) -> T:
    for pause in PAUSES:
        try:
            return move()
        except ArtifactsUnreachable:
            time.sleep(pause)
    return move()
