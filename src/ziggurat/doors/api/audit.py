"""The audit log: every verb that someone asked for over HTTP, refused ones too.

The row is on the disk before the verb is carried out, so that nothing is done that the log does not know of; what it came to is added
after. A row without a status is a verb during which the server ended. Bodies are not kept: they may hold what is nobody's business.
"""

from __future__ import annotations

import sqlite3

from msgspec import Struct

from ziggurat.clock import Clock
from ziggurat.doors.api.control_file import ControlFile
from ziggurat.doors.api.keys import EVERY, Principal

_COLUMNS = "n, at, actor, role, namespace, via, address, action, target, status, detail"
#: Rows kept; the oldest go first.
KEPT = 1_000_000


class Entry(Struct, frozen=True, kw_only=True):
    """One verb that someone asked for."""

    n: int
    at: float
    actor: str
    role: str
    namespace: str
    via: str
    address: str
    #: The route's name, such as "cancel_run".
    action: str
    #: The path of the request.
    target: str
    #: The status of the answer; None while it is carried out, and for ever if the server ended meanwhile.
    status: int | None
    detail: str


class AuditLog:
    """The audit log of a control file."""

    def __init__(self, file: ControlFile, clock: Clock) -> None:
        self._file = file
        self._clock = clock

    async def begin(self, who: Principal | None, action: str, target: str, address: str) -> int:
        """Note that a verb was asked for, durably, and return the entry's number."""
        told = (who.name, who.role, who.namespace, who.via) if who is not None else ("", "", "", "")
        row = (self._clock.time(), *told, address, action, target[:500])

        def insert(db: sqlite3.Connection) -> int:
            cursor = db.execute(
                "INSERT INTO audit (at, actor, role, namespace, via, address, action, target) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            number = cursor.lastrowid or 0
            if number % 1000 == 0:
                db.execute("DELETE FROM audit WHERE n <= ?", (number - KEPT,))
            return number

        return await self._file.write(insert)

    async def end(self, number: int, status: int, detail: str = "") -> None:
        """Note what a verb came to."""
        await self._file.write(
            lambda db: db.execute("UPDATE audit SET status = ?, detail = ? WHERE n = ?", (status, detail[:500], number)).rowcount
        )

    def page(self, namespace: str, *, limit: int, before: int | None = None, action: str = "", actor: str = "") -> list[Entry]:
        """Return entries, newest first, of one namespace or of all."""
        parts, values = ["n < ?"], [before if before is not None else 2**62]
        for column, value in (("namespace", "" if namespace == EVERY else namespace), ("action", action), ("actor", actor)):
            if value:
                parts.append(f"{column} = ?")
                values.append(value)  # type: ignore[arg-type]
        rows = self._file.rows(
            f"SELECT {_COLUMNS} FROM audit WHERE {' AND '.join(parts)} ORDER BY n DESC LIMIT ?", [*values, limit]
        )
        return [Entry(**dict(zip(_COLUMNS.split(", "), row, strict=True))) for row in rows]
