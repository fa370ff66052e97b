"""A paused run does nothing that anyone could see; a fork before a signal waits for it again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec import Raw

from ziggurat import signal, workflow
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import StartRequest


@workflow
async def two_answers() -> list[str]:
    return [await signal("first", str), await signal("second", str)]


async def opened(path: Path) -> EmbeddedOrchestrator:
    queue = MemoryQueue()
    await queue.open()
    engine = EmbeddedOrchestrator(path / "state.db", queue, Registry())
    await engine.open()
    return engine


async def test_a_paused_run_ends_only_after_it_is_resumed_even_over_a_restart(tmp_path: Path) -> None:
    engine = await opened(tmp_path)
    run = await engine.start(StartRequest(workflow="two_answers", payload=Raw(b"{}")))
    await engine.signal(run.id, "first", Raw(b'"a"'))
    await engine.pause(run.id)
    await engine.signal(run.id, "second", Raw(b'"b"'))
    await asyncio.sleep(0)
    assert (await engine.get(run.id)).status == "paused"
    await engine.close()
    engine = await opened(tmp_path)
    assert (await engine.get(run.id)).status == "paused"
    await engine.resume(run.id)
    ended = await engine.wait(run.id, 20)
    assert bytes(ended.result or b"") == b'["a","b"]'
    await engine.close()


async def test_a_fork_before_a_signal_forgets_the_answer_and_keeps_those_before(tmp_path: Path) -> None:
    engine = await opened(tmp_path)
    run = await engine.start(StartRequest(workflow="two_answers", payload=Raw(b"{}")))
    await engine.signal(run.id, "first", Raw(b'"a"'))
    await engine.signal(run.id, "second", Raw(b'"b"'))
    await engine.wait(run.id, 20)
    for step, answers, result in ((1, {"first": "c", "second": "d"}, ["c", "d"]), (2, {"second": "e"}, ["a", "e"])):
        forked = await engine.fork(run.id, step)
        for name, answer in answers.items():
            await engine.signal(forked.id, name, Raw(f'"{answer}"'.encode()))
        ended = await engine.wait(forked.id, 20)
        assert two_answers.result.decode(ended.result or b"") == result
    await engine.close()
