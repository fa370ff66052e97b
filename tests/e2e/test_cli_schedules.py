"""`ziggurat schedules` and [schedules] of the settings, over real processes that are killed."""

from __future__ import annotations

import contextlib
import signal
import sqlite3

import pytest

from tests.e2e.conftest import Project

FLOWS = """
    from ziggurat import workflow

    @workflow
    async def digest(team: str = "all") -> str:
        return f"digest of {team}"
"""
SETTINGS = """
    [app]
    modules = ["flows"]
    [server]
    port = 0
"""
EVERY_SECOND = (
    SETTINGS
    + """
    [schedules.pulse]
    workflow = "digest"
    input = { team = "night" }
    every = "1s"
    overlap = "allow"
"""
)


@pytest.fixture
def flows(project: Project) -> Project:
    project.write("flows.py", FLOWS)
    project.write("ziggurat.toml", SETTINGS)
    return project


def test_a_schedule_is_made_looked_at_run_paused_and_removed(flows: Project) -> None:
    assert "There are no schedules" in flows.ok("schedules").err
    made = flows.ok(
        "schedules", "add", "nightly", "flows:digest", "--cron", "0 3 * * 1-5", "--timezone", "Europe/Berlin",
        "--input", '{"team": "night"}',
    )  # fmt: skip
    assert made.out.startswith("nightly: 0 3 * * 1-5 Europe/Berlin, next 2")
    assert "ziggurat serve" in made.err
    listed = flows.ok("schedules").out
    assert "nightly" in listed
    assert "digest" in listed
    shown = flows.ok("schedules", "show", "nightly").out
    assert shown.count(" 03:00:00 CE") == 5
    run = flows.ok("schedules", "run", "nightly").out.strip()
    assert flows.ok("run", "flows:digest", "--id", run, "--json").json["result"] == "digest of night"
    flows.ok("schedules", "pause", "nightly", "--reason", "the team is away")
    (found,) = flows.ok("schedules", "list", "--json").json
    assert (found["paused"], found["reason"], found["next_at"], found["last_run"]) == (True, "the team is away", None, run)
    flows.ok("schedules", "resume", "nightly")
    filled = flows.ok("schedules", "backfill", "nightly", "--from", "2026-05-04", "--to", "2026-05-06", "--json").json
    assert filled == {"schedule": "nightly", "moments": 2}
    flows.ok("schedules", "remove", "nightly")
    assert flows.ok("schedules", "list", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("add", "x", "flows:digest"), 2, "says no time"),
        (("add", "x", "flows:digest", "--cron", "61 * * * *"), 2, "bad minute"),
        (("add", "x", "flows:digest", "--every", "soon"), 2, "--every cannot be read"),
        (("add", "x", "flows:digest", "--every", "1h", "--overlap", "both"), 2, "--overlap cannot be read"),
        (("add", "x", "flows:digest", "--every", "1h", "--timezone", "Mars"), 2, "no time zone 'Mars'"),
        (("add", "x", "flows:nothing", "--every", "1h"), 2, "nothing"),
        (("add", "x", "flows:digest", "--every", "1h", "--input", '{"team": 7}'), 2, "team"),
        (("add", "x y", "flows:digest", "--every", "1h"), 2, "needs a name of letters"),
        (("run", "x"), 2, "There is no schedule 'x'"),
        (("show", "x"), 2, "There is no schedule 'x'"),
        (("backfill", "x", "--from", "yesterday"), 2, "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(flows: Project, arguments: tuple[str, ...], code: int, said: str) -> None:
    finished = flows.run("schedules", *arguments)
    assert finished.code == code
    assert said in finished.error


def test_a_schedule_of_the_settings_that_means_nothing_stops_serve(flows: Project) -> None:
    flows.write("ziggurat.toml", EVERY_SECOND.replace('"digest"', '"gone"'))
    finished = flows.run("serve")
    assert finished.code == 2
    assert "The schedule 'pulse' cannot be kept" in finished.error


@pytest.mark.chaos
def test_schedules_of_the_settings_start_each_moment_once_however_often_the_process_is_killed(flows: Project) -> None:
    flows.write("ziggurat.toml", EVERY_SECOND)

    def runs() -> list[str]:
        # Read from the file: a command for each look would take longer than the moments that it looks for.
        state = flows.folder / ".ziggurat" / "state.db"
        if not state.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"{state.as_uri()}?mode=ro", uri=True)) as connection:
            try:
                return [id for (id,) in connection.execute("SELECT id FROM runs WHERE id LIKE 'pulse~%'")]
            except sqlite3.OperationalError:  # No tables yet.
                return []

    count = 0
    for _ in range(3):
        process = flows.begin("serve")
        flows.until(lambda before=count: len(runs()) >= before + 2, "two more moments came")  # type: ignore[misc]
        flows.end(process, signal.SIGKILL)
        count = len(runs())
    process = flows.begin("serve")
    flows.until(lambda: len(runs()) >= count + 1, "one more moment came")
    (found,) = flows.ok("schedules", "--json").json
    assert found["origin"] == "settings"
    flows.ok("schedules", "pause", "pulse")
    seconds = sorted(run.partition("~")[2] for run in runs())
    assert len(set(seconds)) == len(seconds)
    first, last = (int(text[9:11]) * 3600 + int(text[11:13]) * 60 + int(text[13:15]) for text in (seconds[0], seconds[-1]))
    # What the kills missed was made up: the moments have no gap. (A day may have ended meanwhile.)
    assert (last - first) % 86_400 == len(seconds) - 1
    flows.end(process, signal.SIGTERM)
    flows.write("ziggurat.toml", SETTINGS)
    process = flows.begin("serve")
    flows.until_served()
    assert flows.ok("schedules", "--json").json == []
    flows.end(process, signal.SIGTERM)
