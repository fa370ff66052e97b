"""The Redis queue when things go wrong: the server away, full, read-only or emptied; connections cut; workers killed and frozen."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from tests.conformance.redis_servers import FLAVOURS, REDIS_7, REDIS_8, RedisServer, opened_queue, running
from tests.conftest import missing_service
from tests.ports import free_port
from ziggurat.errors import QueueUnavailable
from ziggurat.queues.backends.redis_streams import RedisQueue
from ziggurat.records import Delivery, Depth, Message
from ziggurat.testing.queue_harness import QUEUE, ids, message, messages, outcome_of

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parent.parent.parent
#: Random seeds of the killing; ZIGGURAT_CHAOS_SEEDS asks for more.
SEEDS = range(1, 1 + int(os.environ.get("ZIGGURAT_CHAOS_SEEDS") or 2))
#: Seconds of a lease that a killed or frozen worker loses. Long enough for its heir to settle what it took, on a busy machine too.
LEASE = 3.0
#: Seconds after which a test that has not come to its end is stuck.
LIMIT = 150.0


#: Faults take their time to pass.
opened = partial(opened_queue, patience=30.0)


@pytest.fixture(params=FLAVOURS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running(request.param, missing_service) as it:
        yield it


@contextmanager
def durable(flavour: str) -> Iterator[RedisServer]:
    with running(flavour, missing_service, appendonly="yes", appendfsync="always") as it:
        yield it


async def take(queue: RedisQueue, number: int, worker: str = "w1") -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(LIMIT):
        while len(taken) < number:
            taken += await queue.receive([QUEUE], number - len(taken), worker=worker, wait=1.0)
    return taken


async def finish(queue: RedisQueue, deliveries: list[Delivery]) -> None:
    assert await queue.settle([(it, outcome_of(it)) for it in deliveries]) == set()
    wanted, found = set(ids(deliveries)), set[str]()
    async with asyncio.timeout(LIMIT):
        while found < wanted:
            outcomes = await queue.outcomes(100, 1.0)
            await queue.ack_outcomes(outcomes)
            found |= {outcome.message for outcome in outcomes}


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(int(LIMIT * 100)):
        if await holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"it has not come about in {LIMIT} s")


# -- the server ------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_down_at_the_start_is_told_in_a_sentence() -> None:
    port = free_port()
    queue = RedisQueue(f"redis://ann:hush@127.0.0.1:{port}", patience=0.3)
    with pytest.raises(
        QueueUnavailable, match=rf"^The Redis server at 127\.0\.0\.1:{port} cannot be reached .*start it"
    ) as refused:
        await queue.open()
    assert "hush" not in str(refused.value)
    await queue.close()


async def test_a_server_that_comes_late_is_waited_for(server: RedisServer) -> None:
    server.stop()
    queue = RedisQueue(server.url, patience=60.0)
    opening = asyncio.create_task(queue.open())
    await asyncio.sleep(0.3)
    server.start()
    await opening
    await queue.send(messages(1))
    await finish(queue, await take(queue, 1))
    await queue.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_restart_leaves_no_call_stuck_and_loses_nothing(how: str) -> None:
    with durable(REDIS_8) as server:
        # A lease that outlasts the restart, or the waiting call would be given what is held.
        async with opened(server.url, lease=LIMIT) as queue:
            await queue.send(messages(3))
            held = await take(queue, 3)
            waiting: list[asyncio.Task[Any]] = [
                asyncio.create_task(queue.receive([QUEUE], 1, worker="w2", wait=LIMIT)),
                asyncio.create_task(queue.outcomes(10, LIMIT)),
                asyncio.create_task(queue.cancellations("w1", LIMIT)),
                asyncio.create_task(queue.progress(10, LIMIT)),
            ]
            await asyncio.sleep(0.1)
            getattr(server, how)()
            during = asyncio.create_task(queue.extend(held))
            await asyncio.sleep(0.3)
            server.start()
            assert await asyncio.wait_for(during, LIMIT) == set()
            await queue.cancel(ids(held))
            assert await queue.settle([(it, outcome_of(it)) for it in held]) == set()
            await queue.send([last := message()])
            assert ids(await asyncio.wait_for(waiting[0], LIMIT)) == [last.id]
            for task in waiting[1:]:
                task.cancel()
            await asyncio.gather(*waiting[1:], return_exceptions=True)


async def test_a_frozen_server_makes_calls_give_up_and_they_work_again_when_it_thaws(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(server.url, patience=2.0) as queue:
        waiting = asyncio.create_task(take(queue, 1))
        await asyncio.sleep(0.1)
        server.pause()
        try:
            with monkeypatch.context() as patch:
                patch.setattr("ziggurat.queues.backends.redis_connection.ANSWER_TIMEOUT", 0.5)
                with pytest.raises(QueueUnavailable, match="cannot be reached"):
                    await queue.send(messages(1))
                with pytest.raises(QueueUnavailable):
                    await waiting
        finally:
            server.resume()
        await queue.send([it := message()])
        # A send that was given up may have reached the server all the same.
        assert it.id in ids(await take(queue, 1)) + ids(await queue.receive([QUEUE], 5, worker="w1", wait=0.0))


async def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer) -> None:
    async with opened(server.url) as queue:
        await queue.send(messages(2))
        server.command("SCRIPT", "FLUSH")
        await finish(queue, await take(queue, 2))


async def test_an_emptied_server_is_filled_again_and_old_deliveries_are_fenced(server: RedisServer) -> None:
    async with opened(server.url) as queue:
        sent = messages(5)
        await queue.send(sent)
        await queue.send([delayed := message()], delay=600.0)
        held = await take(queue, 3)
        waiting = asyncio.create_task(queue.receive(["other"], 1, worker="w2", wait=LIMIT))
        outcomes = asyncio.create_task(queue.outcomes(10, LIMIT))
        await asyncio.sleep(0.1)
        server.command("FLUSHALL")
        everything = [it.id for it in [*sent, delayed]]
        assert await queue.missing(everything) == set(everything)
        assert await queue.settle([(it, outcome_of(it)) for it in held]) == set(ids(held))
        assert await queue.depth([QUEUE]) == {QUEUE: Depth()}
        # What the orchestrator's sweep does.
        await queue.send(sent)
        again = await take(queue, 5, worker="w2")
        assert ids(again) == [it.id for it in sent]
        assert await queue.extend(held) == set(ids(held))
        assert await queue.settle([(it, outcome_of(it)) for it in again]) == set()
        assert len(await asyncio.wait_for(outcomes, LIMIT)) == 5
        await queue.send([other := message(queue="other")])
        assert ids(await asyncio.wait_for(waiting, LIMIT)) == [other.id]


async def test_a_full_server_refuses_new_messages_and_lets_workers_finish(server: RedisServer) -> None:
    async with opened(server.url, patience=1.0) as queue:
        await queue.send(messages(20, payload=Raw(b'"%s"' % (b"x" * 10_000))))
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        with pytest.raises(QueueUnavailable, match="out of memory"):
            await queue.send(messages(1))
        # It takes part from the start, too: workers must come up to make room.
        async with opened(server.url, patience=1.0) as other:
            with pytest.raises(QueueUnavailable, match="out of memory"):
                await other.send(messages(1))
        taken = await take(queue, 20)
        assert await queue.extend(taken, {taken[0].message.id: b"1"}) == set()
        assert await queue.release(taken[:1]) == set()
        await finish(queue, [*taken[1:], *await take(queue, 1)])
        assert (await queue.depth())[QUEUE] == Depth()
        server.command("CONFIG", "SET", "maxmemory", 0)
        await queue.send(messages(1))
        await finish(queue, await take(queue, 1))


async def test_a_read_only_replica_is_refused_and_a_demoted_primary_is_waited_out(server: RedisServer) -> None:
    async with opened(server.url, patience=2.0) as queue, opened(server.url) as patient:
        await queue.send(messages(1))
        waiting = asyncio.create_task(take(patient, 2))
        server.command("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(QueueUnavailable, match="read-only replica: name the primary"):
            await queue.send(messages(1))
        with pytest.raises(QueueUnavailable, match="read-only replica"):
            await RedisQueue(server.url, patience=1.0).open()
        server.command("REPLICAOF", "NO", "ONE")
        await queue.send(messages(1))
        await finish(queue, await waiting)


async def test_a_server_that_cannot_save_is_told(server: RedisServer) -> None:
    async with opened(server.url, patience=1.0) as queue:
        # A primary that must have replicas and has none refuses writes, as one with a full disk does.
        server.command("CONFIG", "SET", "min-replicas-to-write", 1)
        with pytest.raises(QueueUnavailable, match=r"refuses a command: NOREPLICAS"):
            await queue.send(messages(1))
        server.command("CONFIG", "SET", "min-replicas-to-write", 0)
        await queue.send(messages(1))
        await finish(queue, await take(queue, 1))


# -- connections -----------------------------------------------------------------------------------------------------


class CuttingProxy:
    """Passes bytes on to a server and cuts connections at random, before or after a request has reached it."""

    def __init__(self, port: int, rng: random.Random, rate: float) -> None:
        self._target, self._rng, self._rate = port, rng, rate
        self.cuts = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        ends = (writer, server_writer)
        for source, sink in ((reader, server_writer), (server_reader, writer)):
            task = asyncio.create_task(self._pipe(source, sink, ends))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, ends: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        try:
            while data := await source.read(65536):
                if self._rng.random() < self._rate:
                    self.cuts += 1
                    # Half of the bytes or none get through.
                    sink.write(data[: len(data) // 2 if self._rng.random() < 0.5 else 0])
                    break
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            for end in ends:
                end.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_cut_connections_lose_nothing_and_count_nothing_twice(seed: int) -> None:
    rng = random.Random(seed)
    with running(REDIS_8, missing_service) as server:
        async with CuttingProxy(server.port, rng, 0.03) as proxy, asyncio.timeout(LIMIT):
            async with opened(f"redis://127.0.0.1:{proxy.port}", lease=0.7, max_deliveries=1_000) as queue:
                sent = messages(400) + messages(60, priority=1, namespace="acme") + [message() for _ in range(40)]
                outcomes: Counter[str] = Counter()

                async def send() -> None:
                    for start in range(0, len(sent), 10):
                        await queue.send(sent[start : start + 10])

                async def work(name: str) -> None:
                    while len(outcomes) < len(sent):
                        taken = await queue.receive([QUEUE], 10, worker=name, wait=0.3)
                        if rng.random() < 0.2:
                            await queue.release(taken)
                        else:
                            await queue.extend(taken)
                            await queue.settle([(it, outcome_of(it)) for it in taken])

                async def collect() -> None:
                    while len(outcomes) < len(sent):
                        found = await queue.outcomes(50, 0.3)
                        # An outcome comes again until it is acknowledged; after that it must not.
                        await queue.ack_outcomes(found)
                        outcomes.update({outcome.message for outcome in found})

                await asyncio.gather(send(), collect(), *(work(f"w{i}") for i in range(3)))
                assert outcomes.keys() == {it.id for it in sent}

                async def empty() -> bool:
                    await queue.ack_outcomes(await queue.outcomes(100, 0.0))
                    return (await queue.depth())[QUEUE] == Depth() and len(await queue.missing(outcomes)) == len(sent)

                await until(empty)
        assert proxy.cuts > 10


# -- workers ---------------------------------------------------------------------------------------------------------


class Hands:
    """Worker processes on one server."""

    def __init__(self, url: str, lease: float) -> None:
        self.url, self.lease = url, lease
        self.alive: list[subprocess.Popen[str]] = []
        self.said: list[str] = []
        self._started = 0
        self._folder = Path(tempfile.mkdtemp(prefix="ziggurat-hands-"))
        self._outputs: list[Path] = []

    def start(self, mode: str = "work") -> subprocess.Popen[str]:
        name = f"hands-{self._started}"
        self._started += 1
        output = self._folder / name
        self._outputs.append(output)
        command = [sys.executable, "-m", "tests.chaos.redis_hands", self.url, name, str(self.lease), mode]
        with output.open("w") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=out, text=True)
        self.alive.append(process)
        return process

    def lines(self) -> Counter[str]:
        """Return what all have said so far; a line that a kill cut short is none."""
        return Counter(
            line for path in self._outputs for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
        )

    def told(self, letter: str) -> list[str]:
        return [line[2:-1] for line in self.lines().elements() if line.startswith(letter + " ")]

    def kill(self, process: subprocess.Popen[str]) -> None:
        self.alive.remove(process)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()

    def end(self) -> None:
        for process in list(self.alive):
            self.kill(process)


@contextmanager
def hands(url: str, lease: float) -> Iterator[Hands]:
    it = Hands(url, lease)
    try:
        yield it
    finally:
        it.end()


async def test_a_killed_workers_messages_come_back_on_an_idle_queue(server: RedisServer) -> None:
    async with opened(server.url, lease=LEASE) as queue:
        with hands(server.url, LEASE) as workers:
            await queue.send(messages(5))
            victim = workers.start("hold")
            await until(lambda: _true(len(workers.told("t")) == 5))
            workers.kill(victim)
            again = await take(queue, 5, worker="heir")
            assert sorted(ids(again)) == sorted(workers.told("t"))
            assert {it.epoch for it in again} == {2}
            await finish(queue, again)
            assert (await queue.depth())[QUEUE] == Depth()


async def test_a_frozen_worker_is_refused_when_it_wakes(server: RedisServer) -> None:
    async with opened(server.url, lease=LEASE) as queue:
        with hands(server.url, LEASE) as workers:
            await queue.send(messages(5))
            zombie = workers.start("hold")
            await until(lambda: _true(len(workers.told("t")) == 5))
            zombie.send_signal(signal.SIGSTOP)
            again = await take(queue, 5, worker="heir")
            zombie.send_signal(signal.SIGCONT)
            assert zombie.stdin is not None
            zombie.stdin.write("go on\n")
            zombie.stdin.flush()
            await until(lambda: _true(len(workers.told("f")) == 5))
            assert workers.told("s") == []
            assert await queue.outcomes(10, 0.0) == []
            await finish(queue, again)


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("flavour", [REDIS_8, REDIS_7])
@pytest.mark.parametrize("seed", SEEDS)
async def test_everything_at_once(seed: int, flavour: str) -> None:
    """Workers are killed and frozen, the server is killed, restarted and emptied; a sweep sends again what is missing, as the
    orchestrator does. Every message comes to an outcome, and no zombie's outcome is counted after the owner's."""
    rng = random.Random(seed)
    lease = 0.8
    with durable(flavour) as server:
        async with opened(server.url, lease=lease, max_deliveries=1_000, patience=60.0) as queue, asyncio.timeout(LIMIT):
            with hands(server.url, lease) as workers:
                for _ in range(3):
                    workers.start()
                sent = messages(300) + messages(100, priority=5, namespace="acme")
                recorded: set[str] = set()
                in_flight: dict[str, Message] = {}

                async def orchestrate() -> None:
                    waiting = list(sent)
                    while len(recorded) < len(sent):
                        if waiting:
                            batch, waiting = waiting[:10], waiting[10:]
                            in_flight.update({it.id: it for it in batch})
                            await queue.send(batch)
                        outcomes = await queue.outcomes(50, 0.05)
                        for outcome in outcomes:
                            recorded.add(outcome.message)
                            in_flight.pop(outcome.message, None)
                        await queue.ack_outcomes(outcomes)
                        if rng.random() < 0.1 and in_flight:
                            await queue.send([in_flight[id_] for id_ in await queue.missing(in_flight)])

                async def trouble() -> None:
                    frozen: list[subprocess.Popen[str]] = []
                    for _ in range(20):
                        await asyncio.sleep(rng.random() * 0.6)
                        what = rng.choice(["kill", "kill", "freeze", "freeze", "restart", "empty", "forget"])
                        victim = rng.choice(workers.alive)
                        if what == "kill":
                            workers.kill(victim)
                            frozen = [it for it in frozen if it is not victim]
                            workers.start()
                        elif what == "freeze":
                            victim.send_signal(signal.SIGSTOP)
                            frozen.append(victim)
                        elif what == "restart":
                            server.kill()
                            server.start()
                        elif what == "empty":
                            server.command("FLUSHALL")
                        else:
                            server.command("SCRIPT", "FLUSH")
                        if len(frozen) > 1:
                            frozen.pop(0).send_signal(signal.SIGCONT)
                    for it in frozen:
                        it.send_signal(signal.SIGCONT)

                await asyncio.gather(orchestrate(), trouble())
                assert recorded == {it.id for it in sent}

                async def empty() -> bool:
                    await queue.ack_outcomes(await queue.outcomes(100, 0.0))
                    return (await queue.depth()).get(QUEUE, Depth()) == Depth()

                await until(empty)
                assert await queue.dead_letters() == []
                assert set(workers.told("t")) >= recorded
