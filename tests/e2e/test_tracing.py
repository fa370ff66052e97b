"""One trace for each run, across real processes: an orchestrator, two workers, a child process, and a collector that they tell."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.redis_servers import INSTALL, REDIS_8, RedisServer, find_binary
from tests.conftest import missing_service
from tests.e2e.conftest import Project
from tests.otlp import Collector, Span, collecting
from ziggurat.telemetry.ids import trace_id

APP = """
    import os
    import signal
    from pathlib import Path

    from opentelemetry import trace

    from ziggurat import Retry, llm, task, workflow
    from ziggurat.program.context import current_attempt

    tracer = trace.get_tracer("app")


    @task(retry=Retry(attempts=3, initial="10ms"))
    async def flaky() -> str:
        if current_attempt().info.attempt == 1:
            raise ValueError("what the customer wrote")
        return "done"


    @task
    async def coroutine() -> str:
        with tracer.start_as_current_span("own coroutine"):
            return format(trace.get_current_span().get_span_context().trace_id, "032x")


    @task
    def thread() -> str:
        with tracer.start_as_current_span("own thread"):
            return format(trace.get_current_span().get_span_context().trace_id, "032x")


    @task(process=True)
    def process() -> str:
        with tracer.start_as_current_span("own process"):
            seen = format(trace.get_current_span().get_span_context().trace_id, "032x")
        # The child dies with its worker, and what it had not told yet dies with it.
        trace.get_tracer_provider().force_flush()
        return seen


    @task
    async def deadly(marker: str) -> str:
        if not Path(marker).exists():
            Path(marker).touch()
            # What its worker did before is told; only the span of this attempt dies with it.
            trace.get_tracer_provider().force_flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"


    @task
    async def ask() -> str:
        return await llm.text("a prompt that nobody else may read", model="fast")


    @workflow
    async def child() -> str:
        return await ask()


    @workflow
    async def main(marker: str) -> list[str]:
        seen = [await coroutine(), await thread(), await process(), await flaky(), await child()]
        return [*seen, await deadly(marker)]
"""

SETTINGS = """
    [app]
    modules = ["app"]
    [queue]
    backend = "redis"
    url = "{redis}"
    lease = "8s"
    [telemetry]
    endpoint = "{collector}"
    headers = {{ "x-team" = "agents", "x-api-key" = "env:TRACE_KEY" }}
    service = "demo"
    [inference.endpoints.broken]
    kind = "scripted"
    options = {{ faults = {{ unauthorized = 1.0 }} }}
    [inference.endpoints.good]
    kind = "scripted"
    [inference.models.fast]
    routes = ["broken:m1", "good:m2"]
    prices = {{ input = 1.0, output = 2.0 }}
