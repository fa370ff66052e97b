"""Runs from the command line: start, watch, act, look; across processes, crashes and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import HUNG, Project

PROGRAM = """
    import asyncio
    import os
    import time

    from pydantic import BaseModel

    from ziggurat import emit, signal, state, task, workflow


    class Order(BaseModel):
        path: str
        count: int = 1


    @task
    async def double(n: int) -> int:
        return 2 * n


    @task(retry=2)
    async def careful(n: int) -> int:
        if n == 13:
            raise ValueError(f"{n} is\\nunlucky")
        return n


    @task
    def linger(marker: str) -> str:
        with open(marker, "a") as file:
            file.write("begun\\n")
        time.sleep(0.3)
        while os.path.exists(f"{marker}.hold"):
            time.sleep(0.02)
        return "rested"


    @workflow
    async def add(a: int, b: int = 1) -> int:
        return await double(a) + b


    @workflow
    async def ship(order: Order) -> dict[str, str | int]:
        return {"path": order.path, "count": await double(order.count)}


    @workflow
    async def check(n: int) -> int:
        first = await double(n)
        return await careful(n) + first


    @workflow
    async def ask(question: str) -> str:
        state(question=question)
        return f"{question} {await signal('answer', str, timeout='3d')}"


    @workflow
    async def steps(count: int, marker: str) -> int:
        for _ in range(count):
            await linger(marker)
        return count


    @workflow
    async def greet() -> str:
        return "hello\\nworld"
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.write("shop.py", PROGRAM)
    project.write("ziggurat.toml", '[app]\nmodules = ["shop"]\n')
    return project


def test_run_prints_the_result_and_says_the_steps_beside_it(shop: Project) -> None:
    done = shop.ok("run", "shop:add", "--input", '{"a": 4}')
    assert done.out == "9\n"
    assert re.search(r"^step 1 double completed in .*s$", done.err, re.MULTILINE)
    assert "\x1b" not in done.err + done.out
    assert shop.ok("run", "shop:greet").out == "hello\nworld\n"


def test_run_json_prints_one_object_of_the_promised_shape(shop: Project) -> None:
    shown = shop.ok("run", "shop:add", "--input", '{"a": 4, "b": 2}', "--id", "four", "--json").json
    assert list(shown) == ["id", "workflow", "status", "result", "error", "usage", "started_at", "ended_at"]
    assert (shown["id"], shown["workflow"], shown["status"], shown["result"], shown["error"]) == (
        "four",
        "add",
        "completed",
        10,
        None,
    )
    assert shown["usage"] == {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown["started_at"])


def test_input_comes_from_an_argument_a_file_or_stdin(shop: Project) -> None:
    shop.write("input.json", '{"path": "a.txt", "count": 2}')
    assert json.loads(shop.ok("run", "shop:ship", "-i", "@input.json").out) == {"path": "a.txt", "count": 4}
    assert json.loads(shop.run("run", "shop:ship", "-i", "-", stdin='{"order": {"path": "b"}}').out) == {"path": "b", "count": 2}


def test_workflows_are_named_by_module_file_or_name(shop: Project) -> None:
    for reference in ("shop:add", "shop.py:add", "./shop.py:add", "add"):
        assert shop.ok("run", reference, "-i", '{"a": 1}').out == "3\n"


def test_the_same_id_runs_once_and_prints_its_result_again(shop: Project) -> None:
    assert shop.ok("run", "shop:add", "-i", '{"a": 1}', "--id", "one").out == "3\n"
    again = shop.ok("run", "shop:add", "-i", '{"a": 100}', "--id", "one")
    assert again.out == "3\n"
    assert "step" not in again.err
    assert shop.ok("run", "shop:add", "--id", "one").out == "3\n", "the id says it all; the input need not be repeated"
    assert len(shop.ok("list", "--json").json) == 1


def test_a_new_run_without_the_input_that_it_needs_is_refused(shop: Project) -> None:
    for command in ("run", "start"):
        refused = shop.run(command, "shop:add", "--id", "none")
        assert refused.code == 2
        assert "a: field required" in refused.error
    assert shop.ok("list", "--json").json == []


def test_a_failed_run_exits_with_1_and_is_taken_up_after_mending(shop: Project) -> None:
    failed = shop.run("run", "shop:check", "-i", '{"n": 13}', "--id", "unlucky")
    assert failed.code == 1
    assert failed.out == ""
    assert failed.error == "The run unlucky failed: ValueError: 13 is unlucky."
    assert "ziggurat retry unlucky" in failed.err
    shown = shop.run("run", "shop:check", "--id", "unlucky", "-i", '{"n": 13}', "--json")
    assert shown.code == 1
    assert shown.json["error"] == {"type": "ValueError", "message": "13 is\nunlucky", "step": 2}

    shop.write("shop.py", PROGRAM.replace("n == 13", "n == 1300"))
    shop.ok("retry", "unlucky")
    assert shop.ok("watch", "unlucky").out == "39\n"
    events = shop.ok("history", "unlucky", "--json").json
    assert sum(event["kind"] == "step_completed" and event["name"] == "double" for event in events) == 1


