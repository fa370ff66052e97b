"""The state file as the event loop sees it: writes that can be waited for, reads, and one failure for all.

The writer commits in its own thread; what is to happen after a commit is called back here, on the loop, in the order of the writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ziggurat.errors import LayerUnreachable, StateUnusable
from ziggurat.orchestrator.embedded.store import Reader
from ziggurat.orchestrator.embedded.writer import Write, Writer
from ziggurat.telemetry import events

T = TypeVar("T")

#: Connections kept for reads beside the event loop.
_IDLE_MAX = 4


class Journal:
    """The one writer and the loop's own reader of a state file. Make it on the event loop that will use it.

    Raises StateUnusable if the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self.writer = Writer(path, self._committed, self._failed)
        self.reader = Reader(path)
        self._idle: list[Reader] = []
        #: What callers wait for; a failed writer fails them all.
        self._waits: set[asyncio.Future[Any]] = set()
        self._failure: StateUnusable | None = None
        self._open = True
        #: Writes that were handed over and are not known to be on the disk yet.
        self._under_way = 0

    async def close(self) -> None:
        """Commit what is queued and close the file. Nothing is called back any more."""
        self._open = False
        self._fail_waits(
            LayerUnreachable("The orchestrator was closed. What was recorded is safe, and runs go on at the next open.")
        )
        # The last connection to close empties the write-ahead log into the file, and a reader cannot: so the writer is the last.
        self.reader.close()
        while self._idle:
            self._idle.pop().close()
        await asyncio.to_thread(self.writer.close)

    def write(self, write: Write) -> None:
        """Hand a write to the writer. After a failure nothing is written: the next open reads the truth."""
        if self._failure is None:
            self._under_way += 1
            self.writer.add(write)

    async def durable(self, write: Write) -> None:
        """Write, and wait until it is on the disk. Raises StateUnusable if it cannot be, LayerUnreachable when closed."""
        if not self._open:
            raise LayerUnreachable("The orchestrator is closed.")
        future: asyncio.Future[None] = self._loop.create_future()
        before = write.done

        def done() -> None:
            if before is not None:
                before()
            if not future.done():
                future.set_result(None)

        write.done = done
        self.write(write)
        await self.wait(future)

    async def wait(self, future: asyncio.Future[Any]) -> None:
        """Wait for something that a write will bring about. Raises StateUnusable if the writer fails before, LayerUnreachable if
        the file is closed before.
        """
        if self._failure is not None:
            raise self._failure
        self._waits.add(future)
        try:
            await future
        finally:
            self._waits.discard(future)

    async def settled(self) -> None:
        """Wait until what was written so far is in the file; not for a writer that has failed, which writes nothing more."""
        if self._under_way and self._open:
            with contextlib.suppress(LayerUnreachable):
                await self.durable(Write())

    async def read(self, read: Callable[[Reader], T]) -> T:
        """Do a long read beside the event loop, on a connection of its own. Raises StateUnusable.

        Nothing is missing that this process showed before: a run that was seen to wait is among those that wait.
        """
        await self.settled()
        return await asyncio.to_thread(self._read, read)

    def _read(self, read: Callable[[Reader], T]) -> T:
        reader = self._idle.pop() if self._idle else Reader(self.path)
        try:
            return read(reader)
        finally:
            # What it has cached makes the next read quicker; more than a few are seldom needed at a time.
            if self._open and len(self._idle) < _IDLE_MAX:
                self._idle.append(reader)
            else:
                reader.close()

    # -- from the writer's thread -----------------------------------------------------------------------------------

    def _committed(self, batch: list[Write]) -> None:
        self._loop.call_soon_threadsafe(self._on_committed, batch)

    def _failed(self, error: StateUnusable) -> None:
        self._loop.call_soon_threadsafe(self._on_failed, error)

    # -- on the event loop ------------------------------------------------------------------------------------------

    def _on_committed(self, batch: list[Write]) -> None:
        self._under_way -= len(batch)
        for write in batch:
            if write.done is None or not self._open:
                continue
            try:
                write.done()
            except Exception:
                events.DRIVING_FAILED(trace_of=True)

    def _on_failed(self, error: StateUnusable) -> None:
        events.STATE_FAILED(error=error)
        self._failure = error
        self._fail_waits(error)

    def _fail_waits(self, error: LayerUnreachable) -> None:
        for future in self._waits:
            if not future.done():
                future.set_exception(error)
