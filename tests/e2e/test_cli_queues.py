"""`ziggurat queues`, `workers` and `deadletters`: what waits, who works, and what was given up, with and without anyone there."""

from __future__ import annotations

import json
import signal

from tests.e2e.conftest import Project

FLOWS = """
    import asyncio
    from pathlib import Path
    from ziggurat import task, workflow

    @task(queue="gated")
    async def hold(name: str) -> str:
        Path(f"{name}.in").touch()
        while not Path(f"{name}.out").exists():
            await asyncio.sleep(0.02)
        return name

    @workflow
    async def held(names: list[str]) -> list[str]:
        return list(await asyncio.gather(*(hold(name) for name in names)))
"""
SETTINGS = """
    [app]
    modules = ["flows"]
    [queue]
    backend = "sqlite"
    [workers.gates]
    queues = ["gated"]
    concurrency = 2
"""


def test_with_nothing_there_each_command_says_so_and_what_to_do(project: Project) -> None:
    looked = project.ok("queues")
    assert looked.out == ""
    assert "start it with `ziggurat serve` or `ziggurat up`" in looked.err
    assert "No worker is alive. Start some with" in project.ok("workers").err
    assert "There are no dead letters." in project.ok("deadletters").err
    for command in ("queues", "workers", "deadletters"):
        assert project.ok(command, "--json").json == []


def test_a_queue_that_cannot_tell_who_works_says_so(project: Project) -> None:
    project.write("mine.py", "from ziggurat.queues.backends.memory import MemoryQueue\n\nmake = lambda settings: MemoryQueue()\n")
    project.write("ziggurat.toml", '[queue]\nbackend = "mine:make"\n')
    looked = project.run("workers", PYTHONPATH=str(project.folder))
    assert (looked.code, looked.out) == (0, "")
    assert 'A queue of the kind "mine:make" cannot tell who works on it' in looked.err


def test_what_waits_and_who_works_is_seen_from_another_process(project: Project) -> None:
    project.write("flows.py", FLOWS)
    project.write("ziggurat.toml", SETTINGS)
    serving = project.begin("serve", "--json")
    project.until_served()
    project.ok("start", "flows:held", "--id", "h", "--input", json.dumps({"names": ["a", "b", "c"]}))
    project.until(lambda: len(list(project.folder.glob("*.in"))) == 2, "two tasks run")
    project.until(lambda: (project.ok("workers", "--json").json or [{}])[0].get("busy") == 2, "the worker shows that it is busy")
    (worker,) = project.ok("workers", "--json").json
    assert (worker["pool"], worker["state"], worker["slots"], worker["queues"]) == ("gates", "busy", 2, ["gated"])
    assert worker["running"] == {"hold": 2}
    assert worker["pid"] == serving.pid
    (queue,) = project.ok("queues", "--json").json
    assert queue.pop("oldest_age_seconds") > 0
    assert queue == {"queue": "gated", "ready": 1, "leased": 2, "delayed": 0, "dead": 0, "workers": 1}
    assert "hold ×2" in project.ok("workers").out
    assert project.ok("queues").out.splitlines()[1].split()[:3] == ["gated", "1", "2"]
    watching = project.begin("queues", "--watch", "--interval", "0.1", "--json")
    assert watching.stdout is not None
    looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
    assert all(look[0]["leased"] == 2 for look in looks)
    assert project.end(watching, signal.SIGINT).code == 130
    for name in "abc":
        (project.folder / f"{name}.out").touch()
    project.until_status("h", "completed")
    assert project.end(serving, signal.SIGTERM).code == 0
    assert project.ok("workers", "--json").json == [], "a worker that ended takes its record back"
