"""The control file: what the API keeps beside the runs, in one SQLite database in WAL mode.

    keys        one row an API key; only a hash of it
    sessions    one row a login; only a hash of its cookie
    audit       one row a verb that someone asked for, written before it is carried out and completed after
    bulk, bulk_items    verbs on many runs: which, and what became of each
    deliveries  one row a webhook message: from the moment that the end of a run is seen until it is delivered or given up
    standstills one row a run that stands still, and that webhooks were told of
    marks       how far something has come, by name

Apart from the state file, because it belongs to the API and not to one orchestrator: with Temporal there is no state file. Several
processes may write it, such as `ziggurat keys` beside `ziggurat serve`; each waits for the other, for milliseconds.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ziggurat.errors import StateUnusable

T = TypeVar("T")

#: Each entry brings a file from the version of its index to the next one. Never edit an entry that was released.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        role TEXT NOT NULL,
        namespace TEXT NOT NULL,
        hash BLOB NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        revoked_at REAL,
        used_at REAL
    );
    CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL;
    CREATE TABLE sessions (
        hash BLOB PRIMARY KEY,
        key TEXT NOT NULL,
        csrf TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE audit (
        n INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        actor TEXT NOT NULL,
        role TEXT NOT NULL,
        namespace TEXT NOT NULL,
        via TEXT NOT NULL,
        address TEXT NOT NULL,
        action TEXT NOT NULL,
        target TEXT NOT NULL,
        status INTEGER,
        detail TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX audit_by_namespace ON audit (namespace, n);
    CREATE TABLE bulk (
        id TEXT PRIMARY KEY,
        verb TEXT NOT NULL,
        namespace TEXT NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        created_at REAL NOT NULL,
        ended_at REAL
    );
    CREATE INDEX bulk_unfinished ON bulk (created_at) WHERE ended_at IS NULL;
    CREATE TABLE bulk_items (
        bulk TEXT NOT NULL,
        n INTEGER NOT NULL,
        run TEXT NOT NULL,
        outcome TEXT NOT NULL DEFAULT '',
        message TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (bulk, n)
    ) WITHOUT ROWID;
    CREATE TABLE deliveries (
        id TEXT PRIMARY KEY,
        webhook TEXT NOT NULL,
        run TEXT NOT NULL,
        event TEXT NOT NULL,
        body BLOB NOT NULL,
        created_at REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        next_at REAL,
        delivered_at REAL,
        error TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX deliveries_due ON deliveries (next_at) WHERE next_at IS NOT NULL;
    CREATE INDEX deliveries_by_time ON deliveries (created_at);
    CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
    """
    CREATE TABLE standstills (event TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (event, key)) WITHOUT ROWID;
    """,
)


class ControlFile:
    """The file, open. Reads are done where they are called; writes in a thread, because each waits for the disk.

    Raises StateUnusable if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writing = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
            path.chmod(0o600)
            self._writing.execute("PRAGMA journal_mode = WAL")
            self._writing.execute("PRAGMA synchronous = FULL")
            self._migrate()
            self._reading = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
            self._reading.execute("PRAGMA query_only = ON")
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def _migrate(self) -> None:
        (version,) = self._writing.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StateUnusable(
                f"The control file {self.path} was written by a newer Ziggurat. Upgrade with: pip install -U ziggurat-agents"
            )
        for step in range(version, len(MIGRATIONS)):
            # Another process may do the same at this moment; the one that comes second finds it done.
            self._writing.execute("BEGIN IMMEDIATE")
            (now,) = self._writing.execute("PRAGMA user_version").fetchone()
            if now == step:
                for statement in MIGRATIONS[step].split(";"):
                    self._writing.execute(statement)
                self._writing.execute(f"PRAGMA user_version = {step + 1}")
            self._writing.execute("COMMIT")

    def _unusable(self, error: Exception) -> StateUnusable:
        return StateUnusable(
            f"The control file {self.path} cannot be used ({error}). Check [server] path, its folder's permissions and the disk."
        )

    def close(self) -> None:
        """Close it."""
        self._reading.close()
        with self._lock:
            self._writing.close()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query, which must be a quick one. Raises StateUnusable."""
        try:
            return self._reading.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def write_now(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out a change as one transaction, and wait for the disk. Raises StateUnusable."""
        with self._lock:
            try:
                self._writing.execute("BEGIN IMMEDIATE")
                try:
                    done = change(self._writing)
                except BaseException:
                    self._writing.execute("ROLLBACK")
                    raise
                self._writing.execute("COMMIT")
                return done
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out a change as one transaction beside the event loop; it is on the disk when this returns. Raises StateUnusable."""
        return await asyncio.to_thread(self.write_now, change)
