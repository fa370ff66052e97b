"""What a worker does not do: run something beside a last delivery, or begin what may be someone else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Message, Outcome
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.worker_harness import order
from ziggurat.testing.worker_tasks import gates
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
async def working(queue: MemoryQueue, clock: FakeClock, threads: int = 0) -> AsyncIterator[Worker]:
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
        await asyncio.wait_for(running, 30.0)


async def use_up_all_but_one(queue: MemoryQueue, *messages: Message) -> None:
    """Let each message's only delivery but the last come to nothing."""
    await queue.send(messages)
    taken = await queue.receive(["default"], len(messages), worker="victim", wait=1.0)
    assert len(taken) == len(messages)
    assert not any(delivery.last for delivery in taken)
    await queue.release(taken, reason="killed")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30.0):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def outcomes(queue: MemoryQueue, number: int) -> set[str]:
    found: list[Outcome] = []
    async with asyncio.timeout(30.0):
        while len(found) < number:
            found += (new := await queue.outcomes(number, 1.0))
            await queue.ack_outcomes(new)
    return {outcome.message for outcome in found}


async def test_a_last_delivery_waits_for_its_company_and_then_runs_with_nothing_beside_it() -> None:
    async with opened() as (queue, clock), working(queue, clock) as worker:
        await queue.send([order("hold", name="company")])
        await gates.passed("company.in")
        suspect, second, fresh = order("hold", name="suspect"), order("hold", name="second"), order("hold", name="fresh")
        # Until it asks again, it asks for this one.
        worker.queues = ("nothing",)
        await asyncio.sleep(0.05)
        await use_up_all_but_one(queue, suspect, second)
        worker.queues = ("default",)
        # One of both is held here, the other goes back and loses no delivery by that.
        await until(lambda: worker.busy == 2 and worker.tally.released)
        assert not gates["suspect.in"].is_set()
        await queue.send([fresh])
        gates["company.out"].set()
        await gates.passed("suspect.in")
        assert (await queue.depth())["default"].ready == 2
        gates["suspect.out"].set()
        await gates.passed("fresh.in")
        assert not gates["second.in"].is_set()
        gates["fresh.out"].set()
        await gates.passed("second.in")
        gates["second.out"].set()
        assert len(await outcomes(queue, 4)) == 4
        assert await queue.dead_letters() == []


async def test_a_drain_hands_a_last_delivery_back_that_still_waits_to_be_alone() -> None:
    async with opened() as (queue, clock):
        suspect = order("hold", name="waits")
        async with working(queue, clock) as worker:
            await queue.send([order("hold", name="runs")])
            await gates.passed("runs.in")
            worker.queues = ("nothing",)
            await asyncio.sleep(0.05)
            await use_up_all_but_one(queue, suspect)
            worker.queues = ("default",)
            await until(lambda: worker.busy == 2)
            worker.stop(30.0)
            await until(lambda: worker.busy == 1)
            gates["runs.out"].set()
            await until(lambda: worker.busy == 0)
        assert not gates["waits.in"].is_set()
        (again,) = await queue.receive(["default"], 9, worker="heir", wait=1.0)
        assert (again.message.id, again.last) == (suspect.id, True)


async def test_what_waited_past_its_lease_is_not_begun() -> None:
    async with opened(deliveries=5) as (queue, clock), working(queue, clock, threads=1) as worker:
        worker.keeper.muted = True
        await queue.send([order("hold_thread", name="first")])
        await gates.passed("first.in")
        late = order("hold_thread", name="late")
        await queue.send([late])
        await until(lambda: worker.busy == 2)
        worker.queues = ("nothing",)
        await asyncio.sleep(0.05)
        # As in a process that is frozen: nobody renews, and another worker gets what it held.
        clock.advance(31.0)
        (theirs,) = await queue.receive(["default"], 1, worker="heir", wait=1.0)
        others = await queue.receive(["default"], 1, worker="heir", wait=1.0)
        gates["first.out"].set()
        await until(lambda: worker.busy == 0)
        assert not gates["late.in"].is_set()
        assert late.id in {theirs.message.id, *[it.message.id for it in others]}
