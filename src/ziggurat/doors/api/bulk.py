"""Verbs for many runs: an order is written down with its runs, then carried out, one page after another, until it is done.

Nothing is half-done for good: what the server had not carried out when it ended, it carries out when it comes back. A page is noted
before it is tried and again after; the runs of a page during which the server ended are tried once more, and where the verb no longer
applies to one, it had been carried out.
"""

from __future__ import annotations

import asyncio
import sqlite3

from msgspec import Struct

from ziggurat.clock import Clock
from ziggurat.doors.api.control_file import ControlFile
from ziggurat.errors import Conflict, LayerUnreachable, ZigguratError
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.records import RunFilter
from ziggurat.telemetry import events

#: Runs tried side by side, and noted together.
PAGE = 50
#: Seconds between two tries while a layer is unreachable.
PATIENCE = 2.0
#: Seconds that a finished order is remembered.
KEPT = 7 * 86_400.0


class BulkOrderRecord(Struct, frozen=True, kw_only=True):
    """An order, and how far it has come."""

    id: str
    verb: str
    namespace: str
    actor: str
    reason: str
    created_at: float
    ended_at: float | None
    total: int = 0
    done: int = 0
    refused: int = 0
    #: (run, message) of the first runs that the verb did not apply to.
    refusals: list[tuple[str, str]] = []


_FIELDS = "id, verb, namespace, actor, reason, created_at, ended_at"


class Bulk:
    """The orders of a control file, and the task that carries them out."""

    def __init__(self, file: ControlFile, orchestrator: Orchestrator, clock: Clock) -> None:
        self._file, self._orchestrator, self._clock = file, orchestrator, clock
        self._news = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to carry orders out, those of before first."""
        self._working = asyncio.create_task(self._work(), name="ziggurat-bulk")

    async def close(self) -> None:
        """Stop after the page under way; the rest is carried out after the next start."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    async def order(self, id: str, verb: str, runs: list[str], *, namespace: str, actor: str, reason: str) -> BulkOrderRecord:
        """Write an order down, durably, and return it. An id that exists is that order. Raises Conflict if it is another's."""
        now = self._clock.time()

        def insert(db: sqlite3.Connection) -> None:
            old = [row[0] for row in db.execute("SELECT id FROM bulk WHERE ended_at < ?", (now - KEPT,))]
            db.executemany("DELETE FROM bulk_items WHERE bulk = ?", [(one,) for one in old])
            db.executemany("DELETE FROM bulk WHERE id = ?", [(one,) for one in old])
            if db.execute("SELECT 1 FROM bulk WHERE id = ?", (id,)).fetchone():
                return
            db.execute("INSERT INTO bulk VALUES (?, ?, ?, ?, ?, ?, NULL)", (id, verb, namespace, actor, reason, now))
            rows = [(id, number, run) for number, run in enumerate(dict.fromkeys(runs))]
            db.executemany("INSERT INTO bulk_items (bulk, n, run) VALUES (?, ?, ?)", rows)

        await self._file.write(insert)
        self._news.set()
        found = self.get(id)
        if found is None or (found.namespace, found.verb) != (namespace, verb):
            raise Conflict(f"The id {id!r} belongs to another order; choose a new one.")
        return found

    def get(self, id: str) -> BulkOrderRecord | None:
        """Return an order, or None."""
        rows = self._file.rows(f"SELECT {_FIELDS} FROM bulk WHERE id = ?", (id,))
        if not rows:
            return None
        counts = dict(self._file.rows("SELECT outcome, count(*) FROM bulk_items WHERE bulk = ? GROUP BY outcome", (id,)))
        refusals = self._file.rows(
            "SELECT run, message FROM bulk_items WHERE bulk = ? AND outcome = 'refused' ORDER BY n LIMIT 100", (id,)
        )
        return BulkOrderRecord(
            **dict(zip(_FIELDS.split(", "), rows[0], strict=True)),
            total=sum(counts.values()),
            done=counts.get("done", 0),
            refused=counts.get("refused", 0),
            refusals=refusals,
        )

    def newest(self, namespace: str, limit: int = 50) -> list[BulkOrderRecord]:
        """Return orders, newest first; of one namespace, or of all for ""."""
        rows = self._file.rows(
            "SELECT id FROM bulk WHERE ? IN ('', namespace) ORDER BY created_at DESC LIMIT ?", (namespace, limit)
        )
        return [found for (id,) in rows if (found := self.get(id)) is not None]

    async def _work(self) -> None:
        while True:
            self._news.clear()
            rows = self._file.rows("SELECT id, verb, reason FROM bulk WHERE ended_at IS NULL ORDER BY created_at LIMIT 1")
            if not rows:
                await self._news.wait()
                continue
            try:
                await self._page(*rows[0])
            except LayerUnreachable as error:
                events.BULK_WAITS(order=rows[0][0], error=error)
                await asyncio.sleep(PATIENCE)
            except Exception:
                events.BULK_FAILED(trace_of=True, order=rows[0][0])
                await asyncio.sleep(PATIENCE)

    async def _page(self, id: str, verb: str, reason: str) -> None:
        """Carry out the next page of an order, or note that it is done."""
        items = self._file.rows(
            "SELECT n, run, outcome FROM bulk_items WHERE bulk = ? AND outcome IN ('', 'trying') ORDER BY n LIMIT ?", (id, PAGE)
        )
        if not items:
            now = self._clock.time()
            await self._file.write(lambda db: db.execute("UPDATE bulk SET ended_at = ? WHERE id = ?", (now, id)).rowcount)
            return
        numbers = [(id, n) for n, _, _ in items]
        await self._file.write(
            lambda db: db.executemany("UPDATE bulk_items SET outcome = 'trying' WHERE bulk = ? AND n = ?", numbers).rowcount
        )
        came = await asyncio.gather(*(self._one(verb, run, reason, again=outcome == "trying") for _, run, outcome in items))
        rows = [(*outcome, id, n) for outcome, (n, _, _) in zip(came, items, strict=True)]
        await self._file.write(
            lambda db: db.executemany("UPDATE bulk_items SET outcome = ?, message = ? WHERE bulk = ? AND n = ?", rows).rowcount
        )

    async def _one(self, verb: str, run: str, reason: str, *, again: bool) -> tuple[str, str]:
        orchestrator = self._orchestrator
        try:
            if verb in ("cancel", "pause"):
                await getattr(orchestrator, verb)(run, reason)
            elif verb == "purge":
                if not await orchestrator.purge(RunFilter(ids=(run,))):
                    raise Conflict(f"The run {run} has not ended, or is gone.")
            else:
                await getattr(orchestrator, verb)(run)
        except LayerUnreachable:
            raise
        except ZigguratError as error:
            return ("done", "") if again else ("refused", " ".join(str(error).split()))
        return "done", ""
