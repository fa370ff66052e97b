"""What a worker process says of itself over HTTP, on loopback: /healthz, /readyz and /metrics.

    /healthz   200 while the last successful poll of the queue is young enough, else 503: restart this process
    /readyz    200 while it takes work, else 503 with the reason
    /metrics   every metric of this process, in the Prometheus text format 0.0.4 (docs/reference/metrics.md)

A process that is alive but no longer hears its queue looks healthy to everything except the age of its last poll.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ziggurat.clock import Clock
from ziggurat.telemetry import CONTENT_TYPE, metrics_text
from ziggurat.workers.worker import Worker

if TYPE_CHECKING:
    from aiohttp import web

#: Age in seconds of the last successful poll at which a worker counts as dead.
MAX_POLL_AGE = 60.0


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
    """Serves the answers of a `Health` on loopback, from a thread of its own.

    A task that computes on the workers' event loop delays their next poll, not the answer that says how old the last one is: a probe
    with a time limit of a second must not kill a worker for half a minute of arithmetic.

    Args:
        port: where to listen; 0 lets the system choose, and `port` says after `start` what it chose.
        host: loopback unless a container's probes come from outside it.
    """

    def __init__(self, health: Health, port: int, host: str = "127.0.0.1") -> None:
        self._health = health
        self.host, self.port = host, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Begin to listen. Raises OSError if the port is taken."""
        listening: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), name="ziggurat-health", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(listening)

    async def close(self) -> None:
        """Stop listening."""
        thread, self._thread = self._thread, None
        if thread is not None:
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # It never listened, and its loop has ended.
                    self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.to_thread(thread.join, 5.0)

    async def _serve(self, listening: concurrent.futures.Future[None]) -> None:
        # Here, because a worker without a health port should not pay a third of a second for a web server.
        from aiohttp import web

        async def healthz(_: web.Request) -> web.Response:
            return _answer(*self._health.alive())

        async def readyz(_: web.Request) -> web.Response:
            return _answer(*self._health.ready())

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=metrics_text(), headers={"Content-Type": CONTENT_TYPE})

        self._loop = asyncio.get_running_loop()
        app = web.Application()
        app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
        # Signals are the process's business, and only its main thread could take them anyway.
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        try:
            await runner.setup()
            await web.TCPSite(runner, self.host, self.port).start()
        except Exception as error:
            await runner.cleanup()
            listening.set_exception(error)
            return
        self.port = runner.addresses[0][1]
        listening.set_result(None)
        await self._stop.wait()
        await runner.cleanup()


def _answer(well: bool, body: dict[str, Any]) -> web.Response:
    from aiohttp import web

    return web.Response(
        status=200 if well else 503, body=msgspec.json.encode({"ok": well, **body}), content_type="application/json"
    )
