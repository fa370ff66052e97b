"""The thread that renews leases, while a task keeps the event loop to itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence

from ziggurat import task
from ziggurat.clock import SystemClock
from ziggurat.errors import QueueUnavailable
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import Queue, QueueOptions
from ziggurat.records import Delivery
from ziggurat.testing.worker_harness import order
from ziggurat.testing.worker_tasks import gates
from ziggurat.workers.attempt import Attempt
from ziggurat.workers.leases import LeaseKeeper
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker


class Connection(MemoryQueue):
    """Stands for a second connection: notes from which thread it was opened, renewed and closed."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__(QueueOptions(lease=0.03))
        self.fails = fails
        self.threads: set[threading.Thread] = set()
        self.renewed: list[tuple[str, bytes | None]] = []
        self.twice, self.told = threading.Event(), threading.Event()
        self.was_closed = threading.Event()
        self.lose: set[str] = set()

    async def open(self) -> None:
        if self.fails:
            self.fails -= 1
            raise QueueUnavailable("not yet")
        await super().open()
        self.threads.add(threading.current_thread())

    async def close(self) -> None:
        await super().close()
        self.threads.add(threading.current_thread())
        self.was_closed.set()

    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        self.threads.add(threading.current_thread())
        self.renewed += [(delivery.message.id, (details or {}).get(delivery.message.id)) for delivery in deliveries]
        if details:
            self.told.set()
        if len(self.renewed) >= 2:
            self.twice.set()
        return self.lose & {delivery.message.id for delivery in deliveries}


@task(name="suite.greedy")
async def greedy(name: str) -> bool:
    """Keep the event loop until the gate NAME.out is set, as code does that computes; say whether it was in time."""
    gates[f"{name}.in"].set()
    return gates[f"{name}.out"].wait(60)


def _open_when(event: threading.Event, gate: str) -> None:
    event.wait(60)
    gates[gate].set()


async def _run(connection: Connection, name: str) -> tuple[MemoryQueue, Worker, asyncio.Task[None]]:
    queue = MemoryQueue(QueueOptions(lease=60.0))
    await queue.open()
    worker = Worker(queue, Registry(), options=WorkerOptions(name=name, poll=0.05), lease_keeper=lambda: connection)
    return queue, worker, asyncio.create_task(worker.run())


async def test_leases_are_renewed_while_a_task_computes_on_the_loop() -> None:
    connection = Connection(fails=1)
    queue, worker, running = await _run(connection, "computing")
    # The loop of the test is the worker's: nothing else runs on it until the second renewal opens the gate.
    asyncio.get_running_loop().run_in_executor(None, _open_when, connection.twice, "computing.out")
    sent = order("greedy", name="computing")
    await queue.send([sent])
    (outcome,) = await queue.outcomes(1, 30.0)
    assert outcome.status == "completed"
    assert bytes(outcome.result or b"") == b"true"
    assert {id_ for id_, _ in connection.renewed} == {sent.id}
    worker.stop(0.0)
    await running
    assert await asyncio.to_thread(connection.was_closed.wait, 10.0)
    assert [thread.name for thread in connection.threads] == ["ziggurat-leases"]
    await queue.close()


async def test_the_thread_carries_heartbeats_and_tells_of_lost_leases() -> None:
    connection = Connection()
    queue, worker, running = await _run(connection, "carrying")
    sent = order("beat_and_hold", name="carrying", details=5)
    await queue.send([sent])
    await gates.passed("carrying.in")
    # Renewals may have gone by before the task said anything.
    assert await asyncio.to_thread(connection.told.wait, 30.0)
    assert (sent.id, b"5") in connection.renewed
    connection.lose = {sent.id}
    async with asyncio.timeout(60):
        while worker.busy:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert worker.tally.lost == 1
    worker.stop(0.0)
    await running
    assert await queue.outcomes(1, 0.0) == []
    await queue.close()


async def test_the_lease_of_a_stuck_worker_is_not_renewed_for_ever() -> None:
    clock = SystemClock()
    delivery = Delivery(message=order("add", timeout=1.0), worker="stuck", epoch=1, leased_until=time.time() + 30)
    attempt = Attempt(delivery, "stuck", clock, lambda _: None)
    attempt.begin()
    connection = Connection()
    keeper = LeaseKeeper(lambda: [attempt], lambda _: None, clock, patience=5.0)
    await keeper.renew(connection)
    assert len(connection.renewed) == 1
    attempt.expires = clock.monotonic() - 5.1
    await keeper.renew(connection)
    assert len(connection.renewed) == 1


async def test_details_that_could_not_be_sent_are_sent_next_time() -> None:
    clock = SystemClock()
    attempt = Attempt(Delivery(message=order("add"), worker="w", epoch=1, leased_until=0.0), "w", clock, lambda _: None)
    attempt.begin()
    attempt.heartbeat(b"7")

    class Down(Connection):
        down = True

        async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
            if self.down:
                raise QueueUnavailable("down")
            return await super().extend(deliveries, details)

    connection = Down()
    queue: Queue = connection
    keeper = LeaseKeeper(lambda: [attempt], lambda _: None, clock)
    try:
        await keeper.renew(queue, everything=False)
    except QueueUnavailable:
        connection.down = False
    await keeper.renew(queue, everything=False)
    await keeper.renew(queue, everything=False)
    assert connection.renewed == [(attempt.message.id, b"7")]


@task(name="suite.compute")
async def compute(name: str, seconds: float) -> str:
    """Compute on the event loop, which stands still meanwhile."""
    gates[f"{name}.in"].set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return name


async def test_a_loop_that_stood_still_past_a_lease_in_one_process_has_lost_nothing() -> None:
    queue = MemoryQueue(QueueOptions(lease=0.05))
    await queue.open()
    worker = Worker(queue, Registry(), options=WorkerOptions(poll=0.05))
    running = asyncio.create_task(worker.run())
    # The first attempt yields while the second computes, so that both hold a lease that nobody can renew.
    await queue.send([order("hold", name="standing"), order("compute", name="computed", seconds=1.5)])
    found = await queue.outcomes(1, 30.0)
    await queue.ack_outcomes(found)  # Or it is offered again after a lease, which is shorter than a busy machine's pause.
    gates["standing.out"].set()
    found += await queue.outcomes(1, 30.0)
    assert [(outcome.status, bytes(outcome.result or b"")) for outcome in found] == [
        ("completed", b'"computed"'),
        ("completed", b'"standing"'),
    ]
    assert (worker.tally.started, worker.tally.lost) == (2, 0)
    worker.stop(0.0)
    await running
    await queue.close()
