"""The journal of an attempt's calls, and the cache that programs ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins

from tests.conformance.redis_servers import REDIS_8, running
from tests.conftest import missing_service
from tests.unit.test_inference_router import Attempt, SkippingRouter, scripted, user
from ziggurat.artifacts import INLINE, Artifact, Library, use_library
from ziggurat.artifacts.backends.folder import FolderStore
from ziggurat.errors import EndpointFailed, InvalidData, LayerUnreachable
from ziggurat.inference.answers import PIECE, Answers, AnswerStore, Gathered
from ziggurat.inference.backends.answers_redis import RedisAnswers
from ziggurat.inference.backends.answers_sqlite import SqliteAnswers
from ziggurat.inference.backends.scripted import Reply
from ziggurat.inference.interface import ModelConfig, Price
from ziggurat.program.context import TaskInfo, attempting
from ziggurat.program.llm import _prompt
from ziggurat.records import ChatMessage, Chunk, Prompt, Tool, Usage
from ziggurat.testing import FakeClock


def router(folder: Path, *, answer: Reply | None = None, **options: Any) -> SkippingRouter:
    """A router of a process that has just begun, over the answers of the ones before."""
    prices = {"prices": {"m": Price(input=1.0, output=1.0)}}
    said = (lambda prompt, asked: answer) if answer is not None else None
    made = SkippingRouter({"a": scripted("a", said, config=prices)}, {"default": ModelConfig(routes=["a:m"])})
    made.answers = Answers(SqliteAnswers(folder / "answers.db", made.clock), INLINE, **options)
    return made


def attempt(number: int = 1, run: str = "r", namespace: str = "default") -> Attempt:
    made = Attempt()
    made.info = TaskInfo(task="t", run=run, attempt=number, namespace=namespace, idempotency_key=f"{run}~0.1")
    return made


async def ask(models: SkippingRouter, here: Attempt | None, *texts: str, **more: Any) -> list[str]:
    if here is None:
        return [(await models.complete(user(text, **more))).text for text in texts]
    with attempting(here):
        return [(await models.complete(user(text, **more))).text for text in texts]


async def test_a_lost_attempts_answers_are_not_bought_again_and_their_bills_are_told_once(tmp_path: Path) -> None:
    first, lost = router(tmp_path), attempt()
    said = await ask(first, lost, "one", "two", "three")
    second, again = router(tmp_path), attempt()
    assert await ask(second, again, "one", "two", "three", "four", "five") == said + await ask(
        router(tmp_path), attempt(), "four", "five"
    )
    assert [len(first.journal), len(second.journal)] == [3, 2]
    # The worker that was lost could tell nobody; each call is told once, under its own id.
    assert [call.id for call in again.calls] == [*(c.id for c in lost.calls), *(c.id for c in second.journal)]


async def test_the_same_question_twice_is_two_calls_in_whatever_order_they_come(tmp_path: Path) -> None:
    first, lost = router(tmp_path), attempt()
    said = sorted(await ask(first, lost, "same", "same", "other"))
    second = router(tmp_path)
    with attempting(attempt()):
        found = await asyncio.gather(*(second.complete(user(text)) for text in ("other", "same", "same")))
    assert sorted(answer.text for answer in found) == said
    assert (len(first.journal), len(second.journal)) == (3, 0)


@pytest.mark.parametrize(
    "other", [lambda: attempt(2), lambda: attempt(run="q"), lambda: None], ids=["next attempt", "other run", "no run"]
)
async def test_nobody_else_is_given_an_attempts_answers(tmp_path: Path, other: Callable[[], Attempt | None]) -> None:
    await ask(router(tmp_path), attempt(), "one")
    models = router(tmp_path)
    await ask(models, other(), "one")
    assert len(models.journal) == 1


async def test_another_question_is_never_answered_with_an_old_answer(tmp_path: Path) -> None:
    await ask(router(tmp_path), attempt(), "one")
    for more in ({"temperature": 0.5}, {"model": "a:m"}, {"max_tokens": 7}, {"seed": 1}, {"schema": {"type": "object"}}):
        models = router(tmp_path)
        await ask(models, attempt(), "one", **more)
        assert len(models.journal) == 1, more


async def hear(
    models: SkippingRouter, here: Attempt | None, text: str, stop_after: int | None = None, **more: Any
) -> list[Chunk]:
    found: list[Chunk] = []
    with attempting(here) if here is not None else nullcontext():
        async with aclosing(models.stream(user(text, **more))) as chunks:
            async for chunk in chunks:
                found.append(chunk)
                if len(found) == stop_after:
                    break
    return found


async def test_a_lost_attempts_streams_are_not_bought_again(tmp_path: Path) -> None:
    first, lost = router(tmp_path), attempt()
    said = [await hear(first, lost, text) for text in ("one", "two", "three")]
    second, again = router(tmp_path), attempt()
    found = [await hear(second, again, text) for text in ("one", "two", "three", "four")]
    assert ["".join(c.text for c in stream) for stream in found[:3]] == ["".join(c.text for c in stream) for stream in said]
    assert [(s[-1].finish, s[-1].usage, s[-1].call) for s in found[:3]] == [(s[-1].finish, s[-1].usage, s[-1].call) for s in said]
    assert [len(first.journal), len(second.journal)] == [3, 1]
    assert [call.id for call in again.calls] == [*(c.id for c in lost.calls), *(c.id for c in second.journal)]


async def test_a_stream_that_was_left_or_broke_off_is_bought_again(tmp_path: Path) -> None:
    await hear(router(tmp_path), attempt(), "one", stop_after=2)
    models = router(tmp_path)
    assert (await hear(models, attempt(), "one"))[-1].finish == "stop"
    assert len(models.journal) == 1
    broken = router(tmp_path, answer=Reply(text="one two three four", fault="cut"))
    with pytest.raises(EndpointFailed):
        await hear(broken, attempt(), "two")
    models = router(tmp_path)
    await hear(models, attempt(), "two")
    assert len(models.journal) == 1


async def test_tool_calls_and_long_answers_stream_again_as_they_were(tmp_path: Path) -> None:
    tools = [Tool(name="look", parameters={"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]})]
    first = await hear(router(tmp_path), attempt(), "one", tools=tools)
    calls = Gathered.of(first).tool_calls
    again = await hear(router(tmp_path), attempt(), "one", tools=tools)
    assert [(call.name, "at" in call.arguments) for call in calls] == [("look", True)]
    assert Gathered.of(again).tool_calls == calls
    assert again[-1].finish == "tool_calls"
    long = "x" * (2 * PIECE + 1)
    await hear(router(tmp_path, answer=Reply(text=long)), attempt(), "two")
    pieces = [chunk.text for chunk in await hear(router(tmp_path), attempt(), "two")]
    assert "".join(pieces) == long
    assert max(map(len, pieces)) == PIECE


async def test_whole_and_streamed_answers_stand_for_each_other_and_the_cache_holds_for_streams(tmp_path: Path) -> None:
    models = router(tmp_path)
    said = "".join(c.text for c in await hear(models, None, "one", cache=60.0))
    assert await ask(models, None, "one", cache=60.0) == [said]
    found = await hear(models, attempt(), "one", cache=60.0)
    assert ("".join(c.text for c in found), found[-1].call) == (said, None)
    assert found[-1].usage == Usage()
    assert len(models.journal) == 1


async def test_equal_files_of_two_steps_are_one_request_to_the_cache(tmp_path: Path) -> None:
    use_library(Library(FolderStore(tmp_path / "files")))
    try:
        models = router(tmp_path)
        for data in (b"%PDF-1 the same", b"%PDF-1 the same", b"%PDF-1 another"):
            artifact = await Artifact.save(data, name="a.pdf")
            content: Any = [{"type": "artifact", "artifact": to_builtins(artifact)}]
            await models.complete(Prompt(messages=[ChatMessage(role="user", content=content)], cache=60.0))
        assert len(models.journal) == 2
    finally:
        use_library(None)


async def test_the_journal_can_be_left_out(tmp_path: Path) -> None:
    await ask(router(tmp_path, journal=False), attempt(), "one")
    models = router(tmp_path, journal=False)
    await ask(models, attempt(), "one")
    assert len(models.journal) == 1


async def test_an_equal_request_is_answered_from_the_cache_for_its_time_and_costs_nothing(tmp_path: Path) -> None:
    models, here = router(tmp_path), attempt()
    (said,) = await ask(models, here, "one", cache=60.0)
    with attempting(attempt(run="other")):
        again = await models.complete(user("one", cache=60.0))
    assert (again.text, again.usage.cost_usd, again.call) == (said, 0.0, None)
    assert len(models.journal) == 1
    await ask(models, None, "one")
    assert len(models.journal) == 2, "who does not ask for the cache is not given it"
    models.clock.advance(61.0)
    await ask(models, here, "one", cache=60.0)
    assert len(models.journal) == 3


async def test_a_tenant_is_not_given_the_answers_of_another(tmp_path: Path) -> None:
    models = router(tmp_path)
    await ask(models, attempt(namespace="acme"), "one", cache=60.0)
    await ask(models, attempt(namespace="other"), "one", cache=60.0)
    assert len(models.journal) == 2


async def test_a_store_that_fails_means_that_calls_are_made(tmp_path: Path) -> None:
    class Broken(AnswerStore):
        def get(self, key: str) -> bytes | None:
            raise LayerUnreachable("The store is gone.")

        def put(self, key: str, data: bytes, ttl: float) -> None:
            raise LayerUnreachable("The store is gone.")

    models = router(tmp_path)
    models.answers = Answers(Broken(), INLINE)
    assert len(await ask(models, attempt(), "one", "two")) == 2
    assert len(models.journal) == 2


def test_how_long_is_a_duration() -> None:
    assert _prompt("x", "fast", {"cache": "1h"}).cache == 3600.0
    with pytest.raises(Exception, match="cache of the model call"):
        _prompt("x", "fast", {"cache": "soon"})
    with pytest.raises(InvalidData, match="cache"):
        _prompt("x", "fast", {"cash": "1h"})


@pytest.fixture(params=["sqlite", REDIS_8])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], AnswerStore]]:
    if request.param == "sqlite":
        yield lambda: SqliteAnswers(tmp_path / "deep" / "answers.db")
        return
    with running(request.param, missing_service) as server:
        yield lambda: RedisAnswers(server.url, "queue.url")


def test_what_is_kept_is_there_for_all_until_its_time(store: Callable[[], AnswerStore]) -> None:
    mine, yours = store(), store()
    assert yours.get("k") is None
    mine.put("k", b"\x00one", 100.0)
    mine.put("k", b"two", 100.0)
    mine.put("gone", b"x", 0.001)
    assert yours.get("k") == b"two"

    time.sleep(0.01)
    assert yours.get("gone") is None
    mine.close()
    yours.close()


def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Exception, match=r"cannot be used .* Check its folder"):
        SqliteAnswers(tmp_path / "file" / "answers.db").put("k", b"", 1.0)
    with pytest.raises(LayerUnreachable, match="cannot be reached"):
        RedisAnswers("redis://127.0.0.1:1", "queue.url").get("k")


def test_a_clock_decides_what_is_past_its_time(tmp_path: Path) -> None:
    clock = FakeClock()
    answers = SqliteAnswers(tmp_path / "answers.db", clock)
    answers.put("k", b"one", 10.0)
    clock.advance(9.0)
    assert answers.get("k") == b"one"
    clock.advance(2.0)
    assert answers.get("k") is None
