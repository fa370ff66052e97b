"""Processes that share a sqlite queue are killed, frozen and thawed at random; nothing is lost and nothing counts twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Message, Outcome
from ziggurat.testing.queue_harness import message, messages

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parent.parent.parent
LEASE = 0.5
#: Random seeds of the killing; ZIGGURAT_CHAOS_SEEDS asks for more.
SEEDS = range(1, 1 + int(os.environ.get("ZIGGURAT_CHAOS_SEEDS") or 3))
#: Seconds after which a test that has not come to its end is stuck.
LIMIT = 200.0


class Hands:
    """Worker processes on one file."""

    def __init__(self, folder: Path, *, lease: float = LEASE, max_deliveries: int = 1_000) -> None:
        self.path = folder / "queue.db"
        self.options = QueueOptions(lease=lease, max_deliveries=max_deliveries)
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.alive: list[subprocess.Popen[bytes]] = []
        self.started = 0
        self.errors = b""

    def start(self) -> None:
        name = f"w{self.started}"
        self.started += 1
        arguments = [self.path, name, self.logs / name, self.options.lease, self.options.max_deliveries]
        command = [sys.executable, "-m", "tests.chaos.sqlite_hands", *map(str, arguments)]
        self.alive.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        self.alive.remove(process)
        process.kill()
        self.errors += process.communicate()[1]

    def reap(self) -> int:
        """Forget those that died by themselves; returns how many."""
        dead = [process for process in self.alive if process.poll() is not None]
        for process in dead:
            self.kill(process)
        return len(dead)

    def stop(self) -> None:
        for process in list(self.alive):
            self.kill(process)

    def lines(self, kind: str) -> Counter[str]:
        """How often each id was taken ("t") or settled ("s"), over all processes."""
        found: Counter[str] = Counter()
        for log in self.logs.iterdir():
            found.update(line[2:] for line in log.read_text().splitlines() if line.startswith(kind))
        return found


async def gather_outcomes(queue: SqliteQueue, number: int) -> dict[str, Outcome]:
    """Fetch and acknowledge until so many messages have an outcome; the same outcome may come again, another one may not."""
    found: dict[str, Outcome] = {}
    async with asyncio.timeout(LIMIT):
        while len(found) < number:
            batch = await queue.outcomes(100, 5.0)
            for outcome in batch:
                assert found.setdefault(outcome.message, outcome) == outcome
            await queue.ack_outcomes(batch)
    return found


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_message_is_settled_once_while_workers_are_killed_and_frozen(tmp_path: Path, seed: int) -> None:
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    hands = Hands(tmp_path)
    queue = SqliteQueue(hands.path, hands.options)
    await queue.open()
    sent = messages(1_500)
    try:
        for _ in range(3):
            hands.start()
        gathering = asyncio.create_task(gather_outcomes(queue, len(sent)))
        for start in range(0, len(sent), 50):
            await queue.send(sent[start : start + 50])
            await asyncio.sleep(rng.random() * 0.15)
            victim = rng.choice(hands.alive)
            match rng.choice(["kill", "freeze", "nothing"]):
                case "kill":
                    hands.kill(victim)
                    hands.start()
                case "freeze":
                    # A process that is frozen inside a transaction keeps the file's lock, so whoever thaws it must not wait for that.
                    victim.send_signal(signal.SIGSTOP)
                    loop.call_later(LEASE * (1 + rng.random()), victim.send_signal, signal.SIGCONT)
        found = await gathering
    finally:
        hands.stop()
    assert {outcome.status for outcome in found.values()} == {"completed"}
    assert set(found) == {it.id for it in sent}
    assert max(hands.lines("s").values()) == 1, "two workers were told that they settled one message"
    assert hands.errors == b""
    await asyncio.sleep(LEASE)
    assert await queue.dead_letters() == []
    assert await queue.stored() == 0
    await queue.close()


async def test_a_message_that_kills_its_process_dies_after_exactly_its_deliveries(tmp_path: Path) -> None:
    hands = Hands(tmp_path, lease=2.0, max_deliveries=3)
    queue = SqliteQueue(hands.path, hands.options)
    await queue.open()
    poison = message(task="poison")
    sent: list[Message] = [*messages(100), poison, *messages(100)]
    await queue.send(sent)
    try:
        hands.start()
        gathering = asyncio.create_task(gather_outcomes(queue, len(sent)))
        while not gathering.done():
            for _ in range(hands.reap()):
                hands.start()
            await asyncio.wait([gathering], timeout=0.05)
        found = await gathering
    finally:
        hands.stop()
    assert {id_ for id_, outcome in found.items() if outcome.status == "dead"} == {poison.id}
    assert hands.lines("t")[poison.id] == 3
    (letter,) = await queue.dead_letters()
    assert (letter.id, letter.deliveries) == (poison.id, 3)
    assert hands.errors == b""
    await queue.close()


async def test_processes_that_hammer_one_file_never_meet_its_lock(tmp_path: Path) -> None:
    hands = Hands(tmp_path, lease=30.0)
    queues = [SqliteQueue(hands.path, hands.options) for _ in range(3)]
    for queue in queues:
        await queue.open()
    sent = messages(3_000)

    async def send(queue: SqliteQueue, mine: list[Message]) -> None:
        for it in mine:
            await queue.send([it])

    try:
        for _ in range(3):
            hands.start()
        gathering = asyncio.create_task(gather_outcomes(queues[0], len(sent)))
        await asyncio.gather(*(send(queue, sent[number::3]) for number, queue in enumerate(queues)))
        assert set(await gathering) == {it.id for it in sent}
        assert all(process.poll() is None for process in hands.alive)
    finally:
        hands.stop()
    assert hands.errors == b""
    assert set(hands.lines("s").values()) == {1}
    for queue in queues:
        await queue.close()