def test_start_signal_and_the_looks_at_a_run(shop: Project) -> None:
    started = shop.ok("start", "shop:ask", "-i", '{"question": "why?"}', "--id", "q1", "--tag", "team=a")
    assert started.out == "q1\n"
    assert "ziggurat watch q1" in started.err
    shown = shop.ok("show", "q1", "--json").json
    assert (shown["status"], shown["state"], shown["tags"]) == ("waiting", {"question": "why?"}, {"team": "a"})
    assert shown["input"] == {"question": "why?"}
    assert "waits for the signal answer" in shop.ok("show", "q1").out
    assert shop.ok("signal", "q1", "answer", '"because"').out == "q1 completed\n"
    assert shop.ok("run", "shop:ask", "--id", "q1", "-i", '{"question": "why?"}').out == "why? because\n"
    assert "signal_received" in shop.ok("history", "q1").out


def test_list_filters_and_its_json_is_an_array_without_results(shop: Project) -> None:
    assert shop.ok("list", "--json").json == []
    shop.ok("run", "shop:add", "-i", '{"a": 1}', "--id", "added", "--tag", "team=a")
    shop.run("run", "shop:check", "-i", '{"n": 13}', "--id", "checked")
    shop.ok("start", "shop:ask", "-i", '{"question": "?"}', "--id", "asked")

    def listed(*arguments: str) -> list[str]:
        return [run["id"] for run in shop.ok("list", "--json", *arguments).json]

    assert listed() == ["asked", "checked", "added"]
    assert listed("--status", "failed", "--status", "waiting") == ["asked", "checked"]
    assert listed("--workflow", "add") == ["added"]
    assert listed("--tag", "team=a") == ["added"]
    assert listed("--search", "ask") == ["asked"]
    assert listed("--since", "1h", "-n", "1") == ["asked"]
    assert listed("--since", "2100-01-01") == []
    (added,) = shop.ok("list", "--json", "--workflow", "add").json
    assert list(added) == ["id", "workflow", "status", "error", "usage", "started_at", "ended_at"]
    table = shop.ok("list").out
    assert "ValueError: 13 is unlucky" in table
    assert "\x1b" not in table


def test_cancel_pause_resume_and_fork(shop: Project) -> None:
    for id in ("c1", "p1"):
        shop.ok("start", "shop:ask", "-i", '{"question": "?"}', "--id", id)
    assert shop.ok("cancel", "c1", "--reason", "enough").out == "c1 cancelled\n"
    assert shop.run("run", "shop:ask", "--id", "c1", "-i", '{"question": "?"}').code == 1
    assert shop.ok("pause", "p1").out == "p1 paused\n"
    assert shop.ok("resume", "p1").out.startswith("p1 ")
    shop.ok("run", "shop:add", "-i", '{"a": 1}', "--id", "base")
    forked = shop.ok("fork", "base", "--input", '{"a": 5}', "--id", "branch")
    assert forked.out == "branch\n"
    assert shop.ok("watch", "branch").out == "11\n"


def test_purge_deletes_ended_runs_only(shop: Project) -> None:
    shop.ok("run", "shop:add", "-i", '{"a": 1}', "--id", "over")
    shop.ok("start", "shop:ask", "-i", '{"question": "?"}', "--id", "open")
    assert "Say which" in shop.run("purge").error
    assert shop.ok("purge", "--all", "--json").json == {"purged": 1}
    assert [run["id"] for run in shop.ok("list", "--json").json] == ["open"]


# -- several processes ----------------------------------------------------------------------------------------------


def test_commands_reach_the_process_that_serves(shop: Project) -> None:
    server = shop.begin("serve")
    shop.until_served()
    assert shop.ok("run", "shop:add", "-i", '{"a": 4}').out == "9\n"
    watching = shop.begin("run", "shop:ask", "-i", '{"question": "why?"}', "--id", "live")
    shop.until_status("live", "waiting")
    assert shop.ok("show", "live", "--json").json["steps"][0]["kind"] == "signal"
    shop.ok("signal", "live", "answer", '"so"')
    assert shop.end(watching).out == "why? so\n"
    stopped = shop.end(server, signal.SIGTERM)
    assert stopped.code == 0
    assert "drains: it got SIGTERM" in stopped.err
    assert shop.ok("list", "--status", "completed", "--json").json


