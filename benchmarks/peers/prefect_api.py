"""Prefect's side of the API benchmark: its server on SQLite with flow runs in it, listed and read over its HTTP API.

One flow run of each state is made over the API. They are then multiplied in the database, with ids, names, tags and moments of their own,
while the server is down: over the API 100,000 would take the better part of an hour. What is asked is what its dashboard asks.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks.side import free_port

#: Of a hundred flow runs so many failed, as on Ziggurat's side.
FAILED = 5
#: Seconds that one kind of question may take in all.
ENOUGH = 10.0
#: Seconds in which the server must have begun to answer.
PATIENCE = 180.0


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return {"p50_ms": ordered[len(ordered) // 2] * 1e3, "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3}


class Server:
    """`prefect server start` in a folder, without the services that schedule runs: with `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()

    def __enter__(self) -> httpx.Client:
        settings = {
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.folder / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        command = [str(Path(sys.executable).parent / "prefect"), "server", "start", "--no-services", "--no-ui"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "WARNING"],
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
            )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=60.0)
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                if self._client.get("/health").status_code == 200:
                    return self._client
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError("The server of Prefect did not answer.")

    def __exit__(self, *exc: object) -> None:
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def seed(client: httpx.Client) -> None:
    """Make a flow, and a flow run of each state."""
    flow = client.post("/flows/", json={"name": "analyze"}).raise_for_status().json()["id"]
    for state in ("COMPLETED", "FAILED"):
        order = {
            "name": f"first-{state.lower()}",
            "flow_id": flow,
            "state": {"type": state, "name": state.capitalize()},
            "parameters": {"document": "x" * 2_000},
            "tags": ["customer-c0"],
        }
        client.post("/flow_runs/", json=order).raise_for_status()


def multiply(path: Path, runs: int) -> None:
    """Write so many copies of the flow runs, each with its state."""
    chance = random.Random(1)
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    made = {row["state_type"]: dict(row) for row in db.execute("SELECT * FROM flow_run")}
    states = {row["id"]: dict(row) for row in db.execute("SELECT * FROM flow_run_state")}
    start = datetime(2026, 1, 1, tzinfo=UTC)
    new_runs: list[dict[str, Any]] = []
    new_states: list[dict[str, Any]] = []
    for number in range(runs):
        run = dict(made["FAILED" if number % 100 < FAILED else "COMPLETED"])
        at = f"{start + timedelta(seconds=number):%Y-%m-%d %H:%M:%S.%f}"
        # As its UUID column keeps them: 36 characters.
        id_, state = (
            str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        )
        moments = {name: at for name in ("created", "updated", "expected_start_time", "start_time", "end_time") if name in run}
        new_states.append({**states[run["state_id"]], "id": state, "flow_run_id": id_, "timestamp": at})
        run.update(moments, id=id_, state_id=state, state_timestamp=at, name=f"analyze-{chance.getrandbits(60):015x}")
        run["tags"] = json.dumps([f"customer-c{number % 500}"])
        new_runs.append(run)
    for table, rows in (("flow_run", new_runs), ("flow_run_state", new_states)):
        names = list(rows[0])
        marks = ", ".join(f":{name}" for name in names)
        db.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", rows)
    db.commit()
    db.execute("ANALYZE")
    db.commit()
    db.close()


def timed(ask: Callable[[], httpx.Response], times: int) -> dict[str, float]:
    """Ask one after the other, and return how long it took."""
    ask().raise_for_status()
    took: list[float] = []
    limit = time.monotonic() + ENOUGH
    while len(took) < times and (len(took) < 5 or time.monotonic() < limit):
        began = time.perf_counter()
        ask().raise_for_status()
        took.append(time.perf_counter() - began)
    return spread(took)


def look(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """List and describe."""
    with Server(folder) as client:
        seed(client)
    multiply(folder / "prefect.db", sizes["runs"])
    with Server(folder) as client:
        page = {"limit": 100, "sort": "START_TIME_DESC"}

        def asked(**where: Any) -> Callable[[], httpx.Response]:
            return lambda: client.post("/flow_runs/filter", json={**page, **where})

        some = asked(offset=100)().raise_for_status().json()[0]["id"]
        questions: dict[str, Callable[[], httpx.Response]] = {
            "list": asked(),
            "deep": asked(offset=2_000 if sizes["runs"] > 4_000 else 100),
            "failed": asked(flow_runs={"state": {"type": {"any_": ["FAILED"]}}}),
            "tag": asked(flow_runs={"tags": {"all_": ["customer-c77"]}}),
            "search": asked(flow_runs={"name": {"like_": "abcd"}}),
            "count": lambda: client.post("/flow_runs/count", json={}),
            "describe": lambda: client.get(f"/flow_runs/{some}"),
        }
        count = client.post("/flow_runs/count", json={}).raise_for_status().json()
        if count < sizes["runs"]:
            raise RuntimeError(f"The server of Prefect counts {count} flow runs instead of {sizes['runs']}.")
        figures = {name: timed(ask, sizes["times"]) for name, ask in questions.items()}
    return {f"{name}_{key}": value for name, figure in figures.items() for key, value in figure.items()}


if __name__ == "__main__":
    print("RESULT", json.dumps(look(Path(sys.argv[3]), json.loads(sys.argv[2]))))
