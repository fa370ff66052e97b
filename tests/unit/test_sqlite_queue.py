"""What the sqlite queue does beyond the suite: a bad file in one sentence, other processes' locks, cancelled callers, foreign rows."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from ziggurat.errors import QueueUnavailable
from ziggurat.queues.backends import sqlite_file
from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import WIRE_VERSION, Concurrency, Presence, Progress, Rate
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.queue_harness import QUEUE, ids, message, messages, outcome_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SqliteQueue]:
    clock = options.pop("clock", None)
    queue = SqliteQueue(path, QueueOptions(**options), clock=clock)
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


async def refusal(path: Path) -> str:
    """Return the sentence with which a queue refuses its file."""
    with pytest.raises(QueueUnavailable) as raised:
        async with opened(path) as queue:
            await queue.send([message()])
    text = str(raised.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


# -- bad files -------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    letter = b"This is somebody's letter, not a queue." * 100
    write(path, letter)
    assert "is damaged" in await refusal(path)
    assert read(path) == letter, "what is not ours is not touched"


async def test_a_damaged_file_is_refused_when_the_damage_is_met(path: Path) -> None:
    async with opened(path) as queue:
        await queue.send(messages(200))
    whole = read(path)
    write(path, whole[:4096] + os.urandom(len(whole) - 4096))
    assert "Stop the processes that use it and delete it" in await refusal(path)


async def test_a_file_of_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    async with opened(path) as queue:
        await queue.send(messages(1))
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 7")
    db.close()
    text = await refusal(path)
    assert "newer Ziggurat (schema 7, this one knows 2)" in text
    assert "queue.path" in text


async def test_a_file_of_the_first_schema_is_brought_up_and_keeps_its_messages(path: Path) -> None:
    async with opened(path) as queue:
        await queue.send(messages(2))
    db = sqlite3.connect(path)
    db.executescript("DROP TABLE presences; PRAGMA user_version = 1")
    db.close()
    async with opened(path) as queue:
        await queue.announce([Presence(worker="w")], ttl=60.0)
        assert [worker.worker for worker in await queue.workers()] == ["w"]
        assert (await queue.depth())["default"].ready == 2


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in await refusal(tmp_path / "file" / "queue.db")


async def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid() != 0:
        assert "Permission denied" in await refusal(folder / "queue.db")
        return
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH and parent.stat().st_uid == 0:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    os.seteuid(65_534)  # Root may write anywhere; nobody may not.
    try:
        text = await refusal(folder / "queue.db")
    finally:
        os.seteuid(0)
    assert "Permission denied" in text


async def test_a_read_only_file_is_refused(path: Path) -> None:
    async with opened(path) as queue:
        await queue.send(messages(1))

        def forbid() -> None:
            queue._store.file.db.execute("PRAGMA query_only = ON")

        await queue._call(forbid)
        with pytest.raises(QueueUnavailable, match=r"cannot be opened for writing .*Check the rights"):
            await queue.send(messages(1))


async def test_a_full_disk_is_one_sentence_and_mends_when_there_is_space(path: Path) -> None:
    async with opened(path) as queue:

        def limit(pages: int) -> None:
            queue._store.file.db.execute(f"PRAGMA max_page_count = {pages}")

        await queue._call(lambda: limit(30))
        with pytest.raises(QueueUnavailable, match=r"cannot grow because the disk is full. Free some space"):
            await queue.send(messages(1_000))
        assert (await queue.depth([QUEUE]))[QUEUE].ready == 0, "none of the batch was taken"
        await queue._call(lambda: limit(10_000))
        await queue.send(messages(1_000))
        assert (await queue.depth())[QUEUE].ready == 1_000


async def test_a_write_that_the_system_cuts_short_is_one_sentence_and_leaves_the_file_whole(path: Path) -> None:
    async with opened(path) as queue:
        await queue.send(messages(10))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(QueueUnavailable, match=r"Check the disk|disk is full"):
                await queue.send(messages(5_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await queue.send(messages(10))
        assert (await queue.depth())[QUEUE].ready == 20


async def test_a_queue_that_is_not_open_says_so(path: Path) -> None:
    queue = SqliteQueue(path)
    with pytest.raises(QueueUnavailable, match="not open"):
        await queue.send([message()])
    await queue.close()


async def test_the_file_is_its_owners_alone(path: Path) -> None:
    async with opened(path) as queue:
        await queue.send(messages(1))
        modes = {it.name: it.stat().st_mode & 0o777 for it in path.parent.iterdir()}
    assert modes
    assert set(modes.values()) == {0o600}


# -- locks -----------------------------------------------------------------------------------------------------------


async def test_a_lock_that_another_process_holds_is_waited_for(path: Path) -> None:
    async with opened(path) as queue:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        sending = asyncio.create_task(queue.send(messages(1)))
        await asyncio.sleep(0.1)
        assert not sending.done()
        other.execute("COMMIT")
        await sending
        assert (await queue.depth())[QUEUE].ready == 1
        other.close()


async def test_a_lock_that_is_never_left_is_one_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_MAX", 0.05)
    async with opened(path) as queue:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueUnavailable, match="has been locked by another process"):
            await queue.send(messages(1))
        other.close()
        await queue.send(messages(1))


async def test_another_queue_on_the_file_leaves_the_locks_of_this_process_alone(path: Path) -> None:
    # POSIX drops a process's locks on a file when any of its descriptors is closed. A connection elsewhere would then take itself for
    # the last one, and delete the log that this process still writes.
    async with opened(path) as queue, opened(path):
        await queue.send(messages(1))
        code = f"import sqlite3; db = sqlite3.connect({str(path)!r}); db.execute('SELECT count(*) FROM messages').fetchone(); db.close()"
        await (await asyncio.create_subprocess_exec(sys.executable, "-c", code)).wait()
        assert path.with_name("queue.db-wal").stat().st_size > 0


# -- callers that go away --------------------------------------------------------------------------------------------


async def cancelled_in_flight(queue: SqliteQueue, verb: str, call: Callable[[], Any]) -> None:
    """Cancel a call while its transaction runs in the thread."""
    store: Any = queue._store
    real, running, go_on = getattr(store, verb), threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        running.set()
        go_on.wait(60)
        return real(*arguments)

    setattr(store, verb, slow)
    task = asyncio.create_task(call())
    assert await asyncio.to_thread(running.wait, 10)
    setattr(store, verb, real)
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_receive_that_is_cancelled_in_flight_gives_its_messages_back(path: Path) -> None:
    async with opened(path, lease=600.0, max_deliveries=1) as queue:
        await queue.send(messages(3))
        await cancelled_in_flight(queue, "receive", lambda: queue.receive([QUEUE], 10, worker="gone", wait=60))
        assert len(await queue.receive([QUEUE], 10, worker="w2", wait=60)) == 3


async def test_a_fetch_of_outcomes_that_is_cancelled_in_flight_loses_none(path: Path) -> None:
    async with opened(path, lease=600.0) as queue:
        await queue.send(messages(1))
        (delivery,) = await queue.receive([QUEUE], 1, worker="w", wait=60)
        await queue.settle([(delivery, outcome_of(delivery))])
        await cancelled_in_flight(queue, "outcomes", lambda: queue.outcomes(10, 60))
        assert len(await queue.outcomes(10, 60)) == 1


async def test_a_fetch_of_cancellations_that_is_cancelled_in_flight_loses_none(path: Path) -> None:
    async with opened(path, lease=600.0) as queue:
        await queue.send(messages(1))
        (delivery,) = await queue.receive([QUEUE], 1, worker="w", wait=60)
        await queue.cancel([delivery.message.id])
        await cancelled_in_flight(queue, "cancellations", lambda: queue.cancellations("w", 60))
        assert await queue.cancellations("w", 60) == [delivery.message.id]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the queue's thread and its watcher do by themselves."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_nothing_runs_once_nobody_waits(path: Path) -> None:
    async with opened(path) as queue:
        assert await queue.receive([QUEUE], 1, worker="w", wait=0.05) == []
        waiting = asyncio.create_task(queue.outcomes(1, 60))
        await until(lambda: len(asyncio.all_tasks()) == 3)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_closing_frees_who_waits(path: Path) -> None:
    async with opened(path) as queue:
        waiting = [
            asyncio.create_task(queue.outcomes(1, 60)),
            asyncio.create_task(queue.receive([QUEUE], 1, worker="w", wait=60)),
        ]
        await asyncio.sleep(0.05)
        await queue.close()
        for result in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60):
            assert isinstance(result, QueueUnavailable)


# -- rows that others wrote ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            b'{"id": 7, "task": "work", "run": "r", "step": 4, "version": %d}' % (WIRE_VERSION + 1),
            f"newer version {WIRE_VERSION + 1}",
        ),
        (b'{"task": ["not", "a", "name"]}', "not a message that this version can read"),
        (b"\xff\xfe nonsense", "not a message that this version can read"),
    ],
)
async def test_what_cannot_be_read_waits_for_others_and_then_dies_without_stalling_its_neighbours(
    path: Path, body: bytes, reason: str
) -> None:
    clock = FakeClock()
    async with opened(path, clock=clock, lease=30.0, max_deliveries=3) as queue:
        await queue.send([odd := message()])

        def spoil() -> None:
            queue._store.file.db.execute("UPDATE messages SET body = ?", (body,))

        await queue._call(spoil)
        await queue.send(neighbours := messages(3))
        assert ids(await queue.receive([QUEUE], 9, worker="w", wait=0)) == [it.id for it in neighbours]
        for _ in range(2):
            assert await queue.dead_letters() == []
            clock.advance(31)
            delivered = await queue.receive([QUEUE], 9, worker="w", wait=0)
            assert odd.id not in ids(delivered)
            await queue.settle([(delivery, outcome_of(delivery)) for delivery in delivered])
        (letter,) = await queue.dead_letters()
        assert (letter.id, letter.deliveries) == (odd.id, 3)
        assert reason in letter.reason
        dead = [outcome for outcome in await queue.outcomes(10, 0) if outcome.status == "dead"]
        assert [outcome.message for outcome in dead] == [odd.id]
        assert (dead[0].run, dead[0].step) == (("r", 4) if b'"run"' in body else ("", 0))
        assert await queue.redrive([odd.id]) == 1


# -- several processes on one file -----------------------------------------------------------------------------------


async def test_limits_hold_over_all_who_share_the_file(path: Path) -> None:
    clock = FakeClock()
    async with opened(path, clock=clock) as one, opened(path, clock=clock) as other:
        await one.send(
            messages(5, concurrency=Concurrency("gpu", 2)) + messages(5, queue="mail", rate=Rate("mail", 1.0, burst=2))
        )
        first = await one.receive([QUEUE], 1, worker="w1", wait=0)
        second = await other.receive([QUEUE], 9, worker="w2", wait=0)
        assert (len(first), len(second)) == (1, 1)
        await one.settle([(first[0], outcome_of(first[0]))])
        assert len(await other.receive([QUEUE], 9, worker="w2", wait=0)) == 1
        assert len(await one.receive(["mail"], 1, worker="w1", wait=0)) == 1
        assert len(await other.receive(["mail"], 9, worker="w2", wait=0)) == 1
        clock.advance(2.0)
        handed_back = await one.receive(["mail"], 9, worker="w1", wait=0)
        assert len(handed_back) == 2
        await one.release(handed_back)
        assert len(await other.receive(["mail"], 9, worker="w2", wait=0)) == 2, "an attempt that never started used up no rate"


async def test_of_progress_that_nobody_fetches_the_newest_is_kept(path: Path) -> None:
    async with opened(path) as queue:
        await queue.publish([Progress(run="r", kind="token", offset=number, data=Raw(b"1")) for number in range(12_000)])
        kept = await queue.progress(20_000, 0)
        assert [record.offset for record in kept] == list(range(2_000, 12_000))


async def test_a_queue_survives_being_closed_and_opened(path: Path) -> None:
    async with opened(path) as queue:
        await queue.send(messages(2))
        await queue.close()
        await queue.open()
        await queue.open()
        assert len(await queue.receive([QUEUE], 9, worker="w", wait=0)) == 2
