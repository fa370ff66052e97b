"""What the memory queue does beyond the suite: real timers, cancelled callers, and the ends that only it can promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec import Raw

from ziggurat.errors import QueueUnavailable
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Concurrency, Progress, Rate
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.queue_harness import QUEUE, ids, message, messages, outcome_of


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def queue(clock: FakeClock) -> AsyncIterator[MemoryQueue]:
    queue = MemoryQueue(QueueOptions(lease=30.0, max_deliveries=1), clock=clock)
    await queue.open()
    yield queue
    await queue.close()


async def test_the_loops_own_timer_ends_leases_delays_rates_and_offers() -> None:
    queue = MemoryQueue(QueueOptions(lease=0.05))
    await queue.open()
    started = asyncio.get_running_loop().time()
    await queue.send([lost := message()])
    await queue.receive([QUEUE], 1, worker="dead", wait=0)
    assert ids(await queue.receive([QUEUE], 1, worker="w2", wait=30)) == [lost.id]
    await queue.cancel([lost.id])
    await queue.send([later := message()], delay=0.05)
    (delivery,) = await queue.receive([QUEUE], 1, worker="w2", wait=30)
    assert delivery.message.id == later.id
    await queue.settle([(delivery, outcome_of(delivery))])
    first = await queue.outcomes(10, 30)
    assert await queue.outcomes(10, 30) == first
    await queue.ack_outcomes(first)
    await queue.send(messages(2, rate=Rate("slow", per_second=20.0)))
    for _ in range(2):
        (delivery,) = await queue.receive([QUEUE], 1, worker="w2", wait=30)
        await queue.settle([(delivery, outcome_of(delivery))])
    assert asyncio.get_running_loop().time() - started >= 0.2, "each of the four waited for its moment"
    await queue.close()


async def test_nothing_runs_while_nothing_is_leased_or_delayed() -> None:
    queue = MemoryQueue(QueueOptions(lease=0.01))
    await queue.open()
    await queue.send([message()])
    (delivery,) = await queue.receive([QUEUE], 1, worker="w1", wait=0)
    await queue.settle([(delivery, outcome_of(delivery))])
    await queue.ack_outcomes(await queue.outcomes(1, 0))
    await asyncio.sleep(0.05)
    assert queue._timer is None
    assert len(asyncio.all_tasks()) == 1
    await queue.close()


async def test_extending_one_lease_does_not_hide_that_another_ran_out(queue: MemoryQueue, clock: FakeClock) -> None:
    await queue.send(messages(3))
    first, second, third = await queue.receive([QUEUE], 3, worker="w1", wait=0)
    clock.advance(20)
    await queue.extend([first, third])
    clock.advance(20)
    assert await queue.extend([first, second, third]) == {second.message.id}


async def test_a_step_of_the_wall_clock_ends_no_lease(queue: MemoryQueue, clock: FakeClock) -> None:
    await queue.send(messages(1))
    (delivery,) = await queue.receive([QUEUE], 1, worker="w1", wait=0)
    for step in (86_400, -2 * 86_400):
        clock.step_wall(step)
        assert await queue.extend([delivery]) == set()


async def test_redriving_before_the_death_was_recorded_takes_it_back(queue: MemoryQueue) -> None:
    await queue.send(messages(1))
    (delivery,) = await queue.receive([QUEUE], 1, worker="w1", wait=0)
    await queue.release([delivery], reason="no")
    assert await queue.redrive([delivery.message.id]) == 1
    assert await queue.outcomes(10, 0) == []


async def test_acknowledging_a_death_leaves_the_outcome_of_the_redriven_message(queue: MemoryQueue) -> None:
    await queue.send(messages(1))
    (delivery,) = await queue.receive([QUEUE], 1, worker="w1", wait=0)
    await queue.release([delivery], reason="no")
    (dead,) = await queue.outcomes(10, 0)
    await queue.redrive([delivery.message.id])
    (again,) = await queue.receive([QUEUE], 1, worker="w1", wait=0)
    await queue.settle([(again, outcome_of(again))])
    await queue.ack_outcomes([dead])
    (completed,) = await queue.outcomes(10, 0)
    assert completed.status == "completed"


async def test_a_redriven_message_keeps_its_heartbeat(queue: MemoryQueue) -> None:
    await queue.send(messages(1))
    (delivery,) = await queue.receive([QUEUE], 1, worker="w1", wait=0)
    await queue.extend([delivery], {delivery.message.id: b"7"})
    await queue.release([delivery], reason="no")
    await queue.redrive([delivery.message.id])
    (again,) = await queue.receive([QUEUE], 1, worker="w1", wait=0)
    assert again.heartbeat == Raw(b"7")


async def test_of_progress_that_nobody_fetches_the_newest_is_kept(queue: MemoryQueue) -> None:
    await queue.publish([Progress(run="r", kind="token", offset=number) for number in range(12_000)])
    kept = await queue.progress(20_000, 0)
    assert [record.offset for record in kept] == list(range(2_000, 12_000))


async def test_callers_that_wait_leave_nothing_behind_when_they_give_up(queue: MemoryQueue) -> None:
    waiting = [
        asyncio.create_task(queue.receive([QUEUE], 1, worker="w", wait=60)),
        asyncio.create_task(queue.outcomes(1, 60)),
        asyncio.create_task(queue.progress(1, 60)),
        asyncio.create_task(queue.cancellations("w", 60)),
    ]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not any(bell._waiting for bell in (queue._work, queue._results, queue._news, queue._cancels))


async def test_a_closed_queue_says_so_and_frees_who_waits(queue: MemoryQueue) -> None:
    waiting = asyncio.create_task(queue.receive([QUEUE], 1, worker="w", wait=60))
    await asyncio.sleep(0)
    await queue.close()
    with pytest.raises(QueueUnavailable, match="closed"):
        await waiting
    with pytest.raises(QueueUnavailable, match="closed"):
        await queue.send([message()])
    await queue.open()
    await queue.send([message()])
    assert (await queue.depth())[QUEUE].ready == 1


async def test_leased_and_delayed_messages_count_against_the_capacity(clock: FakeClock) -> None:
    queue = MemoryQueue(QueueOptions(capacity=3), clock=clock)
    await queue.send(messages(2))
    await queue.receive([QUEUE], 1, worker="w", wait=0)
    await queue.send(messages(1), delay=5)
    with pytest.raises(Exception, match="is full"):
        await queue.send([message(concurrency=Concurrency("key", 1))])
    await queue.close()
