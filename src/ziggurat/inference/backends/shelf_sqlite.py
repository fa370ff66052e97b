"""Batches and their lines in a SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import StateUnusable
from ziggurat.inference.batches.interface import Doc, Shelf

_TABLE = """
    CREATE TABLE IF NOT EXISTS docs (
        key TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        grouped TEXT NOT NULL,
        at REAL NOT NULL,
        until REAL NOT NULL,
        data BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS docs_by_group ON docs (grouped, at) WHERE grouped != '';
    CREATE INDEX IF NOT EXISTS docs_by_end ON docs (until);
"""
#: Changes between two sweeps of what may be forgotten.
_SWEEP_EVERY = 500


class SqliteShelf(Shelf):
    """One table in one file. What is bought is written here before it is bought, so a commit is on the disk before it counts."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._path, self._clock = path, clock or SystemClock()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._puts = 0

    def get(self, key: str) -> Doc | None:
        rows = self._read("SELECT key, version, data FROM docs WHERE key = ?", (key,))
        return Doc(*rows[0]) if rows else None

    def put(self, key: str, data: bytes, *, version: int, group: str, at: float, until: float) -> bool:
        with self._lock:
            try:
                connection = self._open()
                if version:
                    done = connection.execute(
                        "UPDATE docs SET version = ?, grouped = ?, at = ?, until = ?, data = ? WHERE key = ? AND version = ?",
                        (version + 1, group, at, until, data, key, version),
                    )
                else:
                    done = connection.execute(
                        "INSERT OR IGNORE INTO docs (key, version, grouped, at, until, data) VALUES (?, 1, ?, ?, ?, ?)",
                        (key, group, at, until, data),
                    )
                self._puts += 1
                if self._puts % _SWEEP_EVERY == 1:
                    connection.execute("DELETE FROM docs WHERE until <= ?", (self._clock.time(),))
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        return done.rowcount == 1

    def delete(self, key: str, version: int) -> bool:
        with self._lock:
            try:
                done = self._open().execute("DELETE FROM docs WHERE key = ? AND version = ?", (key, version))
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        return done.rowcount == 1

    def group(self, group: str, limit: int) -> list[Doc]:
        sql = "SELECT key, version, data FROM docs WHERE grouped = ? AND grouped != '' ORDER BY at, key LIMIT ?"
        return [Doc(*row) for row in self._read(sql, (group, limit))]

    def count(self, group: str) -> tuple[int, float]:
        ((count, first),) = self._read("SELECT count(*), min(at) FROM docs WHERE grouped = ? AND grouped != ''", (group,))
        return int(count), float(first or 0.0)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        with self._lock:
            try:
                return self._open().execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unusable(error) from error
            made = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10.0)
            try:
                made.execute("PRAGMA journal_mode = WAL")
                made.execute("PRAGMA synchronous = FULL")
                made.executescript(_TABLE)
            except sqlite3.Error:
                made.close()
                raise
            self._connection = made
        return self._connection

    def _unusable(self, error: Exception) -> StateUnusable:
        return StateUnusable(f"The batches in {self._path} cannot be used ({error}). Check its folder and the disk.")
