"""What the machine allows, and what a start costs: the disk's commits, bare imports, whole processes."""

from __future__ import annotations

import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, environment

#: What a program of each side imports, timed as a whole process.
_IMPORTS = {"Ziggurat": "import ziggurat", "bare Python": "pass"}


def measure_limits(measured: Measured, *, quick: bool) -> None:
    """Add the limits of this machine to the results."""
    measured.add("this machine", "disk", lambda: disk(0.3 if quick else 2.0))
    for label, statement in _IMPORTS.items():
        measured.add(label, "import", lambda statement=statement: import_time(statement, 3 if quick else 15))  # type: ignore[misc]


def disk(seconds: float) -> dict[str, Any]:
    """Measure how fast SQLite commits with synchronous=FULL, at several rows a commit, and what one fdatasync takes."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for rows in (1, 32, 512):
            found[f"rows_per_s_at_{rows}"] = _commits(Path(folder) / f"{rows}.db", rows, seconds) * rows
        with open(Path(folder) / "sync", "wb") as file:
            times = []
            give_up = time.perf_counter() + seconds
            while time.perf_counter() < give_up:
                file.write(b"x" * 4096)
                file.flush()
                began = time.perf_counter()
                os.fdatasync(file.fileno())
                times.append(time.perf_counter() - began)
            found["fdatasync_ms"] = statistics.median(times) * 1e3
    return found


def _commits(path: Path, rows: int, seconds: float) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (run INTEGER, seq INTEGER, data BLOB, PRIMARY KEY (run, seq)) WITHOUT ROWID")
    insert = "INSERT INTO events VALUES " + ", ".join(["(?, ?, ?)"] * rows)
    count, data, began = 0, b"x" * 250, time.perf_counter()
    while time.perf_counter() - began < seconds:
        values = [value for row in range(rows) for value in (row, count, data)]
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(insert, values)
        connection.execute("COMMIT")
        count += 1
    rate = count / (time.perf_counter() - began)
    connection.close()
    return rate


def import_time(statement: str, times: int) -> dict[str, Any]:
    """Measure a whole Python process that does one import, its bytecode cached."""
    command = [sys.executable, "-c", statement]
    walls = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment())
        walls.append(time.perf_counter() - began)
    return {"process_ms": statistics.median(walls[1:]) * 1e3}
