"""The system on Redis as people run it: what goes wrong with the server is one sentence with its remedy and the right exit code, and
nothing is lost. And the document example, unchanged, on Redis with worker processes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Raw

from tests.conformance.redis_servers import REDIS_8, RedisServer, opened_queue, running
from tests.conftest import missing_service
from tests.e2e.conftest import HUNG, Finished, Project
from tests.ports import free_port
from ziggurat.records import Lane, Message

ROOT = Path(__file__).parents[2]
PROGRAM = """
    from ziggurat import Retry, task, workflow


    @task(retry=Retry(1))
    async def double(n: int) -> int:
        return 2 * n


    @workflow
    async def quadruple(n: int) -> int:
        return await double(await double(n))
"""
LATER = """
    from ziggurat import task, workflow


    @task
    async def triple(n: int) -> int:
        return 3 * n


    @workflow
    async def sextuple(n: int) -> int:
        return 2 * await triple(n)
"""


@pytest.fixture(name="server")
def _server() -> Iterator[RedisServer]:
    with running(REDIS_8, missing_service) as server:
        yield server


@pytest.fixture(name="site")
def _site(project: Project, server: RedisServer) -> Project:
    project.write("sums.py", PROGRAM)
    configure(project, server.url)
    return project


def configure(project: Project, url: str, name: str = "ziggurat.toml", modules: str = "sums", deliveries: int = 2) -> Path:
    return project.write(
        name,
        f"""
        [app]
        modules = ["{modules}"]
        [orchestrator]
        sweep = "2s"
        [queue]
        backend = "redis"
        url = "{url}"
        lease = "4s"
        max_deliveries = {deliveries}
        """,
    )


def begin_logged(site: Project, command: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a command that says what it says in a file, to be read while it runs."""
    with (site.folder / f"{command}.err").open("w") as log:
        process = subprocess.Popen(
            site.command(command, *arguments), cwd=site.folder, env=site.environ, stdout=log, stderr=log, text=True
        )
    site.keep(process)
    return process


def said(site: Project, command: str) -> str:
    return (site.folder / f"{command}.err").read_text()


def result_of(site: Project, workflow: str, run: str, *arguments: str) -> object:
    """Wait for a run that was started, and return its result."""
    return site.ok("run", workflow, "--id", run, "--json", *arguments).json["result"]


def refused(finished: Finished, *parts: str) -> None:
    """One sentence, and the exit code of a layer that is unreachable."""
    assert finished.code == 3, finished
    assert finished.out == ""
    for part in parts:
        assert part in finished.error, finished.error


def every_command_says(site: Project, *parts: str, several: int = 1) -> None:
    """All at the same time, because each waits for the server for some seconds before it gives up."""
    text = (site.folder / "ziggurat.toml").read_text()
    apart = site.write("apart.toml", text.replace("[orchestrator]", '[orchestrator]\npath = "apart.db"'))
    examining = site.begin("doctor", "--json", "--config", str(apart))
    commands = [
        ("run", "quadruple", "-i", '{"n": 2}', "--id", "early"),
        ("worker",),
        ("serve", "--no-api", "--config", str(apart)),
    ]
    for command in [site.begin(*arguments) for arguments in commands[:several]]:
        refused(site.end(command), *parts)
    doctor = site.end(examining)
    assert doctor.code == 3, doctor
    assert any(parts[0] in finding["said"] for finding in doctor.json if finding["state"] == "wrong")


# -- at the start ----------------------------------------------------------------------------------------------------


def test_a_server_that_is_down(site: Project, server: RedisServer) -> None:
    server.kill()
    every_command_says(
        site, f"The Redis server at 127.0.0.1:{server.port} cannot be reached", "start it, or correct queue.url", several=3
    )
    server.start()
    # The command that was refused started nothing, and its id is free.
    assert site.ok("run", "quadruple", "-i", '{"n": 3}', "--id", "early", "--json").json["result"] == 12


