"""The ledger: one row for every model call that was or may have been billed, kept for as long as bills are asked about.

    calls     one row a call, by its id. A call that is recorded again changes nothing, so no retry, replay or redelivery bills it twice.

The table lives in two places and never says the same thing twice. Calls of runs are rows of the state file, written in the transaction
that records the step (`orchestrator/embedded`). Calls of nobody's run (a plain script, the gateway) are rows of the ledger's own file,
written here. `costs` reads any number of files as one.

What holds: a row that `flush` has returned for is on the disk; a crash before loses at most what a commit was about to take, a few
milliseconds of calls. Purging a run keeps its rows: the bill outlives the history.
"""

from __future__ import annotations

import atexit
import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from msgspec import Struct

from ziggurat.errors import ConfigurationError, StateUnusable
from ziggurat.program.context import current_attempt
from ziggurat.records import CallRecord
from ziggurat.telemetry import events

SCHEMA_VERSION = 1

TABLE = """
    CREATE TABLE calls (
        id TEXT PRIMARY KEY,
        at REAL NOT NULL,
        day TEXT NOT NULL,
        namespace TEXT NOT NULL,
        workflow TEXT NOT NULL,
        run TEXT NOT NULL,
        step INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        upstream TEXT NOT NULL,
        status TEXT NOT NULL,
        answered INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        estimated_tokens INTEGER NOT NULL,
        cost_usd REAL NOT NULL,
        held_usd REAL NOT NULL,
        price_version TEXT NOT NULL,
        latency REAL NOT NULL,
        first_token REAL
    ) WITHOUT ROWID;
    CREATE INDEX calls_by_day ON calls (day, namespace, workflow);
    CREATE INDEX calls_by_run ON calls (run) WHERE run != '';
"""
_COLUMNS = (
    "id, at, day, namespace, workflow, run, step, attempt, key, model, endpoint, upstream, status, answered, input_tokens, "
    "output_tokens, cached_tokens, reasoning_tokens, estimated_tokens, cost_usd, held_usd, price_version, latency, first_token"
)
INSERT_CALL = f"INSERT OR IGNORE INTO calls ({_COLUMNS}) VALUES "
CALL_VALUES = f"({', '.join('?' * 24)})"

#: What costs can be told by. "tenant" is the namespace, "key" a key of the gateway, "price" the table that a cost came from.
Dimension = Literal["workflow", "model", "tenant", "day", "run", "key", "endpoint", "upstream", "status", "price"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)
_COLUMN_OF = {"tenant": "namespace", "price": "price_version"}

#: Rows of one commit at most, and rows kept while the file cannot be written; older ones are given up then, and that is said.
_BATCH, _KEPT = 2_000, 100_000
#: Rows of one statement: SQLite's oldest limit is 999 values.
_ROWS = 40
#: Rows that are committed without waiting for more, and seconds that fewer wait.
_GATHER, _GATHER_SECONDS = 500, 0.02
#: Seconds that a commit waits for another process's, and between two tries while the file cannot be written.
_BUSY_SECONDS, _RETRY_SECONDS = 30.0, 1.0


class Attribution(Struct, frozen=True, kw_only=True):
    """On whose behalf a call was made. Empty fields: nobody's in particular."""

    namespace: str = "default"
    workflow: str = ""
    run: str = ""
    step: int = 0
    attempt: int = 0
    #: The name of the gateway's key, never the key.
    key: str = ""


NOBODY = Attribution()

_attribution: ContextVar[Attribution | None] = ContextVar("ziggurat_attribution", default=None)


class _Attributing:
    # A generator would do, at three times the cost; the gateway enters one for each request.
    __slots__ = ("_by", "_token")

    def __init__(self, by: Attribution) -> None:
        self._by = by

    def __enter__(self) -> None:
        self._token = _attribution.set(self._by)

    def __exit__(self, *error: object) -> None:
        _attribution.reset(self._token)


def attributing(by: Attribution) -> contextlib.AbstractContextManager[None]:
    """Make the calls of this block, and of the asyncio tasks that it starts, somebody's."""
    return _Attributing(by)


def current_attribution() -> Attribution:
    """Return on whose behalf the calling code makes calls: what `attributing` says, else the attempt that it is part of."""
    said = _attribution.get()
    if said is not None:
        return said
    attempt = current_attempt()
    if attempt is None:
        return NOBODY
    info = attempt.info
    return Attribution(
        namespace=info.namespace, workflow=info.workflow, run=info.run, step=info.step, attempt=info.attempt if info.run else 0
    )


