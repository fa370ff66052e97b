"""The router over scripted endpoints, on a clock that skips its waits: retries, fallback, limits, breakers, bills."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import (
    AuthenticationFailed,
    ContextTooLong,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    MissingExtra,
    ModelNotFound,
    RateLimited,
    RequestRejected,
    UnknownName,
)
from ziggurat.inference.backends.scripted import Behaviour, Reply, ScriptedEndpoint, create
from ziggurat.inference.interface import CapabilityOverrides, EndpointConfig, Limits, ModelConfig, Price, Timeouts
from ziggurat.inference.retrying import RetryOptions
from ziggurat.inference.router import Router
from ziggurat.program.context import AttemptContext, TaskInfo, attempting
from ziggurat.records import CallRecord, ChatMessage, Chunk, Prompt, Tool
from ziggurat.testing.clock import FakeClock


class SkippingRouter(Router):
    """Moves its fake clock instead of waiting."""

    clock: FakeClock

    async def pause(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    def __init__(self, *args: Any, **options: Any) -> None:
        self.waits: list[float] = []
        self.journal: list[CallRecord] = []
        super().__init__(*args, ledger=self.journal.append, clock=FakeClock(), seed=1, **options)


class Attempt(AttemptContext):
    """An attempt that remembers its calls."""

    def __init__(self, deadline: float | None = None) -> None:
        self.info = TaskInfo(task="t", deadline=deadline)
        self.calls: list[CallRecord] = []

    def heartbeat(self, details: bytes | None) -> None:
        raise AssertionError

    def last_heartbeat(self) -> None:
        return None

    def emit(self, kind: str, data: bytes) -> None:
        raise AssertionError

    def record_call(self, call: CallRecord) -> None:
        self.calls.append(call)


def scripted(
    name: str = "a", behaviour: Behaviour | None = None, *, config: dict[str, Any] | None = None, **options: Any
) -> ScriptedEndpoint:
    endpoint = create(EndpointConfig(name=name, kind="scripted", options=options, **(config or {})), behaviour)
    assert isinstance(endpoint, ScriptedEndpoint)
    return endpoint


def router(*endpoints: ScriptedEndpoint, retry: RetryOptions | None = None, **model: Any) -> SkippingRouter:
    routes = [f"{e.name}:m" for e in endpoints]
    return SkippingRouter({e.name: e for e in endpoints}, {"default": ModelConfig(routes=routes, **model)}, options=retry)


def user(content: str = "hi", **more: Any) -> Prompt:
    return Prompt(messages=[ChatMessage(role="user", content=content)], **more)


def always(**reply: Any) -> Callable[[Prompt, int], Reply]:
    return lambda prompt, asked: Reply(**reply)


async def collect(models: Router, prompt: Prompt) -> list[Chunk]:
    return [chunk async for chunk in models.stream(prompt)]


# -- answers and bills -----------------------------------------------------------------------------------------------


async def test_a_call_is_answered_priced_and_recorded_once() -> None:
    models = router(scripted(answers=[{"match": "hi", "answer": "hello"}]), price=Price(input=1.0, output=2.0))
    attempt = Attempt()
    with attempting(attempt):
        answer = await models.complete(user())
    assert (answer.text, answer.model, answer.endpoint, answer.upstream) == ("hello", "default", "a", "m")
    assert answer.usage.cost_usd == pytest.approx((answer.usage.input_tokens + 2 * answer.usage.output_tokens) / 1e6)
    assert attempt.calls == models.journal == [answer.call]
    assert answer.call is not None and (answer.call.status, answer.call.price_version) == ("ok", "settings")


async def test_a_stream_ends_with_its_finish_and_its_priced_usage() -> None:
    models = router(scripted(answers=[{"match": "hi", "answer": "one two three"}]), price=Price(output=1.0))
    chunks = await collect(models, user())
    assert "".join(c.text for c in chunks) == "one two three"
    assert [c.finish for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    usage = chunks[-1].usage
    assert usage is not None and usage.cost_usd == pytest.approx(usage.output_tokens / 1e6)
    assert [(c.status, c.usage) for c in models.journal] == [("ok", usage)]
    assert models.journal[0].first_token is not None


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_usage_that_nobody_reports_is_estimated_and_marked(streamed: bool) -> None:
    models = router(scripted(no_usage=True, answers=[{"match": ".", "answer": "x" * 400}]))
    prompt = user("y" * 800)
    usage = (await collect(models, prompt))[-1].usage if streamed else (await models.complete(prompt)).usage
    assert usage is not None
    assert (usage.calls, usage.output_tokens) == (1, 100) and 200 <= usage.input_tokens <= 210
    assert usage.estimated_tokens == usage.input_tokens + usage.output_tokens


async def test_a_stream_that_is_cut_before_its_first_piece_is_begun_anew() -> None:
    endpoint = scripted(schedule=["cut"], answers=[{"match": ".", "answer": "at last"}])
    assert "".join(c.text for c in await collect(router(endpoint), user())) == "at last"
    assert endpoint.script.calls == 2


async def test_a_cut_after_pieces_were_delivered_is_raised_and_billed() -> None:
    models = router(scripted(behaviour=always(fault="cut", text="one two three four")), scripted("b"))
    attempt = Attempt()
    with attempting(attempt):
        stream = models.stream(user())
        assert [(await anext(stream)).text, (await anext(stream)).text] == ["one", " two"]
        with pytest.raises(EndpointFailed):
            await anext(stream)
    (call,) = attempt.calls
    assert call.status == "EndpointFailed" and call.usage.calls == 1 and call.usage.estimated_tokens > 0


async def test_a_reader_that_stops_ends_the_upstream_call_and_is_billed_for_what_it_read() -> None:
    endpoint = scripted(answers=[{"match": ".", "answer": "one two three four"}])
    models = router(endpoint)
    stream = models.stream(user())
    assert (await anext(stream)).text == "one"
    await stream.aclose()
    assert (endpoint.open_calls, endpoint.cancelled) == (0, 1)
    (call,) = models.journal
    assert call.status == "stopped" and call.usage.output_tokens > 0
    assert models.routes("default")[0].in_flight == 0


async def test_a_cancelled_call_is_recorded_as_unanswered() -> None:
    asked = asyncio.Event()

    def slow(prompt: Prompt, number: int) -> Reply:
        asked.set()
        return Reply(first_token=60.0)

    endpoint = scripted(behaviour=slow)
    models = router(endpoint)
    attempt = Attempt()
    with attempting(attempt):
        call = asyncio.create_task(models.complete(user()))
        await asked.wait()
        assert endpoint.open_calls == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert [c.status for c in attempt.calls] == ["unanswered"] and attempt.calls[0].usage.calls == 0
    assert endpoint.open_calls == 0 and models.routes("default")[0].in_flight == 0


async def test_ids_of_calls_are_unique() -> None:
    models = router(scripted())
    await asyncio.gather(*(models.complete(user(str(n))) for n in range(200)))
    assert len({c.id for c in models.journal}) == 200


# -- retries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_moments_failure_is_tried_again_on_the_same_route(streamed: bool) -> None:
    first, second = scripted(schedule=["failed", "nonsense"]), scripted("b")
    models = router(first, second)
    await (collect(models, user()) if streamed else models.complete(user()))
    assert (first.script.calls, second.script.calls) == (3, 0)
    assert [c.status for c in models.journal] == ["EndpointFailed", "EndpointFailed", "ok"]
    assert len(models.waits) == 2 and all(0 <= wait <= 1.0 for wait in models.waits)


async def test_a_route_that_keeps_failing_is_left_for_the_next_and_the_answer_says_which_served() -> None:
    first, second = scripted(behaviour=always(fault="failed")), scripted("b")
    answer = await router(first, second).complete(user())
    assert (first.script.calls, answer.endpoint) == (3, "b")


@pytest.mark.parametrize(("fault", "kind"), [("unauthorized", AuthenticationFailed), ("not_found", ModelNotFound)])
async def test_a_routes_own_fault_is_not_tried_again(fault: Any, kind: type[InferenceError]) -> None:
    first, second = scripted(behaviour=always(fault=fault)), scripted("b")
    assert (await router(first, second).complete(user())).endpoint == "b"
    assert first.script.calls == 1
    with pytest.raises(kind):
        await router(scripted(behaviour=always(fault=fault))).complete(user())


async def test_the_callers_fault_is_nobodys_retry_and_no_fallback() -> None:
    first, second = scripted(behaviour=always(fault="rejected")), scripted("b")
    with pytest.raises(RequestRejected, match="400"):
        await router(first, second).complete(user())
    assert (first.script.calls, second.script.calls) == (1, 0)


async def test_a_route_that_does_not_answer_in_time_is_left_at_once_if_there_is_another() -> None:
    quick = {"timeouts": Timeouts(first_token=0.01)}
    first, second = scripted(behaviour=always(fault="timeout"), config=quick), scripted("b")
    models = router(first, second)
    assert (await models.complete(user())).endpoint == "b"
    assert first.script.calls == 1
    assert models.journal[0].status == "unanswered"


async def test_when_nothing_helps_the_error_tells_what_each_route_said_and_can_be_tried_again() -> None:
    models = router(scripted(behaviour=always(fault="failed")), scripted("b", always(fault="unauthorized")))
    with pytest.raises(EndpointFailed) as caught:
        await models.complete(user())
    text = str(caught.value)
    assert "'default'" in text and "a:m: " in text and "(500)" in text and "b:m: " in text and "(401)" in text
    assert caught.value.retryable and caught.value.model == "default"


async def test_a_single_route_says_how_often_it_was_tried() -> None:
    with pytest.raises(EndpointFailed, match=r"Tried 3 times"):
        await router(scripted(behaviour=always(fault="failed"))).complete(user())


async def test_a_retry_after_is_honoured_to_the_second() -> None:
    models = router(scripted(schedule=["rate_limited"], retry_after=7.0))
    await models.complete(user())
    assert 7.0 <= sum(models.waits) <= 8.2


async def test_a_retry_after_beyond_the_deadline_fails_at_once_and_passes_it_on() -> None:
    models = router(scripted(behaviour=always(fault="rate_limited", retry_after=120.0)))
    with pytest.raises(RateLimited) as caught:
        await models.complete(user(timeout=30.0))
    assert models.waits == [] and caught.value.retry_after is not None and caught.value.retry_after >= 120.0


async def test_a_429_forever_ends_with_a_sentence() -> None:
    models = router(scripted(behaviour=always(fault="rate_limited")))
    with pytest.raises(RateLimited, match=r"429.*Tried 8 times"):
        await models.complete(user())
    assert sum(models.waits) < 120


async def test_a_limited_endpoint_is_left_for_the_next_route_and_left_alone_by_later_calls() -> None:
    first, second = scripted(schedule=["rate_limited"], retry_after=30.0), scripted("b")
    models = router(first, second)
    assert [(await models.complete(user())).endpoint for _ in range(5)] == ["b"] * 5
    assert first.script.calls == 1 and models.waits == []
    assert models.routes("default")[0].breaker == "closed"
    models.clock.advance(34.0)
    assert (await models.complete(user())).endpoint == "a"


async def test_the_deadline_of_the_attempt_bounds_the_call() -> None:
    models = router(scripted(behaviour=always(fault="rate_limited", retry_after=20.0)))
    with attempting(Attempt(deadline=models.clock.time() + 10.0)), pytest.raises(RateLimited, match="within 10"):
        await models.complete(user())


async def test_a_call_without_an_answer_in_time_says_so() -> None:
    models = router(scripted(latency=60.0))
    with pytest.raises(EndpointUnreachable):
        await models.complete(user(timeout=0.5))
    with pytest.raises(EndpointUnreachable):
        await collect(models, user(timeout=0.5))


@given(st.integers(20, 300), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_failures_never_amplify_load_beyond_the_budget(calls: int, share: float, seed: int) -> None:
    endpoint = scripted(faults={"failed": share}, seed=seed)
    retry = RetryOptions(budget_ratio=0.1, budget_floor=5, patience=1e9, total=1e9)
    models = router(endpoint, retry=retry)

    async def all_calls() -> None:
        for number in range(calls):
            models.clock.advance(0.01)
            await asyncio.gather(models.complete(user(str(number))), return_exceptions=True)

    asyncio.run(all_calls())
    windows = models.clock.monotonic() / retry.budget_window
    assert endpoint.script.calls <= calls * 1.1 + 5 * (windows + 1)


# -- the breaker -----------------------------------------------------------------------------------------------------


async def test_a_dead_endpoint_is_not_called_until_its_pause_is_over_and_one_call_finds_it_well() -> None:
    dead = [True]
    endpoint = scripted(behaviour=lambda prompt, asked: Reply(fault="failed") if dead[0] else None)
    models = router(endpoint, retry=RetryOptions(patience=0.5))
    for _ in range(3):
        with pytest.raises((EndpointFailed, EndpointUnreachable)):
            await models.complete(user())
    called = endpoint.script.calls
    assert models.routes("default")[0].breaker == "open"
    with pytest.raises(EndpointUnreachable, match="not called at present") as caught:
        await models.complete(user())
    assert endpoint.script.calls == called
    assert caught.value.retryable and caught.value.retry_after is not None and caught.value.retry_after > 0
    dead[0] = False
    models.clock.advance(61.0)
    await asyncio.gather(*(models.complete(user(str(n))) for n in range(5)))
    assert models.routes("default")[0].breaker == "closed"


async def test_a_broken_route_is_passed_by() -> None:
    first, second = scripted(behaviour=always(fault="failed")), scripted("b")
    models = router(first, second)
    for _ in range(20):
        assert (await models.complete(user())).endpoint == "b"
    assert first.script.calls <= 8


# -- capabilities ----------------------------------------------------------------------------------------------------


async def test_a_prompt_that_cannot_fit_goes_to_a_route_that_it_fits() -> None:
    small, large = scripted(context=100), scripted("b")
    models = router(small, large)
    assert (await models.complete(user("word " * 1000))).endpoint == "b"
    assert small.script.calls == 0
    with pytest.raises(ContextTooLong, match="tokens"):
        await router(scripted(context=100)).complete(user("word " * 1000))


async def test_an_alias_corrects_what_the_table_says() -> None:
    endpoint = scripted()
    models = router(endpoint, capabilities=CapabilityOverrides(json_schema=False))
    await models.complete(user(schema={"type": "object", "properties": {}}))
    assert endpoint.prompts[-1].schema is None and "response_format" in endpoint.prompts[-1].extra


async def test_a_refused_response_format_is_asked_for_in_a_weaker_way_and_remembered() -> None:
    def no_schemas(prompt: Prompt, asked: int) -> Reply | None:
        return Reply(fault="rejected") if prompt.schema is not None else None

    endpoint = scripted(behaviour=no_schemas)
    error = RequestRejected("This response_format type is unavailable now")
    endpoint._error = lambda reply, upstream: error  # type: ignore[method-assign]
    models = router(endpoint)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await asyncio.gather(*(models.complete(user(str(n), schema=schema)) for n in range(5)))
    assert models.routes("default")[0].capabilities.structured == "json_object"
    before = endpoint.script.calls
    await models.complete(user(schema=schema))
    assert endpoint.script.calls == before + 1


@pytest.mark.parametrize("structured", ["json_schema", "tool"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_to_a_schema_is_text_however_it_was_held(structured: str, streamed: bool) -> None:
    models = router(scripted(structured=structured))
    prompt = user(schema={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    text = "".join(c.text for c in await collect(models, prompt)) if streamed else (await models.complete(prompt)).text
    assert text.startswith('{"a":')


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_work_for_a_model_that_has_none(streamed: bool) -> None:
    models = router(scripted(tools="schema"))
    tool = Tool(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    prompt = user(tools=[tool], tool_choice="required")
    if streamed:
        (piece,) = [p for c in await collect(models, prompt) for p in c.tool_calls]
        assert piece[:3] == (0, "call_1", "add")
    else:
        answer = await models.complete(prompt)
        assert answer.tool_calls[0].name == "add" and answer.finish == "tool_calls"


async def test_a_route_whose_extra_is_not_installed_is_passed_by_and_named() -> None:
    def missing(prompt: Prompt, asked: int) -> Reply:
        raise MissingExtra("The local model", "local")

    first, second = scripted(behaviour=missing), scripted("b")
    assert (await router(first, second).complete(user())).endpoint == "b"
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat-agents\[local\]'"):
        await router(scripted(behaviour=missing)).complete(user())
    models = router(scripted(behaviour=missing), scripted("b", always(fault="unauthorized")))
    with pytest.raises(AuthenticationFailed, match="pip install"):
        await models.complete(user())
    assert [c.status for c in models.journal] == ["MissingExtra", "AuthenticationFailed"]


# -- aliases ---------------------------------------------------------------------------------------------------------


async def test_a_model_that_nobody_configured_is_named_with_those_that_are() -> None:
    models = router(scripted())
    with pytest.raises(ModelNotFound, match=r"'fats'.*default"):
        await models.complete(user(model="fats"))
    with pytest.raises(UnknownName, match="no endpoint 'z'"):
        models.set_models({"x": ModelConfig(routes=["z:m"])})


async def test_a_route_can_be_named_directly_and_aliases_can_be_pointed_anew() -> None:
    models = router(scripted(), scripted("b"))
    assert (await models.complete(user(model="b:llama3:8b"))).upstream == "llama3:8b"
    models.set_models({"default": ModelConfig(routes=["b:m"])})
    assert (await models.complete(user())).endpoint == "b"
    assert models.aliases() == ["default"]


async def test_every_endpoint_says_how_it_is() -> None:
    models = router(scripted(), scripted("b"))
    assert set((await models.check()).values()) == {"A scripted endpoint always answers."}


# -- many loops, many calls ------------------------------------------------------------------------------------------


def test_calls_from_several_loops_share_one_limit() -> None:
    endpoint = scripted(latency=0.001, config={"limits": Limits(concurrency=3)})
    models = Router({"a": endpoint}, {"default": ModelConfig(routes=["a:m"])})
    most = [0]

    async def many() -> None:
        async def one(number: int) -> None:
            await models.complete(user(f"{threading.get_ident()} {number}"))
            most[0] = max(most[0], endpoint.open_calls)

        await asyncio.gather(*(one(n) for n in range(100)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert endpoint.script.calls == 400
    assert 0 < most[0] <= 3
    view = models.routes("default")[0]
    assert (view.in_flight, view.waiting) == (0, 0)
