"""What a worker process says of itself, and that it says so while its event loop is taken."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request

import pytest

from ziggurat.clock import SystemClock
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.testing.clock import FakeClock
from ziggurat.workers.health import Health, HealthServer
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker


def made(clock: FakeClock | SystemClock, name: str = "w") -> Worker:
    return Worker(MemoryQueue(clock=clock), Registry(), options=WorkerOptions(name=name), clock=clock)


async def test_the_age_of_the_last_poll_decides_over_life() -> None:
    clock = FakeClock()
    worker = made(clock)
    health = Health(lambda: [worker], clock, max_poll_age=60.0)
    clock.advance(59.0)
    assert health.alive() == (True, {"poll_age_seconds": 59.0, "troubles": []})
    clock.advance(2.0)
    assert health.alive()[0] is False
    # A draining worker does not poll any more, and must not be killed for it.
    worker.stop()
    assert health.alive()[0] is True
    assert health.ready() == (False, {"busy": 0, "reasons": ["The workers are draining."]})


async def test_a_process_without_workers_is_not_ready() -> None:
    assert Health(list, FakeClock()).ready() == (False, {"busy": 0, "reasons": ["No worker runs in this process."]})


async def test_the_server_answers_while_the_workers_loop_is_taken() -> None:
    clock = SystemClock()
    worker = made(clock)
    server = HealthServer(Health(lambda: [worker], clock), 0)
    await server.start()
    url, answered, answers = f"http://127.0.0.1:{server.port}/healthz", threading.Event(), list[int]()

    def ask() -> None:
        answers.append(_get(url))
        answered.set()

    asking = asyncio.get_running_loop().run_in_executor(None, ask)
    assert answered.wait(60), "this wait takes the loop of the test, which is the worker's"
    assert answers == [200]
    await asking
    await server.close()
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(_get, url)


def _get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=20.0) as answer:
        return int(answer.status)


async def test_a_taken_port_is_an_error_at_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = HealthServer(Health(list, FakeClock()), taken.getsockname()[1])
        with pytest.raises(OSError, match="address already in use"):
            await server.start()
        await server.close()


def test_a_process_that_only_starts_workers_is_ready_without_one() -> None:
    assert not Health(list, FakeClock()).ready()[0]
    assert Health(list, FakeClock(), works=False).ready() == (True, {"busy": 0, "reasons": []})
