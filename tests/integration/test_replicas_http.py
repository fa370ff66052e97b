"""Replicas, hedges and regions by settings alone, against servers on loopback that are lost, slow and well again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ziggurat.assembly.endpoints import build_models
from ziggurat.errors import ContextTooLong, EndpointUnreachable
from ziggurat.inference.balance import order
from ziggurat.inference.replicas import Replicated
from ziggurat.inference.router import Router
from ziggurat.records import CallRecord, ChatMessage, Prompt
from ziggurat.settings import load_settings
from ziggurat.testing.models import FaultyUpstream, hang_up

#: Seconds until a test that waits for something gives up.
HUNG = 120.0


def user(content: str = "hi", **more: Any) -> Prompt:
    return Prompt(messages=[ChatMessage(role="user", content=content)], **more)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(HUNG):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Pool:
    """Three servers as one endpoint, and a fourth somewhere else, in a project's settings."""

    def __init__(self, folder: Path, servers: list[FaultyUpstream], other: FaultyUpstream) -> None:
        self.folder, self.servers, self.other = folder, servers, other
        self.urls = [server.base_url for server in servers]
        self.records: list[CallRecord] = []

    def router(self, endpoint: str = "", model: str = "") -> Router:
        (self.folder / "ziggurat.toml").write_text(f"""
[inference.endpoints.pool]
urls = {self.urls!r}
gpu = "H100"
region = "eu"
quality = {{ "*" = 3 }}
{endpoint}
[inference.endpoints.other]
base_url = "{self.other.base_url}"
region = "us"
[inference.models.default]
routes = ["pool:qwen", "other:gpt"]
{model}
""")
        return build_models(load_settings(self.folder / "ziggurat.toml"), ledger=self.records.append)

    @property
    def requests(self) -> list[int]:
        return [server.requests for server in self.servers]


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Pool]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FaultyUpstream()) for _ in range(3)]
        for server in servers:
            server.health, server.contexts = 200, {"qwen": 4096}
        yield Pool(tmp_path, servers, await stack.enter_async_context(FaultyUpstream()))


def replicated(models: Router) -> Replicated:
    endpoint = models.endpoints["pool"]
    assert isinstance(endpoint, Replicated)
    return endpoint


def holding(release: asyncio.Event) -> Callable[[web.Request, Prompt], Awaitable[web.StreamResponse | None]]:
    async def handler(request: web.Request, prompt: Prompt) -> web.StreamResponse | None:
        await release.wait()
        return None

    return handler


async def hang_up_at_once(request: web.Request, prompt: Prompt) -> web.StreamResponse | None:
    hang_up(request)
    return web.Response()


async def test_sessions_stay_and_only_those_of_a_lost_replica_move(pool: Pool) -> None:
    models = pool.router()
    # The ports are chance: with thirty sessions, a replica had none once in 60,000 times.
    sessions = [f"conversation {n}" for n in range(60)]
    homes: dict[str, str] = {}
    for session in sessions:
        await models.complete(user(session=session))
        homes[session] = pool.records[-1].replica
        assert homes[session] == order(session, pool.urls)[0]
    assert set(homes.values()) == set(pool.urls)
    lost = pool.servers[0]
    lost.health, lost.raw = 503, hang_up_at_once
    for session in sessions:
        answer = await models.complete(user(session=session))
        assert answer.endpoint == "pool"
        if homes[session] != pool.urls[0]:
            assert pool.records[-1].replica == homes[session]
    assert pool.other.requests == 0
    failed = [record for record in pool.records if record.status != "ok"]
    assert 0 < len(failed) <= 3, "the first calls met it, and a look or its breaker kept the others away"
    assert {record.replica for record in failed} == {pool.urls[0]}
    lost.health, lost.raw = 200, None
    await replicated(models).look_at_all()
    # Its breaker lets a call try it after a pause, whatever its health says.
    moved = next(session for session, home in homes.items() if home == pool.urls[0])
    async with asyncio.timeout(HUNG):
        while pool.records[-1].replica != pool.urls[0]:
            await models.complete(user(session=moved))
    for session in sessions:
        await models.complete(user(session=session))
        assert pool.records[-1].replica == homes[session]
    await models.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_under_way_on_a_replica_that_dies_are_answered_by_others(pool: Pool, streamed: bool) -> None:
    models = pool.router('balance = "load"')
    release = asyncio.Event()
    for server in pool.servers:
        server.raw = holding(release)

    async def ask(n: int) -> str:
        prompt = user(f"question {n}")
        if streamed:
            return "".join([chunk.text async for chunk in models.stream(prompt)])
        return (await models.complete(prompt)).text

    calls = [asyncio.create_task(ask(n)) for n in range(12)]
    await until(lambda: sum(server.open_requests for server in pool.servers) == 12)
    victim = max(pool.servers, key=lambda server: server.open_requests)
    there = victim.open_requests
    await victim.stop()
    release.set()
    answers = await asyncio.gather(*calls)
    assert all(answers) and there >= 4
    statuses = Counter(record.status for record in pool.records)
    assert statuses["ok"] == 12 and pool.other.requests == 0
    assert statuses.total() == 12 + there, "each call that was there was sent once more, and no other"
    await models.close()


