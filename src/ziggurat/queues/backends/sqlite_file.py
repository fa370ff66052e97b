"""The queue's SQLite file: its tables, its transactions, and what can go wrong with it in plain sentences.

lines       one row for each lane and pair of limit keys, with how many of its messages are in each state. Choosing whose turn it is
            and counting read these few rows and never scan the messages.
messages    what waits or runs. state 0 ready · 1 delayed until `due` · 2 leased to `worker` until `due`. `seq` is never used again,
            so it tells this life of an id from an earlier one. `since` orders a line: when the message became ready.
            cancelled 1 its worker must be told · 2 its worker was told.
outcomes    what was reported and is not acknowledged; it is offered when `due` has come.
dead        dead letters, in the order of dying.
progress    the last records that nobody fetched.
buckets     token buckets of rates, until they are full again.
presences   what workers showed of themselves, each until its time is over.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ziggurat.errors import QueueUnavailable

T = TypeVar("T")

#: 2 added presences.
SCHEMA = 2
#: Seconds after which a write lock that another process holds is an error and no longer a wait.
BUSY_MAX = 60.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

TABLES = """
CREATE TABLE lines (
    id INTEGER PRIMARY KEY, queue TEXT NOT NULL, namespace TEXT NOT NULL, region TEXT NOT NULL, priority INTEGER NOT NULL,
    concurrency_key TEXT NOT NULL, rate_key TEXT NOT NULL,
    ready INTEGER NOT NULL DEFAULT 0, delayed INTEGER NOT NULL DEFAULT 0, leased INTEGER NOT NULL DEFAULT 0,
    UNIQUE (queue, namespace, region, priority, concurrency_key, rate_key));
CREATE INDEX lines_by_key ON lines (concurrency_key) WHERE concurrency_key <> '';
CREATE TABLE messages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, line INTEGER NOT NULL, state INTEGER NOT NULL,
    since REAL NOT NULL, due REAL NOT NULL, epoch INTEGER NOT NULL, deliveries INTEGER NOT NULL DEFAULT 0,
    worker TEXT NOT NULL DEFAULT '', cancelled INTEGER NOT NULL DEFAULT 0, heartbeat BLOB, body BLOB NOT NULL);
CREATE INDEX messages_ready ON messages (line, since, seq) WHERE state = 0;
CREATE INDEX messages_due ON messages (due) WHERE state > 0;
CREATE INDEX messages_cancelled ON messages (worker) WHERE cancelled = 1;
CREATE TABLE outcomes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, due REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX outcomes_due ON outcomes (due);
CREATE TABLE dead (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, queue TEXT NOT NULL, epoch INTEGER NOT NULL, heartbeat BLOB,
    reason TEXT NOT NULL, deliveries INTEGER NOT NULL, died_at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE progress (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
CREATE TABLE buckets (key TEXT PRIMARY KEY, tokens REAL NOT NULL, at REAL NOT NULL, full_at REAL NOT NULL) WITHOUT ROWID
"""
PRESENCES = "CREATE TABLE presences (worker TEXT PRIMARY KEY, until REAL NOT NULL, seen_at REAL NOT NULL, body BLOB NOT NULL) WITHOUT ROWID"


class SqliteFile:
    """One connection, for one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        #: Monotonic time at which the last transaction that writes began, once it had the lock.
        self.began_at = 0.0

    def open(self) -> None:
        """Make the file and its tables if there are none. Raises QueueUnavailable."""
        self.attempt(self._open)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        new = not self.path.exists()
        self.close()
        db = self._db = sqlite3.connect(self.path, timeout=0, isolation_level=None, cached_statements=256)
        if new:
            # Payloads are private: the file is its owner's alone, and SQLite gives its companions the same mode. By path, because closing
            # a descriptor of the file would drop the locks of every other connection of this process, and with them the file's integrity.
            self.path.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        # No sync at each commit: a crash of the machine may lose the last messages, which the orchestrator then finds missing and
        # sends again; the file stays whole, and a crash of a process loses nothing.
        db.execute("PRAGMA synchronous = NORMAL")
        with self.writing():
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise QueueUnavailable(
                    f"The queue file {self.path} was written by a newer Ziggurat (schema {version}, this one knows {SCHEMA}). Upgrade this "
                    "installation, or name another file with queue.path."
                )
            if version < SCHEMA:
                for statement in [*(TABLES.split(";\n") if version == 0 else ()), PRESENCES]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA}")

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def db(self) -> sqlite3.Connection:
        """The connection."""
        if self._db is None:
            raise QueueUnavailable(f"The queue file {self.path} is not open. Open the queue, or connect a new client.")
        return self._db

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the file's one write lock from its start, so that it cannot fail half-way for want of it."""
        db = self.db
        db.execute("BEGIN IMMEDIATE")
        self.began_at = time.monotonic()
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def attempt(self, verb: Callable[[], T]) -> T:
        """Run a verb, again while another process holds the lock, so that nobody ever reads "database is locked".

        SQLite's own wait sleeps up to 0.1 s at a time and is unfair when many processes write; short random waits are neither.
        Raises QueueUnavailable for everything that waiting does not mend.
        """
        deadline = time.monotonic() + BUSY_MAX
        while True:
            try:
                return verb()
            except (sqlite3.Error, OSError) as error:
                if _code(error) not in _BUSY or time.monotonic() > deadline:
                    raise QueueUnavailable(_sentence(self.path, error)) from error
            time.sleep(random.uniform(0.0002, 0.004))


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _sentence(path: Path, error: Exception) -> str:
    """Say what is wrong with the file, and what to do."""
    code = _code(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        what, remedy = (
            f"is damaged ({error})",
            "Stop the processes that use it and delete it; the orchestrator sends its messages again.",
        )
    elif code == sqlite3.SQLITE_FULL:
        what, remedy = "cannot grow because the disk is full", "Free some space; what the orchestrator recorded is safe."
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or isinstance(error, OSError):
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        what, remedy = (
            f"cannot be opened for writing ({why})",
            "Check the rights of the file and of its folder, or set queue.path.",
        )
    elif code in _BUSY:
        what, remedy = f"has been locked by another process for {BUSY_MAX:.0f} s", "Find that process and stop it."
    elif code == sqlite3.SQLITE_IOERR:
        what, remedy = f"cannot be read or written ({error})", "Check the disk and the space that is left on it."
    else:
        what, remedy = f"cannot be used ({error})", "Stop the processes that use it and delete it if that persists."
    return f"The queue file {path} {what}. {remedy}"
