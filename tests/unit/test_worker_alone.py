"""What a worker does not do: run something beside a suspect, or begin what may be someone else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ziggurat.clock import Clock, SystemClock
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import Queue, QueueOptions
from ziggurat.records import Message, Outcome
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.worker_harness import order
from ziggurat.testing.worker_tasks import gates
from ziggurat.workers import alone
from ziggurat.workers.alone import APART
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker


@asynccontextmanager
async def opened(deliveries: int = 2) -> AsyncIterator[tuple[MemoryQueue, FakeClock]]:
    clock = FakeClock()
    queue = MemoryQueue(QueueOptions(lease=30.0, max_deliveries=deliveries), clock=clock)
    await queue.open()
    try:
        yield queue, clock
    finally:
        await queue.close()


@asynccontextmanager
async def working(queue: Queue, clock: Clock, threads: int = 0) -> AsyncIterator[Worker]:
    worker = Worker(
        queue,
        Registry(["ziggurat.testing.worker_tasks"]),
        options=WorkerOptions(name="w", poll=0.01, threads=threads),
        clock=clock,
    )
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        gates.open_all()
        worker.stop(0.0)
        await asyncio.wait_for(running, 60)


async def make_suspects(queue: MemoryQueue, *messages: Message) -> None:
    """Let each message's first delivery of two come to nothing."""
    await queue.send(messages)
    taken = await queue.receive(["default"], len(messages), worker="victim", wait=1.0)
    assert len(taken) == len(messages)
    assert not any(delivery.suspect for delivery in taken)
    await queue.release(taken, reason="killed")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def outcomes(queue: MemoryQueue, number: int) -> set[str]:
    found: list[Outcome] = []
    async with asyncio.timeout(60):
        while len(found) < number:
            found += (new := await queue.outcomes(number, 1.0))
            await queue.ack_outcomes(new)
    return {outcome.message for outcome in found}


async def test_a_suspect_goes_back_until_it_can_run_with_nothing_beside_it() -> None:
    async with opened() as (queue, clock), working(queue, clock) as worker:
        await queue.send([order("hold", name="company")])
        await gates.passed("company.in")
        suspect, second, fresh = order("hold", name="suspect"), order("hold", name="second"), order("hold", name="fresh")
        worker.queues = ("nothing",)
        await asyncio.sleep(0.05)
        await make_suspects(queue, suspect, second)
        worker.queues = ("default",)
        # It goes back and loses no delivery by that, and the worker makes room: it takes nothing else.
        await until(lambda: worker.tally.released == 1)
        await queue.send([fresh])
        await asyncio.sleep(0.05)
        assert worker.busy == 1
        gates["company.out"].set()
        await until(lambda: worker.busy == 1 and gates["second.in"].is_set())
        clock.advance(APART)
        await asyncio.sleep(0.05)
        # While one runs, nothing is taken.
        assert (await queue.depth())["default"].ready == 2
        for name in ("fresh", "suspect", "second"):
            gates[f"{name}.out"].set()
        async with asyncio.timeout(60):
            while not gates["suspect.in"].is_set():
                clock.advance(APART)  # It may have met the fresh one, and gone back once more.
                await asyncio.sleep(0.01)
        assert len(await outcomes(queue, 4)) == 4
        assert await queue.dead_letters() == []


async def test_a_suspect_that_never_is_alone_runs_in_company_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "COMPANY_ENDS", 0.01)
    async with opened() as (queue, clock), working(queue, clock) as worker:
        await queue.send([order("hold", name="always")])
        await gates.passed("always.in")
        worker.queues = ("nothing",)
        await asyncio.sleep(0.05)
        await make_suspects(queue, order("hold", name="guest"))
        worker.queues = ("default",)
        for refusals in range(1, alone.REFUSALS_MOST + 1):
            await until(lambda refusals=refusals: worker.tally.released == refusals)  # type: ignore[misc]
            clock.advance(APART)
        await gates.passed("guest.in")
        assert worker.busy == 2


async def test_what_waited_past_its_lease_is_not_begun(tmp_path: Path) -> None:
    queue = SqliteQueue(tmp_path / "queue.db", QueueOptions(lease=0.3))
    await queue.open()
    async with working(queue, SystemClock(), threads=1) as worker:
        # As in a process that is frozen: nobody renews, and another worker gets what it held.
        worker.keeper.muted = True
        first, late = order("hold_thread", name="first"), order("hold_thread", name="late")
        await queue.send([first])
        await gates.passed("first.in")
        await queue.send([late])
        await until(lambda: worker.busy == 2)
        worker.queues = ("nothing",)
        taken: set[str] = set()
        async with asyncio.timeout(60):
            while taken != {first.id, late.id}:
                taken |= {it.message.id for it in await queue.receive(["default"], 2, worker="heir", wait=1.0)}
        gates["first.out"].set()
        await until(lambda: worker.busy == 0)
        assert not gates["late.in"].is_set()
    await queue.close()
