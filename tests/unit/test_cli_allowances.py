"""`ziggurat limits` and `ziggurat budgets`: what is in use and spent, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_ledger import call
from ziggurat.clock import SystemClock
from ziggurat.doors.cli import run_command
from ziggurat.inference.backends.limits_sqlite import SqliteStore
from ziggurat.inference.ledger import Attribution, Ledger, day_of
from ziggurat.inference.limits.interface import Beat, Flow, Hold, Load, Purse, Slots, Take

#: Midway through a minute and a day: use is counted by the minute of the clock, spending by its day.
NOW = 1_767_268_830.0  # 2026-01-01 12:00:30 UTC

SETTINGS = """
[queue]
backend = "sqlite"
[inference.endpoints.gmi]
base_url = "https://gmi.example/v1"
limits = { tokens_per_minute = 6000, concurrency = 4 }
[inference.budgets]
call = "$1"
day = "$10"
[inference.budgets.workflows]
analyze = "$4"
[inference.budgets.tenants]
"*" = "$2"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(SystemClock, "time", staticmethod(lambda: NOW))
    (tmp_path / "ziggurat.toml").write_text(SETTINGS)
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run_command([*words])
    said = capsys.readouterr()
    return code, said.out, said.err


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code, out, err = ask(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_limits_in_use_and_calls_that_wait(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SqliteStore(project / ".ziggurat" / "limits.db")
    told = Load(endpoint="gmi", in_flight=1, waiting={1: 2, 5: 7}, flows={"model:gmi:a:b:requests": (10.0, 100.0)})
    drawn = Flow(key="endpoint:gmi:tokens", rate=100.0, burst=1000.0, need=600.0)
    store.run("w", [Beat(loads=(told,)), Take(gate="gmi", flows=(drawn,), slots=(Slots(key="endpoint:gmi:calls", limit=4),))])
    store.close()
    code, out, err = ask(capsys, "limits")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:5] == ["gmi", "tokens", "a", "minute", "600"]
    assert lines[2][:8] == ["gmi", "calls", "at", "a", "time", "1", "4", "█████░░░░░░░░░░░░░░░"]
    assert lines[3][:5] == ["gmi:a:b", "requests", "a", "minute", "0"]
    assert "gmi: 1 call under way, waiting 2 of priority 1, 7 of priority 5" in err
    found = answered(capsys, "limits")
    (gmi,) = [one for one in found["endpoints"] if one["endpoint"] == "gmi"]
    assert gmi["waiting"] == {"1": 2, "5": 7} and found["trouble"] == ""
    (project / ".ziggurat" / "limits.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    code, _, err = ask(capsys, "limits")
    assert code == 0 and "cannot be used" in err


def test_budgets_by_the_ledger_and_by_what_is_reserved(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(project / ".ziggurat" / "ledger.db")
    ledger.record(call("a", 3.0, at=NOW), Attribution(workflow="analyze", namespace="acme"))
    ledger.close()
    store = SqliteStore(project / ".ziggurat" / "limits.db")
    purse = Purse(key=f"day::{day_of(NOW)}", limit=10.0, soft=8.0, spent=3.5)
    store.run("w", [Hold(id="h", purses=(purse,), most=0.5, likely=0.5)])
    store.close()
    budgets = {one["key"]: one for one in answered(capsys, "budgets")["budgets"]}
    assert set(budgets) == {"call", "day", "workflow:analyze", "tenant:acme", "tenant:default"}
    assert (budgets["day"]["spent_usd"], budgets["day"]["reserved_usd"]) == (3.5, 0.5)
    assert (budgets["workflow:analyze"]["spent_usd"], budgets["tenant:acme"]["limit_usd"]) == (3.0, 2.0)
    assert budgets["call"]["renews_at"] is None and budgets["day"]["renews_at"].endswith("Z")
    code, out, _ = ask(capsys, "budgets")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["one", "call"], ["all", "of"]]
    assert "75%" in out and "$4.00" in out


def test_where_nothing_is_limited_that_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "ziggurat.toml").write_text("")
    assert "No budget is set" in ask(capsys, "budgets")[2]
    assert "No limit is set" in ask(capsys, "limits")[2]
