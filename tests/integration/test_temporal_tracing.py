"""A run on a real Temporal server is one trace too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Raw
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.conformance.temporal_servers import needed, temporal_server
from ziggurat import Retry, task, workflow
from ziggurat.orchestrator.temporal.engine import TemporalOrchestrator
from ziggurat.orchestrator.temporal.options import TemporalOptions
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.temporal import TemporalQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.queues.temporal_link import LinkOptions
from ziggurat.records import StartRequest
from ziggurat.telemetry import catalogue, tracing
from ziggurat.telemetry.ids import trace_id
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker

_tries: list[int] = []


@task(name="tt.flaky", retry=Retry(attempts=2, initial=0.01))
async def flaky() -> int:
    _tries.append(1)
    if len(_tries) == 1:
        raise ValueError
    return 1


@workflow(name="tt.child")
async def child() -> int:
    return await flaky()


@workflow(name="tt.main")
async def main() -> int:
    await asyncio.sleep(0.05)
    return await child()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    tracing.use(tracing.Tracing(provider.get_tracer("ziggurat")))
    yield found
    tracing.use(None)


async def test_a_run_on_temporal_is_one_trace(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    needed()
    steps = catalogue.STEPS.value("timer", "completed")
    with temporal_server(tmp_path) as server:
        options = TemporalOptions(lease=20.0, relay=0.3, sticky=1.0)
        link = LinkOptions(address=server.address, task_queue="traces")
        queue = TemporalQueue(link, QueueOptions(lease=20.0))
        registry = Registry()
        for definition in (flaky, child, main):
            registry.add(definition)
        await queue.open()
        engine = TemporalOrchestrator(link, queue, registry, options=options)
        await engine.open()
        worker = Worker(queue, registry, options=WorkerOptions(poll=0.2, cleanup=1.0))
        working = asyncio.create_task(worker.run())
        run = await engine.start(StartRequest(workflow=main.name, payload=Raw(b"{}"), id="r"))
        assert (await engine.wait("r", 120.0)).status == "completed"
        worker.stop(0.0)
        await asyncio.gather(working, return_exceptions=True)
        await queue.close()
        await engine.close()
    spans = exporter.get_finished_spans()
    assert {span.context.trace_id for span in spans} == {trace_id("r", run.created_at)}
    assert len({span.context.span_id for span in spans}) == len(spans), "nothing is told twice"
    names = {span.context.span_id: span.name for span in spans}
    tied = sorted((span.name, names.get(_parent(span), "")) for span in spans if not span.name.startswith("queue"))
    assert tied == [
        ("attempt tt.flaky", "step tt.flaky"),
        ("attempt tt.flaky", "step tt.flaky"),
        ("child tt.child", "run tt.main"),
        ("run tt.child", "child tt.child"),
        ("run tt.main", ""),
        ("step tt.flaky", "run tt.child"),
        ("timer", "run tt.main"),
    ]
    assert catalogue.STEPS.value("timer", "completed") == steps + 1


def _parent(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent is not None else 0
