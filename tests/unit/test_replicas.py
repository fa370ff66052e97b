"""An endpoint of several replicas: sessions stay where they were, what is lost is passed over, and what is back is taken in again."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_inference_router import SkippingRouter, collect, scripted, user
from ziggurat.assembly.endpoints import build_models
from ziggurat.errors import EndpointFailed, EndpointUnreachable, InferenceError, SettingsError
from ziggurat.inference.backends.dedicated import contexts_of, load_of
from ziggurat.inference.backends.scripted import Reply, Script, ScriptedEndpoint
from ziggurat.inference.balance import order
from ziggurat.inference.interface import EndpointConfig, Look, ModelConfig
from ziggurat.inference.ledger import Attribution, attributing
from ziggurat.inference.replicas import Replicated
from ziggurat.inference.retrying import RetryOptions
from ziggurat.inference.sessions import session_of
from ziggurat.records import ChatMessage, Prompt
from ziggurat.settings import load_settings
from ziggurat.testing.clock import FakeClock

URLS = [f"http://10.0.0.{n}:8000/v1" for n in range(4)]


class Server(ScriptedEndpoint):
    """A replica that can be lost: it takes no connection, or its health is bad."""

    gone = False
    ill = False
    seen = Look()

    def _begin(self, prompt: Prompt) -> Reply:
        if self.gone:
            raise EndpointUnreachable(f"The endpoint {self.name!r} cannot be reached.", endpoint=self.name)
        return super()._begin(prompt)

    async def look(self) -> Look:
        if self.gone or self.ill:
            raise EndpointUnreachable("its health is bad.", endpoint=self.name)
        return self.seen


class Pool:
    """A router over one endpoint of four replicas, and another endpoint to fall back to."""

    def __init__(self, *, behaviour: Any = None, probe: float = 0.0, retry: RetryOptions | None = None, **config: Any) -> None:
        def server(url: str) -> Server:
            return Server(EndpointConfig(name="pool", base_url=url, probe=probe), Script(behaviour=behaviour))

        self.servers = {url: server(url) for url in URLS}
        self.other = scripted("other")
        self.models = SkippingRouter({"other": self.other}, {}, options=retry)
        clock: FakeClock = self.models.clock
        settings = EndpointConfig(name="pool", base_url=URLS[0], urls=tuple(URLS), probe=probe, replicas=4, **config)
        self.endpoint = Replicated(settings, list(self.servers.values()), clock, seed=1)
        self.models = SkippingRouter(
            {"pool": self.endpoint, "other": self.other}, {"default": ModelConfig(routes=["pool:m", "other:m"])}, options=retry
        )
        self.endpoint._clock = self.models.clock
        for replica in self.endpoint._replicas.values():
            replica._clock = self.models.clock

    async def ask(self, session: str = "", **more: Any) -> str:
        await self.models.complete(user(session=session, **more))
        return self.models.journal[-1].replica

    @property
    def calls(self) -> Counter[str]:
        return Counter({url: server.script.calls for url, server in self.servers.items()})


async def test_a_session_returns_to_its_replica_and_the_call_says_which() -> None:
    pool = Pool()
    for session in ("a", "b", "c", "d", "e"):
        assert {await pool.ask(session) for _ in range(5)} == {order(session, URLS)[0]}
    assert {call.endpoint for call in pool.models.journal} == {"pool"}
    assert len(pool.calls) > 1


async def test_without_a_name_the_run_is_the_session_and_without_a_run_the_conversation() -> None:
    pool = Pool()
    with attributing(Attribution(run="run-1")):
        assert {await pool.ask() for _ in range(3)} == {order("run-1", URLS)[0]}
        assert await pool.ask("mine") == order("mine", URLS)[0]
    first = Prompt(messages=[ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="hi")])
    later = Prompt(
        messages=[*first.messages, ChatMessage(role="assistant", content="hello"), ChatMessage(role="user", content="and now?")]
    )
    assert session_of(first) == session_of(later) != session_of(user("something else"))
    assert session_of(Prompt(messages=[])) == ""


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_lost_replica_moves_its_own_sessions_and_no_others(streamed: bool) -> None:
    pool = Pool()
    sessions = [f"s{n}" for n in range(40)]
    homes = {session: await pool.ask(session) for session in sessions}
    lost = homes["s0"]
    pool.servers[lost].gone = True
    for session in sessions:
        if streamed:
            await collect(pool.models, user(session=session))
        else:
            await pool.models.complete(user(session=session))
        served = pool.models.journal[-1]
        assert served.status == "ok" and served.replica != lost
        if homes[session] != lost:
            assert served.replica == homes[session]
        else:
            assert served.replica == order(session, [url for url in URLS if url != lost])[0]
    failed = [call for call in pool.models.journal if call.status != "ok"]
    assert len(failed) == 1, "one call met it, and the others passed it over"
    assert pool.other.script.calls == 0


async def test_calls_that_were_there_when_it_was_lost_go_to_another_replica_at_once_whatever_the_retry_budget() -> None:
    held = asyncio.Event()
    pool = Pool(retry=RetryOptions(budget_floor=0, budget_ratio=0.0))
    lost = order("s", URLS)[0]

    async def cut(prompt: Prompt, upstream: str) -> Any:
        await held.wait()
        error = EndpointUnreachable("closed the connection without an answer.", endpoint="pool")
        error.sent = True
        raise error

    pool.servers[lost].complete = cut  # type: ignore[method-assign]
    calls = [asyncio.create_task(pool.ask("s")) for _ in range(8)]
    for _ in range(20):
        await asyncio.sleep(0)
    there = pool.endpoint._replicas[lost].in_flight
    held.set()
    served = await asyncio.gather(*calls)
    assert there > 1 and pool.other.script.calls == 0
    assert {call.status for call in pool.models.journal} == {"ok", "unanswered"}
    assert Counter(call.status for call in pool.models.journal)["unanswered"] == there
    assert lost not in served and pool.models.waits == []
    assert pool.models.routes("default")[0].breaker == "closed", "one replica's failures are not the endpoint's"


async def test_when_no_replica_is_left_the_next_route_is_asked() -> None:
    pool = Pool()
    for server in pool.servers.values():
        server.gone = True
    answer = await pool.models.complete(user(session="s"))
    assert answer.endpoint == "other"
    assert sum(call.status != "ok" for call in pool.models.journal) <= 3, "no more attempts than at an endpoint of one place"


async def test_a_replica_that_fails_is_tried_again_after_its_pause_and_taken_in_if_it_answers() -> None:
    pool = Pool()
    home = order("s", URLS)[0]
    pool.servers[home].gone = True
    await pool.ask("s")
    pool.servers[home].gone = False
    assert await pool.ask("s") != home
    states = {view.url: view.health for view in pool.models.routes("default")[0].replicas}
    assert states[home] == "ill" and list(states.values()).count("ill") == 1
    pool.models.clock.advance(1.0)
    assert await pool.ask("s") == home
    assert {view.health for view in pool.endpoint.replicas()} <= {"well", "unknown"}


async def test_a_replica_whose_health_is_bad_is_passed_over_before_a_call_meets_it() -> None:
    pool = Pool(probe=5.0)
    home = order("s", URLS)[0]
    assert await pool.ask("s") == home
    await _looked(pool)
    pool.servers[home].ill = True
    pool.models.clock.advance(5.0)
    assert await pool.ask("s") == home, "the look begins beside the call"
    await _looked(pool)
    before = pool.servers[home].script.calls
    for _ in range(5):
        assert await pool.ask("s") != home
    assert pool.servers[home].script.calls == before
    (ill,) = [view for view in pool.endpoint.replicas() if view.health == "ill"]
    assert ill.url == home and "its health is bad" in ill.trouble
    assert "3 of 4 replicas are well" in await pool.endpoint.check()
    pool.servers[home].ill = False
    pool.models.clock.advance(5.0)
    await pool.ask("s")
    await _looked(pool)
    assert await pool.ask("s") == home


async def test_if_all_seem_ill_they_are_asked_all_the_same() -> None:
    pool = Pool(probe=5.0)
    for server in pool.servers.values():
        server.ill = True
    await pool.endpoint.look_at_all()
    assert {view.health for view in pool.endpoint.replicas()} == {"ill"}
    assert (await pool.models.complete(user())).endpoint == "pool"
    with pytest.raises(EndpointUnreachable, match="None of the 4 replicas"):
        await pool.endpoint.check()


async def test_failures_in_a_row_leave_a_replica_alone_and_one_failure_does_not() -> None:
    pool = Pool()
    home = order("s", URLS)[0]

    async def fail(prompt: Prompt, upstream: str) -> Any:
        raise EndpointFailed("failed (500).", endpoint="pool")

    pool.servers[home].complete = fail  # type: ignore[method-assign]
    for asked in range(1, 4):
        await pool.ask("s")
        assert (pool.endpoint._replicas[home].breaker.state(pool.models.clock.monotonic()) == "open") == (asked == 3)
    assert sum(call.status == "EndpointFailed" for call in pool.models.journal) == 3
    await pool.ask("s")
    assert sum(call.status == "EndpointFailed" for call in pool.models.journal) == 3


async def test_what_others_have_under_way_counts_as_load() -> None:
    pool = Pool(probe=5.0, balance="load")
    for url, server in pool.servers.items():
        server.seen = Look(running=0 if url == URLS[2] else 50, waiting=3)
    await pool.endpoint.look_at_all()
    drawn = Counter([await pool.ask("same session") for _ in range(60)])
    assert max(drawn, key=lambda url: drawn[url]) == URLS[2] and drawn[URLS[2]] > 20
    pool.models.clock.advance(60.0)
    drawn = Counter([await pool.ask("same session") for _ in range(60)])
    assert len(drawn) == 4 and max(drawn.values()) < 40, "what was told a minute ago is believed no more"


async def test_a_busy_session_spills_over_and_leaves_none_idle() -> None:
    release = asyncio.Event()

    class Slow(Server):
        async def complete(self, prompt: Prompt, upstream: str) -> Any:
            await release.wait()
            return await super().complete(prompt, upstream)

    pool = Pool()
    for server in pool.servers.values():
        server.__class__ = Slow
    calls = [asyncio.create_task(pool.ask("one session")) for _ in range(16)]
    for _ in range(20):
        await asyncio.sleep(0)
    loads = [view.in_flight for view in pool.endpoint.replicas()]
    release.set()
    await asyncio.gather(*calls)
    assert sum(loads) == 16 and max(loads) <= 5
    assert all(view.in_flight == 0 for view in pool.endpoint.replicas())


async def test_the_context_is_the_smallest_that_a_replica_tells_of() -> None:
    pool = Pool()
    assert pool.endpoint.context("m") == 0
    pool.servers[URLS[0]].seen = Look(contexts={"m": 32_768})
    pool.servers[URLS[1]].seen = Look(contexts={"m": 8_192})
    await pool.endpoint.look_at_all()
    assert pool.models.routes("default")[0].context == 8_192


async def test_a_reader_that_leaves_a_stream_leaves_the_replica_well_and_free() -> None:
    pool = Pool()
    stream = pool.models.stream(user(session="s"))
    await anext(stream)
    assert sum(view.in_flight for view in pool.endpoint.replicas()) == 1
    await stream.aclose()
    assert sum(view.in_flight for view in pool.endpoint.replicas()) == 0
    (call,) = pool.models.journal
    assert (call.status, call.replica) == ("stopped", order("s", URLS)[0])
    assert await pool.ask("s") == order("s", URLS)[0]


async def _looked(pool: Pool) -> None:
    """Wait until the looks that were begun have ended."""
    while pool.endpoint._looks:
        await asyncio.gather(*pool.endpoint._looks)
        await asyncio.sleep(0)


def test_load_and_context_are_read_from_what_vllm_and_sglang_write() -> None:
    vllm = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 3.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-8B"} 2.0
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-8B"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
"""
    sglang = b'sglang:num_running_reqs{model_name="m"} 8\nsglang:num_queue_reqs{model_name="m"} 4\n'
    assert load_of(vllm) == (5, 1)
    assert load_of(sglang) == (8, 4)
    assert load_of(b"nothing 1\n") == (None, None)
    assert load_of(b"vllm:num_requests_running{} NaN-ish\n") == (None, None)
    listed = b'{"object":"list","data":[{"id":"a","max_model_len":40960},{"id":"b"},{"id":"c","max_model_len":null}]}'
    assert contexts_of(listed) == {"a": 40_960}
    for nonsense in (b"", b"[]", b'{"data": 3}', b'{"data": ["a"]}', b"<html>"):
        assert contexts_of(nonsense) == {}


