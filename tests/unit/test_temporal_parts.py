"""Parts of Temporal as the orchestrator that need no server: sending in company, waiting for the end, who wants work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from msgspec import Raw

from ziggurat.errors import LayerUnreachable, Overloaded, PayloadTooLarge, QueueUnavailable
from ziggurat.orchestrator.temporal.options import TemporalOptions
from ziggurat.orchestrator.temporal.sending import Sending
from ziggurat.orchestrator.temporal.stopping import Stopping
from ziggurat.queues.backends.temporal import TemporalQueue
from ziggurat.queues.temporal_link import LinkOptions, task_queue_of
from ziggurat.records import Message, Run

PATIENCE = 20.0


def message(name: str) -> Message:
    return Message(id=name, task="t", payload=Raw(b"{}"))


class Line:
    """A queue that holds each batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.refuses: dict[str, Exception] = {}

    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        self.batches.append([m.id for m in messages])
        await self.gate.wait()
        for m in messages:
            if m.id in self.refuses:
                raise self.refuses[m.id]


async def test_what_is_asked_for_while_a_batch_is_under_way_goes_along_with_the_next() -> None:
    line = Line()
    sending = Sending(cast(Any, line))
    async with asyncio.timeout(PATIENCE):
        first = asyncio.create_task(sending.send(message("a")))
        while not line.batches:  # noqa: ASYNC110
            await asyncio.sleep(0)
        rest = [asyncio.create_task(sending.send(message(name))) for name in "bcd"]
        await asyncio.sleep(0)
        line.gate.set()
        await asyncio.gather(first, *rest)
        await sending.send(message("e"))
    assert line.batches == [["a"], ["b", "c", "d"], ["e"]]


@pytest.mark.parametrize("error", [Overloaded("the lane is full"), PayloadTooLarge("too large")])
async def test_a_batch_that_is_refused_for_one_is_sent_one_by_one(error: Exception) -> None:
    line = Line()
    line.refuses["b"] = error
    line.gate.set()
    sending = Sending(cast(Any, line))
    async with asyncio.timeout(PATIENCE):
        told = await asyncio.gather(*(sending.send(message(name)) for name in "abc"), return_exceptions=True)
    assert told == [None, error, None]


async def test_an_outage_is_told_to_all_of_a_batch_and_ends_with_it() -> None:
    line = Line()
    line.refuses["b"] = QueueUnavailable("it is away")
    line.gate.set()
    sending = Sending(cast(Any, line))
    async with asyncio.timeout(PATIENCE):
        told = await asyncio.gather(*(sending.send(message(name)) for name in "ab"), return_exceptions=True)
        assert all(isinstance(error, LayerUnreachable) for error in told)
        await sending.send(message("c"))


class Server:
    """What a waiter asks of a server: a run that goes on until it is told otherwise."""

    def __init__(self) -> None:
        self.status: Any = "running"
        self.closed = asyncio.Event()
        self.looks = 0

    async def live(self, run: str) -> Run:
        self.looks += 1
        return Run(id=run, workflow="w", status=self.status)

    async def run(self, run: str) -> Run:
        return Run(id=run, workflow="w", status=self.status)

    async def closing(self, run: str) -> bool:
        await self.closed.wait()
        self.closed.clear()
        return True


async def test_whoever_waits_hears_of_the_end_without_a_look() -> None:
    server = Server()
    waiting = asyncio.create_task(Stopping(cast(Any, server), "r", TemporalOptions(look=3600.0)).wait())
    async with asyncio.timeout(PATIENCE):
        while not server.looks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        server.status = "completed"
        server.closed.set()
        assert (await waiting).status == "completed"
    assert server.looks == 1


async def test_a_closed_execution_with_a_successor_is_no_end() -> None:
    server = Server()
    waiting = asyncio.create_task(Stopping(cast(Any, server), "r", TemporalOptions(look=3600.0)).wait())
    async with asyncio.timeout(PATIENCE):
        server.closed.set()
        while server.closed.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        server.status = "failed"
        server.closed.set()
        assert (await waiting).status == "failed"


async def test_a_hint_brings_the_next_look_forward() -> None:
    server = Server()
    stopping = Stopping(cast(Any, server), "r", TemporalOptions(look=3600.0, look_most=3600.0))
    waiting = asyncio.create_task(stopping.wait())
    async with asyncio.timeout(PATIENCE):
        while not server.looks:  # noqa: ASYNC110
            await asyncio.sleep(0)
        server.status = "parked"
        stopping.hint()
        assert (await waiting).status == "parked"


def test_tasks_of_the_default_queue_wait_where_the_runs_do() -> None:
    assert task_queue_of("z", "default") == "z"
    assert task_queue_of("z", "default", "eu") == "z-default@eu"
    assert task_queue_of("z", "cpu") == "z-cpu"
    assert task_queue_of("z", "cpu", "eu") == "z-cpu@eu"


def test_nobody_wants_work_before_a_worker_asks() -> None:
    assert not TemporalQueue(LinkOptions()).hungry
