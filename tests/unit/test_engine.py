"""The embedded engine beyond the suite: limits, odd moments, queues that fail, code that changes under a message."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from tests.unit.embedded_system import PATIENCE, system
from ziggurat.errors import Conflict, PayloadTooLarge, QueueUnavailable
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.program.definitions import task, workflow
from ziggurat.program.options import Concurrent, Retry
from ziggurat.program.primitives import continue_as_new, run_info, signal, state
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Message, StartRequest
from ziggurat.testing import orchestrator_programs as p
from ziggurat.testing.worker_tasks import gates


class Troubled(MemoryQueue):
    """A memory queue that can be unreachable, and refuses large messages."""

    down = False
    sent: list[Message]

    def __init__(self, options: QueueOptions | None = None) -> None:
        super().__init__(options)
        self.sent, self.cancelled = [], list[str]()

    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        if self.down:
            raise QueueUnavailable("The queue is down.")
        for message in messages:
            if len(message.payload) > 1000:
                raise PayloadTooLarge(f"The message {message.id} is too large.")
        self.sent += messages
        await super().send(messages, delay=delay)

    async def cancel(self, ids: Collection[str]) -> None:
        self.cancelled += ids
        await super().cancel(ids)


@task(name="eng.echo", retry=1)
async def echo(text: str) -> int:
    return len(text)


@task(
    name="eng.special",
    queue="default",
    retry=1,
    concurrency=Concurrent(2, key="who"),
    rate="100/s by who",
    timeout="5s",
    deadline="9s",
)
async def special(who: str) -> str:
    return who


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_a_history_over_its_limit_parks_the_run_with_advice(tmp_path: Path) -> None:
    @workflow(name="eng.long")
    async def long(steps: int) -> int:
        for step in range(steps):
            await echo(str(step))
        return steps

    async with system(tmp_path / "state.db", history_limit=10) as s:
        run = await s.run(long, 30)
        assert run.status == "parked"
        assert "10 events" in run.reason
        assert "continue_as_new" in run.reason
    async with system(tmp_path / "state.db", registry=s.registry) as s:
        await s.engine.resume(run.id)
        assert bytes((await s.engine.wait(run.id, PATIENCE)).result or b"") == b"30"


async def test_a_run_that_continues_as_new_keeps_a_bounded_history(tmp_path: Path) -> None:
    @workflow(name="eng.endless")
    async def endless(left: int) -> int:
        for _ in range(3):
            await echo("x")
        assert run_info().history_events < 8
        if left:
            continue_as_new(left - 1)
        return run_info().generation

    async with system(tmp_path / "state.db", history_limit=10) as s:
        run = await s.run(endless, 20)
        assert (run.status, bytes(run.result or b"")) == ("completed", b"20")
        assert len(await s.engine.history(run.id)) < 16


async def test_options_reach_the_message(tmp_path: Path) -> None:
    @workflow(name="eng.options")
    async def options() -> str:
        await echo.options(priority=1, queue="default", timeout="7s", heartbeat="3s")("x")
        return await special("ann")

    queue = Troubled()
    async with system(tmp_path / "state.db", queue=queue) as s:
        s.registry.add(options)
        request = StartRequest(workflow=options.name, payload=Raw(b"{}"), namespace="tenant", priority=4)
        run = await s.engine.start(request)
        assert (await s.engine.wait(run.id, PATIENCE)).status == "completed"
    first, second = queue.sent
    assert (first.lane.namespace, first.lane.priority, first.timeout, first.heartbeat_timeout) == ("tenant", 1, 7.0, 3.0)
    assert (second.lane.priority, second.timeout) == (4, 5.0)
    assert second.concurrency is not None
    assert second.rate is not None
    assert (second.concurrency.key, second.concurrency.limit) == ("eng.special:ann", 2)
    assert (second.rate.key, second.rate.per_second) == ("eng.special:ann", 100.0)
    assert second.deadline is not None
    assert second.deadline > second.sent_at


# -- queues that fail --------------------------------------------------------------------------------------------------


async def test_a_message_that_the_queue_cannot_carry_fails_its_step_and_no_other(tmp_path: Path) -> None:
    @workflow(name="eng.large")
    async def large() -> list[Any]:
        return [
            r if isinstance(r, int) else type(r).__mro__[1].__name__ + str(r)[:12]
            for r in await asyncio.gather(echo("x"), echo("y" * 5000), echo("z"), return_exceptions=True)
        ]

    async with system(tmp_path / "state.db", queue=Troubled()) as s:
        result = await s.result(large)
        assert [result[0], result[2]] == [1, 1]
        assert "The message" in result[1]
        assert await s.result(p.line, "large-after") == 3


async def test_a_queue_that_is_down_delays_and_loses_nothing(tmp_path: Path) -> None:
    queue = Troubled()
    async with system(tmp_path / "state.db", queue=queue) as s:
        queue.down = True
        run = await s.start(p.line, "down")
        await asyncio.sleep(0.05)
        assert (await s.engine.get(run)).status == "running"
        queue.down = False
        assert (await s.engine.wait(run, PATIENCE)).status == "completed"


async def test_messages_that_a_queue_lost_are_sent_again(tmp_path: Path) -> None:
    queue = Troubled()
    async with system(tmp_path / "state.db", queue=queue, sweep=0.05, sweep_age=0.01) as s:
        run = await s.start(p.hold_then_count, "lost")
        await gates.passed("lost.in")
        await queue.close()
        await queue.open()
        gates["lost.out"].set()
        assert (await s.engine.wait(run, PATIENCE)).status == "completed"
        assert [m.id for m in queue.sent][:2] == [f"{run}~0.1.1"] * 2


async def test_a_message_of_changed_code_does_not_block_the_step(tmp_path: Path) -> None:
    """A queue that outlives the process holds the old task under the id that the new one would have."""

    @workflow(name="eng.changes")
    async def before() -> str:
        return await p.hold("changes")

    @workflow(name="eng.changes")
    async def after() -> int:
        return await echo("abc")

    queue, registry = Troubled(QueueOptions(lease=0.2)), Registry()
    await queue.open()
    registry.add(before)
    engine = EmbeddedOrchestrator(tmp_path / "state.db", queue, registry)
    await engine.open()
    run = await engine.start(StartRequest(workflow=before.name, payload=Raw(b"{}")))
    async with asyncio.timeout(PATIENCE):
        while not queue.sent:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await engine.close()
    registry.add(after)
    gates["changes.out"].set()
    async with system(tmp_path / "state.db", queue=queue, registry=registry) as s:
        found = await s.engine.wait(run.id, PATIENCE)
        assert (found.status, bytes(found.result or b"")) == ("completed", b"3")


# -- odd moments -------------------------------------------------------------------------------------------------------


async def test_two_hands_on_one_stopped_run_do_not_hurt_it(tmp_path: Path) -> None:
    async with system(tmp_path / "state.db") as s:
        run = await s.start(p.breaks, "hands")
        await s.engine.wait(run, PATIENCE)
        gates["hands.mended"].set()
        results = await asyncio.gather(*(s.engine.retry(run) for _ in range(3)), return_exceptions=True)
        assert not [r for r in results if isinstance(r, BaseException) and not isinstance(r, Conflict)]
        assert (await s.engine.wait(run, PATIENCE)).status == "completed"
        assert p.ran["hands.last"] == 1


async def test_a_parked_run_is_resumed_by_two_and_cancelled_by_a_third(tmp_path: Path) -> None:
    @workflow(name="eng.opens")
    async def opens() -> None:
        open(__file__)  # noqa: ASYNC230, SIM115

    async with system(tmp_path / "state.db") as s:
        run = await s.run(opens)
        assert run.status == "parked"
        verbs = [s.engine.resume(run.id), s.engine.resume(run.id), s.engine.cancel(run.id), s.engine.cancel(run.id)]
        results = await asyncio.gather(*verbs, return_exceptions=True)
        assert not [r for r in results if isinstance(r, BaseException) and not isinstance(r, Conflict)]
        await s.engine.cancel(run.id)
        async with asyncio.timeout(PATIENCE):
            while (await s.engine.get(run.id)).status != "cancelled":
                await s.engine.wait(run.id)
                await s.engine.cancel(run.id)
        events = await s.engine.history(run.id)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert await s.result(p.line, "hands-after") == 3


async def test_a_parked_child_ends_with_its_parent_and_tells_it(tmp_path: Path) -> None:
    @workflow(name="eng.parks")
    async def parks() -> None:
        open(__file__)  # noqa: ASYNC230, SIM115

    @workflow(name="eng.parent")
    async def parent(name: str) -> str:
        try:
            await parks.options(id=f"{name}/child")()
        except Exception as error:
            return type(error).__name__
        return "nothing"

    async with system(tmp_path / "state.db") as s:
        s.registry.add(parks)
        for name in ("told", "ends"):
            run = await s.start(parent, name, id=name)
            assert (await s.rests(f"{name}/child", "parked")).parent == run
        await s.engine.cancel("told/child", "given up")
        assert msgspec.json.decode((await s.engine.wait("told", PATIENCE)).result or b"") == "ChildRunError"
        await s.engine.cancel("ends")
        assert (await s.engine.wait("ends", PATIENCE)).status == "cancelled"
        await s.rests("ends/child", "cancelled")


@pytest.mark.parametrize("evict_always", [False, True])
async def test_a_child_that_cleans_up_is_cancelled_once(evict_always: bool, tmp_path: Path) -> None:
    """Every replay of the parent drops the step again; the child's clean-up must not be disturbed by it."""

    @workflow(name="eng.cleaning")
    async def cleaning(name: str) -> None:
        try:
            await signal("never")
        finally:
            for _ in range(3):
                await asyncio.sleep(0.005)
            await p.count(f"{name}.cleaned")

    @workflow(name="eng.dropping")
    async def dropping(name: str) -> None:
        child = asyncio.create_task(cleaning.options(id=f"{name}/child")(name))
        await asyncio.sleep(0.002)
        child.cancel()
        for _ in range(10):
            await asyncio.sleep(0.002)

    name = f"cleaning-{evict_always}"
    async with system(tmp_path / "state.db", evict_always=evict_always) as s:
        s.registry.add(cleaning)
        assert await s.result(dropping, name) is None
        assert (await s.engine.wait(f"{name}/child", PATIENCE)).status == "cancelled"
        assert p.ran[f"{name}.cleaned"] == 1
        asked = [e for e in await s.engine.history(f"{name}/child") if e.kind == "cancel_requested"]
        assert len(asked) == 1


