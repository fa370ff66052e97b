"""init, doctor, models, completion and workers of their own, as people meet them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.conftest import HUNG, Project


def test_init_makes_a_project_that_works_at_once(project: Project) -> None:
    made = project.ok("init", "greeter")
    assert made.out.splitlines() == ["greeter/ziggurat.toml", "greeter/greeter.py", "greeter/test_greeter.py"]
    inside = Project(project.folder / "greeter")
    inside.environ = project.environ
    assert json.loads(inside.ok("run", "greeter:greet", "--input", '{"name": "Ada"}').out) == {
        "greeting": "Hello, Ada!",
        "letters": 8,
    }
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "--rootdir", ".", "-c", os.devnull],
        cwd=inside.folder,
        env={**inside.environ, "PYTHONPATH": str(inside.folder)},
        capture_output=True,
        text=True,
        timeout=HUNG,
        check=False,
    )
    assert "2 passed" in tested.stdout, tested.stdout + tested.stderr
    again = project.run("init", "greeter")
    assert again.code == 2
    assert "exists already" in again.error


def test_init_in_a_folder_whose_name_is_no_module_name(project: Project) -> None:
    made = project.ok("init", "24 hours!", "--json").json
    assert made["module"] == "app_24_hours"
    inside = Project(project.folder / "24 hours!")
    assert inside.ok("run", "greet", "-i", '{"name": "x"}').code == 0


def test_help_and_version(project: Project) -> None:
    shown = project.ok("--help").out
    for command in (
        "init run batch start list show history signal cancel pause resume retry fork deadletters models doctor serve worker up "
        "purge queues workers gateway"
    ).split():
        assert f"  {command} " in shown
    assert project.ok("--version").out.startswith("ziggurat ")
    module = subprocess.run(
        [sys.executable, "-m", "ziggurat", "--version"],
        capture_output=True,
        text=True,
        cwd=project.folder,
        check=True,
        timeout=HUNG,
    )
    assert module.stdout == project.ok("--version").out


def test_help_imports_no_heavy_module(project: Project) -> None:
    # The time itself is a benchmark's business; what costs the time is named here.
    code = "import sys; from ziggurat.doors.cli import run_command; run_command(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HUNG)
    loaded = set(done.stdout.splitlines()[-1].strip("[]").replace("'", "").split(", "))
    heavy = {"aiohttp", "ziggurat.client", "ziggurat.assembly", "ziggurat.orchestrator.embedded.engine", "sqlite3", "rich.live"}
    assert not loaded & heavy


# -- doctor and models ----------------------------------------------------------------------------------------------

SCRIPTED = """
    [app]
    modules = ["flows"]
    [inference.endpoints.script]
    kind = "scripted"
    [inference.models.default]
    routes = ["script:any"]
"""
FLOWS = """
    from ziggurat import llm, task, workflow


    @task(queue="cpu")
    def work(n: int) -> int:
        return n + 1


    @workflow
    async def flow(n: int) -> int:
        return await work(n)


    @workflow
    async def talk(question: str) -> str:
        return await llm.text(question)