def test_a_workflow_that_the_server_does_not_know_is_loaded_there(shop: Project) -> None:
    shop.write("ziggurat.toml", "")
    shop.begin("serve")
    shop.until_served()
    assert shop.ok("run", "shop:add", "-i", '{"a": 4}').out == "9\n"


def test_a_run_survives_kill_9_of_the_process_that_drives_it(shop: Project) -> None:
    marker = shop.folder / "marker"
    running = shop.begin("run", "shop:steps", "-i", json.dumps({"count": 6, "marker": str(marker)}), "--id", "long")
    shop.until(lambda: marker.exists() and marker.read_text().count("begun") >= 3, "three steps have begun")
    running.kill()
    shop.end(running)
    resumed = shop.ok("watch", "long")
    assert resumed.out == "6\n"
    # Recorded steps never run again; the one that was under way may.
    assert 6 <= marker.read_text().count("begun") <= 7


def test_a_watcher_takes_over_from_a_killed_server(shop: Project) -> None:
    marker = shop.folder / "marker"
    server = shop.begin("serve")
    shop.until_served()
    watching = shop.begin("run", "shop:steps", "-i", json.dumps({"count": 5, "marker": str(marker)}), "--id", "long")
    shop.until(lambda: marker.exists() and marker.read_text().count("begun") >= 2, "two steps have begun")
    server.kill()
    finished = shop.end(watching)
    assert (finished.code, finished.out) == (0, "5\n")
    assert 5 <= marker.read_text().count("begun") <= 6


def test_ctrl_c_keeps_the_run_and_says_how_to_go_on(shop: Project) -> None:
    running = shop.begin("run", "shop:ask", "-i", '{"question": "why?"}', "--id", "left")
    shop.until_status("left", "waiting")
    stopped = shop.end(running, signal.SIGINT)
    assert stopped.code == 130
    assert "ziggurat run shop:ask --id left" in stopped.err
    assert "Traceback" not in stopped.err
    assert shop.ok("show", "left", "--json").json["status"] == "waiting"


