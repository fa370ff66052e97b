"""A message that kills its process is found out, though the queue's memory dies with the process."""

from __future__ import annotations

from pathlib import Path

from msgspec import Raw

from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.crashbook import CrashBook
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Message, Outcome


def message(id_: str) -> Message:
    return Message(id=id_, task="t", payload=Raw(b"{}"))


def crash(queue: MemoryQueue) -> None:
    """Leave the file as a killed process leaves it."""
    assert queue._book is not None
    queue._book.close(clean=False)
    queue._book = None


async def test_a_message_that_was_leased_at_each_death_is_buried(tmp_path: Path) -> None:
    for _ in range(3):
        queue = MemoryQueue(QueueOptions(max_deliveries=3), crashbook=tmp_path / "book")
        await queue.open()
        await queue.send([message("poison"), message("bystander")])
        (held,) = await queue.receive(["default"], 1, worker="w", wait=0)
        assert held.message.id == "poison"
        crash(queue)
        await queue.close()
    queue = MemoryQueue(QueueOptions(max_deliveries=3), crashbook=tmp_path / "book")
    await queue.open()
    await queue.send([message("poison"), message("bystander")])
    (outcome,) = await queue.outcomes(10, 0)
    assert (outcome.message, outcome.status) == ("poison", "dead")
    assert outcome.error is not None
    assert "died 3 times" in outcome.error.message
    assert [d.message.id for d in await queue.receive(["default"], 9, worker="w", wait=0)] == ["bystander"]
    await queue.close()


async def test_a_clean_end_and_a_settled_message_leave_no_blame(tmp_path: Path) -> None:
    queue = MemoryQueue(crashbook=tmp_path / "book")
    await queue.open()
    await queue.send([message("a"), message("b")])
    first, second = await queue.receive(["default"], 2, worker="w", wait=0)
    await queue.settle([(first, Outcome(message="a", task="t", status="completed"))])
    await queue.release([second])
    crash(queue)
    assert not CrashBook(tmp_path / "book").lost
    await queue.close()


def test_the_file_is_compacted_and_keeps_what_counts(tmp_path: Path) -> None:
    book = CrashBook(tmp_path / "book")
    book.leased(["kept"])
    for number in range(70_000):
        book.leased([str(number)])
        book.done([str(number)])
    assert (tmp_path / "book").stat().st_size < 1_100_000
    book.close(clean=False)
    assert CrashBook(tmp_path / "book").lost == {"kept": 1}
