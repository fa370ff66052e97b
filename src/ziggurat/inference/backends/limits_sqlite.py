"""The limit store of the processes of one machine: a SQLite file of records by key.

    records    key → JSON. The arithmetic is that of `limits/book.py`, one transaction for each batch of requests.

Commits are not synced: a crash of a process loses nothing, a crash of the machine loses the last moments of numbers that refill
anyway, and what runs spent is in their histories.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ziggurat.clock import Clock, SystemClock
from ziggurat.inference.limits.book import KINDS, Book, carry_out, look_at
from ziggurat.inference.limits.interface import Answer, Levels, LimitStore, Request, StoreDown, Wanted

#: Seconds after which a lock that another process holds is an error.
BUSY_SECONDS = 5.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_encode = msgspec.json.Encoder().encode
_decoders = {kind: msgspec.json.Decoder(type_).decode for kind, type_ in KINDS.items()}


class _FileBook(Book):
    """The records that one transaction reads and changes."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._seen: dict[str, Any] = {}
        self._changed: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        if key not in self._seen:
            row = self._db.execute("SELECT data FROM records WHERE key = ?", (key,)).fetchone()
            self._seen[key] = _decoders[key.partition(":")[0]](row[0]) if row is not None else None
        return self._seen[key]

    def put(self, key: str, state: Any) -> None:
        self._seen[key] = self._changed[key] = state

    def drop(self, key: str) -> None:
        self._seen[key] = self._changed[key] = None

    def keys(self, prefix: str) -> Iterable[str]:
        # Every byte that can follow the prefix sorts below the highest code point.
        sql = "SELECT key FROM records WHERE key >= ? AND key < ?"
        known = {row[0] for row in self._db.execute(sql, (prefix, f"{prefix}\U0010ffff"))}
        known |= {key for key, state in self._changed.items() if state is not None and key.startswith(prefix)}
        return sorted(key for key in known if self._seen.get(key, True) is not None)

    def write(self) -> None:
        kept = [(key, _encode(state)) for key, state in self._changed.items() if state is not None]
        gone = [(key,) for key, state in self._changed.items() if state is None]
        self._db.executemany("INSERT OR REPLACE INTO records (key, data) VALUES (?, ?)", kept)
        self._db.executemany("DELETE FROM records WHERE key = ?", gone)


class SqliteStore(LimitStore):
    """A store in a file, for the processes of one machine."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._db: sqlite3.Connection | None = None

    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return self._run(holder, requests)
            except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code not in _BUSY or time.monotonic() > deadline:
                    self.close()
                    raise self._down(error) from error
            # SQLite's own wait is unfair when many processes write; short random waits are not.
            time.sleep(random.uniform(0.0002, 0.003))

    def _run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        db = self._open()
        db.execute("BEGIN IMMEDIATE")
        try:
            book = _FileBook(db)
            # Read under the lock, so that the times of the file's changes are in their order.
            now = self._clock.time()
            answers = [carry_out(book, holder, request, now) for request in requests]
            book.write()
            db.execute("COMMIT")
            return answers
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def look(self, wanted: Wanted) -> Levels:
        try:
            return look_at(_FileBook(self._open()), wanted, self._clock.time())
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            raise self._down(error) from error

    def purse(self, key: str) -> tuple[float, float]:
        try:
            state = _FileBook(self._open()).get(f"purse:{key}")
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            raise self._down(error) from error
        return (state.spent, state.reserved) if state is not None else (0.0, 0.0)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = OFF")
                db.execute("CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID")
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _down(self, error: Exception) -> StoreDown:
        return StoreDown(
            f"The limits file {self._path} cannot be used ({error}). Check its folder, or delete it: it is made anew."
        )
