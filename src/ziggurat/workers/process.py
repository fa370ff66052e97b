"""The life of a worker process: signals, health, a line to the pool that started it, and an exit code that says what to do next.

SIGTERM, SIGINT   drain within the grace period; again: hand everything back at once; a third time: die
SIGUSR1           retire: take nothing more, and finish what runs however long it takes; how a pool scales in
the pool's end    a worker process whose pool is gone drains
memory ceiling    drain, and exit with RECYCLE: start me anew
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ziggurat.clock import Clock, SystemClock
from ziggurat.telemetry import catalogue, events
from ziggurat.telemetry.served import reachable_host, set_served
from ziggurat.workers.health import MAX_POLL_AGE, Health, HealthServer
from ziggurat.workers.options import ENDINGS
from ziggurat.workers.orphans import watch_pool
from ziggurat.workers.usage import Used, together
from ziggurat.workers.worker import Worker

T = TypeVar("T")

#: Exit code of a process that drained to be started anew (EX_TEMPFAIL of sysexits.h).
RECYCLE = 75
#: Seconds between two lines to the pool while something changes, and while nothing does.
STATUS_INTERVAL, STATUS_SILENCE = 0.2, 1.0
#: Seconds beyond the grace period after which a worker whose pool is gone counts as hanging, and is killed.
HANGING = 30.0
POOL_GONE = "the process that started it is gone"


class Status(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line from a worker process to its pool."""

    #: Attempts under way, and how many there may be.
    busy: int = 0
    slots: int = 0
    draining: bool = False
    #: Attempts that ended since the process started, and the seconds that they ran.
    ended: int = 0
    seconds: float = 0.0
    #: What they took of each endpoint, and the seconds that calls in this process waited for limits.
    used: dict[str, Used] = {}
    waited: float = 0.0
    #: Why it takes no work, if it does not.
    trouble: str = ""


def status_of(workers: Sequence[Worker]) -> Status:
    """Return what a process with these workers tells its pool."""
    return Status(
        busy=sum(worker.busy for worker in workers),
        slots=sum(worker.options.concurrency for worker in workers),
        draining=bool(workers) and all(worker.stopping for worker in workers),
        ended=sum(getattr(worker.tally, status) for worker in workers for status in ENDINGS),
        seconds=sum(worker.tally.seconds for worker in workers),
        used=together(worker.tally.used for worker in workers),
        waited=sum(waits.sum for waits in catalogue.GATE_SECONDS.children().values()),
        # Cut, so that a line fits a pipe's buffer and is written whole or not at all.
        trouble=next((trouble[:500] for worker in workers if (trouble := worker.trouble())), ""),
    )


class ProcessOptions(Struct, frozen=True, kw_only=True):
    """What surrounds the workers of a process."""

    #: Port of /healthz, /readyz and /metrics; None for none, 0 for any free one.
    health_port: int | None = None
    health_host: str = "127.0.0.1"
    #: Whether a port that cannot be had is no reason to end: nobody asked for that one.
    health_is_courtesy: bool = False
    #: Age in seconds of the last successful poll at which /healthz fails.
    max_poll_age: float = MAX_POLL_AGE
    #: False for a process that is ready without workers of its own.
    works: bool = True
    #: File descriptor to write `Status` lines to, for a pool.
    status_fd: int | None = None


async def serve(
    workers: Callable[[], Sequence[Worker]],
    drain: Callable[[float | None], Awaitable[None]],
    options: ProcessOptions | None = None,
    *,
    clock: Clock | None = None,
    started: Callable[[HealthServer | None], None] = lambda server: None,
    hurry: Callable[[], None] = lambda: None,
) -> int:
    """Look after workers that run already, until the process should end; return its exit code.

    Args:
        workers: returns the workers of this process.
        drain: drains them all within so many seconds (None: each worker's own grace), and returns when they have ended.
        started: is told once signals and the health server are in place.
        hurry: is called at the second signal, for what is drained beside the workers of this process.

    Raises OSError if the health port is taken.
    """
    options = options or ProcessOptions()
    told = _Told(workers, hurry)
    server = await _health_server(workers, options, clock or SystemClock())
    if options.status_fd is not None:
        # The pool holds no more than one grace period against us; what comes after that is hanging.
        patience = max((worker.options.grace for worker in workers()), default=0.0) + HANGING
        loop = asyncio.get_running_loop()
        watch_pool(options.status_fd, lambda: loop.call_soon_threadsafe(told.drain, POOL_GONE), patience)
    beats = asyncio.create_task(_tell_pool(workers, options.status_fd, told))
    try:
        with told.listening():
            started(server)
            await told.asked.wait()
            events.DRAINING(reason=told.reason)
            await drain(told.grace)
        return RECYCLE if any(worker.recycle for worker in told.workers) else 0
    finally:
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)
        if server is not None:
            set_served("", 0)
            await server.close()