def test_the_live_view_on_a_terminal_and_the_result_beside_it(shop: Project) -> None:
    ours, theirs = pty.openpty()
    command = shop.command("run", "shop:check", "-i", '{"n": 2}')
    environ = {**shop.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=shop.folder, env=environ, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says EIO at the end of a terminal.
            break
        if not piece:
            break
        drawn += piece
    os.close(ours)
    out, _ = process.communicate(timeout=HUNG)
    assert process.returncode == 0
    assert out == b"6\n"
    assert b"double" in drawn
    assert b"careful" in drawn
    assert b"\x1b[" in drawn


# -- batch ----------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_batch_runs_every_input_once_and_goes_on_where_it_stopped(shop: Project) -> None:
    shop.write("in.jsonl", "".join(f'{{"n": {n}}}\n' for n in (11, 12, 13, 14)) + "\n")
    out = shop.folder / "out.jsonl"
    first = shop.run("batch", "shop:check", "in.jsonl", "--output", "out.jsonl")
    assert first.code == 1
    assert first.out == ""
    assert "4 of 4 done, 1 failed" in first.err
    assert {line["source"]: line["status"] for line in lines(out)} == {
        "in.jsonl:1": "completed",
        "in.jsonl:2": "completed",
        "in.jsonl:3": "failed",
        "in.jsonl:4": "completed",
    }
    # The mended program takes up what failed, and nothing else.
    shop.write("shop.py", PROGRAM.replace("n == 13", "n == 1300"))
    second = shop.ok("batch", "shop:check", "in.jsonl", "--output", "out.jsonl", "--json").json
    assert (second["total"], second["completed"], second["failed"], second["skipped"]) == (4, 1, 0, 3)
    assert sorted(str(line["result"]) for line in lines(out)) == ["33", "36", "39", "42"]
    assert len(shop.ok("list", "--json").json) == 4
    assert "4 of 4 are done already" in shop.ok("batch", "shop:check", "in.jsonl", "--output", "out.jsonl").err


def test_batch_takes_files_as_inputs(shop: Project) -> None:
    shop.write("a.txt", "a")
    shop.write("b.txt", "b")
    shop.ok("batch", "shop:ship", "a.txt", "b.txt", "-o", "out.jsonl")
    assert sorted(str(line["result"]) for line in lines(shop.folder / "out.jsonl")) == [
        "{'path': 'a.txt', 'count': 2}",
        "{'path': 'b.txt', 'count': 2}",
    ]


def test_batch_reports_inputs_that_do_not_fit_and_runs_the_others(shop: Project) -> None:
    shop.write("in.jsonl", '{"n": 1}\n{"n": \n{"m": 2}\n{"n": 3}\n')
    done = shop.run("batch", "shop:check", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 1
    found = {str(line["source"]): line for line in lines(shop.folder / "out.jsonl")}
    assert [found[f"in.jsonl:{n}"]["status"] for n in (1, 2, 3, 4)] == ["completed", "failed", "failed", "completed"]
    assert "in.jsonl:2 is not valid JSON" in str(found["in.jsonl:2"]["error"])
    assert "no parameter 'm'" in json.dumps(found["in.jsonl:3"]["error"])


def test_batch_survives_kill_9_with_every_result_once(shop: Project) -> None:
    marker = shop.folder / "marker"
    shop.write("in.jsonl", "".join(json.dumps({"count": 1 + n % 3, "marker": f"{marker}{n}"}) + "\n" for n in range(8)))
    out = shop.folder / "out.jsonl"
    command = ("batch", "shop:steps", "in.jsonl", "-o", "out.jsonl", "-j", "2")
    running = shop.begin(*command)
    shop.until(lambda: out.exists() and len(out.read_text().splitlines()) >= 2, "two results are written")
    running.kill()
    shop.end(running)
    with out.open("a") as file:
        file.write('{"id": "cut sh')
    shop.ok(*command)
    found = lines(out)
    assert sorted(str(line["source"]) for line in found) == [f"in.jsonl:{n}" for n in range(1, 9)]
    assert all(line["status"] == "completed" for line in found)


def test_ctrl_c_ends_a_batch_that_can_go_on(shop: Project) -> None:
    shop.write("in.jsonl", "".join(json.dumps({"count": 4, "marker": str(shop.folder / f"m{n}")}) + "\n" for n in range(4)))
    command = ("batch", "shop:steps", "in.jsonl", "-o", "out.jsonl", "-j", "1")
    # The second is held, so that the batch is not done before it hears of Ctrl-C.
    hold = shop.write("m1.hold", "")
    running = shop.begin(*command)
    shop.until(lambda: (shop.folder / "out.jsonl").exists() and (shop.folder / "out.jsonl").read_text(), "one result is written")
    stopped = shop.end(running, signal.SIGINT)
    assert stopped.code == 130
    assert "the same command goes on with the rest" in stopped.err
    assert "Traceback" not in stopped.err
    hold.unlink()
    shop.ok(*command)
    assert len(lines(shop.folder / "out.jsonl")) == 4


def test_a_batch_ends_with_the_reason_when_a_layer_is_lost(shop: Project) -> None:
    shop.write("in.jsonl", '{"n": 1}\n{"n": 2}\n')
    shop.write(".ziggurat/state.db", "no database " * 1000)
    done = shop.run("batch", "shop:check", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 3
    assert "not a state file" in done.error


def test_equal_inputs_are_runs_of_their_own(shop: Project) -> None:
    shop.write("in.jsonl", '{"n": 1}\n{"n": 1}\n')
    shop.ok("batch", "shop:check", "in.jsonl", "-o", "out.jsonl")
    assert len({line["id"] for line in lines(shop.folder / "out.jsonl")}) == 2


# -- dead letters ---------------------------------------------------------------------------------------------------


def test_a_task_that_kills_its_process_becomes_a_dead_letter_and_can_be_redriven(project: Project) -> None:
    project.write(
        "killer.py",
        """
        import os

        from ziggurat import task, workflow


        @task(retry=1)
        async def kills(flag: str) -> str:
            if not os.path.exists(flag):
                os._exit(9)
            return "alive"


        @workflow
        async def flow(flag: str) -> str:
            return await kills(flag)
        """,
    )
    project.write("ziggurat.toml", "[queue]\nmax_deliveries = 2\n")
    command = ("run", "killer:flow", "-i", json.dumps({"flag": str(project.folder / "flag")}), "--id", "k")
    assert [project.run(*command).code for _ in range(2)] == [9, 9]
    failed = project.run(*command)
    assert failed.code == 1
    assert "died 2 times" in failed.error
    (letter,) = project.ok("deadletters", "list", "--json").json
    assert (letter["run"], letter["task"]) == ("k", "kills")
    assert "died 2 times" in project.ok("deadletters", "list").out
    project.write("flag", "")
    assert project.ok("deadletters", "redrive", letter["id"]).out == "1 run taken up\n"
    assert project.ok("watch", "k").out == "alive\n"
    assert project.ok("deadletters", "list", "--json").json == []
