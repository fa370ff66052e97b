"""One side of the benchmark `stack`: `python -m benchmarks.stack_side SIDE WORKLOAD SIZES FOLDER` analyses documents and says how it went.

The program is examples/document_analysis on every side; a side is a settings file and what reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.ours_api import spread
from benchmarks.side import cpu_seconds, free_port, start_logged, tree, until_listening

DOCUMENTS = sorted((ROOT / "examples" / "document_analysis" / "documents").iterdir())
#: Documents that the script has in hand at a time; as many as a worker of Ziggurat has tasks by default.
AT_ONCE = 64
KEY = "zgk-benchmark-key-of-no-entropy-at-all"

#: Analyses one document; returns what it cost in dollars, or None where nobody knows.
Analyse = Callable[[Path, str], Awaitable[float | None]]

SETTINGS = """
[app]
modules = ["examples.document_analysis.workflow"]
[orchestrator]
path = "state.db"
[inference.endpoints.provider]
base_url = "{url}"
api_key = "env:BENCH_KEY"
limits = {{ tokens_per_minute = 1_000_000_000, requests_per_minute = 100_000_000 }}
prices = {{ "gpt-5.4-mini" = {{ input = 0.40, output = 2.50 }} }}
[inference.models.fast]
routes = ["provider:gpt-5.4-mini"]
"""
APART = """
[queue]
backend = "redis"
url = "{redis}/0"
"""
GATEWAY = """
[inference.models."gpt-5.4-mini"]
routes = ["provider:gpt-5.4-mini"]
[gateway]
port = {port}
[gateway.keys.bench]
key = "env:BENCH_KEY"
budget = 1_000_000.0
"""


class Processes:
    """The processes of a side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command of ziggurat."""
        started = start_logged([sys.executable, "-m", "ziggurat", *command], self.folder / f"{name}.log", cwd=self.folder)
        self.all.append(started)
        return started

    def cpu(self) -> float:
        """Return the CPU seconds that they and this process have used so far."""
        return sum(cpu_seconds(pid) for process in self.all for pid in tree(process.pid)) + time.process_time()

    def end(self) -> None:
        """End them all, the first ones last."""
        for process in reversed(self.all):
            process.terminate()
            process.wait()


@contextlib.asynccontextmanager
async def script(processes: Processes, url: str) -> AsyncIterator[Analyse]:
    """Run the program with nothing under it: no history, no queue, no workers."""
    (processes.folder / "ziggurat.toml").write_text(SETTINGS.format(url=url))
    os.environ["ZIGGURAT_CONFIG"] = str(processes.folder / "ziggurat.toml")
    from examples.document_analysis.workflow import analyze

    slots = asyncio.Semaphore(AT_ONCE)

    async def analyse(document: Path, id: str) -> None:
        async with slots:
            await analyze(str(document))

    yield analyse


@contextlib.asynccontextmanager
async def embedded(processes: Processes, url: str) -> AsyncIterator[Analyse]:
    """Run it durably in this process."""
    (processes.folder / "ziggurat.toml").write_text(SETTINGS.format(url=url))
    async with _client(processes.folder / "ziggurat.toml") as analyse:
        yield analyse


@contextlib.asynccontextmanager
async def apart(processes: Processes, url: str) -> AsyncIterator[Analyse]:
    """Run it on four layers apart: a server with the orchestrator, Redis, two worker processes and a gateway."""
    folder, port, front = processes.folder, free_port(), free_port()
    (folder / "gateway.toml").write_text(SETTINGS.format(url=url) + GATEWAY.format(port=port))
    settings = SETTINGS.format(url=f"http://127.0.0.1:{port}/v1") + APART.format(redis=os.environ["BENCH_REDIS"])
    (folder / "ziggurat.toml").write_text(settings)
    await until_listening(port, processes.start("gateway", "gateway", "--config", "gateway.toml"))
    await until_listening(front, processes.start("serve", "serve", "--no-workers", "--port", str(front)))
    for number in (1, 2):
        processes.start(f"worker-{number}", "worker")
    async with _client(f"http://127.0.0.1:{front}") as analyse:
        yield analyse


@contextlib.asynccontextmanager
async def _client(where: Path | str) -> AsyncIterator[Analyse]:
    from ziggurat import Client

    async with Client.connect(where) as client:

        async def analyse(document: Path, id: str) -> float:
            run = await (await client.start("analyze", document=str(document), id=id)).wait()
            if run.status != "completed":
                raise RuntimeError(f"{id} is {run.status}: {run.reason or run.error}")
            return run.usage.cost_usd

        yield analyse


async def flood(analyse: Analyse, processes: Processes, documents: int) -> dict[str, Any]:
    """Ask for all documents at once; until the last one is done."""
    cpu, began = processes.cpu(), time.perf_counter()
    costs = await asyncio.gather(*[analyse(DOCUMENTS[n % len(DOCUMENTS)], f"flood-{n}") for n in range(documents)])
    seconds = time.perf_counter() - began
    found = {"documents_per_hour": documents / seconds * 3600, "cpu_ms_per_document": (processes.cpu() - cpu) * 1e3 / documents}
    known = [cost for cost in costs if cost is not None]
    return found | ({"cost_usd_per_document": sum(known) / documents} if known else {})


async def paced(analyse: Analyse, processes: Processes, documents: int, per_hour: float) -> dict[str, Any]:
    """Ask for a document at a time, at a fixed rate; how long each takes."""
    took: list[float] = []

    async def one(number: int) -> None:
        began = time.perf_counter()
        await analyse(DOCUMENTS[number % len(DOCUMENTS)], f"paced-{number}")
        took.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        due = time.perf_counter()
        for number in range(documents):
            group.create_task(one(number))
            due += 3600 / per_hour
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
    return spread(took)


async def main(side: str, workload: str, sizes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Set a side up, warm it with every document once, and measure."""
    os.environ["BENCH_KEY"] = KEY
    processes = Processes(folder)
    try:
        async with {"script": script, "embedded": embedded, "apart": apart}[side](
            processes, os.environ["BENCH_UPSTREAM"]
        ) as analyse:
            await asyncio.gather(*[analyse(document, f"warm-{document.name}") for document in DOCUMENTS])
            measure: Any = {"flood": flood, "paced": paced}[workload]
            found: dict[str, Any] = await measure(analyse, processes, **sizes)
            return found
    finally:
        await asyncio.to_thread(processes.end)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The side was asked to stop."))
    given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), Path(sys.argv[4])
    print("RESULT " + json.dumps(asyncio.run(main(*given))), flush=True)
