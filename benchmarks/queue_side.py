"""One side of the comparison of queues: no-op tasks through Redis to one worker process.

    drain    a backlog is sent, then the worker is started: from the first task that runs to the last
    latency  the worker is idle; tasks are sent one at a time: from the call that sends to the first line of the task

A side is a process of its own, `python -m benchmarks.peers.taskiq drain '{"tasks": 5000}' FOLDER`; it runs in its system's own
environment, so this module needs the standard library only. The address of the server is in BENCH_REDIS.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from benchmarks.side import cpu_seconds, start_logged

#: Names the file into which the worker writes what it saw, and how many tasks it waits for before it does.
METER_FILE, METER_TOTAL = "BENCH_METER", "BENCH_TOTAL"
#: Seconds between two tasks of the latency workload, and tasks sent before it counts.
GAP, WARM = 0.01, 30


class Meter:
    """Counts the tasks that ran in this worker process and notes how long each was on its way."""

    def __init__(self) -> None:
        self._latencies: list[float] = []
        self._first = 0.0
        self._total = int(os.environ.get(METER_TOTAL, "0"))

    def seen(self, sent_at: float) -> None:
        """Note one task; the last one writes the file."""
        now = time.time()
        self._first = self._first or now
        self._latencies.append(now - sent_at)
        if len(self._latencies) == self._total:
            file = Path(os.environ[METER_FILE])
            part = file.with_suffix(".part")
            part.write_text(json.dumps({"first": self._first, "last": now, "latencies": self._latencies}))
            part.rename(file)


class QueueSide(ABC):
    """A task queue under measurement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def worker_command(self) -> list[str]:
        """Return the command of one worker process."""

    @abstractmethod
    async def open(self) -> None:
        """Connect what sends."""

    @abstractmethod
    async def send(self, count: int) -> None:
        """Send so many tasks, as the system's users send many."""

    async def close(self) -> None:
        """Disconnect."""


async def measure(side: QueueSide, workload: str, tasks: int) -> dict[str, Any]:
    """Run one workload and return its figures."""
    meter = side.folder / "meter.json"
    os.environ[METER_FILE], os.environ[METER_TOTAL] = str(meter), str(tasks + WARM if workload == "latency" else tasks)
    await side.open()
    sending = time.perf_counter()
    if workload == "drain":
        await side.send(tasks)
    sending = time.perf_counter() - sending
    worker = start_logged(side.worker_command(), side.folder / "worker.log")
    try:
        if workload == "latency":
            await asyncio.sleep(3.0)
            for _ in range(tasks + WARM):
                await side.send(1)
                await asyncio.sleep(GAP)
        give_up = time.monotonic() + 120.0
        while not meter.exists():
            if worker.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"The worker did not do its tasks; see {side.folder}/worker.log.")
            await asyncio.sleep(0.05)
        cpu = cpu_seconds(worker.pid)
    finally:
        await side.close()
        worker.terminate()
        try:
            worker.wait(10)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    seen = json.loads(meter.read_text())
    if workload == "latency":
        return percentiles(seen["latencies"][WARM:])
    return {"tasks_per_s": (tasks - 1) / (seen["last"] - seen["first"]), "sent_per_s": tasks / sending, "worker_cpu_s": cpu}


def percentiles(latencies: list[float]) -> dict[str, Any]:
    """Return the median and the 99th percentile of latencies in seconds, in milliseconds."""
    ordered = sorted(latencies)
    return {"p50_ms": ordered[len(ordered) // 2] * 1e3, "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3}


def redis_url(database: int = 0) -> str:
    """Return the address of the server under test."""
    return f"{os.environ['BENCH_REDIS']}/{database}"


def main(kind: type[QueueSide]) -> None:
    """Run the workload that the command line names and print its figures."""
    workload, sizes, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])

    def ended(*_: object) -> None:
        raise SystemExit("The side was asked to stop.")

    signal.signal(signal.SIGTERM, ended)
    print("RESULT " + json.dumps(asyncio.run(measure(kind(folder), workload, sizes["tasks"]))), flush=True)
