"""One side of the comparison of engines: the workloads, written once for every system that is measured.

A side is a process of its own, `python -m benchmarks.ours B '{"runs": 200, "steps": 10}' FOLDER`, that runs one workload on a fresh
state and prints one JSON object. It runs in its system's own environment, so this module needs the standard library only.

    A  one run of sequential steps           B  many runs of sequential steps, started together
    C  one run, all steps in parallel        D  many runs that wait for an hour
    E  many runs of slow steps; what executes steps is killed (-9) half-way and started again

A step returns its int argument, and its result is durable before the next step starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any

#: Names the file to which slow steps append a line when they start.
STEP_LOG = "BENCH_STEP_LOG"
#: The file that says that all runs of workload E are started.
STARTED = "started"
#: How long runs of workload D wait, in seconds.
HOUR = 3600.0
_TICK = os.sysconf("SC_CLK_TCK")


class Side(ABC):
    """A system under measurement.

    Args:
        folder: an empty folder for its state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Processes of the system besides this one, by role; all are ended with the side.
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        #: What the side counts about itself, such as commits; part of the figures of A and B.
        self.notes: dict[str, float] = {}

    @abstractmethod
    async def open(self) -> None:
        """Start the system: servers, workers, a client."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the client. The processes are ended afterwards."""

    @abstractmethod
    async def sequential(self, runs: int, steps: int) -> None:
        """Start runs together, each of so many sequential steps, and wait for them all."""

    @abstractmethod
    async def parallel(self, steps: int) -> None:
        """Run one run that does so many steps in parallel."""

    @abstractmethod
    async def wait(self, runs: int) -> None:
        """Start runs that wait for an hour; return when all are durably started."""

    @abstractmethod
    async def begin_slow(self, runs: int, steps: int, step_ms: int) -> subprocess.Popen[bytes]:
        """Start runs of slow steps and return the process that executes the steps. Touches FOLDER/started once all are started."""

    @abstractmethod
    async def resume_slow(self) -> None:
        """Start what executes steps again, and return when all runs of `begin_slow` have ended."""

    async def recover(self) -> dict[str, float]:
        """Start the system anew over the waiting runs of workload D and return what that cost; empty if it is not measured."""
        return {}

    # -- processes ------------------------------------------------------------------------------------------------

    def spawn(self, role: str, command: list[str], env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process of the system; what it prints goes to FOLDER/ROLE.log."""
        process = self.processes[role] = start_logged(command, self.folder / f"{role}.log", env, **options)
        return process

    def end(self, role: str) -> None:
        """End a process of the system: politely, and after five seconds for good."""
        process = self.processes.pop(role, None)
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def memory(self) -> dict[str, float]:
        """Return the resident memory of each process and its descendants in MiB."""
        spawned = {role: tree(process.pid) for role, process in self.processes.items()}
        return {role: sum(map(resident_mib, pids)) for role, pids in {"this": [os.getpid()], **spawned}.items()}

    def cpu_seconds(self) -> float:
        """Return the CPU time that all living processes of this side have used."""
        spawned = [pid for process in self.processes.values() for pid in tree(process.pid)]
        return sum(map(cpu_seconds, [os.getpid(), *spawned]))


# -- the workloads ------------------------------------------------------------------------------------------------------


async def measure(side: Side, workload: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Run one workload and return its figures."""
    if workload == "E":
        return await _crash(side, **sizes)
    await side.open()
    try:
        if workload == "D":
            return await _waiters(side, **sizes)
        await side.sequential(2, 3)  # Connections, caches and code paths are warm in production.
        runs, steps = sizes.get("runs", 1), sizes["steps"]
        cpu, began = side.cpu_seconds(), time.perf_counter()
        await (side.parallel(steps) if workload == "C" else side.sequential(runs, steps))
        seconds = time.perf_counter() - began
        cpu = side.cpu_seconds() - cpu
        count = runs * steps
        found = {
            "seconds": seconds,
            "steps_per_s": count / seconds,
            "ms_per_step": seconds * 1e3 / count,
            "cpu_us_per_step": cpu * 1e6 / count,
        }
        return found if workload == "C" else {**found, **side.notes}
    finally:
        await side.close()


async def _waiters(side: Side, runs: int) -> dict[str, Any]:
    await side.sequential(2, 3)
    before = side.memory()
    began = time.perf_counter()
    await side.wait(runs)
    seconds = time.perf_counter() - began
    await asyncio.sleep(5.0)  # Until what can be let go of has been.
    after = side.memory()
    found: dict[str, Any] = {
        "runs": runs,
        "starts_per_s": runs / seconds,
        "resident_mib": sum(after.values()),
        "kib_per_waiter": {role: (after[role] - before[role]) * 1024 / runs for role in after},
    }
    return {**found, **await side.recover()}


async def _crash(side: Side, runs: int, steps: int, step_ms: int) -> dict[str, Any]:
    log = side.folder / "steps.log"
    log.touch()
    os.environ[STEP_LOG] = str(log)
    victim = await side.begin_slow(runs, steps, step_ms)
    half, give_up = runs * steps // 2, time.perf_counter() + 120.0
    # Not before all runs are durably started, which on some systems takes longer than half of the steps.
    while len(_started(log)) < half or not (side.folder / STARTED).exists():
        if time.perf_counter() > give_up or victim.poll() is not None:
            raise RuntimeError(f"{len(_started(log))} of {runs * steps} steps started before the kill; see {side.folder}")
        await asyncio.sleep(0.005)
    victim.kill()
    victim.wait()
    at_kill = len(_started(log))
    began = time.perf_counter()
    try:
        await asyncio.wait_for(side.resume_slow(), 120.0)
    finally:
        await side.close()
    seconds = time.perf_counter() - began
    started = Counter(_started(log))
    if len(started) != runs * steps:
        raise RuntimeError(f"{len(started)} of {runs * steps} steps ran")
    return {"seconds": seconds, "ran_again": sum(started.values()) - len(started), "killed_after": at_kill}


def _started(log: Path) -> list[bytes]:
    return log.read_bytes().split()


def step_started(run: object, step: object) -> None:
    """Note that a slow step has started; a kill of this process does not lose the note."""
    file = os.open(os.environ[STEP_LOG], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, f"{run}.{step}\n".encode())
    finally:
        os.close(file)


# -- tools of the sides -------------------------------------------------------------------------------------------------


def start_logged(command: list[str], log: Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process; what it prints is appended to a file."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, **options
        )


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_listening(port: int, process: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    """Wait until a process listens on a port of the loopback interface."""
    give_up = time.perf_counter() + seconds
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        if process.poll() is not None or time.perf_counter() > give_up:
            raise RuntimeError(f"Nothing listens on port {port}; see the logs of process {process.args!r}.")
        await asyncio.sleep(0.02)


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(descendant for child in children for descendant in tree(int(child)))]


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB; what it shares with others counts by its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def main(kind: type[Side]) -> None:
    """Run the workload that the command line names and print its figures."""
    workload, sizes, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    side = kind(folder)

    def ended(*_: object) -> None:
        raise SystemExit("The side was asked to stop.")

    signal.signal(signal.SIGTERM, ended)
    try:
        found = asyncio.run(measure(side, workload, sizes))
    finally:
        for role in list(side.processes):
            side.end(role)
    print("RESULT " + json.dumps(found), flush=True)