def test_a_wrong_password(site: Project, server: RedisServer) -> None:
    server.command("CONFIG", "SET", "requirepass", "open sesame")
    configure(site, "env:QUEUE_URL")
    site.environ["QUEUE_URL"] = f"redis://:hush@127.0.0.1:{server.port}"
    every_command_says(site, "refuses our credentials", "correct the user and password of queue.url")
    configure(site, f"redis://127.0.0.1:{server.port}?password=env:QUEUE_PASSWORD")
    ran = site.ok("run", "quadruple", "-i", '{"n": 3}', "--json", QUEUE_PASSWORD="open sesame")
    assert ran.json["result"] == 12
    assert "hush" not in ran.err


def test_a_user_that_may_do_too_little(site: Project, server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "-@all", "+ping", "+xadd")
    configure(site, "env:QUEUE_URL")
    site.environ["QUEUE_URL"] = f"redis://ann:pw@127.0.0.1:{server.port}"
    every_command_says(site, "does not let our user do what a queue must", "grant it all commands")


def test_a_read_only_replica(site: Project, server: RedisServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", free_port())
    every_command_says(site, "is a read-only replica", "name the primary in queue.url")


# -- in the middle ---------------------------------------------------------------------------------------------------


def test_a_server_that_dies_and_comes_back_empty(site: Project, server: RedisServer) -> None:
    serving = begin_logged(site, "serve", "--no-workers", "--no-api")
    site.until_served()
    site.ok("start", "quadruple", "-i", '{"n": 5}', "--id", "before")
    server.kill()
    site.ok("start", "quadruple", "-i", '{"n": 6}', "--id", "during")
    working = site.begin("worker")
    refused(site.end(working), "cannot be reached")
    server.start()
    working = begin_logged(site, "worker")
    assert [result_of(site, "quadruple", name) for name in ("before", "during")] == [20, 24]
    server.kill()
    site.ok("start", "quadruple", "-i", '{"n": 7}', "--id", "after")
    for command, sentence in (("serve", "The queue gives no outcomes now"), ("worker", "cannot use its queue and keeps trying")):
        site.until(lambda c=command, s=sentence: s in said(site, c), f"{command} says so")  # type: ignore[misc]
    server.start()
    assert result_of(site, "quadruple", "after") == 28
    site.until(lambda: "can use its queue again" in said(site, "worker"), "every verb of the worker works again")
    for process in (working, serving):
        process.terminate()
        assert process.wait(HUNG) == 0
    assert "Traceback" not in said(site, "serve") + said(site, "worker")
    assert "can use its queue again" in said(site, "worker")


def test_a_server_without_memory(site: Project, server: RedisServer) -> None:
    serving, working = begin_logged(site, "serve", "--no-workers", "--no-api"), begin_logged(site, "worker")
    site.until_served()
    assert site.ok("run", "quadruple", "-i", '{"n": 1}', "--json").json["result"] == 4
    server.command("CONFIG", "SET", "maxmemory", "1mb")
    site.ok("start", "quadruple", "-i", '{"n": 8}', "--id", "later")
    site.until(lambda: "is out of memory: raise its maxmemory" in said(site, "serve"), "the orchestrator says so")
    assert site.ok("show", "later", "--json").json["status"] in ("running", "waiting")
    server.command("CONFIG", "SET", "maxmemory", 0)
    assert result_of(site, "quadruple", "later") == 32
    for process in (working, serving):
        process.terminate()
        assert process.wait(HUNG) == 0
    assert "Traceback" not in said(site, "serve") + said(site, "worker")


# -- messages that a worker cannot run -------------------------------------------------------------------------------


def test_a_task_that_no_worker_knows(site: Project, server: RedisServer) -> None:
    site.write("later.py", LATER)
    # Three: the second comes two seconds after the first and the last six after that, so that "left" is alive when its worker goes.
    old = configure(site, server.url, "old.toml", deliveries=3)
    new = configure(site, server.url, "new.toml", modules="later", deliveries=3)
    serving, working = (
        site.begin("serve", "--no-workers", "--no-api", "--config", str(new)),
        begin_logged(site, "worker", "--config", str(old)),
    )
    site.until_served()
    # Given up with the reason after as many deliveries as it has, and the run with it.
    failed = site.run("run", "sextuple", "-i", '{"n": 1}', "--id", "lonely", "--json", "--config", str(new))
    assert failed.code == 1
    assert "no task 'triple'" in failed.json["error"]["message"]
    (letter,) = site.ok("deadletters", "list", "--json", "--config", str(new)).json
    assert "no task 'triple'" in letter["reason"]
    # One who does not know it leaves it to one who does.
    site.ok("start", "sextuple", "-i", '{"n": 2}', "--id", "left", "--config", str(new))
    site.until(lambda: "The message left~" in said(site, "worker"), "the worker hands it back")
    working.terminate()
    assert working.wait(HUNG) == 0
    knowing = site.begin("worker", "--config", str(new))
    assert "1 run taken up" in site.ok("deadletters", "redrive", "--all", "--config", str(new)).out
    assert [result_of(site, "sextuple", name, "--config", str(new)) for name in ("lonely", "left")] == [6, 12]
    for process in (knowing, serving):
        assert site.end(process, signal.SIGTERM).code == 0


async def test_a_message_of_a_newer_version(site: Project, server: RedisServer) -> None:
    working = site.begin("worker")
    async with opened_queue(server.url, lease=2.0, max_deliveries=2) as queue:
        await queue.send([Message(id="new~0.1.1", run="new", task="double", payload=Raw(b'{"n": 1}'), lane=Lane(), version=99)])
        while not (letters := await queue.dead_letters()):
            await queue.outcomes(1, 0.2)
    assert [(letter.id, letter.deliveries) for letter in letters] == [("new~0.1.1", 2)]
    assert "is of version 99, and this worker reads up to" in letters[0].reason
    ended = site.end(working, signal.SIGTERM)
    assert ended.code == 0
    assert "Update the worker" in ended.err


# -- the example -----------------------------------------------------------------------------------------------------


def test_the_document_example_runs_unchanged_on_redis_with_two_worker_processes(site: Project, server: RedisServer) -> None:
    """Only the settings differ between the script in one process and the four layers in processes of their own."""
    site.environ["PYTHONPATH"] = str(ROOT)
    models = """
        [app]
        modules = ["examples.document_analysis.workflow"]
        [inference.endpoints.script]
        kind = "scripted"
        [inference.models.fast]
        routes = ["script:any"]
        """
    site.write("alone.toml", models + '[orchestrator]\npath = "alone.db"\n')
    site.write("apart.toml", models + f'[orchestrator]\npath = "apart.db"\n[queue]\nbackend = "redis"\nurl = "{server.url}"\n')
    documents = [str(path) for path in sorted((ROOT / "examples/document_analysis/documents").iterdir())[:6]]
    batch = ("batch", "examples.document_analysis.workflow:analyze", *documents, "--name", "docs")
    site.ok(*batch, "--output", "alone.jsonl", "--config", "alone.toml")

    serving = site.begin("serve", "--no-workers", "--no-api", "--config", "apart.toml")
    workers = [site.begin("worker", "--config", "apart.toml") for _ in range(2)]
    site.until(lambda: '"socket"' in _read(site.folder / "apart.db.lock"), "a process owns the state")
    site.ok(*batch, "--output", "apart.jsonl", "--config", "apart.toml")
    alone, apart = (_reports(site.folder / name) for name in ("alone.jsonl", "apart.jsonl"))
    assert len(alone) == len(documents)
    assert apart == alone
    served = {
        event["worker"]
        for run in site.ok("list", "--json", "--config", "apart.toml").json[:2]
        for event in site.ok("history", run["id"], "--json", "--config", "apart.toml").json
        if event.get("worker")
    }
    assert served
    assert {name.rsplit("-", 2)[1] for name in served} <= {str(worker.pid) for worker in workers}
    for process in (*workers, serving):
        assert site.end(process, signal.SIGTERM).code == 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _reports(path: Path) -> dict[str, object]:
    return {(found := json.loads(line))["id"]: (found["status"], found["result"]) for line in path.read_text().splitlines()}
