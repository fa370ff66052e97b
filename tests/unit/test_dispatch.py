"""What the engine hands to its queue, and when, where a restart makes it ask for the same again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import Raw

from tests.unit.embedded_system import PATIENCE
from ziggurat.orchestrator.embedded import dispatch
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.program.definitions import task, workflow
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import Message, StartRequest, outcome_of

STEPS = 5


@task(name="disp.echo")
async def echo(n: int) -> int:
    return n


@workflow(name="disp.wide")
async def wide() -> int:
    return sum(await asyncio.gather(*(echo(n) for n in range(STEPS))))


class Gated(MemoryQueue):
    """A memory queue that takes messages while its gate is open, and outlives the engines that close it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        await self.gate.wait()
        await super().send(messages, delay=delay)


async def until_ready(queue: MemoryQueue, number: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await queue.depth())["default"].ready != number:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_what_comes_back_while_it_waits_to_be_sent_again_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_BATCH", 2)
    queue, registry = Gated(), Registry()
    registry.add(wide)
    await queue.open()
    first = EmbeddedOrchestrator(tmp_path / "state.db", queue, registry)
    await first.open()
    run = await first.start(StartRequest(workflow=wide.name, payload=Raw(b"{}"), id="wide"))
    await until_ready(queue, STEPS)
    await first.close()

    # A worker did the last step while nobody orchestrated.
    deliveries = await queue.receive(["default"], STEPS, worker="w", wait=1.0)
    done = deliveries.pop()
    await queue.settle([(done, outcome_of(done.message, "completed", result=Raw(b"4"), worker="w"))])
    await queue.release(deliveries)

    # The next engine asks for all steps again, and hears of the last before the queue has taken the first.
    queue.gate.clear()
    second = EmbeddedOrchestrator(tmp_path / "state.db", queue, registry)
    await second.open()
    async with asyncio.timeout(PATIENCE):
        while not any(event.kind == "step_completed" for event in await second.history(run.id)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    queue.gate.set()
    async with asyncio.timeout(PATIENCE):
        while await queue.missing([done.message.id]) == set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    # Whatever is sent from now on comes after what was to be sent again.
    await second.cancel(run.id)
    await second.wait(run.id, PATIENCE)
    await until_ready(queue, 0)
    assert await queue.missing([done.message.id]) == {done.message.id}
    await second.close()
    await queue.close()
