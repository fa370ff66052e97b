"""Lanes over several worker processes: queues, regions and workflow types reach their pools, and limits hold over all of them.

Pools of real `ziggurat worker` processes over a queue that they share. Tasks append a line to one log when they begin and when they end;
what overlapped, and where each ran, is read from it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.redis_servers import FLAVOURS, REDIS_8, find_binary, running
from tests.conftest import missing_service
from tests.e2e.conftest import HUNG, Project

FLOWS = """
    import asyncio, os, time
    from ziggurat import Concurrent, run_info, task, workflow

    def note(what: str) -> None:
        with open("log.txt", "ab", buffering=0) as log:
            log.write(f"{what} {os.getpid()} {time.time()}\\n".encode())

    async def work(what: str, seconds: float = 0.05) -> int:
        note(f"begin {what}")
        await asyncio.sleep(seconds)
        note(f"end {what}")
        return os.getpid()

    @task
    async def anywhere() -> int:
        return await work("anywhere")

    @task(queue="cpu")
    async def crunch() -> int:
        return await work("crunch")

    @task(region="eu")
    async def in_europe() -> int:
        return await work("in_europe")

    @workflow
    async def places() -> dict[str, int]:
        return {
            "anywhere": await anywhere(),
            "crunch": await crunch(),
            "europe": await in_europe(),
            "moved": await anywhere.options(queue="cpu")(),
            "moved to europe": await crunch.options(queue="default", region="eu")(),
        }

    @workflow(queue="reports")
    async def reporting() -> dict[str, int]:
        return {"own": await anywhere(), "named": await crunch()}

    @workflow
    async def on_mars() -> int:
        return await anywhere.options(region="mars")()

    def at_it() -> set[str]:
        with open("log.txt") as log:
            return {line.split()[2] for line in log if line.startswith("begin limited-") and line.endswith("\\n")}

    @task(concurrency=Concurrent(2, key="customer"), retry=1)
    async def limited(customer: str, n: int) -> int:
        note(f"begin limited-{customer}")
        # Both processes are to take part, however late one of them wakes: what one has fills its slots until the other has some.
        while len(at_it()) < 2:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        note(f"end limited-{customer}")
        return os.getpid()

    @task(rate="10/s", retry=1)
    async def paced(n: int) -> int:
        return await work("paced", 0.0)

    @workflow
    async def crowd(customers: list[str], each: int) -> list[int]:
        return list(await asyncio.gather(*(limited(c, n) for n in range(each) for c in customers)))

    @workflow
    async def march(steps: int) -> list[int]:
        return list(await asyncio.gather(*(paced(n) for n in range(steps))))
"""
SETTINGS = """
    [app]
    modules = ["flows"]
    [queue]
    {queue}
    [workers.cpu]
    queues = ["cpu"]
    concurrency = 4
    [workers.europe]
    queues = ["default"]
    region = "eu"
    concurrency = 4
    [workers.plain]
    queues = ["default"]
    concurrency = 4
    [workers.reports]
    queues = ["reports"]
    concurrency = 4
"""
POOLS = ("cpu", "europe", "plain", "reports")


class Fleet:
    """A project with a server and one worker process for each pool."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.pids = {name: project.begin("worker", name).pid for name in POOLS}
        project.begin("serve", "--no-workers", "--no-api")
        project.until_served()
        project.until(lambda: len(self.workers()) == len(POOLS), "all workers show themselves")

    def workers(self) -> list[dict[str, Any]]:
        return list(self.project.ok("workers", "--json").json)

    def run(self, workflow: str, **arguments: Any) -> Any:
        run = self.project.ok("run", f"flows:{workflow}", "--input", json.dumps(arguments), "--json").json
        return run["result"]

    def log(self) -> list[tuple[str, str, int, float]]:
        lines = [line.split() for line in (self.project.folder / "log.txt").read_text().splitlines()]
        return [(edge, what, int(pid), float(at)) for edge, what, pid, at in lines]


def overlap(log: list[tuple[str, str, int, float]], what: str) -> int:
    """Return how many attempts of a kind ran at a time at most. An attempt has begun before the line that says so and ends after."""
    most = now = 0
    for edge, name, _, _ in log:
        if name == what:
            now += 1 if edge == "begin" else -1
            most = max(most, now)
    return most


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for the tests of a module, over each queue that processes share."""
    project = Project(Path(tmp_path_factory.mktemp("fleet")))
    project.write("flows.py", FLOWS)
    with ExitStack() as stack:
        queue = 'backend = "sqlite"'
        if request.param == "redis":
            flavour = next((flavour for flavour in FLAVOURS if find_binary(flavour)), REDIS_8)
            queue = f'backend = "redis"\nurl = "{stack.enter_context(running(flavour, missing_service)).url}"'
        stack.callback(project.close)
        project.write("ziggurat.toml", SETTINGS.format(queue=queue))
        yield Fleet(project)


def test_queues_and_regions_of_tasks_and_calls_reach_their_pools(fleet: Fleet) -> None:
    found = fleet.run("places")
    pids = fleet.pids
    assert found["crunch"] == found["moved"] == pids["cpu"]
    assert found["europe"] == found["moved to europe"] == pids["europe"]
    assert found["anywhere"] in (pids["plain"], pids["europe"]), "a worker in a region takes what has none, too"


def test_a_workflow_type_has_a_pool_of_its_own(fleet: Fleet) -> None:
    found = fleet.run("reporting")
    assert found == {"own": fleet.pids["reports"], "named": fleet.pids["cpu"]}, "a task's own queue comes before the workflow's"


def test_what_no_pool_serves_waits_and_is_seen_waiting(fleet: Fleet) -> None:
    project = fleet.project
    project.ok("start", "flows:on_mars", "--id", "mars", "--input", "{}")

    def waiting() -> int:
        return sum(queue["ready"] for queue in project.ok("queues", "--json").json)

    project.until(lambda: waiting() == 1, "the message waits")
    project.ok("cancel", "mars")
    project.until_status("mars", "cancelled")
    project.until(lambda: waiting() == 0, "the message is gone")


def test_a_concurrency_key_holds_over_all_worker_processes(fleet: Fleet) -> None:
    customers = ["ann", "bob", "cid", "dan", "eve"]
    pids = fleet.run("crowd", customers=customers, each=4)
    assert set(pids) == {fleet.pids["plain"], fleet.pids["europe"]}, "both processes that serve the queue took part"
    log = fleet.log()
    most = max(overlap(log, f"limited-{customer}") for customer in customers)
    assert most == 2, "two of a customer at a time, and never more"


def test_a_rate_holds_over_all_worker_processes(fleet: Fleet) -> None:
    fleet.run("march", steps=15)
    starts = sorted(at for edge, what, _, at in fleet.log() if edge == "begin" and what == "paced")
    assert len(starts) == 15
    # 10 a second, and as many at once at the start: whichever 12 follow one another, the last starts a second's tenths after the first.
    started = fleet.project.ok("list", "--json").json
    began = min(run["started_at"] for run in started if run["workflow"] == "march")
    assert starts[-1] - _epoch(began) >= (15 - 10) / 10 - 0.01, "what is over the burst waits for its tokens"


def _epoch(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_every_worker_drains_cleanly(fleet: Fleet) -> None:
    for process in fleet.project._started:
        process.send_signal(signal.SIGTERM)
    assert {process.wait(HUNG) for process in fleet.project._started} == {0}
