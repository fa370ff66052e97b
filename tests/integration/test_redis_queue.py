"""The Redis queue beside the suite: ways to reach a server, what is on the server, and how little it costs."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from redis.asyncio import Redis
from redis.crc import key_slot

from tests.conformance.redis_servers import (
    FLAVOURS,
    REDIS_7,
    REDIS_8,
    RedisServer,
    find_binary,
    running,
    running_cluster,
)
from tests.conformance.redis_servers import opened_queue as opened
from tests.conftest import missing_service
from tests.ports import free_port
from ziggurat.clock import SystemClock
from ziggurat.errors import QueueUnavailable
from ziggurat.queues.backends import redis_streams
from ziggurat.queues.backends.redis_streams import RedisQueue
from ziggurat.records import WIRE_VERSION, Delivery, Message, Outcome, Progress, encode
from ziggurat.testing.queue_harness import ids, message, messages, outcome_of


@pytest.fixture(params=FLAVOURS)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running(request.param, missing_service) as it:
        yield it


@pytest.fixture
def any_server() -> Iterator[RedisServer]:
    """For what does not depend on the server's version."""
    flavour = next((flavour for flavour in FLAVOURS if find_binary(flavour)), REDIS_8)
    with running(flavour, missing_service) as it:
        yield it


def administrator(server: RedisServer) -> Any:
    """A plain client, for a look behind the queue's back. (redis-py's annotations are for both of its clients at once.)"""
    return Redis.from_url(server.url)


async def until(holds: Callable[[], Any]) -> None:
    """Wait for something on the server that tells nobody."""
    for _ in range(9_000):
        found = holds()
        if await found if inspect.isawaitable(found) else found:
            return
        await asyncio.sleep(0.01)
    pytest.fail("it has not come about in a minute and a half")


async def works(queue: RedisQueue) -> None:
    """Take one message all the way."""
    await queue.send([it := message()])
    while not (taken := await queue.receive(["default"], 1, worker="w", wait=10.0)):
        pass
    assert ids(taken) == [it.id]
    assert await queue.settle([(taken[0], outcome_of(taken[0]))]) == set()
    outcomes = await queue.outcomes(10, 10.0)
    assert [outcome.message for outcome in outcomes] == [it.id]
    await queue.ack_outcomes(outcomes)


# -- ways to reach a server ------------------------------------------------------------------------------------------


async def test_a_socket(any_server: RedisServer) -> None:
    any_server.stop()
    any_server.options["unixsocket"] = any_server.folder / "socket"
    any_server.start()
    async with opened(f"unix://{any_server.folder}/socket") as queue:
        await works(queue)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, which is its own authority, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=queue -addext subjectAltName=IP:127.0.0.1".split()
    try:
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        missing_service("openssl", "apt install openssl")
    return cert, key


async def test_tls(certificate: tuple[Path, Path]) -> None:
    tls_port, (cert, key) = free_port(), certificate
    # Of our servers only Debian's is built with TLS.
    with running(
        REDIS_7,
        missing_service,
        tls_port=tls_port,
        tls_cert_file=cert,
        tls_key_file=key,
        tls_ca_cert_file=cert,
        tls_auth_clients="no",
    ):
        async with opened(f"rediss://127.0.0.1:{tls_port}?ca_certs={cert}") as queue:
            await works(queue)
        with pytest.raises(QueueUnavailable, match=r"cannot be reached.*certificate"):
            await RedisQueue(f"rediss://127.0.0.1:{tls_port}", patience=0.1).open()


async def test_an_account_that_may_do_only_what_a_queue_must(server: RedisServer) -> None:
    server.command("ACL", "SETUSER", "ann", "on", ">hush", "~{blue}*", "&{blue}*", "+@all", "-@admin", "-@dangerous")
    async with opened(f"redis://ann:hush@127.0.0.1:{server.port}?prefix=blue") as queue:
        await works(queue)
    for url in (f"redis://ann:hush@127.0.0.1:{server.port}?prefix=red", f"redis://ann:hush@127.0.0.1:{server.port}?prefix=blu"):
        with pytest.raises(QueueUnavailable, match="does not let our user") as refused:
            await RedisQueue(url).open()
        assert "hush" not in str(refused.value)
    server.command("ACL", "SETUSER", "ann", "resetchannels")
    with pytest.raises(QueueUnavailable, match="does not let our user"):
        async with opened(f"redis://ann:hush@127.0.0.1:{server.port}?prefix=blue") as queue:
            await works(queue)


