"""Spans in one process: their places, what stays out of them, and that nothing happens while tracing is off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from tests.unit.embedded_system import System, system
from ziggurat import Retry, continue_as_new, llm, task, workflow
from ziggurat.errors import InferenceError, MissingExtra, SettingsError
from ziggurat.inference.backends.scripted import Reply
from ziggurat.orchestrator.tracing import place_of_run
from ziggurat.records import Run
from ziggurat.settings import Secret, TelemetrySettings
from ziggurat.telemetry import export, tracing
from ziggurat.telemetry.ids import Place, parse, span_id, trace_id
from ziggurat.testing.models import scripted_models


class Told:
    """What was told, by name."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self.exporter = exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def one(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def parent(self, span: ReadableSpan) -> str:
        return next((s.name for s in self.spans if span.parent and s.context.span_id == span.parent.span_id), "")


def _trace(ratio: float = 1.0, content: bool = False) -> Told:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(tracing.Tracing(provider.get_tracer("ziggurat"), ratio=ratio, content=content))
    return Told(exporter)


@pytest.fixture
def told() -> Iterator[Told]:
    yield _trace()
    tracing.use(None)


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    yield
    tracing.use(None)


# -- places ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_place_is_read_back(trace: int, span: int, sampled: bool) -> None:
    place = Place(trace, span, sampled)
    assert parse(place.header()) == place


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-0-0-01",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "00-" + "g" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01-more",
    ],
)
def test_a_header_that_says_nothing_is_ignored(header: str) -> None:
    assert parse(header) is None


def test_a_header_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert parse("01-" + "1" * 32 + "-" + "1" * 16 + "-01-more") == Place(int("1" * 32, 16), int("1" * 16, 16))


def test_ids_follow_from_what_they_are_of() -> None:
    assert trace_id("r", 1.0) == trace_id("r", 1.0)
    assert len({trace_id("r", 1.0), trace_id("r", 2.0), trace_id("s", 1.0)}) == 3
    assert span_id(1, "r", 2) != span_id(1, "r2")


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_runs_are_sampled_as_the_sdk_samples_them(ratio: float) -> None:
    _trace(ratio)
    current, sdk = tracing.current, TraceIdRatioBased(ratio)
    assert current is not None
    for at in range(200):
        trace = trace_id(f"r{at}", 1.0)
        assert current.samples(trace) == (sdk.should_sample(None, trace, "").decision is Decision.RECORD_AND_SAMPLE)


# -- runs ------------------------------------------------------------------------------------------------------------


@task(name="tr.double")
async def double(x: int) -> int:
    with trace.get_tracer("app").start_as_current_span("mine"):
        return 2 * x


@task(name="tr.flaky", retry=Retry(attempts=2, initial=0.01))
def flaky() -> int:
    raise ValueError("a secret of somebody")


@workflow(name="tr.child")
async def child(x: int) -> int:
    return await double(x)


@workflow(name="tr.main")
async def main(x: int) -> int:
    await asyncio.sleep(0.01)
    found = await double(x)
    return found + await child(x)


@workflow(name="tr.fails")
async def fails() -> int:
    return await flaky()


async def test_a_run_is_a_tree_of_spans(told: Told, tmp_path: Path) -> None:
    async with system(tmp_path / "state.db") as s:
        assert await s.result(main, 3, id="r") == 12
        run = await s.engine.get("r")
    once = ["run tr.main", "timer", "child tr.child", "run tr.child"]
    assert sorted(told.names()) == sorted([*once, *["step tr.double", "queue default", "attempt tr.double"] * 2])
    top = told.one("run tr.main")
    assert top.parent is None
    assert top.context.trace_id == trace_id("r", run.created_at) == place_of_run(run).trace
    assert {span.context.trace_id for span in told.spans} == {top.context.trace_id}
    assert told.parent(told.one("run tr.child")) == "child tr.child"
    assert told.parent(told.one("child tr.child")) == "run tr.main"
    assert all(span.status.is_ok or span.status.status_code is trace.StatusCode.UNSET for span in told.spans)


async def test_an_error_is_told_by_its_class_alone(told: Told, tmp_path: Path) -> None:
    async with system(tmp_path / "state.db") as s:
        assert (await s.run(fails)).status == "failed"
    attempts = [span for span in told.spans if span.name == "attempt tr.flaky"]
    assert [span.status.description for span in attempts] == ["ValueError", "ValueError"]
    assert told.one("step tr.flaky").status.description == "ValueError"
    assert not told.one("run tr.fails").status.is_ok
    assert "secret" not in "".join(span.to_json() for span in told.spans)