async def test_a_look_finds_health_load_and_context(pool: Pool) -> None:
    models = pool.router()
    pool.servers[
        0
    ].metrics = 'vllm:num_requests_running{model_name="qwen"} 7.0\nvllm:num_requests_waiting{model_name="qwen"} 2.0\n'
    pool.servers[1].health = 503
    await models.complete(user())
    # One that has answered is well before the look at it has ended.
    await until(
        lambda: (seen := models.routes("default")[0].replicas)[0].running is not None and all(v.health != "unknown" for v in seen)
    )
    first, second, third = models.routes("default")[0].replicas
    assert (first.health, first.running, first.waiting) == ("well", 7, 2)
    assert second.health == "ill" and "503" in second.trouble
    assert (third.health, third.running) == ("well", None)
    route = models.routes("default")[0]
    assert (route.context, route.region, route.quality) == (4096, "eu", 3)
    said = (await models.check())["pool"]
    assert "2 of 3 replicas are well" in str(said)
    # A prompt that does not fit goes to the route that may take it, and nowhere if there is none.
    before = pool.requests
    assert (await models.complete(user("word " * 8000))).endpoint == "other"
    with pytest.raises(ContextTooLong, match="does not fit its context of 4,096"):
        await models.complete(user("word " * 8000, model="pool:qwen"))
    assert pool.requests == before
    await models.close()


async def test_a_required_region_holds_when_all_its_replicas_are_lost(pool: Pool) -> None:
    models = pool.router(model='regions = ["eu"]')
    for server in pool.servers:
        await server.stop()
    with pytest.raises(EndpointUnreachable, match=r"cannot be reached.*the model 'default' must stay in 'eu'"):
        await models.complete(user())
    assert pool.other.requests == 0
    await models.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_slow_replica_is_hedged_and_its_call_is_closed_upstream(pool: Pool, streamed: bool) -> None:
    models = pool.router(model='hedge = "50ms"\nhedge_budget = 1.0')
    session = "s"
    home, second = (pool.servers[pool.urls.index(url)] for url in order(session, pool.urls)[:2])
    home.raw = holding(asyncio.Event())
    prompt = user(session=session)
    if streamed:
        assert [chunk async for chunk in models.stream(prompt)][-1].finish == "stop"
    else:
        assert (await models.complete(prompt)).text
    won, lost = sorted(pool.records[-2:], key=lambda record: record.status)
    assert (won.status, won.replica, won.hedge) == ("ok", second.base_url, True)
    assert (lost.status, lost.replica, lost.hedge) == ("unanswered", home.base_url, False)
    await until(lambda: home.open_requests == 0)
    assert home.abandoned == 1
    await models.close()


async def test_hedges_stay_within_their_share_and_the_amplification_within_a_tenth(pool: Pool) -> None:
    models = pool.router(model='hedge = "5ms"\nhedge_budget = 0.05')

    async def slow(request: web.Request, prompt: Prompt) -> web.StreamResponse | None:
        await asyncio.sleep(0.02)
        return None

    for server in pool.servers:
        server.raw = slow
    gate = asyncio.Semaphore(16)

    async def ask(n: int) -> None:
        async with gate:
            await models.complete(user(f"{n}"))

    await asyncio.gather(*(ask(n) for n in range(300)))
    hedges = sum(record.hedge for record in pool.records)
    assert 0 < hedges <= 15
    assert sum(pool.requests) <= 1.1 * 300
    await models.close()
