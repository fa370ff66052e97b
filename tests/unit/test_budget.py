"""A run that has spent its budget is parked before the next task, and goes on with a larger one; nothing is bought twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ziggurat import Client, RunParked, llm, workflow
from ziggurat.errors import ConfigurationError
from ziggurat.program.context import current_attempt
from ziggurat.program.llm import ModelCaller, use_models
from ziggurat.records import CallRecord, Chunk, Completion, Prompt, Usage


class Dear(ModelCaller):
    """Every call costs a cent."""

    def __init__(self) -> None:
        self.calls = 0

    async def complete(self, prompt: Prompt) -> Completion:
        self.calls += 1
        usage = Usage(calls=1, input_tokens=10, output_tokens=5, cost_usd=0.01)
        call = CallRecord(id=f"call-{self.calls}", model=prompt.model, endpoint="e", upstream="u", usage=usage)
        attempt = current_attempt()
        assert attempt is not None
        attempt.record_call(call)
        return Completion(text="ok", usage=usage, call=call)

    async def stream(self, prompt: Prompt) -> AsyncIterator[Chunk]:
        yield Chunk(text="ok", finish="stop")


@workflow(budget="$0.02")
async def three_calls() -> int:
    for _ in range(3):
        await llm.text("hello")
    return 3


async def test_a_spent_budget_parks_and_a_larger_one_resumes(tmp_path: Path) -> None:
    models = Dear()
    async with Client.local(tmp_path / "state.db") as client:
        use_models(models)
        handle = await client.start(three_calls)
        with pytest.raises(RunParked, match=r"has spent .* of its budget"):
            await handle.result(20)
        assert models.calls == 2
        with pytest.raises(ConfigurationError):
            await handle.resume(budget="much")
        await handle.resume(budget="+$0.05")
        assert await handle.result(20) == 3
        assert models.calls == 3
        assert (await handle.info()).usage.cost_usd == pytest.approx(0.03)
