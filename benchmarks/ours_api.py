"""Ziggurat's side of the API benchmark: `ziggurat serve` over a state file full of runs, asked over HTTP by this process."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Raw

from benchmarks.side import cpu_seconds, free_port, tree
from ziggurat.orchestrator.embedded import store
from ziggurat.records import Run, Usage

PROGRAM = """
import asyncio, pathlib
from ziggurat import emit, task, workflow

@task
async def talk(tokens: int, pace: float) -> int:
    while not pathlib.Path("everyone-listens").exists():
        await asyncio.sleep(0.02)
    for number in range(tokens):
        emit(f"token {number} ", "token")
        await asyncio.sleep(pace)
    return tokens

@workflow
async def recite(tokens: int, pace: float) -> int:
    return await talk(tokens, pace)
"""
STATUSES = ["completed"] * 90 + ["failed"] * 5 + ["cancelled"] * 4 + ["parked"]


def fill(path: Path, runs: int) -> None:
    """Write a state file of runs that have ended, with inputs and results of a few kilobytes."""
    chance = random.Random(1)
    connection = store.connect(path, write=True)
    connection.execute("BEGIN")
    for key in range(1, runs + 1):
        run = Run(
            id=f"analyze-{chance.getrandbits(60):015x}",
            workflow=chance.choice(["analyze", "summarize", "extract"]),
            status=chance.choice(STATUSES),  # type: ignore[arg-type]
            payload=Raw(b'{"document": "' + b"x" * 2_000 + b'"}'),
            result=Raw(b'{"report": "' + b"y" * 500 + b'"}'),
            tags={"customer": f"c{key % 500}"},
            usage=Usage(3, 1_000, 200, cost_usd=0.01),
            created_at=1.7e9 + key,
            started_at=1.7e9 + key,
            ended_at=1.7e9 + key + 5,
            events=9,
        )
        connection.execute(store.INSERT_RUN + store.RUN_VALUES, store.run_row(key, run))
    connection.execute("COMMIT")
    connection.close()


async def serve(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the server, and return it with its address once it answers."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "ziggurat.toml").write_text('[app]\nmodules = ["program"]\n')
    port = free_port()
    command = [str(Path(sys.executable).parent / "ziggurat"), "serve", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)  # noqa: ASYNC220
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    if response.status == 200:
                        return process, f"http://127.0.0.1:{port}/api/v1"
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError("The server did not answer.")


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return {"p50_ms": ordered[len(ordered) // 2] * 1e3, "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3}


async def timed(ask: Callable[[], Awaitable[Any]], times: int) -> dict[str, float]:
    """Ask one after the other, and return how long it took."""
    await ask()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - began)
    return spread(took)


async def look(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """List and describe, with all runs in the file."""
    (folder / ".ziggurat").mkdir()
    fill(folder / ".ziggurat" / "state.db", sizes["runs"])
    process, url = await serve(folder)
    found: dict[str, float] = {}
    try:
        async with aiohttp.ClientSession() as session:

            async def get(path: str) -> Any:
                async with session.get(url + path) as response:
                    assert response.status == 200, await response.text()
                    return await response.json()

            page = await get("/runs?limit=100")
            for _ in range(20):
                page = await get(f"/runs?limit=100&after={page['next']}")
            some, deep = page["runs"][0]["id"], page["next"]
            asked = {
                "list": "/runs?limit=100",
                "deep": f"/runs?limit=100&after={deep}",
                "failed": "/runs?limit=100&status=failed",
                "tag": "/runs?limit=100&tag=customer=c77",
                "search": "/runs?limit=100&search=abcd",
                "count": "/runs/counts",
                "describe": f"/runs/{some}",
            }
            for name, path in asked.items():
                spent = await timed(lambda path=path: get(path), sizes["times"])  # type: ignore[misc]
                found.update({f"{name}_{key}": value for key, value in spent.items()})
            began = time.perf_counter()
            await asyncio.gather(*[timed(lambda: get(f"/runs/{some}"), sizes["times"]) for _ in range(8)])
            found["describes_per_s"] = 8 * (sizes["times"] + 1) / (time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait(30)
    return found


async def streams(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """Follow one run with many readers; every token has its moment in it."""
    process, url = await serve(folder)
    late: list[float] = []
    listening = 0
    try:
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            order = {"workflow": "recite", "input": {"tokens": sizes["tokens"], "pace": sizes["pace"]}, "id": "poem"}
            async with session.post(f"{url}/runs", json=order) as response:
                assert response.status == 201, await response.text()

            async def read() -> int:
                nonlocal listening
                heard, kind = 0, ""
                async with session.get(f"{url}/runs/poem/events") as response:
                    listening += 1
                    if listening == sizes["readers"]:
                        (folder / "everyone-listens").touch()
                    async for line in response.content:
                        if line.startswith(b"event: "):
                            kind = line[7:].strip().decode()
                        elif line.startswith(b"data: ") and kind == "progress":
                            heard += 1
                            told = json.loads(line[6:])["at"]
                            late.append(time.time() - _moment(told))
                return heard

            before = sum(map(cpu_seconds, tree(process.pid)))
            heard = await asyncio.gather(*[read() for _ in range(sizes["readers"])])
            cpu = sum(map(cpu_seconds, tree(process.pid))) - before
    finally:
        process.terminate()
        process.wait(30)
    complete = sum(count == sizes["tokens"] for count in heard)
    return {**spread(late), "complete_readers": complete, "cpu_us_per_event": cpu / max(1, sum(heard)) * 1e6}


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    workload, given, place = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    print("RESULT", json.dumps(asyncio.run({"look": look, "streams": streams}[workload](place, given))))
