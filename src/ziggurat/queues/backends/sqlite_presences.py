"""The presence records of the SQLite queue: two transactions on the table `presences` of its file."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from ziggurat.clock import Clock
from ziggurat.queues.backends.sqlite_file import SqliteFile
from ziggurat.records import Presence, encode

_decode = msgspec.json.Decoder(Presence).decode


def announce(file: SqliteFile, clock: Clock, presences: Sequence[Presence], ttl: float) -> None:
    """Keep records for `ttl` seconds, drop them if that is 0, and drop those whose time is over."""
    now = clock.time()
    with file.writing() as db:
        if ttl > 0:
            rows = [(presence.worker, now + ttl, now, encode(presence)) for presence in presences]
            db.executemany("INSERT OR REPLACE INTO presences (worker, until, seen_at, body) VALUES (?, ?, ?, ?)", rows)
        else:
            db.executemany("DELETE FROM presences WHERE worker = ?", [(presence.worker,) for presence in presences])
        # A wall clock that was set back must not keep a record for the years in between.
        db.execute("DELETE FROM presences WHERE until <= ? OR seen_at > ?", (now, now + ttl))


def present(file: SqliteFile, clock: Clock) -> list[Presence]:
    """Return the records whose time is not over, by worker."""
    select = "SELECT seen_at, body FROM presences WHERE until > ? ORDER BY worker"
    return [replace(_decode(body), seen_at=seen_at) for seen_at, body in file.db.execute(select, (clock.time(),))]
