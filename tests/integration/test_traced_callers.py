"""Callers that trace: a run that one starts over HTTP is linked to it, and a model call through the gateway is part of its trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.integration.api_server import api
from tests.integration.gateway_world import HELLO, world
from ziggurat import workflow
from ziggurat.telemetry import tracing

TRACE, SPAN = "ab" * 16, "cd" * 8
HEADER = f"00-{TRACE}-{SPAN}-01"


@workflow(name="tc.nothing")
async def nothing() -> int:
    return 1


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    tracing.use(tracing.Tracing(provider.get_tracer("ziggurat")))
    yield found
    tracing.use(None)


async def test_a_run_started_over_http_is_linked_to_its_caller(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    async with api(tmp_path, nothing) as caller:
        await caller.ok("POST", "/runs", {"workflow": "tc.nothing", "id": "one"}, headers={"traceparent": HEADER})
        await caller.until("one", "completed")
        await caller.ok("POST", "/runs", {"workflow": "tc.nothing", "id": "two"}, headers={"traceparent": "nonsense"})
        await caller.until("two", "completed")
    linked, alone = (span for span in exporter.get_finished_spans() if span.name == "run tc.nothing")
    assert [(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in linked.links] == [(TRACE, SPAN)]
    assert (linked.parent, list(alone.links)) == (None, [])


async def test_a_call_through_the_gateway_is_part_of_its_callers_trace(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    async with world(tmp_path) as gateway:
        status, _, _ = await gateway.post("/chat/completions", {"model": "m", "messages": HELLO}, traceparent=HEADER)
        assert status == 200
    (call,) = (span for span in exporter.get_finished_spans() if span.name.startswith("chat "))
    assert f"{call.context.trace_id:032x}" == TRACE
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == SPAN
