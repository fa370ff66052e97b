"""What a worker counts: its attempts, their times, and what became of leases; and what the gauges of a process's workers show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ziggurat.records import Delivery, Outcome
from ziggurat.telemetry import catalogue
from ziggurat.workers.options import WorkerOptions


class Shown(Protocol):
    """What the gauges read of a worker."""

    options: WorkerOptions

    @property
    def busy(self) -> int:
        """Attempts that run or wait to be settled."""

    @property
    def abandoned(self) -> int:
        """Attempts whose code runs on although they were given up."""

    def poll_age(self) -> float:
        """Return the seconds since the last successful poll."""


class _Task:
    """The counters of one task, looked up once."""

    __slots__ = ("ended", "name", "seconds", "started")

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = catalogue.ATTEMPTS_STARTED.labels(name)
        self.seconds = catalogue.ATTEMPT_SECONDS.labels(name)
        self.ended = {"completed": catalogue.ATTEMPTS_ENDED.labels(name, "completed")}


class Counts:
    """The counters of one worker. Used on its event loop."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}
        self._waits = {"default": catalogue.QUEUE_WAIT.labels("default")}

    def begun(self, delivery: Delivery) -> None:
        """Count an attempt that begins."""
        message = delivery.message
        task = self._tasks.get(message.task)
        if task is None:
            task = self._tasks[message.task] = _Task(message.task)
        task.started.value += 1.0
        if delivery.epoch > 1:
            catalogue.REDELIVERIES.labels(message.lane.queue).inc()

    def ended(self, delivery: Delivery, outcome: Outcome) -> None:
        """Count an attempt that ended. Clocks of two machines may differ: a wait is never less than 0."""
        task = self._tasks[outcome.task]
        # Written out rather than called: with the calls, counting took a twentieth of what a whole embedded step takes.
        try:
            task.ended[outcome.status].value += 1.0
        except KeyError:
            task.ended[outcome.status] = status = catalogue.ATTEMPTS_ENDED.labels(task.name, outcome.status)
            status.inc()
        started = outcome.started_at
        if not started:
            return
        task.seconds.observe(outcome.ended_at - started)
        sent = outcome.sent_at
        if sent:
            queue = delivery.message.lane.queue
            wait = self._waits.get(queue)
            if wait is None:
                wait = self._waits[queue] = catalogue.QUEUE_WAIT.labels(queue)
            wait.observe(started - sent if started > sent else 0.0)

    def released(self, number: int) -> None:
        """Count messages that were handed back."""
        catalogue.RELEASED.inc(number)

    def fenced(self, delivery: Delivery) -> None:
        """Count a lease that went to another worker."""
        catalogue.FENCED.labels(delivery.message.lane.queue).inc()


#: The workers that run in this process. Replaced as a whole: a page of metrics is made in another thread.
_running: tuple[Shown, ...] = ()


def show(worker: Shown) -> None:
    """Let the gauges show a worker from now on."""
    global _running
    _running = (*_running, worker)


def show_no_longer(worker: Shown) -> None:
    """Let the gauges forget a worker that has ended."""
    global _running
    _running = tuple(other for other in _running if other is not worker)


def _by_pool(
    read: Callable[[Shown], float], merge: Callable[[float, float], float] = lambda a, b: a + b
) -> dict[tuple[str, ...], float]:
    values: dict[tuple[str, ...], float] = {}
    for worker in _running:
        key, value = (worker.options.pool,), read(worker)
        values[key] = merge(values[key], value) if key in values else value
    return values


catalogue.BUSY.watch(lambda: _by_pool(lambda worker: float(worker.busy)))
catalogue.SLOTS.watch(lambda: _by_pool(lambda worker: float(worker.options.concurrency)))
catalogue.ABANDONED.watch(lambda: _by_pool(lambda worker: float(worker.abandoned)))
catalogue.POLL_AGE.watch(lambda: _by_pool(lambda worker: worker.poll_age(), max))
