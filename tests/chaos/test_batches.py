"""Whoever looks after a batch is killed while the provider has its request: the batch is found again, and its calls are bought once."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.e2e.conftest import Project, project  # noqa: F401
from ziggurat.testing.batches import BatchDesk
from ziggurat.testing.models import FaultyUpstream

PROGRAM = """
    from ziggurat import llm, workflow

    @workflow
    async def sort(text: str) -> str:
        return await llm.text(text, model="fast", deadline="2h")
"""
SETTINGS = """
    [app]
    modules = ["mail"]
    [queue]
    backend = "sqlite"
    lease = "2s"
    [server]
    port = 0
    [inference.endpoints.up]
    base_url = "{url}"
    batch = true
    [inference.endpoints.up.prices]
    "m" = {{ input = "$1000", output = "$1000" }}
    [inference.models.fast]
    routes = ["up:m"]
    [inference.batches]
    window = "1s"
    look = "1s"
    claim = "2s"
"""


@contextmanager
def upstream() -> Iterator[FaultyUpstream]:
    """A provider in a thread of its own."""
    ready, over = threading.Event(), threading.Event()
    made: list[FaultyUpstream] = []

    async def serve() -> None:
        async with FaultyUpstream() as server:
            made.append(server)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60.0)
        yield made[0]
    finally:
        over.set()
        thread.join()


def hangs(desk: BatchDesk, number: int) -> bool:
    return desk.hanging >= number


@pytest.mark.chaos
def test_a_batch_is_bought_once_though_whoever_looks_after_it_is_killed_at_every_request(project: Project) -> None:  # noqa: F811
    with upstream() as server:
        desk = server.batches
        desk.faults = {verb: ["hangs"] for verb in ("create", "look", "content")}
        project.write("mail.py", PROGRAM)
        project.write("ziggurat.toml", SETTINGS.format(url=server.base_url))
        runs = [f"run{number}" for number in range(3)]
        victim = project.begin("serve")
        project.until_served()
        for run in runs:
            project.ok("start", "mail:sort", "--input", f'{{"text": "about {run}"}}', "--id", run)
        for hung in (1, 2, 3):
            # Two batches may hang at once, where one call came a moment after the others.
            project.until(partial(hangs, desk, hung), f"request {hung} hangs")
            project.end(victim, signal.SIGKILL)
            victim = project.begin("serve")
            project.until_served()
        for run in runs:
            project.until_status(run, "completed")
        assert set(desk.answered.values()) == {1}
        assert len({line["body"]["messages"][-1]["content"] for b in desk.made.values() for line in desk.lines_of(b)}) == 3
        assert server.requests == 0, "nothing was bought at the full price"
        marks = [batch["metadata"]["ziggurat_batch"] for batch in desk.made.values()]
        assert len(marks) == len(set(marks))
        rows = project.ok("costs", "--by", "price", "--json").json
        assert [(row["price"], row["calls"]) for row in rows] == [("settings batch", 3)]
        project.end(victim, signal.SIGTERM)