@pytest.mark.parametrize("credentials", ["", "ann:wr0ng@", "nobody:wr0ng@"])
async def test_wrong_credentials_are_told_at_once_and_without_secrets(server: RedisServer, credentials: str) -> None:
    server.command("ACL", "SETUSER", "ann", "on", ">hush", "allkeys", "allchannels", "allcommands")
    server.command("ACL", "SETUSER", "default", "off")
    # Patience would outlast the test's time limit: waiting does not help here.
    with pytest.raises(QueueUnavailable, match="refuses our credentials") as refused:
        await RedisQueue(f"redis://{credentials}127.0.0.1:{server.port}", patience=1_000.0).open()
    assert "wr0ng" not in str(refused.value)


async def test_a_cluster_is_asked_who_owns_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_streams, "GLANCE", 3600.0)
    with running_cluster(REDIS_8, missing_service, 3) as nodes:
        seeds = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        for prefix in ("a", "b", "c", "d"):
            async with (
                opened(f"redis+cluster://{seeds}?prefix={prefix}") as queue,
                opened(f"redis+cluster://{seeds}?prefix={prefix}") as other,
            ):
                waiting = asyncio.create_task(other.receive(["default", "more"], 5, worker="w", wait=60.0))
                await asyncio.sleep(0.05)
                await queue.send([it := message(queue="more", namespace="acme")])
                (delivery,) = await waiting
                assert delivery.message == it
                await other.settle([(delivery, outcome_of(delivery))])
                await queue.ack_outcomes(await queue.outcomes(1, 10.0))
                await works(queue)
        with pytest.raises(QueueUnavailable, match="node of a Cluster"):
            await RedisQueue(nodes[0].url).open()


