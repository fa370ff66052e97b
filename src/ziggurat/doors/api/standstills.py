"""Runs that stand still until a person does something: parked ones, and those that wait for a signal. Webhooks tell of each once.

    runs that stand still now ──┬─ not known ──▶ to be told, and known from then on
    known ones that go on ──────┴──▶ forgotten, so that they are told anew when they stop again

No moment says since when a run is parked, so that a mark is of no use; what is known is kept in the control file, written together with
the deliveries that it leads to. A run is known by its epoch and by where its history stands, so that one which is resumed and parked
again between two looks is told again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import replace

from ziggurat.doors.api.control_file import ControlFile
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.records import Run, RunFilter

#: Runs of one page of a list.
PAGE = 500
#: Seconds between two looks where each costs a question a run, and where many stand still.
SELDOM, MANY = 15.0, 1_000


class Standstill(Struct, frozen=True):
    """A run that stands still: "parked", or "waiting" for a signal."""

    event: str
    run: Run
    key: str


class Found(Struct, frozen=True):
    """What a look found: who is to be told of, and what is known from now on."""

    new: list[Standstill]
    known: set[str]
    forgotten: set[str]


class Standstills:
    """What stands still, as far as it is known.

    Args:
        events: those that somebody wants to hear of.
    """

    def __init__(self, file: ControlFile, orchestrator: Orchestrator, events: Collection[str]) -> None:
        self._file, self._orchestrator = file, orchestrator
        self._events = {event for event in events if event in ("parked", "waiting")}
        self._known: dict[str, set[str]] = {}
        self._looked_at = 0.0

    async def look(self, now: float) -> list[tuple[str, Found]]:
        """Return, by event, what is to be told and noted; nothing where it is too early for another look."""
        seldom = not self._orchestrator.capabilities.awaits or sum(map(len, self._known.values())) > MANY
        if not self._events or (seldom and now - self._looked_at < SELDOM):
            return []
        self._looked_at = now
        return [(event, await self._look(event)) for event in sorted(self._events)]

    async def _look(self, event: str) -> Found:
        standing = {one.key: one for one in await self._standing(event)}
        known = self._known.get(event)
        if known is None:
            rows = self._file.rows("SELECT key FROM standstills WHERE event = ?", (event,))
            known = {key for (key,) in rows}
            if not self._file.rows("SELECT 1 FROM marks WHERE name = ?", (f"standstills.{event}",)):
                # Whoever begins to listen wants to hear of what stops from now on.
                return Found([], set(standing), set())
        return Found([standing[key] for key in standing.keys() - known], standing.keys() - known, known - standing.keys())

    async def _standing(self, event: str) -> list[Standstill]:
        where = RunFilter(status=("parked",), limit=PAGE) if event == "parked" else RunFilter(awaiting=True, limit=PAGE)
        found: list[Standstill] = []
        while runs := await self._orchestrator.list(where):
            for run in runs:
                if event == "parked" and run.status == "parked":
                    found.append(Standstill(event, run, f"{run.id}\0{run.epoch}\0{run.events}"))
                elif event == "waiting" and run.status == "waiting":
                    found += [Standstill(event, run, f"{run.id}\0{run.epoch}\0{one.step}") for one in run.awaits]
            if len(runs) < PAGE:
                break
            where = replace(where, after=runs[-1].id)
        return found

    def changes(self, event: str, found: Found) -> bool:
        """Say whether there is anything to note; of a first look that it was made."""
        return event not in self._known or bool(found.known or found.forgotten)

    def write(self, db: sqlite3.Connection, event: str, found: Found) -> None:
        """Note what is known from now on, in the transaction that makes the deliveries."""
        db.executemany("INSERT OR IGNORE INTO standstills (event, key) VALUES (?, ?)", [(event, key) for key in found.known])
        db.executemany("DELETE FROM standstills WHERE event = ? AND key = ?", [(event, key) for key in found.forgotten])
        db.execute("INSERT OR REPLACE INTO marks VALUES (?, '')", (f"standstills.{event}",))

    def written(self, event: str, found: Found) -> None:
        """Take in that it is on the disk."""
        self._known[event] = (self._known.get(event) or self._stored(event)) - found.forgotten | found.known

    def _stored(self, event: str) -> set[str]:
        return {key for (key,) in self._file.rows("SELECT key FROM standstills WHERE event = ?", (event,))}
