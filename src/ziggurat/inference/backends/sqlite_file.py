"""One SQLite file of a store, shared by the processes of one machine and by the threads of each."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ziggurat.errors import StateUnusable

#: Seconds for which another process may hold the file before a call is an error.
_BUSY_SECONDS = 10.0


class SqliteFile:
    """A file with the tables of one store; made and opened at the first use.

    Args:
        path: of the file; its folder is made.
        tables: the statements that make the tables, each harmless where they stand.
        synchronous: "FULL" if a commit must survive the machine, "NORMAL" if it is enough that it survives the process.
        sentence: what is said of a file that cannot be used, with {path} and {error}.
    """

    def __init__(self, path: Path, tables: str, synchronous: Literal["FULL", "NORMAL"], sentence: str) -> None:
        self._path, self._tables, self._synchronous, self._sentence = path, tables, synchronous, sentence
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Give the connection, to one thread at a time. Raises StateUnusable."""
        with self._lock:
            try:
                yield self._open()
            except (sqlite3.Error, OSError) as error:
                raise StateUnusable(self._sentence.format(path=self._path, error=error)) from error

    def read(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        """Return the rows of a query. Raises StateUnusable."""
        with self.use() as connection:
            return connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            made = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
            try:
                made.execute("PRAGMA journal_mode = WAL")
                made.execute(f"PRAGMA synchronous = {self._synchronous}")
                made.executescript(self._tables)
            except sqlite3.Error:
                made.close()
                raise
            self._connection = made
        return self._connection
