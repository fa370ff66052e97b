"""The state file: one SQLite database in WAL mode, written by one thread, read by anyone.

    runs     one row a run. `status` and `wake_at` are the engine's own index: at the next open a "running" row is replayed, a "waiting"
             row sleeps until `wake_at` or a signal. `head` is the Run record as JSON without the payload, result and state columns.
    events   one row an event, (run, seq) → Event as JSON. The truth; everything else can be computed from it.
    artifacts, facts  which runs refer to which stored objects; see `references.py`.
    tags     one row a tag of a run, to search by.
    schedules     one row a schedule, name → Schedule as JSON.
    dead_letters  one row a message that its queue gave up, until it is redriven, discarded or its run purged.
    calls    one row a model call (`inference/ledger.py`), written with the event that records it; kept when the run is purged.

A row says "waiting" only if every event before is in the file, because rows and events are written in order by the same thread; and the
transaction that adds an event to a waiting run sets it to "running". So a crash at any instant leaves either state replayable.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from ziggurat.errors import StateUnusable
from ziggurat.inference import ledger
from ziggurat.orchestrator.embedded import references
from ziggurat.records import DeadLetter, Event, Run, RunFilter, Schedule

SCHEMA_VERSION = 6

#: Each entry brings a file from the version of its index to the next one. Never edit an entry that was released.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE runs (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        workflow TEXT NOT NULL,
        namespace TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at REAL NOT NULL,
        ended_at REAL,
        wake_at REAL,
        parent TEXT NOT NULL,
        head BLOB NOT NULL,
        payload BLOB NOT NULL,
        result BLOB,
        state BLOB
    );
    CREATE INDEX runs_by_status ON runs (status, created_at);
    CREATE INDEX runs_by_time ON runs (created_at);
    CREATE INDEX runs_by_workflow ON runs (workflow, created_at);
    CREATE INDEX runs_by_parent ON runs (parent) WHERE parent != '';
    CREATE TABLE events (
        run INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (run, seq)
    ) WITHOUT ROWID;
    CREATE TABLE dead_letters (
        id TEXT PRIMARY KEY,
        run TEXT NOT NULL,
        died_at REAL NOT NULL,
        data BLOB NOT NULL
    );
    """,
    # Calls that earlier versions recorded are in their events.
    f"""
    {ledger.TABLE}
    INSERT OR IGNORE INTO calls
    SELECT
        json_extract(call, '$.id'), at, date(at, 'unixepoch'), namespace, workflow, run, step, attempt, '',
        json_extract(call, '$.model'), json_extract(call, '$.endpoint'), json_extract(call, '$.upstream'),
        coalesce(json_extract(call, '$.status'), 'ok'), coalesce(json_extract(call, '$.usage.calls'), 0),
        coalesce(json_extract(call, '$.usage.input_tokens'), 0), coalesce(json_extract(call, '$.usage.output_tokens'), 0),
        coalesce(json_extract(call, '$.usage.cached_tokens'), 0), coalesce(json_extract(call, '$.usage.reasoning_tokens'), 0),
        coalesce(json_extract(call, '$.usage.estimated_tokens'), 0), coalesce(json_extract(call, '$.usage.cost_usd'), 0), 0,
        coalesce(json_extract(call, '$.price_version'), ''), coalesce(json_extract(call, '$.latency'), 0),
        json_extract(call, '$.first_token')
    FROM (
        SELECT
            c.value AS call, coalesce(json_extract(c.value, '$.started_at'), json_extract(e.event, '$.at')) AS at,
            r.namespace AS namespace, r.workflow AS workflow, r.id AS run,
            coalesce(json_extract(e.event, '$.step'), 0) AS step, coalesce(json_extract(e.event, '$.attempt'), 0) AS attempt
        FROM (SELECT run, seq, CAST(data AS TEXT) AS event FROM events) e
        JOIN runs r ON r.key = e.run, json_each(e.event, '$.calls') c
        ORDER BY r.key, e.seq
    );
    """,
    references.TABLES,
    # So that a page of a list, with any filter, is read from an index: 100,000 runs have 100 MB of payloads beside what a list shows.
    # The tags of a run never change, so that triggers which fire for new rows and for deleted ones keep them.
    """
    DROP INDEX runs_by_time;
    CREATE INDEX runs_by_time ON runs (created_at, id, namespace, workflow);
    CREATE INDEX runs_by_namespace ON runs (namespace, created_at, status);
    CREATE INDEX runs_by_end ON runs (ended_at) WHERE ended_at IS NOT NULL;
    CREATE TABLE tags (
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        run INTEGER NOT NULL,
        PRIMARY KEY (name, value, run)
    ) WITHOUT ROWID;
    INSERT INTO tags
    SELECT t.key, t.value, r.key FROM runs r, json_each(CAST(r.head AS TEXT), '$.tags') t;
    CREATE TRIGGER tags_of_new_run AFTER INSERT ON runs WHEN instr(NEW.head, CAST('"tags":{' AS BLOB)) > 0 BEGIN
        INSERT INTO tags SELECT t.key, t.value, NEW.key FROM json_each(CAST(NEW.head AS TEXT), '$.tags') t;
    END;
    CREATE TRIGGER tags_of_gone_run AFTER DELETE ON runs WHEN instr(OLD.head, CAST('"tags":{' AS BLOB)) > 0 BEGIN
        DELETE FROM tags WHERE (name, value) IN (SELECT key, value FROM json_each(CAST(OLD.head AS TEXT), '$.tags')) AND run = OLD.key;
    END;
    """,
    """
    CREATE TABLE schedules (
        name TEXT PRIMARY KEY,
        data BLOB NOT NULL
    );
    """,
    # Runs that wait for a signal are few among those that wait, and are looked for every few seconds: by a page of the dashboard, for the
    # inbox. Rows of before say in words what they wait for, and are told apart once their steps are looked at.
    """
    ALTER TABLE runs ADD COLUMN awaits INTEGER NOT NULL DEFAULT 0;
    UPDATE runs SET awaits = 1 WHERE status = 'waiting' AND instr(head, CAST('the signal' AS BLOB)) > 0;
    CREATE INDEX runs_awaiting ON runs (created_at) WHERE awaits > 0;
    """,
)