async def test_a_slot_that_moves_to_another_node_is_followed() -> None:
    with running_cluster(REDIS_7, missing_service, 2) as nodes:
        slot = key_slot(b"ziggurat")
        old, new = nodes if slot < 8192 else nodes[::-1]
        async with opened(f"redis+cluster://127.0.0.1:{old.port}") as queue:
            await works(queue)
            waiting = asyncio.create_task(queue.receive(["default"], 1, worker="w", wait=60.0))
            await asyncio.sleep(0.05)
            old_id, new_id = (node.command("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in (old, new))
            new.command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
            old.command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
            keys = old.command("CLUSTER", "GETKEYSINSLOT", slot, 100).split(b"\r\n")[2::2]
            for key in keys:
                old.command("MIGRATE", "127.0.0.1", new.port, key.decode(), 0, 5000)
            for node in (new, old):
                assert node.command("CLUSTER", "SETSLOT", slot, "NODE", new_id) == b"+OK\r\n"
            sent = message()
            await queue.send([sent])
            assert ids(await asyncio.wait_for(waiting, 60)) == [sent.id]


async def test_sentinels_lead_to_the_primary_also_after_a_failover(tmp_path: Path) -> None:
    binary = find_binary(REDIS_7) or missing_service("The server redis-7.0", "apt install redis-server")
    with running(REDIS_7, missing_service) as primary, running(REDIS_7, missing_service) as replica, ExitStack() as stack:
        replica.command("REPLICAOF", "127.0.0.1", primary.port)
        sentinel = RedisServer(binary, tmp_path / "sentinel", sentinel=primary)
        stack.callback(sentinel.kill)
        sentinel.start()
        url = f"sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/mymaster"
        async with opened(url, patience=60.0, lease=5.0) as queue:
            await works(queue)
            held, kept, later = messages(3)
            await queue.send([held])
            (delivery,) = await queue.receive(["default"], 1, worker="w", wait=10.0)
            await queue.send([kept])
            await queue.send([later], delay=0.5)
            await until(lambda: b"state=online" in primary.command("INFO", "replication"))
            assert primary.command("WAIT", 1, 10_000) == b":1\r\n"
            await until(lambda: b"num-slaves\r\n$1\r\n1" in sentinel.command("SENTINEL", "MASTER", "mymaster"))
            waiting = asyncio.create_task(queue.receive(["elsewhere"], 1, worker="w", wait=60.0))
            primary.kill()
            found: Counter[str] = Counter()
            while len(found) < 3:
                for it in await queue.receive(["default"], 3, worker="w2", wait=1.0):
                    found[it.message.id] += 1
                    assert await queue.settle([(it, outcome_of(it))]) == set()
            assert found == Counter([held.id, kept.id, later.id])
            assert await queue.settle([(delivery, outcome_of(delivery))]) == {held.id}, "the lease ran out during the failover"
            await queue.send([other := message(queue="elsewhere")])
            assert ids(await asyncio.wait_for(waiting, 60)) == [other.id]
        with pytest.raises(QueueUnavailable, match="no Sentinel knows a primary named 'other'"):
            await RedisQueue(f"sentinel://127.0.0.1:{sentinel.port}/other", patience=0.1).open()


# -- what is on the server -------------------------------------------------------------------------------------------


async def test_a_lane_is_a_stream_whose_length_is_ready_and_leased(any_server: RedisServer) -> None:
    """What an autoscaler that knows nothing but streams can watch: XLEN, also of a lane that was cancelled from."""
    async with opened(any_server.url) as queue, administrator(any_server) as redis:
        sent = messages(5, queue="a b", priority=2)
        await queue.send(sent)
        name = "{ziggurat}:stream:a%20b/2/default/"
        (first, _) = await queue.receive(["a b"], 2, worker="w", wait=1.0)
        await queue.cancel([sent[4].id])
        assert await redis.xlen(name) == 4
        groups = await redis.xinfo_groups(name)
        assert [(group["name"], group["pending"]) for group in groups] == [(b"workers", 2)]
        await queue.settle([(first, outcome_of(first))])
        assert await redis.xlen(name) == 3
        assert set(await queue.depth()) == {"a b"}


async def test_a_lane_of_waiting_work_is_never_trimmed_and_survives_a_restart(server: RedisServer) -> None:
    server.stop()
    server.options |= {"appendonly": "yes", "appendfsync": "always"}
    server.start()
    async with opened(server.url, lease=3.0) as queue:
        sent = messages(1_500)
        await queue.send(sent)
        await queue.send(delayed := messages(3), delay=0.2)
        leased = await queue.receive(["default"], 50, worker="dead", wait=1.0)
        done = await queue.receive(["default"], 50, worker="w", wait=1.0)
        await queue.settle([(it, outcome_of(it)) for it in done])
        server.kill()
        server.start()
        found: Counter[str] = Counter()
        while len(found) < 1_453:
            taken = await queue.receive(["default"], 200, worker="w2", wait=1.0)
            found.update(ids(taken))
            assert await queue.settle([(it, outcome_of(it)) for it in taken]) == set()
        assert found == Counter([it.id for it in [*sent, *delayed] if it.id not in ids(done)])
        assert await queue.settle([(it, outcome_of(it)) for it in leased]) == set(ids(leased))
        outcomes: Counter[str] = Counter()
        while len(outcomes) < 1_503:
            fetched = await queue.outcomes(500, 1.0)
            outcomes.update(outcome.message for outcome in fetched)
            await queue.ack_outcomes(fetched)
        assert set(outcomes.values()) == {1}


async def test_memory_returns_to_its_baseline(server: RedisServer) -> None:
    async with opened(server.url, max_deliveries=1) as queue, administrator(server) as redis:

        async def round_of(number: int) -> None:
            for _ in range(number // 500):
                await queue.send(batch := messages(500, payload=Raw(b'"%s"' % (b"x" * 200))))
                await queue.cancel([it.id for it in batch[:20]])
                taken: list[Delivery] = []
                while len(taken) < 480:
                    taken += await queue.receive(["default"], 480 - len(taken), worker="w", wait=1.0)
                await queue.extend(taken, dict.fromkeys(ids(taken[:50]), b'"beat"'))
                await queue.release(taken[:20], reason="no")
                await queue.discard(ids(taken[:20]))
                await queue.settle([(it, outcome_of(it)) for it in taken[20:]])
                await queue.publish([Progress(run="r", kind="token")] * 20)
                await queue.progress(1_000, 0.0)
                left = 480
                while left:
                    outcomes = await queue.outcomes(left, 1.0)
                    await queue.ack_outcomes(outcomes)
                    left -= len(outcomes)

        async def memory() -> int:
            return int((await redis.info("memory"))["used_memory"])

        # A slow machine has slow commands, and the server's log of them keeps 128 with their arguments: batches, here.
        await redis.config_set("slowlog-log-slower-than", -1)
        await round_of(1_000)
        before = await memory()
        await round_of(20_000)
        # 20,000 messages of 200 bytes would be 4 MB in their payloads alone; what is allowed is the noise of connections and tables.
        assert await memory() - before < 200_000


async def test_an_answer_is_bounded_in_bytes(any_server: RedisServer) -> None:
    async with opened(any_server.url) as queue:
        megabyte = Raw(b'"%s"' % (b"x" * 1_000_000))
        await queue.send(sent := messages(40, payload=megabyte))
        taken: list[Delivery] = []
        while len(taken) < 40:
            part = await queue.receive(["default"], 40, worker="w", wait=5.0)
            assert 1 <= len(part) <= 16
            taken += part
        assert [it.message for it in taken] == sent
        await queue.settle([(it, msgspec.structs.replace(outcome_of(it), result=megabyte)) for it in taken])
        outcomes: list[Outcome] = []
        while len(outcomes) < 40:
            part_of = await queue.outcomes(100, 5.0)
            assert 1 <= len(part_of) <= 32
            outcomes += part_of
        assert {outcome.message for outcome in outcomes} == {it.id for it in sent}


async def test_a_message_that_this_version_cannot_read_becomes_a_dead_letter_and_stalls_nobody(any_server: RedisServer) -> None:
    async with opened(any_server.url, max_deliveries=2) as queue, administrator(any_server) as redis:
        await queue.send([strange := message(), neighbour := message()])
        ((entry, fields),) = await redis.xrange("{ziggurat}:stream:default/3/default/", count=1)
        changed = msgspec.json.decode(fields[b"b"]) | {"version": WIRE_VERSION + 1, "timeout": {"new": "shape"}}
        await redis.xdel("{ziggurat}:stream:default/3/default/", entry)
        await redis.hdel("{ziggurat}:ids", strange.id)
        # As a newer process would have sent it.
        await queue._server.run("send", -1, 0, 1, "default/3/default/", strange.id, 1, msgspec.json.encode(changed))
        taken = await queue.receive(["default"], 10, worker="w", wait=60.0)
        assert ids(taken) == [neighbour.id]
        while not (letters := await queue.dead_letters()):
            assert await queue.receive(["default"], 10, worker="w", wait=0.5) == []
        assert letters[0].id == strange.id
        assert "version 2" in letters[0].reason
        (outcome,) = await queue.outcomes(10, 60.0)
        assert (outcome.message, outcome.status, outcome.run, outcome.step) == (strange.id, "dead", strange.run, strange.step)
        assert await queue.redrive([strange.id]) == 1


async def test_progress_that_nobody_fetches_is_capped_and_expires(
    any_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_streams, "PROGRESS_KEPT", 10)
    async with opened(any_server.url) as queue, administrator(any_server) as redis:
        for number in range(50):
            await queue.publish([Progress(run="r", kind="token", offset=number)])
        assert await redis.llen("{ziggurat}:progress") == 10
        assert 0 < await redis.pttl("{ziggurat}:progress") <= 60_000
        assert [it.offset for it in await queue.progress(4, 0.0)] == [40, 41, 42, 43]
        assert [it.offset for it in await queue.progress(100, 0.0)] == [44, 45, 46, 47, 48, 49]


async def test_workers_that_are_gone_are_forgotten_and_those_with_leases_are_not(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_streams, "WORKER_SECONDS", 0.3)
    monkeypatch.setattr(redis_streams, "GLANCE", 0.1)
    async with opened(server.url, lease=600.0) as queue, administrator(server) as redis:
        monkeypatch.setattr(redis_streams, "RECLAIM_MOST", 0.1)
        await queue.send(messages(4))
        for number in range(3):
            (delivery,) = await queue.receive(["default"], 1, worker=f"gone-{number}", wait=1.0)
            await queue.settle([(delivery, outcome_of(delivery))])
        (held,) = await queue.receive(["default"], 1, worker="holder", wait=1.0)
        await queue.send(messages(1))

        async def only_the_holder() -> bool:
            found = await redis.xinfo_consumers("{ziggurat}:stream:default/3/default/", "workers")
            return [consumer["name"] for consumer in found] == [b"holder"]

        await until(only_the_holder)
        assert await queue.extend([held]) == set()


async def test_names_with_any_characters_are_kept_apart(any_server: RedisServer) -> None:
    async with opened(any_server.url) as queue:
        names = ["a", "a/b", "a b", "ä", "a%2Fb", "{a}", "a\nb", "", ":ready"]
        sent = [message(queue=name, namespace=name, region=name) for name in names]
        await queue.send(sent)
        assert {name: depth.ready for name, depth in (await queue.depth()).items()} == dict.fromkeys(names, 1)
        for name, it in zip(names, sent, strict=True):
            (delivery,) = await queue.receive([name], 10, worker=":ready", wait=5.0, region=name)
            assert delivery.message == it
            assert await queue.extend([delivery]) == set()
            assert (await queue.depth([name]))[name].leased == 1
            assert await queue.settle([(delivery, outcome_of(delivery))]) == set()


# -- time ------------------------------------------------------------------------------------------------------------


class _Skewed(SystemClock):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        return super().time() + self._seconds


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_a_client_whose_clock_is_minutes_off_does_no_harm(any_server: RedisServer, skew: float) -> None:
    async with (
        opened(any_server.url, lease=4.0, clock=_Skewed(skew)) as off,
        opened(any_server.url, lease=4.0) as right,
    ):
        await off.send(messages(2))
        # By a clock that is ten minutes off it would be due already.
        await off.send([message()], delay=300.0)
        (first, second) = await off.receive(["default"], 2, worker="off", wait=5.0)
        assert await right.receive(["default"], 5, worker="right", wait=0.0) == []
        await off.send([later := message()], delay=0.3)
        assert abs(first.leased_until - off._clock.time()) <= 4.5, "a lease's end is told by the clock of the one who holds it"
        assert ids(await right.receive(["default"], 5, worker="right", wait=10.0)) == [later.id]
        assert await off.settle([(first, outcome_of(first))]) == set()
        while not (returned := await right.receive(["default"], 5, worker="right", wait=1.0)):
            pass
        assert second.message.id in ids(returned)
        assert await off.settle([(second, outcome_of(second))]) == {second.message.id}
        for sender, receiver in ((off, right), (right, off)):
            await sender.send([message(deadline=sender._clock.time() + 60, queue="timed")])
            (timed,) = await receiver.receive(["timed"], 1, worker="w", wait=60.0)
            assert timed.message.deadline is not None
            assert abs(timed.message.deadline - receiver._clock.time() - 60) < 30.0, (
                "a deadline is told by the clock of the one who keeps it"
            )
            await receiver.settle([(timed, outcome_of(timed))])


# -- what it costs ---------------------------------------------------------------------------------------------------


async def scripts_run(redis: Any) -> int:
    stats = await redis.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))


async def test_a_batch_is_one_round_trip_for_every_verb(any_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # The keeper's own calls would be counted too.
    monkeypatch.setattr(redis_streams, "GLANCE", 3600.0)
    monkeypatch.setattr(redis_streams, "RECLAIM_MOST", 3600.0)
    async with opened(any_server.url, lease=600.0) as queue, administrator(any_server) as redis:

        async def trips(doing: Any) -> tuple[int, Any]:
            before = await scripts_run(redis)
            found = await doing
            return await scripts_run(redis) - before, found

        for _ in range(2):  # The first time, a script that the server has not seen is sent once more with its text.
            spent = {}
            spent["send"], _ = await trips(queue.send(messages(300) + messages(50, priority=1, namespace="acme")))
            spent["receive"], taken = await trips(queue.receive(["default"], 350, worker="w", wait=1.0))
            assert len(taken) == 350
            spent["extend"], _ = await trips(queue.extend(taken))
            spent["release"], _ = await trips(queue.release(taken[:20]))
            spent["settle"], _ = await trips(queue.settle([(it, outcome_of(it)) for it in taken[20:]]))
            spent["outcomes"], outcomes = await trips(queue.outcomes(330, 1.0))
            assert len(outcomes) == 330
            spent["ack"], _ = await trips(queue.ack_outcomes(outcomes))
            spent["missing"], _ = await trips(queue.missing(ids(taken)))
            spent["cancel"], _ = await trips(queue.cancel(ids(taken)))
        # The keeper looks once when the queue opens, and perhaps once more.
        assert sum(spent.values()) <= len(spent) + 3, spent


async def test_one_message_wakes_one_waiting_call(any_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_streams, "GLANCE", 3600.0)
    monkeypatch.setattr(redis_streams, "RECLAIM_MOST", 3600.0)
    async with opened(any_server.url, lease=600.0) as queue, administrator(any_server) as redis:
        waiting = [asyncio.create_task(queue.receive(["default"], 10, worker=f"w{i}", wait=60.0)) for i in range(20)]

        async def all_wait() -> bool:
            return int(await redis.zcard("{ziggurat}:idle:w:default/")) == 20

        await until(all_wait)
        before = await scripts_run(redis)
        await queue.send([message()])
        done, waiting_on = await asyncio.wait(waiting, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waiting_on)) == (1, 19)
        # The send, the look of the one that was woken, and perhaps the keeper.
        assert await scripts_run(redis) - before <= 3
        # Those that gave up leave their places to the others, as does one that was woken too late.
        for task in list(waiting_on)[:18]:
            task.cancel()
        await asyncio.gather(*list(waiting_on)[:18], return_exceptions=True)
        await queue.send([last := message()])
        assert ids(await asyncio.wait_for(list(waiting_on)[18], 60)) == [last.id]


async def test_large_batches_are_refused_or_taken_as_a_whole(any_server: RedisServer) -> None:
    async with opened(any_server.url, capacity=5_000) as queue:
        with pytest.raises(Exception, match="is full"):
            await queue.send(messages(5_001))
        assert (await queue.depth(["default"]))["default"].ready == 0
        await queue.send(sent := messages(5_000))
        taken: list[Delivery] = []
        while len(taken) < 5_000:
            taken += await queue.receive(["default"], 5_000, worker="w", wait=1.0)
        assert ids(taken) == [it.id for it in sent]
        assert await queue.settle([(it, outcome_of(it)) for it in taken]) == set()


async def test_calls_before_open_and_after_close(any_server: RedisServer) -> None:
    queue = RedisQueue(any_server.url)
    await queue.open()
    await queue.open()
    waiting = asyncio.create_task(queue.receive(["default"], 1, worker="w", wait=60.0))
    await asyncio.sleep(0.05)
    await queue.close()
    with pytest.raises(QueueUnavailable, match="closed"):
        await waiting
    with pytest.raises(QueueUnavailable, match="closed"):
        await queue.send([message()])
    await queue.close()
    await queue.open()
    await works(queue)
    await queue.close()


def test_what_is_sent_is_what_other_languages_read(any_server: RedisServer) -> None:
    """The body of an entry is the message as plain JSON."""

    async def sent() -> tuple[Message, dict[bytes, bytes]]:
        async with opened(any_server.url) as queue, administrator(any_server) as redis:
            await queue.send([it := message(payload=Raw(b'{"a":[1,2]}'))])
            ((_, fields),) = await redis.xrange("{ziggurat}:stream:default/3/default/")
            return it, fields

    it, fields = asyncio.run(sent())
    assert fields == {b"i": it.id.encode(), b"b": encode(it)}