async def test_its_text_is_told_where_content_may_be(tmp_path: Path) -> None:
    told = _trace(content=True)
    async with system(tmp_path / "state.db") as s:
        await s.run(fails)
    assert told.one("step tr.flaky").status.description == "ValueError: a secret of somebody"


async def test_a_run_outside_the_sample_tells_nothing_and_keeps_its_tasks_quiet(tmp_path: Path) -> None:
    told = _trace(ratio=0.0)
    seen: list[bool] = []

    @task(name="tr.look")
    async def look() -> int:
        seen.append(trace.get_current_span().get_span_context().trace_flags.sampled)
        return 1

    @workflow(name="tr.quiet")
    async def quiet() -> int:
        return await look()

    async with system(tmp_path / "state.db") as s:
        s.registry.add(look)
        assert await s.result(quiet) == 1
    assert told.names() == []
    assert seen == [False]


async def test_a_replayed_run_tells_nothing_twice(told: Told, tmp_path: Path) -> None:
    async with system(tmp_path / "state.db", evict_always=True) as s:
        assert await s.result(main, 3) == 12
    assert told.names().count("step tr.double") == 2
    assert told.names().count("timer") == 1
    ids = [span.context.span_id for span in told.spans]
    assert len(ids) == len(set(ids))


async def test_a_retried_run_has_a_span_for_each_time_it_was_taken_up(told: Told, tmp_path: Path) -> None:
    mended = tmp_path / "mended"

    @task(name="tr.mended", retry=1)
    async def mending() -> int:
        if not mended.exists():
            raise ValueError
        return 1

    @workflow(name="tr.retried")
    async def retried() -> int:
        return await mending()

    async with system(tmp_path / "state.db") as s:
        s.registry.add(mending)
        assert (await s.run(retried, id="r")).status == "failed"
        mended.touch()
        await s.engine.retry("r")
        assert (await s.engine.wait("r", 20.0)).status == "completed"
    first, second = [span for span in told.spans if span.name == "run tr.retried"]
    if first.parent is not None:
        first, second = second, first
    assert second.parent is not None
    assert second.parent.span_id == first.context.span_id
    ids = [span.context.span_id for span in told.spans]
    assert len(ids) == len(set(ids))


async def test_a_run_that_continues_as_new_has_one_span(told: Told, tmp_path: Path) -> None:
    @workflow(name="tr.again")
    async def again(left: int) -> int:
        await double(left)
        if left:
            continue_as_new(left - 1)
        return 7

    async with system(tmp_path / "state.db") as s:
        s.registry.add(double)
        assert await s.result(again, 2) == 7
    top = told.one("run tr.again")
    steps = [span for span in told.spans if span.name == "step tr.double"]
    assert [told.parent(span) for span in steps] == ["run tr.again"] * 3
    assert len({span.context.span_id for span in steps}) == 3
    assert top.parent is None


async def test_a_parked_run_says_so(told: Told, tmp_path: Path) -> None:
    async with system(tmp_path / "state.db", history_limit=3) as s:
        assert (await s.run(main, 3)).status == "parked"
    assert told.one("parked").parent is not None


async def test_a_traced_caller_is_linked_to(told: Told, tmp_path: Path) -> None:
    current = tracing.current
    assert current is not None
    outer = current.begin("request", parent=None, start=1.0, attributes={})
    token = outer.enter()
    header = tracing.caller()
    outer.leave(token)
    assert parse(header) == outer.place
    async with system(tmp_path / "state.db") as s:
        run = await _started_by(s, header)
    top = told.one("run tr.child")
    assert top.parent is None
    assert [(link.context.trace_id, link.context.span_id) for link in top.links] == [outer.place[:2]]
    assert top.context.trace_id == trace_id(run.id, run.created_at)


async def _started_by(s: System, header: str) -> Run:
    from msgspec import Raw

    from ziggurat.records import StartRequest

    s.registry.add(child)
    s.registry.add(double)
    run = await s.engine.start(StartRequest(workflow=child.name, payload=Raw(b'{"x": 1}'), trace=header))
    return await s.engine.wait(run.id, 20.0)


def test_nobody_here_means_no_caller() -> None:
    assert tracing.caller() == ""


# -- model calls -----------------------------------------------------------------------------------------------------


