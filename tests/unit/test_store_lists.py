"""Lists of runs: every filter by itself and with others, over what the state file's indexes hold, in files of every version."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from ziggurat.orchestrator.embedded import store
from ziggurat.records import Awaited, Run, RunFilter

RUNS = [
    Run(
        id=f"{workflow}-{number:02}",
        workflow=workflow,
        status="completed" if number % 3 else "waiting",
        payload=Raw(b'{"tags":{"team":"payload"}}'),
        namespace="acme" if number % 2 else "default",
        tags={"team": "ab"[number % 2], "quote'\"": "é"} if number % 4 else {},
        created_at=100.0 + number,
        started_at=100.0 + number,
        ended_at=200.0 + number if number % 3 else None,
    )
    for number, workflow in enumerate(["analyze", "extract"] * 6)
]


def fill(path: Path) -> None:
    connection = store.connect(path, write=True)
    for key, run in enumerate(RUNS, 1):
        for _ in range(2):  # A row that is written again keeps its tags, once.
            connection.execute(store.INSERT_RUN + store.RUN_VALUES + store.ON_RUN_CONFLICT, store.run_row(key, run))
    connection.close()


def fill_as_before(path: Path, version: int) -> None:
    """Write the runs as a version wrote them whose rows did not say who waits for a signal."""
    connection = store.connect(path, write=True)
    for key, run in enumerate(RUNS, 1):
        reason = "waits for the signal word" if key == 4 else "waits for a timer"
        row = store.run_row(key, replace(run, reason=reason if run.status == "waiting" else ""))[:13]
        connection.execute(
            f"INSERT INTO runs ({store._RUN_COLUMNS.removesuffix(', awaits')}) VALUES ({', '.join('?' * 13)})", row
        )
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()


def fits(run: Run, where: RunFilter) -> bool:
    return (
        (not where.status or run.status in where.status)
        and (not where.workflow or run.workflow == where.workflow)
        and (not where.namespace or run.namespace == where.namespace)
        and where.search in run.id
        and all(run.tags.get(name) == value for name, value in where.tags.items())
        and (where.ended_since is None or (run.ended_at is not None and run.ended_at >= where.ended_since))
        and (not where.ids or run.id in where.ids)
    )


CHOICES: dict[str, list[Any]] = {
    "status": [(), ("waiting",), ("completed", "failed")],
    "workflow": ["", "extract"],
    "namespace": ["", "acme", "nobody"],
    "search": ["", "-1", "zzz"],
    "tags": [{}, {"team": "a"}, {"team": "b", "quote'\"": "é"}, {"team": "payload"}],
    "ended_since": [None, 205.0],
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[store.Reader]:
    path = tmp_path_factory.mktemp("lists") / "state.db"
    fill(path)
    made = store.Reader(path)
    yield made
    made.close()


def test_every_combination_of_filters_finds_what_fits_newest_first(reader: store.Reader) -> None:
    for values in itertools.product(*CHOICES.values()):
        where = RunFilter(**dict(zip(CHOICES, values, strict=True)))
        expected = [run for run in reversed(RUNS) if fits(run, where)]
        assert [run.id for run in reader.runs(where)] == [run.id for run in expected], where
        counts: dict[str, int] = {}
        for run in expected:
            counts[run.status] = counts.get(run.status, 0) + 1
        assert reader.count(where) == counts, where
        pages: list[str] = []
        page = replace(where, limit=2)
        while found := reader.runs(page):
            pages += [run.id for run in found]
            page = replace(page, after=found[-1].id)
        assert pages == [run.id for run in expected], where


def test_runs_are_found_by_their_ids(reader: store.Reader) -> None:
    where = RunFilter(ids=("analyze-02", "extract-05", "nobody"), namespace="acme")
    assert [run.id for run in reader.runs(where)] == ["extract-05"]


def test_an_old_file_gets_the_indexes_and_the_tags_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    with monkeypatch.context() as before:
        before.setattr(store, "SCHEMA_VERSION", 3)
        fill_as_before(path, 3)
    store.connect(path, write=True).close()
    reader = store.Reader(path)
    where = RunFilter(tags={"team": "b"})
    assert [run.id for run in reader.runs(where)] == [run.id for run in reversed(RUNS) if fits(run, where)]
    assert [run.id for run in reader.runs(RunFilter(awaiting=True))] == [RUNS[3].id]
    reader.close()


def test_runs_that_wait_for_a_signal_are_found_in_an_index_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = store.connect(path, write=True)
    waits = [Awaited(2, "word", 150.0)]
    for key, run in enumerate(RUNS, 1):
        # One that goes on, or has ended, waits for nothing, whatever it waited for.
        for row in (
            replace(run, status="waiting", awaits=waits),
            run if key % 2 else replace(run, status="waiting", awaits=waits),
        ):
            connection.execute(store.INSERT_RUN + store.RUN_VALUES + store.ON_RUN_CONFLICT, store.run_row(key, row))
    connection.close()
    reader = store.Reader(path)
    expected = [run.id for key, run in reversed([*enumerate(RUNS, 1)]) if key % 2 == 0]
    found = reader.runs(RunFilter(awaiting=True))
    assert [run.id for run in found] == expected
    assert all(run.awaits == waits for run in found)
    assert [run.id for run in reader.runs(RunFilter(awaiting=True, limit=2, after=expected[1]))] == expected[2:4]
    acme = reader.runs(RunFilter(awaiting=True, namespace="acme", workflow="extract"))
    assert [run.id for run in acme] == [r.id for r in found if (r.namespace, r.workflow) == ("acme", "extract")]
    assert reader.count(RunFilter(awaiting=True)) == {"waiting": len(expected)}
    reader.close()


def test_tags_go_with_their_run(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    fill(path)
    connection = store.connect(path, write=True)
    assert connection.execute("SELECT count(*) FROM tags").fetchone() == (sum(len(run.tags) for run in RUNS),)
    connection.execute("DELETE FROM runs WHERE key IN (2, 3)")
    kept = [run for key, run in enumerate(RUNS, 1) if key not in (2, 3)]
    assert connection.execute("SELECT count(*) FROM tags").fetchone() == (sum(len(run.tags) for run in kept),)
    connection.execute("DELETE FROM runs")
    assert connection.execute("SELECT count(*) FROM tags").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize(
    "where",
    [
        RunFilter(namespace="acme"),
        RunFilter(workflow="analyze"),
        RunFilter(status=("failed",)),
        RunFilter(tags={"team": "a"}),
        RunFilter(search="x"),
        RunFilter(ended_since=1.0),
        RunFilter(awaiting=True),
        RunFilter(),
    ],
)
def test_no_list_reads_the_whole_table(reader: store.Reader, where: RunFilter) -> None:
    conditions, values = store._where(where)
    index = "runs_by_end" if where.ended_since is not None else "runs_awaiting" if where.awaiting else ""
    table = f"runs INDEXED BY {index}" if index else "runs"
    sql = f"EXPLAIN QUERY PLAN SELECT head FROM {table}{conditions} ORDER BY created_at DESC, key DESC LIMIT 100"
    plan = [row[3] for row in reader._rows(sql, values)]
    assert all("USING" in line for line in plan if line.startswith(("SCAN runs", "SEARCH runs"))), plan