async def test_two_steps_may_wait_for_one_child(tmp_path: Path) -> None:
    @workflow(name="eng.one")
    async def one() -> int:
        return await echo("one")

    @workflow(name="eng.twice")
    async def twice() -> list[int]:
        found = list(await asyncio.gather(one.options(id="shared")(), one.options(id="shared")()))
        return [*found, await one.options(id="shared")()]

    async with system(tmp_path / "state.db") as s:
        s.registry.add(one)
        assert await s.result(twice) == [3, 3, 3]


async def test_exiting_the_interpreter_fails_one_run(tmp_path: Path) -> None:
    @workflow(name="eng.exits")
    async def exits() -> None:
        await echo("x")
        sys.exit(2)

    async with system(tmp_path / "state.db") as s:
        run = await s.run(exits)
        assert run.status == "failed"
        assert run.error is not None
        assert run.error.type == "SystemExit"
        assert await s.result(p.line, "exits-after") == 3


async def test_a_deadline_that_passes_during_a_pause_counts_after_it(tmp_path: Path) -> None:
    @task(name="eng.long", deadline="60ms", retry=1)
    async def long() -> None:
        await gates.passed("deadline.out")

    @workflow(name="eng.deadline")
    async def deadline() -> str:
        try:
            await long()
        except TimeoutError:
            return "late"
        return "in time"

    async with system(tmp_path / "state.db") as s:
        s.registry.add(long)
        run = await s.start(deadline)
        await s.engine.pause(run)
        await asyncio.sleep(0.1)
        await s.engine.resume(run)
        assert msgspec.json.decode((await s.engine.wait(run, PATIENCE)).result or b"") == "late"
        gates["deadline.out"].set()


