"""The one writer of the state file: a thread that commits whatever has gathered since its last commit.

Under load a commit carries hundreds of events, alone it carries one; either way an event is on the disk (`synchronous=FULL`) before
anyone acts on it. A batch is written with a handful of multi-row INSERTs rather than `executemany`: sqlite3 releases the interpreter
lock for each row, and taking it back from a busy event loop costs up to a switch interval every time.

After an error the writer stops for good: what a failed fsync did is unknowable, so the engine closes and the next open reads the truth.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ziggurat.errors import StateUnusable
from ziggurat.inference.ledger import CALL_VALUES, INSERT_CALL
from ziggurat.orchestrator.embedded import store
from ziggurat.orchestrator.embedded.references import REFER, references
from ziggurat.telemetry.catalogue import COMMIT_SECONDS, COMMITS

#: Rows of one INSERT. Few sizes, so that SQLite's statement cache holds them all; the largest stays below its limit of variables.
_CHUNKS = (512, 64, 8, 1)
#: Writes taken into one commit at most: bounds the time until the first of them is heard of.
_BATCH_MAX = 4096


class Write:
    """What must reach the disk together.

    `runs` are rows that are inserted or replace the row of that key; `events` are new rows, `calls` too unless a call of that id is
    there; `statements` are run before all of them.
    `done` is called on the event loop after the commit.
    """

    __slots__ = ("calls", "done", "events", "runs", "statements")

    def __init__(
        self,
        events: list[tuple[int, int, bytes]] | None = None,
        runs: list[tuple[Any, ...]] | None = None,
        statements: list[tuple[str, tuple[Any, ...]]] | None = None,
        done: Callable[[], None] | None = None,
        calls: list[tuple[Any, ...]] | None = None,
    ) -> None:
        self.events, self.runs, self.statements, self.done = events or [], runs or [], statements or [], done
        self.calls = calls or []


class Writer:
    """Commits writes in the order in which they were added.

    Args:
        path: the state file.
        committed: called in the writer's thread with the writes of each commit.
        failed: called in the writer's thread, once, with the error that stopped it.
    """

    def __init__(self, path: Path, committed: Callable[[list[Write]], None], failed: Callable[[StateUnusable], None]) -> None:
        self.path = path
        self._connection = store.connect(path, write=True)
        self._committed, self._failed = committed, failed
        self._pending: list[Write] = []
        self._condition = threading.Condition(threading.Lock())
        self._closing = False
        self._idle = True
        self.commits = 0
        #: Set by tests: called with "before" and "after" around each COMMIT; may raise, or never return.
        self.fault: Callable[[str], None] | None = None
        self._thread = threading.Thread(target=self._run, name="ziggurat-writer", daemon=True)
        self._thread.start()

    def add(self, write: Write) -> None:
        """Queue a write. Never blocks."""
        self._pending.append(write)
        if self._idle:
            with self._condition:
                self._condition.notify()

    def close(self) -> None:
        """Commit what is queued, end the thread and close the file."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        try:
            while True:
                batch = self._take()
                if not batch:
                    return
                began = time.perf_counter()
                self._commit(batch)
                COMMIT_SECONDS.observe(time.perf_counter() - began)
                COMMITS.observe(len(batch))
                self.commits += 1
                self._committed(batch)
        except (sqlite3.Error, OSError) as error:
            self._failed(store.unusable(self.path, error))
        except Exception as error:
            self._failed(StateUnusable(f"The state file {self.path} cannot be written: {error}."))

    def _take(self) -> list[Write]:
        """Wait for writes and return them; empty when closing."""
        if not self._pending:
            with self._condition:
                # `_idle` is set under the lock and read without it by `add`; the timeout bounds what a missed notify can cost.
                self._idle = True
                while not self._pending and not self._closing:
                    self._condition.wait(0.05)
                self._idle = False
        batch = self._pending[:_BATCH_MAX]
        # The event loop only appends, so the head can be cut without a lock.
        del self._pending[: len(batch)]
        return batch

    def _commit(self, batch: list[Write]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            group: list[Write] = []
            for write in batch:
                if write.statements:
                    # Statements may delete what earlier writes of this batch add, so the order matters.
                    self._insert(group)
                    group = []
                    for sql, values in write.statements:
                        execute(sql, values)
                group.append(write)
            self._insert(group)
            if self.fault is not None:
                self.fault("before")
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        if self.fault is not None:
            self.fault("after")

    def _insert(self, group: list[Write]) -> None:
        # Of several rows for one run only the last counts; its place in the order does not matter, for rows only index.
        runs = {row[0]: row for write in group for row in write.runs}
        events = [row for write in group for row in write.events]
        self._insert_rows(store.INSERT_RUN, store.RUN_VALUES, store.ON_RUN_CONFLICT, list(runs.values()))
        self._insert_rows(store.INSERT_EVENT, store.EVENT_VALUES, "", events)
        if referred := references(events, runs.values()):
            self._connection.executemany(REFER, referred)
        if calls := [row for write in group for row in write.calls]:
            self._insert_rows(INSERT_CALL, CALL_VALUES, "", calls)

    def _insert_rows(self, head: str, values: str, tail: str, rows: list[tuple[Any, ...]]) -> None:
        at = 0
        for chunk in _CHUNKS:
            while len(rows) - at >= chunk:
                flat = [value for row in rows[at : at + chunk] for value in row]
                self._connection.execute(_statement(head, values, tail, chunk), flat)
                at += chunk


_statements: dict[tuple[str, int], str] = {}


def _statement(head: str, values: str, tail: str, count: int) -> str:
    key = (head, count)
    found = _statements.get(key)
    if found is None:
        found = _statements[key] = head + ", ".join([values] * count) + tail
    return found
