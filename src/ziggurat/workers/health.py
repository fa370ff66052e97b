"""What a worker process says of itself over HTTP: /healthz, /readyz and /metrics.

    /healthz   200 while the last successful poll of the queue is young enough, else 503: restart this process
    /readyz    200 while it takes work, else 503 with the reason
    /metrics   every metric of this process, in the Prometheus text format 0.0.4 (docs/reference/metrics.md)

A process that is alive but no longer hears its queue looks healthy to everything except the age of its last poll.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ziggurat.clock import Clock
from ziggurat.telemetry import CONTENT_TYPE, metrics_text
from ziggurat.workers.worker import Worker

#: Age in seconds of the last successful poll at which a worker counts as dead.
MAX_POLL_AGE = 60.0
#: Callers that are answered at a time.
CALLERS = 16


class Health:
    """The answers, without a server: for tests, and for doors that have one already.

    Args:
        workers: returns the workers of this process now.
        max_poll_age: seconds after which a worker that has not heard its queue counts as dead.
        works: False for a process that is ready without workers of its own, because it orchestrates or starts others.
    """

    def __init__(
        self, workers: Callable[[], Sequence[Worker]], clock: Clock, max_poll_age: float = MAX_POLL_AGE, *, works: bool = True
    ) -> None:
        self._works = works
        self._workers = workers
        self._clock = clock
        self._max_poll_age = max_poll_age

    def poll_age(self) -> float:
        """Return the age in seconds of the oldest worker's last successful poll; 0 without workers."""
        return max((worker.poll_age() for worker in self._workers()), default=0.0)

    def alive(self) -> tuple[bool, dict[str, Any]]:
        """Say whether the process should go on living, and what is known of it."""
        age = self.poll_age()
        troubles = [trouble for worker in self._workers() if (trouble := worker.trouble())]
        return age <= self._max_poll_age, {"poll_age_seconds": round(age, 3), "troubles": troubles}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Say whether the process takes work."""
        workers = self._workers()
        reasons = [trouble for worker in workers if (trouble := worker.trouble())]
        if not workers:
            reasons += ["No worker runs in this process."] if self._works else []
        elif all(worker.stopping for worker in workers):
            reasons.append("The workers are draining.")
        return not reasons, {"busy": sum(worker.busy for worker in workers), "reasons": reasons}


class HealthServer:
    """Serves the answers of a `Health` on loopback, from threads of its own.

    A task that computes on the workers' event loop delays their next poll, not the answer that says how old the last one is: a probe
    with a time limit of a second must not kill a worker for half a minute of arithmetic.

    Every worker process has one, so it is the plainest that there is: a web framework costs a third of a second to import and an event
    loop to run, this a hundredth. What it gives is small, and asked for a few times a minute.

    Args:
        port: where to listen; 0 lets the system choose, and `port` says after `start` what it chose.
        host: loopback unless a container's probes come from outside it.
    """

    def __init__(self, health: Health, port: int, host: str = "127.0.0.1") -> None:
        self._health = health
        self.host, self.port = host, port
        self._thread: threading.Thread | None = None
        #: Closing one end ends the thread.
        self._waker: socket.socket | None = None

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the port is taken."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.create_server((self.host, self.port), family=family, backlog=CALLERS)
        self.port = listener.getsockname()[1]
        self._waker, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(listener, woken), name="ziggurat-health", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop listening."""
        thread, self._thread = self._thread, None
        if thread is not None and self._waker is not None:
            self._waker.close()
            await asyncio.to_thread(thread.join, 5.0)

    def _serve(self, listener: socket.socket, woken: socket.socket) -> None:
        callers = threading.BoundedSemaphore(CALLERS)
        with listener, woken, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while all(key.fileobj is listener for key, _ in selector.select()):
                try:
                    connection, address = listener.accept()
                except OSError:
                    continue  # The caller hung up, or there is no file descriptor left; others may be luckier.
                # One that is slow to ask takes nobody's turn; of many, the last are turned away.
                if callers.acquire(blocking=False):
                    threading.Thread(target=self._answer, args=(connection, address, callers), daemon=True).start()
                else:
                    connection.close()

    def _answer(self, connection: socket.socket, address: Any, callers: threading.BoundedSemaphore) -> None:
        # Here, because only a process that was asked needs it.
        from ziggurat.workers.probes import Probe

        with connection, contextlib.suppress(OSError):
            try:
                Probe(connection, address, self._look)
            finally:
                callers.release()

    def _look(self, path: str) -> tuple[int, str, bytes] | None:
        """Return status, type and body of an answer, or None if there is nothing at this path."""
        if path == "/metrics":
            return 200, CONTENT_TYPE, metrics_text()
        if path in ("/healthz", "/readyz"):
            well, body = self._health.alive() if path == "/healthz" else self._health.ready()
            return 200 if well else 503, "application/json", msgspec.json.encode({"ok": well, **body})
        return None
