"""What `ziggurat up` draws, from looks that are made up: every size of terminal, every state, and the picture in the documentation."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from ziggurat.doors.cli.up import Outputs
from ziggurat.doors.cli.uplook import PoolLook, QueueLook, Rate, UpLook, look_object
from ziggurat.doors.cli.upview import draw, line_of, sparkline, what_changed
from ziggurat.records import Depth, ErrorInfo, Run, Usage

PICTURE = Path(__file__).parents[2] / "docs" / "img" / "up.svg"
NOW = 1_790_000_000.0


def run(id: str, workflow: str, status: str, started: float, **fields: object) -> Run:
    return Run(id=id, workflow=workflow, status=status, created_at=NOW - started, started_at=NOW - started, **fields)  # type: ignore[arg-type]


def sample() -> UpLook:
    """A busy system."""
    return UpLook(
        at=NOW,
        up=754.0,
        runs={"running": 3, "waiting": 1, "completed": 1_204, "failed": 2},
        newest=(
            run("analyze-9xk2m4tq7w1c", "analyze", "running", 2.4, usage=Usage(3, 5_200, 410, cost_usd=0.0021)),
            run("analyze-h3v8n2zc5r0p", "analyze", "running", 3.1, usage=Usage(2, 3_100, 205, cost_usd=0.0013)),
            run("analyze-t6d1y9jb4k8s", "analyze", "running", 6.8, usage=Usage(6, 11_900, 990, cost_usd=0.0049)),
            run("approve-invoice-118", "approve", "waiting", 4_210.0, reason="waits for the signal 'review'"),
            run(
                "analyze-b7f5x0qm3e2a",
                "analyze",
                "completed",
                9.0,
                ended_at=NOW - 2.2,
                usage=Usage(6, 9_800, 870, cost_usd=0.0043),
            ),
            run(
                "analyze-w4g8p6sd1u9n",
                "analyze",
                "failed",
                14.0,
                ended_at=NOW - 9.5,
                error=ErrorInfo("UnreadableDocument", "scan-0031.pdf has no pages"),
            ),
        ),
        queues=(
            QueueLook(queue="cpu", depth=Depth(ready=3, leased=8, oldest_age=0.4), curve=(0, 0, 1, 4, 6, 5, 7, 6, 4, 3, 4, 3)),
            QueueLook(
                queue="default",
                depth=Depth(ready=214, leased=24, delayed=2, dead=1, oldest_age=6.3),
                curve=(0, 0, 40, 120, 260, 340, 320, 300, 280, 255, 240, 214),
            ),
        ),
        pools=(
            PoolLook(
                pool="cpu",
                ready=2,
                busy=2,
                running=8,
                slots=8,
                wanted=2,
                max=2,
                constraint="demand",
                explanation="3 waiting and 8 running tasks want 2 workers for what runs.",
                attempt_seconds=0.35,
                cost_per_hour=0.2,
            ),
            PoolLook(
                pool="default",
                ready=3,
                starting=1,
                busy=3,
                running=24,
                slots=32,
                wanted=4,
                max=8,
                constraint="quota",
                explanation=(
                    "214 waiting and 24 running tasks want 8 workers so that what waits starts within 5 s; the inference quota of "
                    "1,000,000 tokens/min at gmi feeds 4, so it stays at 4."
                ),
                attempt_seconds=1.9,
                cost_per_hour=0.4,
            ),
        ),
        steps_per_second=48.2,
        tasks_per_second=31.7,
        cost_usd=1.8342,
        cost_per_hour=9.12,
        facts={"orchestrator": "embedded", "queue": "sqlite", "api": "http://127.0.0.1:8400"},
    )


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


def drawn(look: UpLook, width: int, height: int = 30) -> str:
    console = Console(width=width, height=height, force_terminal=False, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(draw(look, width, height))
    return capture.get()


@pytest.mark.parametrize("width", [30, 44, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("height", [8, 24, 60])
def test_every_terminal_shows_what_matters_within_its_width(width: int, height: int) -> None:
    text = drawn(sample(), width, height)
    assert max(map(len, text.splitlines())) <= width
    if width < 40:
        return  # Columns are cut there; nothing else is promised.
    for word in ("Runs", "1,204 completed", "Queues", "214", "Pools", "4 (1 starting)", "steps/s"):
        assert word in " ".join(text.split()), word


def test_a_wide_terminal_says_why_a_pool_is_no_larger() -> None:
    text = drawn(sample(), 120)
    assert "quota" in text
    assert "so it stays at 4." in text
    assert "━━━━━━━━━━━━ 24/32" in text
    assert "$9.12/h models" in text
    assert "$0.60/h workers" in text


def test_a_small_terminal_still_shows_a_failure_among_many_runs() -> None:
    text = drawn(sample(), 80, 14)
    assert "failed" in text.split("Queues")[0]


def test_nothing_yet_says_how_to_begin() -> None:
    text = drawn(UpLook(at=NOW, up=0.2), 80)
    assert "none yet; start one with ziggurat run MODULE:WORKFLOW" in text
    assert "starting" in text


def test_a_drain_says_how_long_it_may_take_and_how_to_hurry() -> None:
    text = " ".join(drawn(replace(sample(), draining=True, grace_left=21.4), 110).split())
    assert "Draining: 6 workers with 32 running tasks, 21.4 s at most. Ctrl-C again hands them back to the queue at once." in text
    assert "so it stays at 4" not in text, "how many it would want matters no more"
    over = replace(sample(), draining=True, pools=tuple(PoolLook(pool=pool.pool) for pool in sample().pools))
    assert "Stopping." in drawn(over, 110)


def test_trouble_is_shown() -> None:
    look = replace(sample(), trouble="Redis at localhost:6379 does not answer.")
    assert "Redis at localhost:6379 does not answer." in drawn(look, 80)
    assert line_of(look).endswith("Redis at localhost:6379 does not answer.")
    crashed = replace(sample().pools[0], trouble="The worker cpu-3 exited with code 1. The next one is started in 0.5 s.")
    assert "exited with code 1" in drawn(replace(sample(), pools=(crashed,)), 80)


def test_markup_in_names_stays_text() -> None:
    look = replace(
        sample(), newest=(run("[red]x[/]", "[bold]w", "running", 1.0),), queues=(QueueLook(queue="[q]", depth=Depth(ready=1)),)
    )
    text = drawn(look, 100)
    assert "[red]x[/]" in text
    assert "[q]" in text


def test_many_queues_are_cut_to_the_busiest() -> None:
    queues = tuple(QueueLook(queue=f"q{n:02}", depth=Depth(ready=n)) for n in range(40))
    text = drawn(replace(sample(), queues=queues), 100, 40)
    assert "q39" in text
    assert "q05" not in text


def test_the_plain_line_and_what_is_worth_one() -> None:
    look = sample()
    assert line_of(look) == (
        "runs: 3 running, 1 waiting, 1204 completed, 2 failed; queues: cpu 3 ready 8 leased, default 214 ready 24 leased 1 dead; "
        "pools: cpu 2 of 2 wanted, 8 tasks, default 4 (1 starting) of 4 wanted, 24 tasks; 48.2 steps/s, $1.83"
    )
    later = replace(look, at=NOW + 5, up=759.0, steps_per_second=50.0)
    assert what_changed(later) == what_changed(look), "time and rates alone are no news"
    assert what_changed(replace(look, draining=True)) != what_changed(look)


def test_json_is_made_of_plain_values() -> None:
    import json

    shown = json.loads(json.dumps(look_object(sample())))
    assert shown["runs"]["failed"] == 2
    assert shown["queues"][1] == {
        "queue": "default", "ready": 214, "leased": 24, "delayed": 2, "dead": 1, "oldest_age_seconds": 6.3,
    }  # fmt: skip
    assert shown["pools"][1]["constraint"] == "quota"
    assert shown["cost"]["workers_usd_per_hour"] == pytest.approx(0.6)


def test_rates_are_those_of_the_window() -> None:
    rate = Rate(5.0)
    assert rate.look(0.0, 0.0) == 0.0
    assert rate.look(1.0, 10.0) == 10.0
    for second in range(2, 12):
        last = rate.look(float(second), 10.0 + 2.0 * (second - 1))
    assert last == pytest.approx(2.0)
    assert rate.look(12.0, 0.0) == 0.0, "a total that starts anew is no negative rate"


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == ""
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"


def test_what_workers_print_is_read_as_it_comes(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "out")
    assert outputs.fresh() == []
    (tmp_path / "out").mkdir()
    log = tmp_path / "out" / "default-1.log"
    log.write_bytes(b"one\ntwo\nhal")
    assert outputs.fresh() == [("default-1", "one"), ("default-1", "two")]
    with log.open("ab") as file:
        file.write(b"f \xff\n\nlast\n")
    assert outputs.fresh() == [("default-1", "half �"), ("default-1", "last")]
    with log.open("ab") as file:
        file.writelines(b"line %d\n" % n for n in range(500))
    lines = outputs.fresh()
    assert lines[0] == ("", f"450 more lines are in {tmp_path / 'out'}")
    assert lines[-1] == ("default-1", "line 499")
    (tmp_path / "out" / "silent-1.log").touch()
    outputs.close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["default-1.log"]


def test_a_log_that_grows_large_is_cut_once_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ziggurat.doors.cli import up

    monkeypatch.setattr(up, "LOG_BYTES", 100)
    outputs = Outputs(tmp_path / "out")
    (tmp_path / "out").mkdir()
    log = tmp_path / "out" / "default-1.log"
    with log.open("ab", buffering=0) as worker:
        seen: list[str] = []
        for n in range(40):
            worker.write(b"line %02d\n" % n)
            seen += [line for _, line in outputs.fresh()]
        assert seen == [f"line {n:02}" for n in range(40)]
        assert log.stat().st_size <= 120


def test_the_picture_in_the_documentation_is_what_is_drawn() -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=110, height=30, record=True, force_terminal=True, file=nowhere)
        console.print(draw(sample(), 110, 30))
        svg = console.export_svg(title="ziggurat up", unique_id="up")
    # The picture stands for itself: no font is fetched for it.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    if os.environ.get("UPDATE_IMAGES"):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(svg)
    words = [re.sub(r"<[^>]*>", " ", text).split() for text in (svg, PICTURE.read_text())]
    assert words[0] == words[1], "draw it anew with UPDATE_IMAGES=1 and look at it"