async def _health_server(workers: Callable[[], Sequence[Worker]], options: ProcessOptions, clock: Clock) -> HealthServer | None:
    """Start the health server that is asked for. Raises OSError if that is impossible, and it is no courtesy."""
    if options.health_port is None:
        return None
    health = Health(workers, clock, options.max_poll_age, works=options.works)
    server = HealthServer(health, options.health_port, options.health_host)
    try:
        await server.start()
    except OSError as error:
        if not options.health_is_courtesy:
            raise
        events.METRICS_NOT_SERVED(host=options.health_host, error=error)
        return None
    set_served(reachable_host(server.host), server.port)
    return server


class _Told:
    """What the process was told to do."""

    def __init__(self, workers: Callable[[], Sequence[Worker]], hurry: Callable[[], None]) -> None:
        self._find_workers = workers
        self._hurry = hurry
        self.asked = asyncio.Event()
        self.reason = ""
        self.grace: float | None = None
        self.hurried = False
        self.workers: Sequence[Worker] = ()

    def drain(self, reason: str, grace: float | None = None) -> None:
        if not self.asked.is_set():
            # Now, because whoever drains them may forget them.
            self.workers = list(self._find_workers())
            self.reason, self.grace = reason, grace
            self.asked.set()

    @contextlib.contextmanager
    def listening(self) -> Any:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        for number in numbers:
            loop.add_signal_handler(number, self._hear, number)
        try:
            yield
        finally:
            # Everything is handed back, and all that is left is this process's own end. One more SIGTERM would only make a death of
            # what is an exit, also one that comes between the two calls for it: it waits, and is dropped. Ctrl-C still ends what hangs.
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
            for number in numbers:
                loop.remove_signal_handler(number)
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def _hear(self, number: signal.Signals) -> None:
        if number is signal.SIGUSR1:
            self.drain("it is retired", math.inf)
        elif not self.asked.is_set():
            self.drain(f"it got {number.name}")
        elif self.grace == math.inf:
            # A retired process is in no hurry until now.
            self.grace = None
            for worker in self.workers:
                worker.stop(worker.options.grace)
        elif not self.hurried:
            self.hurried = True
            self._hurry()
            for worker in self.workers:
                worker.stop(0.0)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


async def _tell_pool(workers: Callable[[], Sequence[Worker]], descriptor: int | None, told: _Told) -> None:
    """Tell the pool what changed, and at least every STATUS_SILENCE seconds that this process is there; notice when the pool is gone.

    Also notices workers that want to be recycled, which needs a look now and then as well.
    """
    if descriptor is not None:
        os.set_blocking(descriptor, False)
    last, silent = Status(), STATUS_SILENCE
    while True:
        found = told.workers or workers()
        if any(worker.recycle for worker in found):
            told.drain("it is over its memory ceiling")
        status = status_of(found)
        if descriptor is not None and (status != last or silent >= STATUS_SILENCE):
            try:
                os.write(descriptor, msgspec.json.encode(status) + b"\n")
                last, silent = status, 0.0
            except BlockingIOError:
                pass  # The pool is slow to read; it wants the newest only.
            except OSError:
                told.drain(POOL_GONE)
                descriptor = None
        await asyncio.sleep(STATUS_INTERVAL)
        silent += STATUS_INTERVAL


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run the main coroutine of a process that runs tasks: as `asyncio.run`, but a task's sys.exit ends that task only.

    asyncio lets a SystemExit out of the loop when it is raised in an asyncio task, even in one that a Ziggurat task started for itself
    and awaits. Here the loop goes on, and whoever awaits the asyncio task sees the exit.
    """
    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(main)
        while True:
            try:
                runner.run(_join(task))
            except SystemExit:
                if task.done():
                    raise
            else:
                return task.result()


async def _join(task: asyncio.Task[Any]) -> None:
    """Wait for a task without taking its result; a Ctrl-C, which cancels the waiting, cancels the task."""
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            raise
