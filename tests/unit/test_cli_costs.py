"""`ziggurat costs`: one question, told as a table, bars, CSV and JSON; bad input is one sentence."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_ledger import DAY, call
from ziggurat.doors.cli import run_command
from ziggurat.inference.ledger import Attribution, Ledger
from ziggurat.records import CallRecord, Usage

START = 1_767_225_600.0  # 2026-01-01


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "ziggurat.toml").write_text("")
    return tmp_path


@pytest.fixture
def bought(project: Path) -> Path:
    ledger = Ledger(project / ".ziggurat" / "ledger.db")
    ledger.record(call("a", 2.0, at=START), Attribution(workflow="analyze", namespace="acme"))
    ledger.record(call("b", 1.0, at=START + 2 * DAY, model="slow"), Attribution(workflow="report"))
    ledger.record(call("c", at=START + 2 * DAY, status="unanswered", held=0.25), Attribution(workflow="report"))
    ledger.record(
        CallRecord(
            id="d", model="fast", endpoint="e", upstream="u", usage=Usage(calls=1), price_version="unpriced", started_at=START
        ),
        Attribution(workflow="analyze"),
    )
    ledger.close()
    return project


def ask(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = run_command(["costs", *options])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.usefixtures("bought")
def test_a_table_with_a_sum_and_what_may_have_been_billed_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["Workflow", "Calls", "Input", "Cached", "Output", "Reasoning", "Cost", "Unanswered", "Perhaps"]
    assert lines[1][0:2] + lines[1][6:] == ["analyze", "2", "$2.00", "0", "$0"]
    assert lines[2][0:2] + lines[2][6:] == ["report", "1", "$1.00", "1", "$0.25"]
    assert lines[3][0:2] + lines[3][6:] == ["All", "3", "$3.00", "1", "$0.25"]
    assert "1 of the calls have no known price" in err


@pytest.mark.usefixtures("bought")
def test_bars_of_days_run_evenly_through_days_without_calls(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask(capsys, "--by", "day", "--plot")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert [line.count("█") for line in lines] == [50, 0, 25]
    _, out, _ = ask(capsys, "--by", "tenant,model", "--plot", "--limit", "1")
    assert out.splitlines()[0].startswith("acme · fast  █")


@pytest.mark.usefixtures("bought")
def test_csv_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask(capsys, "--by", "model,day", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    _, out, _ = ask(capsys, "--by", "model,day", "--json")
    objects: list[dict[str, Any]] = json.loads(out)
    assert [{k: str(v) for k, v in o.items()} for o in objects] == rows
    assert [(o["model"], o["day"], o["cost_usd"]) for o in objects] == [
        ("fast", "2026-01-01", 2.0), ("slow", "2026-01-03", 1.0), ("fast", "2026-01-03", 0.0),
    ]  # fmt: skip
    _, out, _ = ask(capsys, "--json", "--since", "2026-01-02", "--workflow", "report", "--tenant", "default")
    assert [o["workflow"] for o in json.loads(out)] == ["report"]


@pytest.mark.usefixtures("project")
def test_no_calls_and_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys)[2] == "There are no model calls yet.\n"
    assert "in that time or of that kind" in ask(capsys, "--since", "1d")[2]
    assert ask(capsys, "--json")[1] == "[]\n"
    for options, expected in (
        (("--by", "colour"), "they can by: workflow, model"),
        (("--since", "soon"), "cannot be read"),
        (("--csv", "--json"), "choose one"),
    ):
        code, _, err = ask(capsys, *options)
        assert code == 2
        assert expected in err
        assert err.startswith("error: ")
