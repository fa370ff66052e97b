"""Answers in a SQLite file, shared by the processes of one machine."""

from __future__ import annotations

from pathlib import Path

from ziggurat.clock import Clock, SystemClock
from ziggurat.inference.answers import AnswerStore
from ziggurat.inference.backends.sqlite_file import SqliteFile

_TABLE = """
    CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, until REAL NOT NULL, data BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS answers_by_end ON answers (until);
"""
_UNUSABLE = "The answers in {path} cannot be used ({error}). Check its folder, or remove the file."
#: Answers put in between two sweeps of those past their time.
_SWEEP_EVERY = 500


class SqliteAnswers(AnswerStore):
    """One table in one file. A commit survives the process, which is what a journal needs; the machine's end may take the last ones."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._file = SqliteFile(path, _TABLE, "NORMAL", _UNUSABLE)
        self._clock = clock or SystemClock()
        self._puts = 0

    def get(self, key: str) -> bytes | None:
        rows = self._file.read("SELECT data FROM answers WHERE key = ? AND until > ?", (key, self._clock.time()))
        return rows[0][0] if rows else None

    def put(self, key: str, data: bytes, ttl: float) -> None:
        now = self._clock.time()
        with self._file.use() as connection:
            connection.execute("INSERT OR REPLACE INTO answers (key, until, data) VALUES (?, ?, ?)", (key, now + ttl, data))
            self._puts += 1
            if self._puts % _SWEEP_EVERY == 1:
                connection.execute("DELETE FROM answers WHERE until <= ?", (now,))

    def close(self) -> None:
        self._file.close()