_encode = msgspec.json.Encoder().encode
_decode_event = msgspec.json.Decoder(Event).decode
_decode_letter = msgspec.json.Decoder(DeadLetter).decode
_decode_schedule = msgspec.json.Decoder(Schedule).decode
_decode_run = msgspec.json.Decoder(Run).decode
_EMPTY = Raw(b"{}")
_COLUMNS = "key, head, payload, result, state"
_LIGHT = "key, head, NULL, NULL, state"


def connect(path: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open the state file. Raises StateUnusable with the cause in one sentence."""
    connection: sqlite3.Connection | None = None
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
        else:
            # As a URI with its odd characters escaped: a folder may have a question mark in its name.
            place = f"{path.absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False, timeout=30.0)
        version = _version(path, connection)
        # WAL keeps readers and the writer apart; FULL makes a commit durable before it is acted on.
        if write:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA cache_size = -65536")
        if version < SCHEMA_VERSION:
            if not write:
                raise StateUnusable(
                    f"The state file {path} has no runs yet, or an old schema; start a run to make or upgrade it."
                )
            for step in range(version, SCHEMA_VERSION):
                connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")
        return connection
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, (sqlite3.Error, OSError)):
            raise unusable(path, error) from error
        raise


def unusable(path: Path, error: Exception) -> StateUnusable:
    """Return what a database error means for the person who meets it."""
    text = str(error)
    if "not a database" in text or "malformed" in text:
        cause, remedy = "is not a state file, or is damaged", "Restore it from a backup, or move it away to start anew"
    elif "full" in text:
        cause, remedy = (
            "cannot grow, because the disk is full",
            "Free some space and start again; nothing that was recorded is lost",
        )
    elif "readonly" in text or "read-only" in text or "Permission" in text:
        cause, remedy = "cannot be written", "Give this user write permission on the file and its folder"
    elif "unable to open" in text or "No such file" in text or "Not a directory" in text:
        cause, remedy = "cannot be opened", "Check the path of [orchestrator] path and the permissions of its folder"
    else:
        cause, remedy = f"failed ({text})", "Check the disk; nothing that was recorded is lost"
    return StateUnusable(f"The state file {path} {cause}. {remedy}.")


def _version(path: Path, connection: sqlite3.Connection) -> int:
    """Return the file's schema version, before anything in it is changed. Raises StateUnusable for a newer one."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StateUnusable(
            f"The state file {path} was written by a newer Ziggurat (schema {version}; this one knows {SCHEMA_VERSION}). "
            "Upgrade with: pip install -U ziggurat-agents"
        )
    return version


