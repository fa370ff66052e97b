"""Deletes ended runs with what only they referred to, and sweeps what nobody refers to out of the artifact store.

An object goes when its last run is purged. What was stored and never recorded, because a process died in between or an upload was not
used, is found by listing the store: older than the grace period and without a row in `artifacts`. The first sweep waits until outcomes
that gathered on the queue have been recorded. A store is only ever swept by the state file that claimed it first: each system needs a
place of its own, and one that finds a place taken says so.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable
from itertools import islice

from ziggurat.artifacts import Library
from ziggurat.clock import Clock
from ziggurat.errors import LayerUnreachable
from ziggurat.orchestrator.embedded.journal import Journal
from ziggurat.orchestrator.embedded.references import STATE_FACT
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.telemetry import events

#: Seconds between two sweeps, and before the first.
SWEEP_EVERY = 3600.0
_AT_ONCE = 500


class Cleaner:
    """Cleans up behind runs.

    Args:
        journal: of the state file.
        library: where artifacts are; None for a system without.
        clock: the time.
        grace: seconds for which an object that no run refers to is kept.
    """

    def __init__(self, journal: Journal, library: Library | None, clock: Clock, grace: float) -> None:
        self._journal, self._library, self._clock, self._grace = journal, library, clock, grace
        self._ours: bool | None = None

    async def purge(self, keys: Collection[int]) -> None:
        """Delete runs by the keys of their rows, with their events, dead letters and artifacts."""
        left = iter(keys)
        while part := list(islice(left, _AT_ONCE)):
            marks = ", ".join("?" * len(part))
            objects = self._journal.reader.artifacts_of(part)
            statements: list[tuple[str, tuple[object, ...]]] = [
                (f"DELETE FROM dead_letters WHERE run IN (SELECT id FROM runs WHERE key IN ({marks}))", tuple(part)),
                (f"DELETE FROM events WHERE run IN ({marks})", tuple(part)),
                (f"DELETE FROM runs WHERE key IN ({marks})", tuple(part)),
            ]
            if objects:
                statements.append((f"DELETE FROM artifacts WHERE run IN ({marks})", tuple(part)))
            await self._journal.durable(Write(statements=statements))
            if objects:
                try:
                    await self._delete(objects)
                except LayerUnreachable as error:
                    events.ARTIFACTS_LEFT(error=error)

    async def sweep(self) -> int:
        """Delete objects that nobody refers to and that are older than the grace period; returns how many."""
        library = self._library
        if library is None:
            return 0
        horizon = self._clock.time() - self._grace
        listed = library.store.list()
        count = 0
        while page := await library.in_thread(lambda: list(islice(listed, _AT_ONCE))):
            count += await self._delete([found.key for found in page if found.modified_at < horizon])
        return count

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            try:
                swept = await self.sweep()
            except LayerUnreachable as error:
                events.ARTIFACTS_NOT_SWEPT(error=error)
                continue
            if swept:
                events.ARTIFACTS_SWEPT(objects=swept)

    async def _delete(self, keys: Iterable[str]) -> int:
        """Delete those objects that no run refers to any more, if cleaning up is ours to do."""
        library = self._library
        candidates = list(keys)
        if library is None or not candidates or not await self._is_ours(library):
            return 0
        needed = self._journal.reader.referred(candidates)
        gone = [key for key in candidates if key not in needed]
        if gone:
            await library.in_thread(library.delete, gone)
        return len(gone)

    async def _is_ours(self, library: Library) -> bool:
        if self._ours is None:
            name = self._journal.reader.fact("owner")
            if name is None:
                await self._journal.durable(Write(statements=[(STATE_FACT, ("owner", secrets.token_hex(8)))]))
                name = self._journal.reader.fact("owner") or ""
            owner = await library.in_thread(library.store.claim, name)
            self._ours = owner == name
            if not self._ours:
                events.ARTIFACTS_OF_ANOTHER(store=library.store.url)
        return self._ours