def day_of(moment: float) -> str:
    """Return the UTC day of a moment, as 2026-05-01."""
    return _day(int(moment // 86_400))


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    # Every call of a busy process asks for the same day.
    return datetime.fromtimestamp(number * 86_400, UTC).strftime("%Y-%m-%d")


def call_row(call: CallRecord, by: Attribution = NOBODY) -> tuple[Any, ...]:
    """Return a call as a row of `calls`, in the order of INSERT_CALL."""
    usage = call.usage
    return (
        call.id,
        call.started_at,
        day_of(call.started_at),
        by.namespace,
        by.workflow,
        by.run,
        by.step,
        by.attempt,
        by.key,
        call.model,
        call.endpoint,
        call.upstream,
        call.status,
        usage.calls,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
        usage.estimated_tokens,
        usage.cost_usd,
        call.held_usd,
        call.price_version,
        call.latency,
        call.first_token,
    )


class Ledger:
    """The ledger's own file. Safe to use from any thread, and beside other processes that use the same file.

    The file is made at the first record, so that a process that buys nothing leaves nothing behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        #: Rows taken in and rows that are on the disk, or were given up.
        self._taken = self._settled = 0
        self._said = False
        #: True while the thread waits for a first row; one that is busy looks again by itself.
        self._idle = True

    def record(self, call: CallRecord, by: Attribution = NOBODY) -> None:
        """Add a call, once: one of the same id changes nothing. Returns at once; the row is on the disk some milliseconds later."""
        with self._changed:
            self._pending.append(call_row(call, by))
            self._taken += 1
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="ziggurat-ledger", daemon=True)
                self._thread.start()
                # A plain script ends without a word; what it bought is written all the same.
                atexit.register(self.close)
            if self._idle:
                self._idle = False
                self._changed.notify_all()

    def flush(self, timeout: float = _BUSY_SECONDS) -> None:
        """Wait until everything recorded so far is on the disk. Raises StateUnusable if it cannot be within `timeout` seconds."""
        with self._changed:
            wanted = self._taken
            if not self._changed.wait_for(lambda: self._settled >= wanted, timeout):
                raise StateUnusable(f"The ledger {self.path} could not be written within {timeout:g} s. Check the disk.")

    def close(self) -> None:
        """Write what is there and end the thread. A later record opens the ledger anew."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while True:
                with self._changed:
                    self._idle = not self._pending
                    self._changed.wait_for(lambda: self._pending or self._closing)
                    self._idle = False
                    if not self._pending:
                        self._thread, self._idle = None, True
                        return
                    if len(self._pending) < _GATHER:
                        # What comes within a moment shares the commit: a commit for each call would cost a busy process a third of
                        # its time, most of it spent on taking turns with this thread.
                        self._changed.wait_for(lambda: self._closing, _GATHER_SECONDS)
                    batch = self._pending[:_BATCH]
                try:
                    if connection is None:
                        connection = open_ledger(self.path)
                    _insert(connection, batch)
                except (sqlite3.Error, OSError, StateUnusable) as error:
                    if connection is not None:
                        connection.close()
                        connection = None
                    if self._bear(error):
                        return
                    continue
                self._forget(len(batch))
                self._said = False
        finally:
            if connection is not None:
                connection.close()

    def _bear(self, error: Exception) -> bool:
        """Take in that the file cannot be written now; says whether to give up, as when the process is to end."""
        if not self._said:
            self._said = True
            events.LEDGER_WAITS(path=self.path, error=error)
        with self._changed:
            over = len(self._pending) - _KEPT
            if self._closing:
                over = len(self._pending)
                self._thread = None
            elif over <= 0:
                self._changed.wait_for(lambda: self._closing, _RETRY_SECONDS)
                return False
            closing = self._closing
        events.LEDGER_LOST(calls=over, path=self.path, error=error)
        self._forget(over)
        return closing

    def _forget(self, count: int) -> None:
        with self._changed:
            del self._pending[:count]
            self._settled += count
            self._changed.notify_all()


def open_ledger(path: Path) -> sqlite3.Connection:
    """Open the ledger's own file for writing, made if missing. Raises StateUnusable, or what SQLite raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # A bill is not recomputed from anything: a commit is on the disk before it counts.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise StateUnusable(
                f"The ledger {path} was written by a newer Ziggurat (schema {version}; this one knows {SCHEMA_VERSION}). "
                "Upgrade with: pip install -U ziggurat-agents"
            )
        if version == 0:
            for statement in TABLE.strip().rstrip(";").split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Many rows in one statement: sqlite3 gives the interpreter away and takes it back once for each.
        for at in range(0, len(rows), _ROWS):
            some = rows[at : at + _ROWS]
            connection.execute(INSERT_CALL + ", ".join([CALL_VALUES] * len(some)), [value for row in some for value in row])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


# -- reading ---------------------------------------------------------------------------------------------------------


class CostRow(Struct, frozen=True, kw_only=True):
    """What calls of one group consumed and cost."""

    #: The values of the dimensions that were asked for, in their order.
    group: tuple[str, ...]
    #: Calls that were answered, and calls that were sent and not answered: the provider may have billed those.
    calls: int
    unanswered: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: float
    #: What the unanswered ones may have cost; no part of `cost_usd`.
    held_usd: float


class CostFilter(Struct, frozen=True, kw_only=True):
    """Which calls to count; empty fields match all. Moments are seconds since the epoch."""

    since: float | None = None
    until: float | None = None
    workflow: str = ""
    namespace: str = ""
    run: str = ""
    key: str = ""
    model: str = ""


def costs(files: Iterable[Path], by: Sequence[str] = ("workflow",), where: CostFilter | None = None) -> list[CostRow]:
    """Return what calls cost, in groups, the dearest first; by day in the order of days.

    Args:
        files: state files and ledger files; those that do not exist, or have no calls yet, are passed over.
        by: dimensions to group by; none for one sum.
        where: which calls.

    Raises ConfigurationError for an unknown dimension, StateUnusable for a file that cannot be read.
    """
    for name in by:
        if name not in DIMENSIONS:
            raise ConfigurationError(f"Costs cannot be told by {name!r}; they can by: {', '.join(DIMENSIONS)}.")
    columns = [_COLUMN_OF.get(name, name) for name in by]
    conditions, values = _conditions(where or CostFilter())
    picked = ", ".join(columns)
    sums = (
        "sum(answered), sum(status = 'unanswered'), sum(input_tokens), sum(output_tokens), sum(cached_tokens), "
        "sum(reasoning_tokens), sum(cost_usd), sum(held_usd)"
    )
    group = f" GROUP BY {picked}" if columns else ""
    sql = f"SELECT {picked + ', ' if columns else ''}{sums} FROM all_calls{conditions}{group}"
    found: list[CostRow] = []
    with _reading(files) as connection:
        if connection is None:
            return []
        for row in connection.execute(sql, values):
            sums_of = row[len(columns) :]
            if sums_of[0] is None:
                continue  # The sum of no rows.
            fields = dict(zip(CostRow.__struct_fields__[1:], sums_of, strict=True))
            found.append(CostRow(group=tuple(str(v) for v in row[: len(columns)]), **fields))
    days = [number for number, name in enumerate(by) if name == "day"]
    found.sort(key=lambda r: ([r.group[n] for n in days], -r.cost_usd, -r.held_usd, r.group))
    return found


def spent(files: Iterable[Path], where: CostFilter) -> float:
    """Return what matching calls cost, with what unanswered ones may have cost, in US dollars."""
    return sum(row.cost_usd + row.held_usd for row in costs(files, (), where))


def _conditions(where: CostFilter) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    if where.since is not None:
        # The day first, because it is what the index knows.
        parts.append("day >= ? AND at >= ?")
        values += [day_of(where.since), where.since]
    if where.until is not None:
        parts.append("day <= ? AND at < ?")
        values += [day_of(where.until), where.until]
    for name in ("workflow", "namespace", "run", "key", "model"):
        if value := getattr(where, name):
            parts.append(f"{name} = ?")
            values.append(value)
    return (" WHERE " + " AND ".join(parts) if parts else ""), values


@contextlib.contextmanager
def _reading(files: Iterable[Path]) -> Iterator[sqlite3.Connection | None]:
    """Open the files as one view `all_calls`, in which every id is once; None if no file has calls."""
    there = [path for path in dict.fromkeys(files) if path.exists() and path.stat().st_size]
    connection = sqlite3.connect("file::memory:", uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
    path = Path()
    try:
        names: list[str] = []
        for number, path in enumerate(there):
            name = f"file{number}"
            connection.execute(f"ATTACH ? AS {name}", (f"{path.absolute().as_uri()}?mode=ro",))
            if connection.execute(f"SELECT 1 FROM {name}.sqlite_master WHERE type = 'table' AND name = 'calls'").fetchone():
                names.append(name)
        if not names:
            yield None
            return
        selects: list[str] = []
        for number, name in enumerate(names):
            seen = "".join(f" AND id NOT IN (SELECT id FROM {other}.calls)" for other in names[:number])
            selects.append(f"SELECT {_COLUMNS} FROM {name}.calls WHERE 1{seen}")
        connection.execute(f"CREATE TEMP VIEW all_calls AS {' UNION ALL '.join(selects)}")
        yield connection
    except sqlite3.Error as error:
        raise StateUnusable(
            f"The calls in {path} cannot be read ({error}). Check the file and its folder's permissions."
        ) from error
    finally:
        connection.close()
