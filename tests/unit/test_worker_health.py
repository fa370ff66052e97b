"""What a worker process says of itself, and that it says so while its event loop is taken."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import pytest

from ziggurat.clock import SystemClock
from ziggurat.doors.api.scraping import targets_of
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import Presence
from ziggurat.telemetry import CONTENT_TYPE
from ziggurat.telemetry.served import is_local, reachable_host, served, set_served
from ziggurat.testing.clock import FakeClock
from ziggurat.workers.health import CALLERS, Health, HealthServer
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
        with pytest.raises(OSError, match="Address already in use"):
            await server.start()
        await server.close()


def test_a_process_that_only_starts_workers_is_ready_without_one() -> None:
    assert not Health(list, FakeClock()).ready()[0]
    assert Health(list, FakeClock(), works=False).ready() == (True, {"busy": 0, "reasons": []})


@pytest.fixture
async def listening() -> AsyncIterator[HealthServer]:
    clock = SystemClock()
    worker = made(clock)
    server = HealthServer(Health(lambda: [worker], clock), 0)
    await server.start()
    yield server
    await server.close()


async def test_it_answers_probes_and_prometheus_and_nothing_else(listening: HealthServer) -> None:
    def ask(path: str, method: str = "GET") -> tuple[int, str, bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{listening.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=20.0) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["content-type"], error.read()

    status, kind, body = await asyncio.to_thread(ask, "/metrics?from=prometheus")
    assert (status, kind) == (200, CONTENT_TYPE) and b"# TYPE process_start_time_seconds gauge" in body
    assert (await asyncio.to_thread(ask, "/readyz"))[1:] == ("application/json", b'{"ok":true,"busy":0,"reasons":[]}')
    assert await asyncio.to_thread(ask, "/healthz", "HEAD") == (200, "application/json", b"")
    assert (await asyncio.to_thread(ask, "/etc/passwd"))[0] == 404
    assert (await asyncio.to_thread(ask, "/metrics", "POST"))[0] == 501


async def test_callers_that_say_nothing_take_nobodys_turn_and_are_bounded(listening: HealthServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", listening.port)) for _ in range(CALLERS - 1)]
    assert await asyncio.to_thread(_get, f"http://127.0.0.1:{listening.port}/healthz") == 200
    silent.append(socket.create_connection(("127.0.0.1", listening.port)))
    with socket.create_connection(("127.0.0.1", listening.port)) as late:
        late.settimeout(30.0)
        assert await asyncio.to_thread(late.recv, 1) == b"", "one too many is turned away"
    for one in silent:
        one.close()


def test_what_listens_everywhere_is_named_so_that_others_can_reach_it() -> None:
    assert reachable_host("127.0.0.1") == "127.0.0.1"
    assert reachable_host("0.0.0.0") not in ("", "0.0.0.0")
    set_served("::1", 9100)
    assert served() == "[::1]:9100" and is_local(served())
    set_served("10.1.2.3", 9100)
    assert served() == "10.1.2.3:9100" and not is_local(served())
    set_served("10.1.2.3", 0)
    assert served() == ""


def test_a_process_is_one_target_and_another_machines_loopback_is_none() -> None:
    def shown(worker: str, pool: str, metrics: str, host: str = "here") -> Presence:
        return Presence(worker=worker, pool=pool, host=host, metrics=metrics)

    workers = [
        shown("w2", "b", "127.0.0.1:1"),
        shown("w1", "a", "127.0.0.1:1"),
        shown("w3", "a", "127.0.0.1:2", "elsewhere"),
        shown("w4", "a", "10.0.0.4:9100", "elsewhere"),
        shown("w5", "a", ""),
    ]
    found = [target.model_dump() for target in targets_of(workers, "here")]
    assert found == [
        {"targets": ["127.0.0.1:1"], "labels": {"worker": "w1,w2", "pool": "a,b", "host": "here"}},
        {"targets": ["10.0.0.4:9100"], "labels": {"worker": "w4", "pool": "a", "host": "elsewhere"}},
    ]