class Reader:
    """Reads of the state file. A reader sees what is committed and never waits for the writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = connect(path)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def run(self, run_id: str) -> tuple[int, Run] | None:
        """Return a run's key and record, or None."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM runs WHERE id = ?", (run_id,))
        return (rows[0][0], _run_of(rows[0])) if rows else None

    def events(self, key: int, *, after: int = 0, limit: int = -1) -> list[Event]:
        """Return a run's events past a position, in order."""
        rows = self._rows("SELECT data FROM events WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?", (key, after, limit))
        try:
            return [_decode_event(data) for (data,) in rows]
        except msgspec.MsgspecError as error:
            raise unusable(self.path, ValueError(f"malformed event: {error}")) from error

    def last_key(self) -> int:
        """Return the highest key in use."""
        ((key,),) = self._rows("SELECT coalesce(max(key), 0) FROM runs", ())
        return int(key)

    def unfinished(self) -> Iterator[tuple[str, str, float | None]]:
        """Yield (id, status, wake_at) of runs that an engine has to do with: running, pending and waiting ones."""
        rows = self._rows(
            "SELECT id, status, wake_at FROM runs WHERE status IN ('running', 'pending', 'waiting') ORDER BY key", ()
        )
        yield from rows

    def runs(self, where: RunFilter) -> list[Run]:
        """Return runs that match, newest first, without payloads and results."""
        sql, values = _where(where)
        # Late ends, and waits for a signal, are few where runs are many, which the planner cannot know.
        rare = "runs_awaiting" if where.awaiting else "runs_by_end" if where.ended_since is not None else ""
        table = f"runs INDEXED BY {rare}" if rare else "runs"
        rows = self._rows(f"SELECT {_LIGHT} FROM {table}{sql} ORDER BY created_at DESC, key DESC LIMIT ?", [*values, where.limit])
        return [_run_of(row) for row in rows]

    def children(self, parent: str) -> list[Run]:
        """Return the child runs of a run."""
        return [_run_of(row) for row in self._rows(f"SELECT {_LIGHT} FROM runs WHERE parent = ? ORDER BY key", (parent,))]

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return messages that were given up, newest first."""
        rows = self._rows("SELECT data FROM dead_letters ORDER BY died_at DESC LIMIT ?", (limit,))
        return [_decode_letter(data) for (data,) in rows]

    def tree_cost(self, run_id: str, since: float) -> float:
        """Return what the calls of a run and of all its children cost from a moment on, unanswered ones by their estimates."""
        tree = (
            "WITH RECURSIVE tree (id) AS (SELECT ? UNION ALL SELECT r.id FROM runs r JOIN tree ON r.parent = tree.id) "
            "SELECT coalesce(sum(c.cost_usd + c.held_usd), 0.0) FROM tree JOIN calls c ON c.run = tree.id AND c.run != '' AND c.at >= ?"
        )
        return float(self._rows(tree, (run_id, since))[0][0])

    def known_calls(self, ids: Sequence[str]) -> set[str]:
        """Return those of the calls that are recorded."""
        marks = ", ".join("?" * len(ids))
        return {row[0] for row in self._rows(f"SELECT id FROM calls WHERE id IN ({marks})", ids)}

    def schedules(self) -> list[Schedule]:
        """Return all schedules."""
        return [_decode_schedule(data) for (data,) in self._rows("SELECT data FROM schedules", ())]

    def ended_keys(self, where: RunFilter) -> list[int]:
        """Return the keys of ended runs that match."""
        sql, values = _where(where)
        sql += " AND" if sql else " WHERE"
        rows = self._rows(f"SELECT key FROM runs{sql} status IN ('completed', 'failed', 'cancelled')", values)
        return [key for (key,) in rows]

    def artifacts_of(self, keys: Sequence[int]) -> list[str]:
        """Return the stored objects that runs refer to, by the keys of the runs' rows."""
        marks = ", ".join("?" * len(keys))
        return [key for (key,) in self._rows(f"SELECT DISTINCT key FROM artifacts WHERE run IN ({marks})", keys)]

    def referred(self, keys: Sequence[str]) -> set[str]:
        """Return those stored objects that any run refers to."""
        marks = ", ".join("?" * len(keys))
        return {key for (key,) in self._rows(f"SELECT DISTINCT key FROM artifacts WHERE key IN ({marks})", keys)}

    def fact(self, name: str) -> str | None:
        """Return what the state file knows of itself under a name, or None."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def count(self, where: RunFilter) -> dict[str, int]:
        """Return how many runs match, by status."""
        sql, values = _where(where)
        # An id is searched for in an index that holds it, not in the rows with their payloads.
        table = "runs INDEXED BY runs_by_time" if where.search else "runs"
        return dict(self._rows(f"SELECT status, count(*) FROM {table}{sql} GROUP BY status", values))

    def _rows(self, sql: str, values: Sequence[Any]) -> list[Any]:
        # Damage shows while rows are fetched, so that they are fetched here.
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise unusable(self.path, error) from error


def _where(where: RunFilter) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []

    def add(sql: str, *given: Any) -> None:
        parts.append(sql)
        values.extend(given)

    if where.status:
        add(f"status IN ({', '.join('?' * len(where.status))})", *where.status)
    if where.workflow:
        add("workflow = ?", where.workflow)
    if where.namespace:
        add("namespace = ?", where.namespace)
    if where.since is not None:
        add("created_at >= ?", where.since)
    if where.until is not None:
        add("created_at < ?", where.until)
    if where.ended_before is not None:
        add("ended_at < ?", where.ended_before)
    if where.ended_since is not None:
        add("ended_at >= ?", where.ended_since)
    if where.ids:
        add(f"id IN ({', '.join('?' * len(where.ids))})", *where.ids)
    if where.parent is not None:
        add("parent = ?", where.parent)
    if where.awaiting:
        add("awaits > 0 AND status = 'waiting'")
    if where.search:
        add("instr(id, ?) > 0", where.search)
    for tag, value in where.tags.items():
        add("key IN (SELECT run FROM tags WHERE name = ? AND value = ?)", tag, value)
    if where.after:
        add("(created_at, key) < (SELECT created_at, key FROM runs WHERE id = ?)", where.after)
    return (" WHERE " + " AND ".join(parts) if parts else ""), values


def _run_of(row: tuple[Any, ...]) -> Run:
    _, head, payload, result, state = row
    run = _decode_run(head)
    return replace(
        run,
        payload=Raw(payload) if payload is not None else _EMPTY,
        result=Raw(result) if result is not None else None,
        state=Raw(state) if state is not None else None,
    )


def run_row(key: int, run: Run) -> tuple[Any, ...]:
    """Return a run as a row of `runs`, in the order of INSERT_RUN."""
    awaits = run.awaits if run.status == "waiting" else []
    head = _encode(replace(run, payload=_EMPTY, result=None, state=None, awaits=awaits))
    return (
        key,
        run.id,
        run.workflow,
        run.namespace,
        run.status,
        run.created_at,
        run.ended_at,
        run.wake_at,
        run.parent,
        head,
        bytes(run.payload),
        bytes(run.result) if run.result is not None else None,
        bytes(run.state) if run.state is not None else None,
        len(awaits),
    )


def letter_row(letter: DeadLetter) -> tuple[str, str, float, bytes]:
    """Return a dead letter as a row of `dead_letters`."""
    return (letter.id, letter.message.run, letter.died_at, _encode(letter))


def event_row(key: int, event: Event) -> tuple[int, int, bytes]:
    """Return an event as a row of `events`."""
    return (key, event.seq, _encode(event))


_RUN_COLUMNS = "key, id, workflow, namespace, status, created_at, ended_at, wake_at, parent, head, payload, result, state, awaits"
INSERT_RUN = f"INSERT INTO runs ({_RUN_COLUMNS}) VALUES "
RUN_VALUES = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
ON_RUN_CONFLICT = (
    " ON CONFLICT (key) DO UPDATE SET status = excluded.status, ended_at = excluded.ended_at, wake_at = excluded.wake_at, "
    "head = excluded.head, payload = excluded.payload, result = excluded.result, state = excluded.state, awaits = excluded.awaits"
)
BURY = "INSERT OR REPLACE INTO dead_letters (id, run, died_at, data) VALUES (?, ?, ?, ?)"
UNBURY_RUN = "DELETE FROM dead_letters WHERE run = ?"
UNBURY = "DELETE FROM dead_letters WHERE id = ?"
INSERT_EVENT = "INSERT INTO events (run, seq, data) VALUES "
EVENT_VALUES = "(?, ?, ?)"


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that holds the state file, in bytes."""
    stats = os.statvfs(path.parent if path.parent.exists() else Path.cwd())
    return stats.f_bavail * stats.f_frsize