"""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    binary = find_binary(REDIS_8)
    if binary is None:
        missing_service("Redis 8.2", INSTALL[REDIS_8])
    server = RedisServer(binary, tmp_path / "redis")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def test_a_run_is_one_trace_across_processes(project: Project, redis: RedisServer, collector: Collector) -> None:
    project.write("app.py", APP)
    project.write("ziggurat.toml", SETTINGS.format(redis=redis.url, collector=collector.url))
    project.environ["TRACE_KEY"] = "key-of-the-team"
    serving = project.begin("serve", "--no-workers", "--no-api")
    project.until_served()
    workers = [project.begin("worker") for _ in range(2)]
    marker = project.folder / "died"
    done = project.ok("run", "app:main", "--id", "r-1", "--input", json.dumps({"marker": str(marker)}), "--json").json
    assert done["status"] == "completed", done
    # The worker that died is not there to be asked any more.
    ended = [project.end(process, signal.SIGTERM) for process in (*workers, serving)]
    assert sorted(finished.code for finished in ended) == [-signal.SIGKILL, 0, 0]

    run = collector.one("run main")
    seen = collector.tree(run)
    assert run.parent == "", seen
    ours = [span for span in collector.spans if span.trace == run.trace]
    assert len(ours) == len(collector.spans), "every span is of the one trace"
    assert run.attributes["ziggurat.run"] == "r-1"
    ids = {span.id for span in ours}
    assert all(span.parent in ids for span in ours if span is not run), seen

    steps = [span.name for span in collector.children(run)]
    assert steps == ["step coroutine", "step thread", "step process", "step flaky", "child child", "step deadly"], seen
    for kind in ("coroutine", "thread", "process"):
        step = collector.one(f"step {kind}")
        queue, attempt = collector.children(step)
        assert (queue.name, attempt.name) == ("queue default", f"attempt {kind}"), seen
        assert step.start <= queue.start <= queue.end == attempt.start <= attempt.end
        assert step.start <= step.events["sent"] <= queue.end
        assert [span.name for span in collector.children(attempt)] == [f"own {kind}"], seen
        assert attempt.attributes["ziggurat.kind"] == kind
    # What the tasks' own instrumentation saw is the trace of the run.
    assert done["result"][:3] == [run.trace] * 3

    _check_retry(collector)
    _check_child_run(collector)
    _check_killed_worker(collector)
    _check_secrets(collector)
    assert len({span.resource["service.instance.id"] for span in ours}) >= 3, "the orchestrator, a worker and a child process"
    assert {span.resource["service.name"] for span in ours} == {"demo"}


def _check_retry(collector: Collector) -> None:
    first, second = collector.named("attempt flaky")
    step = collector.one("step flaky")
    assert (first.parent, second.parent) == (step.id, step.id)
    assert (first.attributes["ziggurat.attempt"], second.attributes["ziggurat.attempt"]) == (1, 2)
    assert (first.status, first.why, first.attributes["error.type"]) == (2, "ValueError", "ValueError")
    assert (second.status, step.status) == (0, 0)


def _check_child_run(collector: Collector) -> None:
    step = collector.one("child child")
    (run,) = collector.children(step)
    assert run.name == "run child"
    (asked,) = collector.children(run)
    attempt = next(span for span in collector.children(asked) if span.name == "attempt ask")
    (call,) = collector.children(attempt)
    assert call.name == "chat m2"
    assert call.kind == 3, "a client span"
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m2",
        "gen_ai.provider.name": "good",
        "ziggurat.model": "fast",
    }
    assert call.attributes.items() >= wanted.items()
    assert call.attributes["gen_ai.usage.input_tokens"] > 0
    assert call.attributes["ziggurat.cost_usd"] > 0
    assert call.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    failed, good = collector.children(call)
    assert (failed.name, failed.status, failed.attributes["ziggurat.status"]) == ("call broken", 2, "AuthenticationFailed")
    assert (good.name, good.status, good.attributes["ziggurat.status"]) == ("call good", 0, "ok")


def _check_killed_worker(collector: Collector) -> None:
    """The first delivery's span died with its worker; the second's says that it is the second."""
    (attempt,) = collector.named("attempt deadly")
    assert attempt.parent == collector.one("step deadly").id
    assert (attempt.attributes["ziggurat.attempt"], attempt.attributes["ziggurat.delivery"]) == (1, 2)


def _check_secrets(collector: Collector) -> None:
    everything = repr(collector.spans)
    for secret in ("key-of-the-team", "what the customer wrote", "a prompt that nobody else may read"):
        assert secret not in everything
    assert {(h["x-team"], h["x-api-key"]) for h in collector.headers} == {("agents", "key-of-the-team")}


def test_a_run_that_is_taken_up_after_kill_9_goes_on_with_its_trace(project: Project, collector: Collector) -> None:
    project.write(
        "app.py",
        """
        import asyncio, os
        from ziggurat import task, workflow

        @task
        async def before() -> int:
            return 1

        @task
        async def after() -> int:
            while not os.path.exists("go"):
                await asyncio.sleep(0.02)
            return 2

        @workflow
        async def main() -> int:
            return await before() + await after()
        """,
    )
    project.write("ziggurat.toml", '[app]\nmodules = ["app"]\n')
    project.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
    project.environ["OTEL_BSP_SCHEDULE_DELAY"] = "20"
    serving = project.begin("serve", "--no-api")
    project.until_served()
    project.ok("start", "app:main", "--id", "r-2")
    project.until(lambda: collector.named("step before"), "the first step is told")
    serving.kill()
    serving.communicate()
    (project.folder / "go").touch()
    assert project.ok("run", "app:main", "--id", "r-2", "--json").json["result"] == 3

    run = collector.one("run main")
    assert {span.trace for span in collector.spans} == {run.trace}
    first, last = collector.children(run)
    assert [first.name, last.name] == ["step before", "step after"]
    assert _instance(first) != _instance(last), "two processes told of it"
    assert _instance(last) == _instance(run)
    # Whoever knows the run knows its trace. Nanoseconds that were made of a float and are read back may be the float beside it.
    at = run.start / 1e9
    near = (at, math.nextafter(at, 0.0), math.nextafter(at, math.inf))
    assert run.trace in {f"{trace_id('r-2', one):032x}" for one in near}


def _instance(span: Span) -> str:
    return str(span.resource["service.instance.id"])


def test_a_collector_that_is_not_there_is_said_once_and_disturbs_nothing(project: Project) -> None:
    project.write(
        "app.py",
        """
        from ziggurat import task, workflow
        @task
        async def one(x: int) -> int: return x
        @workflow
        async def main() -> int:
            return sum([await one(x) for x in range(20)])
        """,
    )
    project.write("ziggurat.toml", '[app]\nmodules = ["app"]\n[telemetry]\nendpoint = "http://127.0.0.1:9"\nlogs = "json"\n')
    project.environ["OTEL_BSP_SCHEDULE_DELAY"] = "50"
    done = project.ok("run", "app:main", "--json")
    assert done.json["result"] == 190
    told = [line for line in done.err.splitlines() if "127.0.0.1:9" in line]
    assert len(told) == 1, done.err
    assert "Traces cannot be sent to http://127.0.0.1:9 now (connection refused)" in told[0]
    assert "Traceback" not in done.err
