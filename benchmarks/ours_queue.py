"""Ziggurat through Redis: the embedded orchestrator with its durable history in this process, `ziggurat worker` in another.

A task counts as done once its outcome is recorded in the history, which is more than the peers promise: they are measured to the task's
own line, and keep neither results nor a history.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec import Raw

from benchmarks.queue_side import GAP, WARM, percentiles
from benchmarks.side import start_logged
from ziggurat.assembly import System
from ziggurat.records import Event, Run, StartRequest
from ziggurat.settings import load_settings

#: Steps of one run of the drain workload; each run does its steps in parallel.
_FAN_OUT = 100


async def drain(folder: Path, tasks: int) -> dict[str, Any]:
    """Start runs whose steps pile up in Redis, then a worker; from the first step that runs to the last run that ends."""
    settings = _settings(folder)
    async with System(load_settings(settings), pools=()) as system:
        orchestrator: Any = system.orchestrator
        request = StartRequest(workflow="parallel", payload=Raw(json.dumps({"steps": _FAN_OUT}).encode()))
        runs = await asyncio.gather(*[orchestrator.start(request) for _ in range(tasks // _FAN_OUT)])
        ready = 0
        while ready < tasks:
            await asyncio.sleep(0.1)
            ready = sum(depth.ready for depth in (await system.queue.depth()).values())
        before = orchestrator._journal.writer.commits
        async with _worker(settings):
            ended = await asyncio.gather(*[orchestrator.wait(run.id) for run in runs])
        events = [event for run in ended for event in await _steps(orchestrator, run)]
        first, last = min(event.started_at or event.at for event in events), max(run.ended_at for run in ended)
        commits = orchestrator._journal.writer.commits - before
        return {"tasks_per_s": tasks / (last - first), "commits_per_task": commits / tasks}


async def latency(folder: Path, tasks: int) -> dict[str, Any]:
    """Run one run that does a step every 10 ms: from the call that sends to the task's first line, and to the recorded outcome.

    The moment of the call is `sent_at`, when the message is made, in the same turn of the loop as the program's call. `requested_at` is no
    measure of it: it is the run's own time, that of the timer's event before the call, whose commit lies in between.
    """
    settings = _settings(folder)
    async with System(load_settings(settings), pools=()) as system, _worker(settings):
        orchestrator: Any = system.orchestrator
        await asyncio.sleep(3.0)
        payload = Raw(json.dumps({"steps": tasks + WARM, "gap": GAP}).encode())
        run = await orchestrator.wait((await orchestrator.start(StartRequest(workflow="paced", payload=payload))).id)
        events = (await _steps(orchestrator, run))[WARM:]
    started = percentiles([(event.started_at or event.at) - event.sent_at for event in events])
    recorded = percentiles([event.at - event.sent_at for event in events])
    return {**started, **{f"recorded_{key}": value for key, value in recorded.items()}}


async def _steps(orchestrator: Any, run: Run) -> list[Event]:
    events: list[Event] = []
    while True:
        page = await orchestrator.history(run.id, after=events[-1].seq if events else 0)
        if not page:
            return [event for event in events if event.kind == "step_completed"]
        events += page


def _settings(folder: Path) -> Path:
    path = folder / "ziggurat.toml"
    path.write_text(
        '[app]\nmodules = ["benchmarks.programs"]\n[orchestrator]\npath = "state.db"\n'
        f'[queue]\nbackend = "redis"\nurl = "{os.environ["BENCH_REDIS"]}/0"\n'
    )
    return path


@contextlib.asynccontextmanager
async def _worker(settings: Path) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "ziggurat", "worker", "--config", str(settings)]
    worker = start_logged(command, settings.parent / "worker.log")
    try:
        yield
    finally:
        worker.terminate()
        await asyncio.to_thread(worker.wait)


if __name__ == "__main__":
    measure = {"drain": drain, "latency": latency}[sys.argv[1]]
    print("RESULT " + json.dumps(asyncio.run(measure(Path(sys.argv[3]), json.loads(sys.argv[2])["tasks"]))), flush=True)
