"""Batches and their lines in a SQLite file, shared by the processes of one machine."""

from __future__ import annotations

from pathlib import Path

from ziggurat.clock import Clock, SystemClock
from ziggurat.inference.backends.sqlite_file import SqliteFile
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
_UNUSABLE = "The batches in {path} cannot be used ({error}). Check its folder and the disk."
#: Changes between two sweeps of what may be forgotten.
_SWEEP_EVERY = 500


class SqliteShelf(Shelf):
    """One table in one file. What is bought is written here before it is bought, so a commit is on the disk before it counts."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._file = SqliteFile(path, _TABLE, "FULL", _UNUSABLE)
        self._clock = clock or SystemClock()
        self._puts = 0

    def get(self, key: str) -> Doc | None:
        rows = self._file.read("SELECT key, version, data FROM docs WHERE key = ?", (key,))
        return Doc(*rows[0]) if rows else None

    def put(self, key: str, data: bytes, *, version: int, group: str, at: float, until: float) -> bool:
        with self._file.use() as connection:
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
        return done.rowcount == 1

    def delete(self, key: str, version: int) -> bool:
        with self._file.use() as connection:
            done = connection.execute("DELETE FROM docs WHERE key = ? AND version = ?", (key, version))
        return done.rowcount == 1

    def group(self, group: str, limit: int) -> list[Doc]:
        sql = "SELECT key, version, data FROM docs WHERE grouped = ? AND grouped != '' ORDER BY at, key LIMIT ?"
        return [Doc(*row) for row in self._file.read(sql, (group, limit))]

    def count(self, group: str) -> tuple[int, float]:
        sql = "SELECT count(*), min(at) FROM docs WHERE grouped = ? AND grouped != ''"
        ((count, first),) = self._file.read(sql, (group,))
        return int(count), float(first or 0.0)

    def close(self) -> None:
        self._file.close()