async def test_errors_of_the_caller_say_nothing_against_a_replica() -> None:
    pool = Pool(behaviour=lambda prompt, asked: Reply(fault="rejected"))
    for _ in range(5):
        with pytest.raises(InferenceError):
            await pool.ask("s")
    assert {replica.breaker.state(pool.models.clock.monotonic()) for replica in pool.endpoint._replicas.values()} == {"closed"}


@pytest.mark.parametrize(
    ("endpoint", "model", "said"),
    [
        ('base_url = "http://a/v1"\nurls = ["http://b/v1"]', "", "has a base_url and urls"),
        ('urls = ["http://a/v1", "http://a/v1/"]', "", "names a URL twice"),
        ('urls = ["http://a/v1", "http://b/v1"]\nreplicas = 3', "", "leave replicas out"),
        ('kind = "scripted"\nurls = ["http://a/v1"]', "", 'only the kind "openai" has replicas'),
        ('urls = ["a/v1"]', "", "must be a URL"),
        ('base_url = "http://a/v1"\nquality = { "*" = 6 }', "", r"quality"),
        ('base_url = "http://a/v1"\ngpu = "B9000"', "", "whose price is not known"),
        ('base_url = "http://a/v1"', 'hedge = "soon"', 'Or write "p95"'),
        ('base_url = "http://a/v1"', "hedge_budget = 2.0", "hedge_budget"),
        ('base_url = "http://a/v1"', "quality = 0", "quality"),
        ('base_url = "http://a/v1"', 'policy = "best"', "policy"),
        (
            'base_url = "http://a/v1"\nregion = "us"',
            'regions = ["eu", "ch"]',
            "must stay in 'eu' or 'ch', and none of its routes is there",
        ),
        ('base_url = "http://a/v1"', 'regions = ["eu"]', "none of its routes is there"),
        ('base_url = "http://a/v1"\nquality = { "*" = 2 }', "quality = 3", "none of its routes is rated so"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(tmp_path: Path, endpoint: str, model: str, said: str) -> None:
    path = tmp_path / "ziggurat.toml"
    path.write_text(f"[inference.endpoints.pool]\n{endpoint}\n[inference.models.fast]\nroutes = ['pool:m']\n{model}\n")
    with pytest.raises(SettingsError, match=said):
        build_models(load_settings(path))


async def test_a_gpu_by_its_name_prices_each_replica_by_the_hour(tmp_path: Path) -> None:
    path = tmp_path / "ziggurat.toml"
    path.write_text(
        "[inference.endpoints.pool]\nurls = ['http://a/v1', 'http://b/v1']\ngpu = 'H100'\n"
        "[inference.endpoints.one]\nbase_url = 'http://c/v1'\ngpu = 'h200'\nreplicas = 3\n"
        "[inference.endpoints.mine]\nurls = ['http://d/v1', 'http://e/v1']\nprice_per_hour = '$1.10'\n"
    )
    models = build_models(load_settings(path))
    hours = {name: models.routes(f"{name}:m")[0] for name in ("pool", "one", "mine")}
    assert {name: route.per_hour for name, route in hours.items()} == {"pool": 4.0, "one": pytest.approx(7.8), "mine": 2.2}
    assert {route.price_version for route in hours.values()} == {"hourly"}
    await models.close()