"""


@pytest.fixture
def flows(project: Project) -> Project:
    project.write("flows.py", FLOWS)
    project.write("ziggurat.toml", SCRIPTED)
    return project


def test_doctor_finds_a_healthy_system_well(flows: Project) -> None:
    flows.ok("run", "flow", "-i", '{"n": 1}')
    examined = flows.ok("doctor", "--json").json
    assert {finding["layer"] for finding in examined} == {
        "settings", "program", "workers", "orchestrator", "queue", "artifacts", "inference", "extras"
    }  # fmt: skip
    assert not [finding for finding in examined if finding["state"] == "wrong"]
    said = {finding["what"]: finding["said"] for finding in examined}
    assert said["flows"] == "2 workflows, 1 tasks"
    assert any("1 completed" in text and "no process runs it" in text for text in said.values())
    shown = flows.ok("doctor").out
    assert "All is well." in shown


def test_doctor_says_what_is_wrong_and_how_to_mend_it(flows: Project) -> None:
    flows.write("ziggurat.toml", SCRIPTED + '[workers.default]\nqueues = ["default"]\n')
    examined = flows.run("doctor", "--json")
    assert examined.code == 2
    (wrong,) = [finding for finding in examined.json if finding["state"] == "wrong"]
    assert "'cpu'" in wrong["said"]
    assert "add it to the queues of a pool" in wrong["said"]

    flows.write("ziggurat.toml", "[queue]\nbackend = 1\n")
    broken = flows.run("doctor", "--json")
    assert broken.code == 2
    assert broken.json[0]["layer"] == "settings"

    flows.write("ziggurat.toml", SCRIPTED)
    flows.write(".ziggurat/state.db", "no database " * 1000)
    damaged = flows.run("doctor", "--json")
    assert damaged.code == 3
    assert "not a state file" in next(f["said"] for f in damaged.json if f["state"] == "wrong")


def test_models_are_listed_and_asked(flows: Project) -> None:
    listed = flows.ok("models", "--json", OPENAI_API_KEY="sk-hidden").json
    assert {(row["alias"], row["endpoint"], row["model"]) for row in listed} == {
        ("default", "script", "any"), ("fast", "script", "any")
    }  # fmt: skip
    assert "sk-hidden" not in flows.ok("models", OPENAI_API_KEY="sk-hidden").out
    (row,) = flows.ok("models", "check", "--json").json
    assert row["ok"]
    assert row["tokens"] > 0


def test_a_model_call_shows_its_tokens_in_the_run(flows: Project) -> None:
    shown = flows.ok("run", "talk", "-i", '{"question": "why?"}', "--json").json
    assert shown["status"] == "completed"
    assert shown["usage"]["output_tokens"] > 0
    assert "tokens" in flows.ok("run", "talk", "-i", '{"question": "why?"}').err


# -- completion -----------------------------------------------------------------------------------------------------


def complete(project: Project, line: str) -> list[str]:
    environ = {"_ZIGGURAT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    return project.run(**environ).out.split()


def test_completion_knows_runs_and_workflows(flows: Project) -> None:
    flows.ok("run", "flow", "-i", '{"n": 1}', "--id", "alpha")
    flows.ok("run", "flow", "-i", '{"n": 1}', "--id", "beta")
    assert complete(flows, "ziggurat show a") == ["alpha"]
    assert sorted(complete(flows, "ziggurat run flows:")) == ["flows:flow", "flows:talk"]
    assert "deadletters" in complete(flows, "ziggurat dea")


def test_completion_is_silent_where_nothing_can_be_known(project: Project) -> None:
    assert complete(project, "ziggurat show x") == []
    project.write("ziggurat.toml", "[broken\n")
    project.write("odd.py", "def f(:")
    assert complete(project, "ziggurat show x") == []
    assert complete(project, "ziggurat run o") == []


# -- workers of their own -------------------------------------------------------------------------------------------


def test_workers_of_their_own_take_tasks_from_a_shared_queue(flows: Project) -> None:
    flows.write("ziggurat.toml", SCRIPTED + '[queue]\nbackend = "sqlite"\n')
    flows.write("flows.py", FLOWS.replace("return n + 1", "import os; return os.getpid()"))
    server = flows.begin("serve", "--no-workers", "--json")
    flows.until_served()
    working = flows.begin("worker", "--json", "--health-port", "0")
    assert working.stdout is not None
    described = json.loads(working.stdout.readline())
    assert described["pid"] == working.pid
    with urllib.request.urlopen(f"http://127.0.0.1:{described['health_port']}/readyz", timeout=HUNG) as answer:
        assert answer.status == 200
    assert flows.ok("run", "flow", "-i", '{"n": 1}').out == f"{working.pid}\n"
    assert flows.end(working, signal.SIGTERM).code == 0
    assert flows.end(server, signal.SIGTERM).code == 0


def test_up_runs_workers_only_while_there_is_work(flows: Project) -> None:
    flows.write("flows.py", FLOWS.replace("return n + 1", "import os; return os.getpid()"))
    system = flows.begin("up")
    flows.until_served()
    assert int(flows.ok("run", "flow", "-i", '{"n": 1}').out) != system.pid
    ended = flows.end(system, signal.SIGTERM)
    assert ended.code == 0
    assert '`ziggurat up` uses "sqlite" in its place' in ended.err, (
        "a queue in memory is not shared, and it says what it does about it"
    )
    assert "Stopped. No run is unfinished." in ended.err


def test_a_pool_that_is_not_there_is_named(flows: Project) -> None:
    flows.write("ziggurat.toml", SCRIPTED + '[queue]\nbackend = "sqlite"\n')
    refused = flows.run("worker", "gpu")
    assert refused.code == 2
    assert "no pool 'gpu'" in refused.error


def test_two_projects_do_not_meet(project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Project(Path(tmp_path_factory.mktemp("other")))
    for one in (project, other):
        one.write("flows.py", FLOWS)
        one.begin("serve")
        one.until_served()
    project.ok("run", "flows:flow", "-i", '{"n": 1}', "--id", "here")
    assert other.ok("list", "--json").json == []
    other.close()
