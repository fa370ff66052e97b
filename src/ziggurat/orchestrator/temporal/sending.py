"""Sending in company: dispatches come one by one, and a queue likes batches."""

from __future__ import annotations

import asyncio

from ziggurat.errors import Overloaded, PayloadTooLarge
from ziggurat.queues.interface import Queue
from ziggurat.records import Message

#: Messages sent at a time.
_BATCH = 256


class Sending:
    """Sends messages in batches, one at a time: what is asked for while one is under way goes along with the next.

    A message that is alone is sent at once, so a batch costs nobody a wait that a call of the queue's would not.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._asked: list[tuple[Message, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        """Put a message on the queue. Raises what `Queue.send` does."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append((message, sent))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="ziggurat-sending")
        await sent

    async def _run(self) -> None:
        try:
            while self._asked:
                batch, self._asked = self._asked[:_BATCH], self._asked[_BATCH:]
                await self._send(batch)
        finally:
            self._running = None

    async def _send(self, batch: list[tuple[Message, asyncio.Future[None]]]) -> None:
        try:
            await self._queue.send([message for message, _ in batch])
        except (Overloaded, PayloadTooLarge) as error:
            # The queue took none of them, because of one, or of one's lane. Alone, each hears what it is about.
            if len(batch) > 1:
                for one in batch:
                    await self._send([one])
                return
            _tell(batch, error)
        except BaseException as error:
            _tell(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            _tell(batch, None)


def _tell(batch: list[tuple[Message, asyncio.Future[None]]], error: BaseException | None) -> None:
    for _, sent in batch:
        if sent.done():
            continue  # Its dispatch was cancelled.
        if error is None:
            sent.set_result(None)
        else:
            sent.set_exception(error)
