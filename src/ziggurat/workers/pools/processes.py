"""A pool of worker processes on this machine.

Each worker is a process in a session of its own, so that a Ctrl-C at the terminal reaches the pool only. It tells the pool about itself
by JSON lines over a pipe (`ziggurat.workers.process.Status`), drains when the pool is gone, and is started anew when it crashes, with
growing pauses. Scaling in is by SIGUSR1, which a worker obeys by finishing what it has, however long that takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from ziggurat.clock import Clock, SystemClock
from ziggurat.telemetry import events
from ziggurat.workers.pools.interface import PoolSeen, WorkerPool, WorkerSeen
from ziggurat.workers.pools.starting import CommandStarter, Started, Starter
from ziggurat.workers.process import RECYCLE, Status
from ziggurat.workers.usage import together

#: First and longest pause before a worker is started after one crashed, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: A worker that lived so long did not crash at its start; pauses begin anew.
STABLE = 60.0

_statuses = msgspec.json.Decoder(Status)


class ProcessPool(WorkerPool):
    """Worker processes made by a command.

    Args:
        name: the pool's name, for people.
        command: what starts one worker, `--status-fd N` being appended; with a starter, the arguments by which it knows this pool.
        starter: how workers are started; as commands when None.
        output: a folder where each worker writes what it prints, one file each by its name; None for this process's stderr.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        starter: Starter | None = None,
        output: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._starter = starter or CommandStarter(command, os.environ)
        self._arguments = tuple(command) if starter is not None else ()
        self._output = output
        self._clock = clock or SystemClock()
        self._workers: list[_Process] = []
        self._looking_after: set[asyncio.Task[None]] = set()
        self._count = 0
        #: The totals of workers that are gone.
        self._past = Status()
        self._crashes = 0
        self._start_at = 0.0
        self._trouble = ""
        self._closed = False

    async def look(self) -> PoolSeen:
        workers = [worker for worker in self._workers if worker.exit_code is None]
        # One that has ended and is not taken from the list yet counts too, or the totals would fall for a moment.
        statuses = [self._past, *(worker.status for worker in self._workers)]
        return PoolSeen(
            workers=tuple(worker.seen() for worker in workers),
            ended=sum(status.ended for status in statuses),
            seconds=sum(status.seconds for status in statuses),
            used=together(status.used for status in statuses),
            waited=sum(status.waited for status in statuses),
            trouble=self._trouble,
        )

    async def scale(self, count: int) -> None:
        if self._closed:
            return
        there = [worker for worker in self._workers if not worker.retired and worker.exit_code is None]
        if len(there) > count:
            # Those that have not started yet first, then the idle ones, the youngest first: the oldest have the warmest caches.
            idle = sorted((worker for worker in there if not worker.status.busy), key=lambda w: (not w.starting, -w.number))
            for worker in idle[: len(there) - count]:
                worker.retire()
        elif self._clock.monotonic() >= self._start_at:
            for _ in range(count - len(there)):
                await self._start()

    async def close(self, grace: float) -> None:
        self._closed = True
        for worker in self._workers:
            worker.drain()
        for number, patience in ((None, grace + 5.0), (signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
            for worker in self._workers:
                if number is not None:
                    worker.send(number)
            if not self._looking_after:
                break
            await asyncio.wait(self._looking_after, timeout=patience)

    def hurry(self) -> None:
        """Let draining workers hand back at once what they have."""
        for worker in self._workers:
            worker.send(signal.SIGTERM)

    async def _start(self) -> None:
        self._count += 1
        name = f"{self.name}-{self._count}"
        reading, writing = os.pipe()
        try:
            with self._output_of(name) as output:
                process = await self._starter.start(self._arguments, writing, output)
        except OSError as error:
            os.close(reading)
            self._crashed(f"A worker of the pool {self.name!r} cannot be started: {error}.")
            return
        finally:
            os.close(writing)
        worker = _Process(name, self._count, process)
        self._workers.append(worker)
        task = asyncio.get_running_loop().create_task(self._look_after(worker, reading))
        self._looking_after.add(task)
        task.add_done_callback(self._looking_after.discard)

    @contextlib.contextmanager
    def _output_of(self, name: str) -> Iterator[IO[bytes] | None]:
        """The file of one worker's output. It is written at its end, so that whoever reads it may cut it short meanwhile."""
        if self._output is None:
            yield None
            return
        self._output.mkdir(parents=True, exist_ok=True)
        path = self._output / f"{name}.log"
        path.unlink(missing_ok=True)
        with path.open("ab") as file:
            yield file

    async def _look_after(self, worker: _Process, reading: int) -> None:
        """Read what a worker says until it ends, and note how it ended."""
        began = self._clock.monotonic()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb"))
        try:
            listening = loop.create_task(worker.listen(reader, self._is_up))
            code = worker.exit_code = await worker.process.wait()
            # What it said last is still in the pipe; a process that it left behind may hold the pipe open.
            await asyncio.wait([listening], timeout=0.5)
            listening.cancel()
        finally:
            transport.close()
        self._workers.remove(worker)
        past, last = self._past, worker.status
        self._past = Status(
            ended=past.ended + last.ended,
            seconds=past.seconds + last.seconds,
            used=together((past.used, last.used)),
            waited=past.waited + last.waited,
        )
        if worker.retired or self._closed:
            return
        if code in (0, RECYCLE):
            events.WORKER_ENDED(worker=worker.name, code=code)
            return
        if self._clock.monotonic() - began >= STABLE:
            self._crashes = 0
        how = f"exited with code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
        self._crashed(f"The worker {worker.name} {how}.")

    def _crashed(self, text: str) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._crashes, 10))
        self._crashes += 1
        self._start_at = self._clock.monotonic() + pause
        self._trouble = f"{text} The next one is started in {pause:g} s."
        events.WORKER_CRASHED(what=text, seconds=pause, pool=self.name)

    def _is_up(self) -> None:
        self._trouble = ""


class _Process:
    """One worker process, seen from the pool."""

    def __init__(self, name: str, number: int, process: Started) -> None:
        self.name = name
        self.number = number
        self.process = process
        self.status = Status()
        self.starting = True
        self.retired = False
        self._owed: signal.Signals | None = None
        self.exit_code: int | None = None

    def seen(self) -> WorkerSeen:
        draining = self.retired or self.status.draining
        return WorkerSeen(
            name=self.name,
            state="draining" if draining else "starting" if self.starting else "ready",
            busy=self.status.busy,
            slots=self.status.slots,
            trouble=self.status.trouble,
        )

    async def listen(self, reader: asyncio.StreamReader, is_up: Callable[[], None]) -> None:
        while line := await reader.readline():
            try:
                self.status = _statuses.decode(line)
            except msgspec.MsgspecError:
                events.WORKER_BABBLES(worker=self.name)
                continue
            if self.starting:
                self.starting = False
                is_up()
                if self._owed is not None:
                    self.send(self._owed)

    def retire(self) -> None:
        """Make it finish what it has and end."""
        self.retired = True
        self._send_once_up(signal.SIGUSR1)

    def drain(self) -> None:
        """Make it end within its grace period."""
        self._send_once_up(signal.SIGTERM)

    def _send_once_up(self, number: signal.Signals) -> None:
        """Send a signal. To a process that is still starting it would be fatal, when it may have work already; it gets it once it is up."""
        if self.starting:
            self._owed = number
        else:
            self.send(number)

    def send(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            self.process.send_signal(number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
