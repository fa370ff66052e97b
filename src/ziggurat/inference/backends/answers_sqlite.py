"""Answers in a SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import StateUnusable
from ziggurat.inference.answers import AnswerStore

#: Answers put in between two sweeps of those past their time.
_SWEEP_EVERY = 500


class SqliteAnswers(AnswerStore):
    """One table in one file. A commit survives the process, which is what a journal needs; the machine's end may take the last ones."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._path, self._clock = path, clock or SystemClock()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._puts = 0

    def get(self, key: str) -> bytes | None:
        with self._lock:
            try:
                rows = self._open().execute("SELECT data FROM answers WHERE key = ? AND until > ?", (key, self._clock.time()))
                found = rows.fetchone()
            except sqlite3.Error as error:
                raise self._unusable(error) from error
        return found[0] if found else None

    def put(self, key: str, data: bytes, ttl: float) -> None:
        now = self._clock.time()
        with self._lock:
            try:
                connection = self._open()
                connection.execute("INSERT OR REPLACE INTO answers (key, until, data) VALUES (?, ?, ?)", (key, now + ttl, data))
                self._puts += 1
                if self._puts % _SWEEP_EVERY == 1:
                    connection.execute("DELETE FROM answers WHERE until <= ?", (now,))
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unusable(error) from error
            made = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10.0)
            try:
                made.execute("PRAGMA journal_mode = WAL")
                made.execute("PRAGMA synchronous = NORMAL")
                made.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, until REAL NOT NULL, data BLOB NOT NULL)")
                made.execute("CREATE INDEX IF NOT EXISTS answers_by_end ON answers (until)")
            except sqlite3.Error:
                made.close()
                raise
            self._connection = made
        return self._connection

    def _unusable(self, error: Exception) -> StateUnusable:
        return StateUnusable(f"The answers in {self._path} cannot be used ({error}). Check its folder, or remove the file.")
