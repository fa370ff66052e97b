"""The worker's own loops, where a queue misbehaves: outages, refusals, messages that come twice or too late."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Raw

from ziggurat.clock import SystemClock
from ziggurat.errors import ConfigurationError, PayloadTooLarge, QueueUnavailable
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Delivery, Message, Outcome, Progress
from ziggurat.testing.clock import FakeClock
from ziggurat.testing.worker_harness import order
from ziggurat.testing.worker_tasks import gates
from ziggurat.workers import outage
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker


class FaultyQueue(MemoryQueue):
    """A memory queue whose verbs fail while `faults` holds an error for their name."""

    def __init__(self, options: QueueOptions | None = None, clock: Any = None) -> None:
        super().__init__(options, clock=clock or SystemClock())
        self.faults: dict[str, Callable[[], Exception]] = {}
        self.calls: dict[str, int] = {}

    def _fault(self, verb: str) -> None:
        self.calls[verb] = self.calls.get(verb, 0) + 1
        fault = self.faults.get(verb) or self.faults.get("all")
        if fault is not None:
            raise fault()

    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        self._fault("receive")
        return await super().receive(queues, limit, worker=worker, wait=wait, region=region)

    async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        self._fault("settle")
        return await super().settle(settled)

    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        self._fault("extend")
        return await super().extend(deliveries, details)

    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        self._fault("release")
        return await super().release(deliveries, delay=delay, reason=reason)

    async def cancellations(self, worker: str, wait: float) -> list[str]:
        self._fault("cancellations")
        return await super().cancellations(worker, wait)

    async def publish(self, progress: Sequence[Progress]) -> None:
        self._fault("publish")
        await super().publish(progress)


def down() -> QueueUnavailable:
    return QueueUnavailable("Nobody answers at the queue's address.")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(outage, "LONGEST_PAUSE", 0.005)


@asynccontextmanager
async def working(queue: MemoryQueue, **options: Any) -> AsyncIterator[Worker]:
    await queue.open()
    clock = options.pop("clock", None)
    worker = Worker(
        queue,
        Registry(["ziggurat.testing.worker_tasks"]),
        options=WorkerOptions(**{"poll": 0.05, **options}),
        clock=clock,
    )
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop(0.0)
        await asyncio.wait_for(running, 60)
        await queue.close()


async def outcomes(queue: MemoryQueue, number: int = 1) -> list[Outcome]:
    found: list[Outcome] = []
    async with asyncio.timeout(60):
        while len(found) < number:
            found += await queue.outcomes(number, 1.0)
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - conditions of any kind, not events
            await asyncio.sleep(0.001)


async def test_an_outage_is_told_once_and_survived_by_what_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ziggurat.workers")
    queue = FaultyQueue()
    async with working(queue) as worker:
        await queue.send([order("hold", name="outage")])
        await gates.passed("outage.in")
        queue.faults["all"] = down
        gates["outage.out"].set()
        await until(lambda: queue.calls.get("settle", 0) >= 3 and queue.calls.get("receive", 0) >= 5)
        assert worker.trouble() == "Nobody answers at the queue's address."
        assert worker.busy == 1
        queue.faults.clear()
        (outcome,) = await outcomes(queue)
        assert outcome.status == "completed"
        await until(lambda: worker.trouble() == "")
    told = [record.getMessage() for record in caplog.records]
    assert len([text for text in told if "keeps trying" in text]) == 1
    assert len([text for text in told if "again, after" in text]) == 1


async def test_an_unexpected_error_of_the_queue_is_survived_too() -> None:
    queue = FaultyQueue()
    async with working(queue) as worker:
        queue.faults["receive"] = lambda: RuntimeError("a bug")
        await until(lambda: queue.calls.get("receive", 0) >= 3)
        assert "RuntimeError: a bug" in worker.trouble()
        queue.faults.clear()
        await queue.send([order("add", a=1, b=2)])
        assert [outcome.result for outcome in await outcomes(queue)] == [Raw(b"3")]


async def test_the_age_of_the_last_poll_tells_a_deaf_worker_from_a_full_one() -> None:
    clock = FakeClock()
    queue = FaultyQueue(clock=clock)
    async with working(queue, clock=clock, concurrency=1) as worker:
        await queue.send([order("hold", name="full", timeout=None)])
        await gates.passed("full.in")
        clock.advance(20.0)
        # Every slot is taken, so nothing is received; that cancellations are heard shows that the worker lives.
        await until(lambda: worker.polled_at == clock.monotonic())
        gates["full.out"].set()
        await outcomes(queue)
        queue.faults["receive"] = down
        seen = queue.calls["receive"]
        clock.advance(20.0)
        await until(lambda: queue.calls["receive"] > seen + 3)
        assert clock.monotonic() - worker.polled_at >= 20.0


async def test_an_outcome_that_the_queue_refuses_becomes_a_failure_and_spares_its_batch() -> None:
    class Refusing(FaultyQueue):
        async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
            if any(outcome.result == Raw(b"13") for _, outcome in settled):
                raise PayloadTooLarge("The outcome is too large for this broker.")
            return await super().settle(settled)

    queue = Refusing()
    async with working(queue):
        await queue.send([order("add", a=n, b=10) for n in range(6)])
        found = await outcomes(queue, 6)
        assert {bytes(o.result) for o in found if o.result is not None} == {b"10", b"11", b"12", b"14", b"15"}
        (failed,) = [o for o in found if o.status == "failed"]
        assert failed.error is not None
        assert failed.error.message == "The queue refused the outcome: The outcome is too large for this broker."
        assert not failed.error.retryable


async def test_a_queue_that_refuses_every_outcome_leaves_the_message_to_its_lease() -> None:
    queue = FaultyQueue()
    async with working(queue) as worker:
        queue.faults["settle"] = lambda: ValueError("no outcome is good enough")
        await queue.send([order("add", a=1, b=2)])
        await until(lambda: queue.calls.get("settle", 0) >= 2)
        await until(lambda: worker.busy == 0)
        assert (await queue.depth())["default"].leased == 1


async def test_a_message_that_comes_back_while_it_runs_goes_on_under_its_new_lease() -> None:
    clock = FakeClock()
    queue = MemoryQueue(QueueOptions(lease=30.0), clock=clock)
    async with working(queue, clock=clock) as worker:
        await queue.send([order("hold", name="twice", timeout=None)])
        await gates.passed("twice.in")
        gates["twice.in"].clear()
        clock.advance(31.0)
        await until(lambda: [attempt.delivery.epoch for attempt in worker._held.values()] == [2])
        gates["twice.out"].set()
        (outcome,) = await outcomes(queue)
        assert outcome.status == "completed"
        assert worker.tally.started == 1
        assert not gates["twice.in"].is_set()


async def test_an_outcome_under_way_when_its_lease_ends_is_settled_under_the_next() -> None:
    clock = FakeClock()
    reached, go_on = asyncio.Event(), asyncio.Event()

    class Slow(MemoryQueue):
        async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
            reached.set()
            await go_on.wait()
            return await super().settle(settled)

    queue = Slow(QueueOptions(lease=30.0), clock=clock)
    async with working(queue, clock=clock) as worker:
        await queue.send([order("add", a=1, b=2)])
        await reached.wait()
        clock.advance(31.0)
        await until(lambda: [attempt.delivery.epoch for attempt in worker._held.values()] == [2])
        go_on.set()
        (outcome,) = await outcomes(queue)
        assert outcome.result == Raw(b"3")
        await until(lambda: worker.busy == 0)
        assert (worker.tally.started, worker.tally.completed, worker.tally.lost) == (1, 1, 0)


async def test_a_cancellation_that_arrives_before_its_message_is_remembered() -> None:
    class Early(MemoryQueue):
        said: Collection[str] = ()

        async def cancellations(self, worker: str, wait: float) -> list[str]:
            said, self.said = list(self.said), ()
            return said or await super().cancellations(worker, wait)

    queue, sent = Early(), order("hold", name="early")
    queue.said = [sent.id]
    async with working(queue) as worker:
        await until(lambda: sent.id in worker._early_cancels)
        await queue.send([sent])
        (outcome,) = await outcomes(queue)
        assert outcome.status == "cancelled"
        assert not gates["early.in"].is_set()


async def test_progress_is_dropped_rather_than_holding_up_work() -> None:
    queue = FaultyQueue()
    queue.faults["publish"] = down
    async with working(queue):
        await queue.send([order("talk", words=["one", "two"])])
        (outcome,) = await outcomes(queue)
        assert outcome.result == Raw(b"2")


async def test_over_its_memory_ceiling_a_worker_finishes_and_asks_for_a_fresh_process() -> None:
    queue = MemoryQueue()
    async with working(queue, memory_ceiling=1) as worker:
        await queue.send([order("hold", name="ceiling")])
        await gates.passed("ceiling.in")
        worker.check_memory()
        assert worker.recycle
        assert worker.stopping
        await queue.send([order("add", a=1, b=2)])
        gates["ceiling.out"].set()
        (outcome,) = await outcomes(queue)
        assert outcome.result == Raw(b'"ceiling"')
        assert (await queue.depth())["default"].ready == 1


async def test_a_cancelled_run_hands_everything_back() -> None:
    queue = MemoryQueue()
    await queue.open()
    worker = Worker(queue, Registry(["ziggurat.testing.worker_tasks"]), options=WorkerOptions(poll=0.05))
    running = asyncio.create_task(worker.run())
    await queue.send([order("hold", name="cut")])
    await gates.passed("cut.in")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    depth = (await queue.depth())["default"]
    assert (depth.ready, depth.leased) == (1, 0)
    await queue.close()


async def test_a_pushed_delivery_is_handled_and_settled_by_its_door() -> None:
    queue = MemoryQueue()
    await queue.open()
    worker = Worker(queue, Registry(["ziggurat.testing.worker_tasks"]))

    def pushed(message: Message) -> Delivery:
        return Delivery(message=message, worker="door", epoch=1, leased_until=0.0)

    outcome = await worker.handle(pushed(order("add", a=20, b=22)))
    assert outcome.result == Raw(b"42")
    outcome = await worker.handle(pushed(order("talk", words=["one"])))
    assert outcome.result == Raw(b"1")
    assert [bytes(progress.data) for progress in await queue.progress(10, 0.0)] == [b'"one"']
    with pytest.raises(ConfigurationError, match="no task 'suite\\.nothing'"):
        await worker.handle(pushed(order("nothing")))
    handling = asyncio.create_task(worker.handle(pushed(order("hold", name="hung-up"))))
    await gates.passed("hung-up.in")
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling
    await gates.passed("hung-up.cancelled")
    assert worker.tally.completed == 2
    await worker.close()
    await queue.close()


class SlowToTakeBack(FaultyQueue):
    """Leases a message at the moment when the worker is told to stop, and takes its time to take it back."""

    def __init__(self) -> None:
        super().__init__()
        self.stop: Callable[[], None] = lambda: None

    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        received = await super().receive(queues, limit, worker=worker, wait=wait, region=region)
        if received:
            self.stop()
        return received

    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        await asyncio.sleep(0.2)
        return await super().release(deliveries, delay=delay, reason=reason)


async def test_a_drain_waits_until_what_came_too_late_is_back_on_the_queue() -> None:
    queue = SlowToTakeBack()
    await queue.send([order("add", a=1, b=2), order("add", a=3, b=4)])
    async with working(queue, grace=30.0) as worker:
        queue.stop = worker.stop
        await until(lambda: worker.stopping)
        async with asyncio.timeout(60):
            while (await queue.depth())["default"].leased:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await queue.depth())["default"].ready == 2
    assert worker.tally.started == 0
