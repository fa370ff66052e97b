"""Temporal's side of the API benchmark: its development server on SQLite with workflows in it, listed and described over gRPC.

The workflows wait for a worker that never comes. They are fewer than Ziggurat's runs, because each takes milliseconds to start.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.temporal import QUEUE, Temporal, Waiter
from benchmarks.side import HOUR


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return {"p50_ms": ordered[len(ordered) // 2] * 1e3, "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3}


async def look(folder: Path, sizes: dict[str, Any]) -> dict[str, float]:
    """List and describe."""
    side = Temporal(folder)
    await side.open()
    side.end("worker")
    try:
        client = side._client
        at_once = asyncio.Semaphore(200)

        async def start(number: int) -> None:
            async with at_once:
                await client.start_workflow(Waiter.run, number, id=f"waiter-{number}", task_queue=f"{QUEUE}-{HOUR}")

        await asyncio.gather(*[start(number) for number in range(sizes["peer_runs"])])
        limit = time.monotonic() + 120  # The index of its lists lags behind.
        while (await client.count_workflows()).count < sizes["peer_runs"] and time.monotonic() < limit:  # noqa: ASYNC110
            await asyncio.sleep(0.5)

        async def first(query: str | None = None) -> None:
            async for found, _ in _numbered(client.list_workflows(query, page_size=100)):
                if found == 100:
                    return

        async def timed(ask: Any) -> dict[str, float]:
            await ask()
            took = []
            for _ in range(sizes["times"]):
                began = time.perf_counter()
                await ask()
                took.append(time.perf_counter() - began)
            return spread(took)

        handle = client.get_workflow_handle(f"waiter-{sizes['peer_runs'] // 2}")
        figures = {
            "list": await timed(first),
            "describe": await timed(handle.describe),
            "count": await timed(client.count_workflows),
        }
        figures["failed"] = await timed(lambda: first("ExecutionStatus = 'Failed'"))
        return {f"{name}_{key}": value for name, figure in figures.items() for key, value in figure.items()}
    finally:
        for role in [*side.processes]:
            side.end(role)


async def _numbered(items: Any) -> Any:
    number = 0
    async for item in items:
        number += 1
        yield number, item


if __name__ == "__main__":
    print("RESULT", json.dumps(asyncio.run(look(Path(sys.argv[3]), json.loads(sys.argv[2])))))
