"""Ziggurat embedded, as a user has it: the public client, SQLite with synchronous=FULL, the memory queue, one pool in this process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.programs import parallel, sequential, slow, waiter
from benchmarks.side import STARTED, Side, main, resident_mib
from ziggurat import Client

#: Starts under way at a time, so that the client's own futures are no part of the waiters' memory.
_STARTS = 2000


class Embedded(Side):
    """One process; workload E hosts the system in a child process, so that there is something to kill."""

    _client: Any = None

    async def open(self) -> None:
        self._client = await _client(self.folder).__aenter__()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.__aexit__(None, None, None)

    async def sequential(self, runs: int, steps: int) -> None:
        before = self._commits()
        handles = await asyncio.gather(*[self._client.start(sequential, steps) for _ in range(runs)])
        await asyncio.gather(*[handle.result() for handle in handles])
        self.notes = {"commits_per_step": (self._commits() - before) / (runs * steps)}

    async def parallel(self, steps: int) -> None:
        await self._client.run(parallel, steps)

    async def wait(self, runs: int) -> None:
        for at in range(0, runs, _STARTS):
            await asyncio.gather(*[self._client.start(waiter, at + n) for n in range(min(_STARTS, runs - at))])

    async def recover(self) -> dict[str, float]:
        """Close, and open again in a child process: what counts is a process that has just been started."""
        await self.close()
        command = [sys.executable, "-m", "benchmarks.ours", "recover", str(self.folder)]
        child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        printed, _ = await child.communicate()
        seconds, resident = printed.split()
        return {"recovery_s": float(seconds), "recovered_resident_mib": float(resident)}

    async def begin_slow(self, runs: int, steps: int, step_ms: int) -> subprocess.Popen[bytes]:
        self._runs = runs
        return self.spawn(
            "host", [sys.executable, "-m", "benchmarks.ours", "begin", str(self.folder), f"{runs} {steps} {step_ms}"]
        )

    async def resume_slow(self) -> None:
        host = self.spawn("host", [sys.executable, "-m", "benchmarks.ours", "resume", str(self.folder), str(self._runs)])
        if await asyncio.to_thread(host.wait):
            raise RuntimeError(f"The resumed host failed; see {self.folder}/host.log.")

    def _commits(self) -> int:
        return int(self._client.attachment.system.orchestrator._journal.writer.commits)


def _client(folder: Path) -> Client:
    folder.mkdir(exist_ok=True)
    settings = folder / "ziggurat.toml"
    settings.write_text('[app]\nmodules = ["benchmarks.programs"]\n[orchestrator]\npath = "state.db"\n')
    return Client.connect(settings)


async def _begin(folder: Path, runs: int, steps: int, step_ms: int) -> None:
    async with _client(folder) as client:
        handles = [await client.start(slow, number, steps, step_ms, id=f"slow-{number}") for number in range(runs)]
        (folder / STARTED).touch()
        await asyncio.gather(*[handle.result() for handle in handles])


async def _resume(folder: Path, runs: int) -> None:
    async with _client(folder) as client:
        await asyncio.gather(*[client.handle(f"slow-{number}").result() for number in range(runs)])


async def _recover(folder: Path) -> None:
    """Open the system over what is there; it has recovered when every timer is known again and a new run gets through."""
    began = time.perf_counter()
    async with _client(folder) as client:
        orchestrator: Any = client.attachment.orchestrator
        await orchestrator._tasks[0]
        await client.run(sequential, 1)
        print(time.perf_counter() - began, resident_mib(os.getpid()), flush=True)


if __name__ == "__main__":
    command = sys.argv[1]
    if command == "begin":
        asyncio.run(_begin(Path(sys.argv[2]), *map(int, sys.argv[3].split())))
    elif command == "resume":
        asyncio.run(_resume(Path(sys.argv[2]), int(sys.argv[3])))
    elif command == "recover":
        asyncio.run(_recover(Path(sys.argv[2])))
    else:
        main(Embedded)
