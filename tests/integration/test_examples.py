"""The examples do what they say, on the embedded engine, with time moved by hand and models scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from examples import fan_out, human_approval, nightly_digest, tool_agent
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.program import llm
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import ChatMessage, Chunk, Completion, Prompt, Run, RunFilter, StartRequest, ToolCall
from ziggurat.testing.clock import FakeClock
from ziggurat.workers.worker import Worker


class Scripted(llm.ModelCaller):
    """Answers from a function of the prompt."""

    def __init__(self, answer: Callable[[Prompt], Completion]) -> None:
        self.answer = answer
        self.prompts: list[Prompt] = []

    async def complete(self, prompt: Prompt) -> Completion:
        self.prompts.append(prompt)
        return self.answer(prompt)

    async def stream(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        yield Chunk(text=self.answer(prompt).text, finish="stop")


class House:
    """An embedded system with a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.queue = MemoryQueue(clock=self.clock)
        self.engine = EmbeddedOrchestrator(folder / "state.db", self.queue, Registry(), clock=self.clock)
        self.worker = Worker(self.queue, Registry(), clock=self.clock)

    async def start(self, workflow: Any, *args: Any, id: str = "") -> Run:
        payload = Raw(workflow.arguments.encode(args, {}))
        return await self.engine.start(StartRequest(workflow=workflow.name, payload=payload, id=id))

    async def waiting(self, run: str) -> Run:
        """Return the run once it waits for something outside."""
        async with asyncio.timeout(60):
            while (found := await self.engine.get(run)).status == "running":  # noqa: ASYNC110 - a turn of the loop, no wait
                await asyncio.sleep(0)
        return found

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.engine.driver.timers.fire()


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    built = House(folder)
    await built.queue.open()
    await built.engine.open()
    working = asyncio.create_task(built.worker.run())
    try:
        yield built
    finally:
        built.worker.stop()
        await working
        await built.engine.close()
        await built.queue.close()


@pytest.fixture(autouse=True)
def no_models() -> Any:
    yield
    llm.use_models(None)


async def test_a_refund_waits_for_a_person_and_pays_once(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        request = human_approval.Request(customer="Ada", amount=480)
        run = await built.start(human_approval.refund, request)
        assert "approval" in (await built.waiting(run.id)).reason
        await built.engine.signal(run.id, "approval", Raw(b'{"approved": true, "by": "Grace"}'))
        ended = await built.engine.wait(run.id, 60)
        receipt = human_approval.refund.result.decode(ended.result or b"")
        assert (receipt.paid, receipt.decided_by) == (True, "Grace")
        assert [s.name for s in await built.engine.steps(run.id) if s.kind == "task"] == ["ask_for_approval", "pay"]


async def test_a_refund_that_nobody_approves_is_turned_down_after_three_days(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        run = await built.start(human_approval.refund, human_approval.Request(customer="Ada", amount=480))
        await built.waiting(run.id)
        built.pass_time(3 * 86400 - 60)
        await asyncio.sleep(0)
        assert (await built.engine.get(run.id)).status == "waiting"
        built.pass_time(120)
        ended = await built.engine.wait(run.id, 60)
        receipt = human_approval.refund.result.decode(ended.result or b"")
        assert (receipt.paid, receipt.decided_by) == (False, "nobody within three days")


async def test_a_small_refund_needs_nobody_even_as_a_plain_function() -> None:
    receipt = await human_approval.refund(human_approval.Request(customer="Ada", amount=20))
    assert receipt.paid


async def test_the_agent_calls_the_tool_that_the_model_names(tmp_path: Path) -> None:
    def model(prompt: Prompt) -> Completion:
        said = [m for m in prompt.messages if m.role == "tool"]
        if not said:
            return Completion(tool_calls=[ToolCall("c1", "find_order", '{"number": "1042"}')], finish="tool_calls")
        return Completion(text=f"It is {said[-1].content}.")

    scripted = Scripted(model)
    llm.use_models(scripted)
    async with house(tmp_path) as built:
        run = await built.start(tool_agent.support, "Where is order 1042?")
        ended = await built.engine.wait(run.id, 60)
        assert ended.status == "completed", ended.error
        answer = tool_agent.support.result.decode(ended.result or b"")
        assert "77-A" in answer.text
        assert answer.tools_used == ["find_order"]
        assert [s.name for s in await built.engine.steps(run.id)] == ["ziggurat.llm", "find_order", "ziggurat.llm"]
    assert {tool.name for tool in scripted.prompts[0].tools} == {"find_order", "open_ticket"}
    assert isinstance(scripted.prompts[-1].messages[0], ChatMessage)


async def test_the_agent_must_answer_after_its_last_round(tmp_path: Path) -> None:
    def model(prompt: Prompt) -> Completion:
        if not prompt.tools:
            return Completion(text="I do not know.")
        return Completion(tool_calls=[ToolCall("c", "no_such_tool", "{}")], finish="tool_calls")

    llm.use_models(Scripted(model))
    async with house(tmp_path) as built:
        run = await built.start(tool_agent.support, "?")
        ended = await built.engine.wait(run.id, 60)
        assert ended.status == "completed", ended.error
        answer = tool_agent.support.result.decode(ended.result or b"")
        assert answer.text == "I do not know."
        assert len(answer.tools_used) == tool_agent.ROUNDS_MAX


async def test_one_broken_item_of_a_thousand_does_not_spoil_the_rest(tmp_path: Path) -> None:
    async with house(tmp_path) as built:
        run = await built.start(fan_out.score_all, 1000)
        ended = await built.engine.wait(run.id, 60)
        scores = fan_out.score_all.result.decode(ended.result or b"")
        assert (scores.scored, scores.failed) == (999, [13])
        assert scores.total == sum(n * n % 97 for n in range(1000) if n != 13)


async def test_the_digest_goes_on_night_after_night_in_one_run(tmp_path: Path) -> None:
    llm.use_models(Scripted(lambda _: Completion(text="All quiet.")))
    async with house(tmp_path) as built:
        settings = nightly_digest.Settings(feeds=["news", "incidents"], nights=3)
        run = await built.start(nightly_digest.digest, settings, id="digest")
        nights: list[float] = []
        for generation in range(3):
            found = await built.waiting(run.id)
            assert found.generation == generation
            nights.append(found.wake_at or 0.0)
            built.pass_time((found.wake_at or 0) - built.clock.time())
            async with asyncio.timeout(60):
                while (await built.engine.get(run.id)).generation == generation < 2:  # noqa: ASYNC110 - a turn of the loop
                    await asyncio.sleep(0)
        ended = await built.engine.wait(run.id, 60)
        assert ended.status == "completed"
        assert [b - a for a, b in pairwise(nights)] == [86400.0, 86400.0]
        history = await built.engine.history(run.id)
        assert sum(e.kind == "run_continued" for e in history) <= 2
        assert len(await built.engine.list(RunFilter())) == 1