async def test_the_state_of_a_run_outlives_its_eviction(tmp_path: Path) -> None:
    @workflow(name="eng.states")
    async def states(name: str) -> None:
        state(stage=1)
        await p.hold(name)

    async with system(tmp_path / "state.db", evict_always=True) as s:
        run = await s.start(states, "states")
        await gates.passed("states.in")
        await asyncio.sleep(0.02)
        assert msgspec.json.decode((await s.engine.get(run)).state or b"null") == {"stage": 1}
        gates["states.out"].set()
        await s.engine.wait(run, PATIENCE)


async def test_retries_that_wait_are_not_lost_when_their_run_is_forgotten(tmp_path: Path) -> None:
    @task(name="eng.retried", retry=Retry(3, initial="30ms", jitter=0))
    async def retried(name: str) -> int:
        p.ran[name] += 1
        if p.ran[name] < 3:
            raise ValueError(name)
        return p.ran[name]

    @workflow(name="eng.retries")
    async def retries(name: str) -> int:
        return await retried(name)

    for index, restart in enumerate((False, True)):
        path, name = tmp_path / f"{index}.db", f"retries-{index}"
        registry = Registry()
        registry.add(retried)
        async with system(path, registry=registry, evict_always=True) as s:
            run = await s.start(retries, name)
            if restart:
                async with asyncio.timeout(PATIENCE):
                    while not p.ran[name]:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                await asyncio.sleep(0.01)
            else:
                assert bytes((await s.engine.wait(run, PATIENCE)).result or b"") == b"3"
        if restart:
            async with system(path, registry=registry) as s:
                assert bytes((await s.engine.wait(run, PATIENCE)).result or b"") == b"3"
