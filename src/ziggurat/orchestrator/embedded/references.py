"""Which runs refer to which stored objects: rows of the state file, written in the transaction that records the reference.

    artifacts   one row for each object that a run refers to. `seq` is the position in the history up to which it is needed at least, so
                that a run that continues as new lets go of what only its older generations referred to.
    facts       what the state file knows of itself, by name: "owner" is the name by which it cleans up an artifact store.

The writer looks for references in what it is about to write; so whoever records an event, a result or a state cannot forget them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ziggurat.artifacts import artifact_keys

TABLES = """
    CREATE TABLE artifacts (
        key TEXT NOT NULL,
        run INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        PRIMARY KEY (key, run)
    ) WITHOUT ROWID;
    CREATE INDEX artifacts_by_run ON artifacts (run);
    CREATE TABLE facts (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    );
"""
REFER = "INSERT INTO artifacts (key, run, seq) VALUES (?, ?, ?) ON CONFLICT (key, run) DO UPDATE SET seq = max(seq, excluded.seq)"
#: For arguments that are stored before their message goes out: a message may wait for longer than what nobody refers to is kept.
REFER_BY_ID = (
    "INSERT INTO artifacts (key, run, seq) SELECT ?, key, ? FROM runs WHERE id = ? "
    "ON CONFLICT (key, run) DO UPDATE SET seq = max(seq, excluded.seq)"
)
#: After the events of older generations are gone.
FORGET_OLDER = "DELETE FROM artifacts WHERE run = ? AND seq < coalesce((SELECT min(seq) FROM events WHERE run = ?), 0)"
STATE_FACT = "INSERT OR IGNORE INTO facts (name, value) VALUES (?, ?)"

#: The `seq` of what a run's state refers to, which no later generation outgrows.
_FOR_LIFE = 1 << 60
#: Places in a row of `runs`.
_KEY, _PAYLOAD, _RESULT, _STATE = 0, 10, 11, 12


def references(events: Iterable[tuple[int, int, bytes]], runs: Collection[tuple[Any, ...]]) -> list[tuple[str, int, int]]:
    """Return the rows of `artifacts` for rows of `events` and `runs` that are about to be written."""
    found: list[tuple[str, int, int]] = []
    for run, seq, data in events:
        if b'"zg' in data:
            found += [(key, run, seq) for key in artifact_keys(data)]
    newest: dict[int, int] | None = None
    for row in runs:
        for place in (_PAYLOAD, _RESULT):
            data = row[place]
            if data is not None and b'"zg' in data:
                if newest is None:
                    newest = {}
                    for run, seq, _ in events:
                        newest[run] = max(seq, newest.get(run, 0))
                found += [(key, row[_KEY], newest.get(row[_KEY], 0)) for key in artifact_keys(data)]
        if row[_STATE] is not None and b'"zg' in row[_STATE]:
            found += [(key, row[_KEY], _FOR_LIFE) for key in artifact_keys(row[_STATE])]
    return found