async def test_a_call_is_told_with_its_tries(told: Told) -> None:
    replies = iter([Reply(fault="failed"), Reply(text="hello")])
    router = scripted_models(lambda *_: next(replies))
    llm.use_models(router)
    try:
        assert await llm.text("what is asked", max_tokens=5) == "hello"
    finally:
        llm.use_models(None)
    call = next(span for span in told.spans if span.name.startswith("chat "))
    tries = [span for span in told.spans if span.name.startswith("call ")]
    assert [span.status.description for span in tries] == ["EndpointFailed", None]
    assert [told.parent(span) for span in tries] == [call.name] * 2
    attributes = dict(call.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.max_tokens"] == 5
    assert "what is asked" not in call.to_json()
    assert "hello" not in call.to_json()


async def test_what_was_asked_and_answered_is_told_where_content_may_be() -> None:
    told = _trace(content=True)
    llm.use_models(scripted_models(lambda *_: Reply(text="hello")))
    try:
        await llm.text("what is asked")
        pieces = [piece async for piece in llm.stream("what is asked")]
    finally:
        llm.use_models(None)
    assert "".join(pieces) == "hello"
    whole, streamed = [dict(span.attributes or {}) for span in told.spans if span.name.startswith("chat ")]
    assert whole["gen_ai.input.messages"] == '[{"role":"user","parts":[{"type":"text","content":"what is asked"}]}]'
    answer = '[{"role":"assistant","parts":[{"type":"text","content":"hello"}],"finish_reason":"stop"}]'
    assert whole["gen_ai.output.messages"] == streamed["gen_ai.output.messages"] == answer
    assert streamed["gen_ai.request.stream"] is True


async def test_a_reader_that_leaves_a_stream_is_no_failure(told: Told) -> None:
    llm.use_models(scripted_models(lambda *_: Reply(text="one two three four five")))
    try:
        stream: Any = llm.stream("go")
        async for _ in stream:
            break
        await stream.aclose()
    finally:
        llm.use_models(None)
    call = next(span for span in told.spans if span.name.startswith("chat "))
    assert call.status.status_code is trace.StatusCode.UNSET


async def test_a_call_that_fails_says_why(told: Told) -> None:
    llm.use_models(scripted_models(lambda *_: Reply(fault="unauthorized")))
    try:
        with pytest.raises(InferenceError):
            await llm.text("go")
    finally:
        llm.use_models(None)
    call = next(span for span in told.spans if span.name.startswith("chat "))
    assert call.status.description == "AuthenticationFailed"
    assert dict(call.attributes or {})["error.type"] == "AuthenticationFailed"


# -- setting up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "environ", "on"),
    [
        ({}, {}, False),
        ({"endpoint": "http://c:4318"}, {}, True),
        ({"endpoint": "http://c:4318", "enabled": False}, {}, False),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"enabled": True}, {}, True),
    ],
)
def test_when_runs_are_traced(settings: dict[str, Any], environ: dict[str, str], on: bool) -> None:
    assert export.wanted(TelemetrySettings(**settings), environ) is on


@pytest.mark.parametrize(
    ("sample", "environ", "ratio"),
    [
        (None, {}, 1.0),
        (0.5, {"OTEL_TRACES_SAMPLER": "always_off"}, 0.5),
        (None, {"OTEL_TRACES_SAMPLER": "always_off"}, 0.0),
        (None, {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, 0.1),
        (None, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nonsense"}, 1.0),
        (None, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"}, 1.0),
    ],
)
def test_how_many_runs_are_traced(sample: float | None, environ: dict[str, str], ratio: float) -> None:
    assert export.ratio(TelemetrySettings(sample=sample), environ) == ratio


def test_where_traces_go_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://me:secret@collector:4318/base?key=secret")
    assert export.shown_endpoint(TelemetrySettings()) == "https://collector:4318/base"


def _without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n == "opentelemetry" or n.startswith("opentelemetry.")]:
        monkeypatch.setitem(sys.modules, name, None)


def test_asked_for_and_not_installed_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_opentelemetry(monkeypatch)
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat-agents\[telemetry\]'"):
        export.set_up(TelemetrySettings(enabled=True))


def test_configured_by_the_environment_and_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    _without_opentelemetry(monkeypatch)
    with caplog.at_level(logging.WARNING, "ziggurat.telemetry"):
        export.set_up(TelemetrySettings())
    assert tracing.current is None
    assert "pip install 'ziggurat-agents[telemetry]'" in caplog.text


def test_a_header_whose_variable_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACE_KEY", raising=False)
    settings = TelemetrySettings(endpoint="http://127.0.0.1:1", headers={"x-api-key": Secret("TRACE_KEY")})
    with pytest.raises(SettingsError, match="TRACE_KEY"):
        export.set_up(settings)
