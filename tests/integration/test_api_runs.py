"""The HTTP API over a real system: runs are started, found, looked at, acted on and followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.integration.api_server import Caller, api, stream
from ziggurat import Retry, emit, signal, task, workflow


class Document(BaseModel):
    title: str
    pages: int = 1


class Boxes:
    """What the tasks of a test wait for, and what they count."""

    heard = asyncio.Event()
    gate = asyncio.Event()
    attempts = 0

    @classmethod
    def empty(cls) -> None:
        cls.heard, cls.gate, cls.attempts = asyncio.Event(), asyncio.Event(), 0


@task(retry=Retry(attempts=1))
async def count_pages(document: Document) -> int:
    if document.title == "broken":
        raise ValueError("no pages in <script>alert(1)</script>")
    return document.pages


@workflow(tags={"team": "docs"})
async def read_document(document: Document) -> dict[str, Any]:
    return {"pages": await count_pages(document)}


@workflow
async def ask_someone(question: str) -> str:
    return f"{question} {await signal('answer', str)}"


@task(retry=Retry(attempts=2, initial="10ms"))
async def speak(words: int) -> str:
    await Boxes.heard.wait()  # Progress that nobody watches is shown to nobody.
    Boxes.attempts += 1
    for number in range(words):
        emit(f"{Boxes.attempts}:{number} ", "token")
    await Boxes.gate.wait()
    if Boxes.attempts == 1:
        raise ConnectionError("cut off in the middle")
    return "said"


@workflow
async def recite(words: int) -> str:
    return await speak(words)


PROGRAM = (read_document, count_pages, ask_someone, speak, recite)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    Boxes.empty()
    async with api(tmp_path, *PROGRAM) as served:
        yield served


async def test_a_run_is_started_found_and_read(caller: Caller) -> None:
    order = {"workflow": "read_document", "input": {"title": "atlas", "pages": 7}, "id": "doc-1", "tags": {"who": "me"}}
    answer = await caller.post("/runs", order)
    assert answer.status == 201
    assert answer.json["id"] == "doc-1"
    done = await caller.until("doc-1", "completed")
    assert done["input"] == {"document": {"title": "atlas", "pages": 7}}
    assert done["result"] == {"pages": 7}
    assert done["tags"] == {"team": "docs", "who": "me"}
    again = await caller.ok("POST", "/runs", order)
    assert again["ended_at"] == done["ended_at"]
    steps = (await caller.ok("GET", "/runs/doc-1/steps"))["steps"]
    assert [(step["name"], step["status"]) for step in steps] == [("count_pages", "completed")]
    history = await caller.ok("GET", "/runs/doc-1/history")
    assert [event["kind"] for event in history["events"]] == ["run_started", "step_completed", "run_completed"]
    assert history["next"] is None
    short = await caller.ok("GET", "/runs/doc-1/history?after=1&limit=1")
    assert [event["seq"] for event in short["events"]] == [2] and short["next"] == 2


async def test_pages_of_a_list_hold_every_run_once(caller: Caller) -> None:
    for number in range(7):
        await caller.ok("POST", "/runs", {"workflow": "ask_someone", "input": {"question": "?"}, "id": f"run-{number}"})
    seen: list[str] = []
    after = ""
    while True:
        page = await caller.ok("GET", f"/runs?limit=3&after={after}")
        seen += [run["id"] for run in page["runs"]]
        after = page["next"]
        if after is None:
            break
    assert seen == [f"run-{number}" for number in reversed(range(7))]
    assert (await caller.get("/runs?after=nobody")).status == 422


async def test_filters_narrow_a_list(caller: Caller) -> None:
    for name, tag in (("alpha", "a"), ("beta", "b"), ("albatross", "a")):
        await caller.ok(
            "POST", "/runs", {"workflow": "ask_someone", "input": {"question": "?"}, "id": name, "tags": {"kind": tag}}
        )
        await caller.until(name, "waiting")
    await caller.ok("POST", "/runs/alpha/signal", {"name": "answer", "value": "yes"})
    await caller.until("alpha", "completed")

    async def ids(query: str) -> list[str]:
        return [run["id"] for run in (await caller.ok("GET", f"/runs?{query}"))["runs"]]

    assert await ids("status=waiting") == ["albatross", "beta"]
    assert await ids("status=waiting&status=completed&search=al") == ["albatross", "alpha"]
    assert await ids("tag=kind=a") == ["albatross", "alpha"]
    assert await ids("tag=kind=a&status=completed") == ["alpha"]
    assert await ids("workflow=read_document") == []
    assert await ids("since=2001-01-01T00:00:00Z&until=2002-01-01T00:00:00Z") == []
    assert (await caller.ok("GET", "/runs/counts"))["counts"] == {"completed": 1, "waiting": 2}
    assert (await caller.get("/runs?status=sleepy")).status == 422
    assert (await caller.get("/runs?tag=kind")).error == "InvalidData"


async def test_verbs_act_on_a_run(caller: Caller) -> None:
    await caller.ok("POST", "/runs", {"workflow": "ask_someone", "input": {"question": "Why?"}, "id": "q"})
    await caller.until("q", "waiting")
    assert (await caller.ok("POST", "/runs/q/pause", {"reason": "lunch"}))["reason"] == "lunch"
    for _ in range(2):  # The same signal twice is one.
        await caller.ok("POST", "/runs/q/signal", {"name": "answer", "value": "Because.", "signal_id": "s1"})
    assert (await caller.ok("POST", "/runs/q/resume"))["status"] != "paused"
    done = await caller.until("q", "completed")
    assert done["result"] == "Why? Because."
    assert [e["kind"] for e in (await caller.ok("GET", "/runs/q/history"))["events"]].count("signal_received") == 1
    fork = await caller.post("/runs/q/fork", {"step": 1, "input": {"question": "How?"}, "id": "q2"})
    assert (fork.status, fork.json["forked_from"]) == (201, "q")
    assert (await caller.ok("POST", "/runs/q2/cancel", {"reason": "enough"}))["id"] == "q2"
    assert (await caller.until("q2", "cancelled"))["ended_at"]
    assert (await caller.post("/runs/q2/resume")).status == 409
    assert (await caller.post("/runs/q/retry")).error == "Conflict"
    assert (await caller.ask("DELETE", "/runs/q2")).json == {"count": 1}
    assert (await caller.get("/runs/q2")).status == 404
    assert (await caller.ok("GET", "/runs/q"))["id"] == "q"


async def test_a_failed_run_shows_its_error_and_is_retried(caller: Caller) -> None:
    await caller.ok("POST", "/runs", {"workflow": "read_document", "input": {"title": "broken"}, "id": "bad"})
    failed = await caller.until("bad", "failed")
    assert failed["error"]["type"] == "ValueError" and "count_pages" in failed["error"]["traceback"]
    answer = await caller.get("/runs/bad")
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    retried = await caller.ok("POST", "/runs/bad/retry")
    assert retried["epoch"] == 1
    assert (await caller.until("bad", "failed"))["epoch"] == 1


@pytest.mark.parametrize(
    ("order", "status", "error"),
    [
        ({"workflow": "nobody"}, 404, "UnknownName"),
        ({"workflow": "read_document", "input": {"pages": 1}}, 422, "InvalidData"),
        ({"workflow": "read_document", "input": [1]}, 422, "InvalidData"),
        ({"workflow": "read_document", "input": {"title": "x"}, "id": "../../etc"}, 422, "InvalidData"),
        ({"workflow": "read_document", "input": {"title": "x"}, "id": "a\r\nset-cookie: x"}, 422, "InvalidData"),
        ({"workflow": "read_document", "input": {"title": "x"}, "budget": "a lot"}, 400, "ConfigurationError"),
        ({"workflow": "read_document", "input": {"title": "x"}, "prio": 1}, 422, "InvalidData"),
        ({}, 422, "InvalidData"),
    ],
)
async def test_bad_orders_are_refused_in_one_sentence(caller: Caller, order: Any, status: int, error: str) -> None:
    answer = await caller.post("/runs", order)
    assert (answer.status, answer.error) == (status, error), answer.body
    assert "Traceback" not in answer.json["error"]["message"]
    assert (await caller.ok("GET", "/runs"))["runs"] == []


async def test_a_stream_shows_history_steps_tokens_and_the_end(caller: Caller) -> None:
    await caller.ok("POST", "/runs", {"workflow": "recite", "input": {"words": 3}, "id": "poem"})
    seen = []
    async for happening in stream(caller, "poem"):
        Boxes.heard.set()
        seen.append(happening)
        if happening.event == "progress" and happening.data["data"].endswith(":2 "):
            Boxes.gate.set()
    kinds = [h.data["kind"] for h in seen if h.event == "history"]
    assert kinds == ["run_started", "attempt_failed", "step_completed", "run_completed"]
    assert seen[-1].event == "end"
    assert [h.data["status"] for h in seen if h.event == "status"][-1] == "completed"
    tokens = [(h.data["attempt"], h.data["data"]) for h in seen if h.event == "progress"]
    assert tokens == [(1, "1:0 "), (1, "1:1 "), (1, "1:2 "), (2, "2:0 "), (2, "2:1 "), (2, "2:2 ")]
    placed = [h.id for h in seen if not h.id.endswith("--1")]
    assert len(placed) == len(set(placed))


async def test_a_stream_resumes_where_it_was_cut_off(caller: Caller) -> None:
    await caller.ok("POST", "/runs", {"workflow": "recite", "input": {"words": 5}, "id": "poem"})
    first = []
    async for happening in stream(caller, "poem"):
        Boxes.heard.set()
        first.append(happening)
        if happening.event == "progress" and happening.data["offset"] > 1:
            break
    Boxes.gate.set()
    await caller.until("poem", "completed")
    rest = [happening async for happening in stream(caller, "poem", last=first[-1].id)]
    history = [h.data["seq"] for h in first + rest if h.event == "history"]
    assert history == [1, 2, 3, 4]
    tokens = [h.data["data"] for h in first + rest if h.event == "progress"]
    assert tokens == [f"{attempt}:{number} " for attempt in (1, 2) for number in range(5)]
    # Whoever has seen the end is told not to come back.
    assert [h async for h in stream(caller, "poem", last=rest[-1].id)] == []
    assert (await caller.get("/runs/poem/events", headers={"last-event-id": rest[-1].id})).status == 204


async def test_a_late_reader_is_told_what_is_under_way(caller: Caller) -> None:
    await caller.ok("POST", "/runs", {"workflow": "recite", "input": {"words": 4}, "id": "poem"})

    async def until_four(last: str = "") -> list[str]:
        heard: list[str] = []
        async for happening in stream(caller, "poem", last=last):
            Boxes.heard.set()
            if happening.event == "progress":
                heard.append(happening.data["data"])
                if len(heard) == 4:
                    break
        return heard

    said = [f"1:{number} " for number in range(4)]
    assert await until_four() == said
    assert await until_four() == said
    assert await until_four("1-feedbeef-17") == said  # The place of another server's stream.
