"""A whole system in processes of its own: one `ziggurat serve`, some `ziggurat worker`, and the queue between them.

The processes are those that a user starts, with settings in a file; the test reaches the orchestrator through its control socket, and
kills, freezes and starts anew whatever it likes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from tests.chaos.errands import LOG_VARIABLE
from ziggurat.errors import LayerUnreachable
from ziggurat.orchestrator.embedded.lock import read_owner
from ziggurat.orchestrator.remote import RemoteOrchestrator

ROOT = Path(__file__).parents[2]
#: Seconds for a process to come up on a busy machine.
UP = 120.0

T = TypeVar("T")


class Plant:
    """The processes.

    Args:
        folder: for settings, state and logs.
        queue: lines of the [queue] table.
        sweep: seconds after which the orchestrator asks for what is out.
        concurrency, grace: of each worker.
    """

    def __init__(
        self,
        folder: Path,
        queue: str,
        *,
        modules: str = "tests.chaos.errands",
        sweep: float = 4.0,
        concurrency: int = 16,
        grace: float = 30.0,
    ) -> None:
        self.folder = folder
        self.state = folder / "state.db"
        self.log = folder / "effects.log"
        self.log.touch()
        self.settings = folder / "ziggurat.toml"
        self.settings.write_text(
            f'[app]\nmodules = ["{modules}"]\n[orchestrator]\npath = "state.db"\nsweep = "{sweep}s"\n[queue]\n{queue}\n'
            f'[workers.default]\nconcurrency = {concurrency}\ngrace = "{grace}s"\n',
            encoding="utf-8",
        )
        self.orchestrator: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.frozen: list[subprocess.Popen[bytes]] = []
        #: Which processes were thawed, and when.
        self.thaws: list[tuple[int, float]] = []
        #: A worker that nothing kills, to see what it comes to hold over hours.
        self.spared: subprocess.Popen[bytes] | None = None
        self._up: set[int] = set()
        #: When the orchestrator was started last.
        self._began = 0.0
        #: How many workers were started, and exit codes of those that ended by themselves.
        self.started = 0
        self.ended: list[int] = []
        self._remote: RemoteOrchestrator | None = None
        self._reaching = asyncio.Lock()

    # -- processes -----------------------------------------------------------------------------------------------

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ziggurat", *arguments, "--config", str(self.settings)]
        environ = {
            **os.environ,
            "PYTHONFAULTHANDLER": "1",
            LOG_VARIABLE: str(self.log),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start_orchestrator(self) -> None:
        self._began = time.monotonic()
        self.orchestrator = self._start("orchestrator", "serve", "--no-workers", "--no-api")

    def kill_orchestrator(self) -> None:
        """kill -9."""
        assert self.orchestrator is not None
        self.orchestrator.kill()
        self.orchestrator.wait()

    def start_worker(self) -> subprocess.Popen[bytes]:
        self.started += 1
        self._up = {worker.pid for worker in self.workers} & self._up  # A pid of one that is gone may come again.
        worker = self._start(f"worker-{self.started}", "worker")
        self.workers.append(worker)
        return worker

    def at_work(self) -> list[subprocess.Popen[bytes]]:
        """Return the workers that are up, and neither frozen nor ended."""
        up = [worker for worker in self.workers if worker not in self.frozen and worker.poll() is None]
        if any(worker.pid not in self._up for worker in up):
            # Not asked of the logs each time, which become long.
            said = self.said("worker")
            self._up |= {worker.pid for worker in up if f"pid: {worker.pid}," in said}
        return [worker for worker in up if worker.pid in self._up]

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """kill -9."""
        self.workers.remove(worker)
        if worker in self.frozen:
            self.frozen.remove(worker)
        worker.kill()
        worker.wait()

    def retire(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGTERM; the caller waits for its end."""
        if worker in self.workers:
            self.workers.remove(worker)
        worker.terminate()

    def freeze(self, worker: subprocess.Popen[bytes]) -> None:
        worker.send_signal(signal.SIGSTOP)
        self.frozen.append(worker)

    def thaw(self, worker: subprocess.Popen[bytes]) -> None:
        if worker in self.frozen:
            self.frozen.remove(worker)
            self.thaws.append((worker.pid, time.time()))
            worker.send_signal(signal.SIGCONT)

    def reap(self) -> int:
        """Forget workers that ended by themselves; returns how many."""
        gone = [worker for worker in self.workers if worker.poll() is not None]
        for worker in gone:
            self.workers.remove(worker)
            self.ended.append(worker.returncode)
        return len(gone)

    def said(self, name: str = "") -> str:
        """Return what processes whose name starts so have logged."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob(f"{name}*.log")) if path != self.log)

    async def ready(self, workers: int) -> None:
        """Wait until the orchestrator and so many workers run."""
        deadline = time.monotonic() + UP
        while not (self.said("orchestrator").count("Running.") and self.said("worker").count("Running.") >= workers):
            assert time.monotonic() < deadline, self.said()
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """End all processes."""
        await self._forget(self._remote)
        processes = [*self.workers, *([self.orchestrator] if self.orchestrator else [])]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()

    # -- the orchestrator ----------------------------------------------------------------------------------------

    async def ask(self, verb: Callable[[RemoteOrchestrator], Awaitable[T]], patience: float = UP) -> T:
        """Ask the orchestrator, whichever process it is at the time, until one answers. Each process has so long."""
        asked = time.monotonic()
        while True:
            remote = None
            try:
                remote = await self._reach()
                return await verb(remote)
            except LayerUnreachable:
                await self._forget(remote)
                if time.monotonic() > max(asked, self._began) + patience:
                    raise AssertionError(f"The orchestrator does not answer: {self._stack()}") from None
                await asyncio.sleep(0.1)

    def _stack(self) -> str:
        """Return what the orchestrator said, with where it is; it ends of that."""
        assert self.orchestrator is not None
        self.orchestrator.send_signal(signal.SIGABRT)
        self.orchestrator.wait()
        return self.said("orchestrator")[-4_000:]

    async def _reach(self) -> RemoteOrchestrator:
        async with self._reaching:
            if self._remote is None:
                owner = read_owner(self.state)
                if owner is None or not owner.socket:
                    raise LayerUnreachable("Nobody owns the state.")
                remote = RemoteOrchestrator(Path(owner.socket))
                await remote.open()
                self._remote = remote
            return self._remote

    async def _forget(self, remote: RemoteOrchestrator | None) -> None:
        if remote is not None and self._remote is remote:
            self._remote = None
            await remote.close()
