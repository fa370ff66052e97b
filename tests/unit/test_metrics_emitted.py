"""Every metric of the catalogue is emitted: most by one small system that meets good and bad days, each by some line of the code."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest
from msgspec import Raw
from prometheus_client.parser import text_string_to_metric_families

import ziggurat
from tests.unit.embedded_system import system
from ziggurat import Retry, llm, signal, task, workflow
from ziggurat.assembly.depths import Depths
from ziggurat.inference.backends.scripted import Reply, create
from ziggurat.inference.interface import EndpointConfig, ModelConfig, Price
from ziggurat.inference.router import Router
from ziggurat.orchestrator.embedded.telling import Telling
from ziggurat.orchestrator.embedded.watching import Watchers
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import Delivery, Event, Message, Run
from ziggurat.telemetry import METRICS, catalogue, metrics_text
from ziggurat.telemetry.metrics import Metric
from ziggurat.workers.autoscale import Policy
from ziggurat.workers.counting import Counts
from ziggurat.workers.pools.interface import PoolSeen, WorkerPool, WorkerSeen
from ziggurat.workers.scaler import Scaler

SOURCE = Path(ziggurat.__file__).parent
#: Emitted by processes of their own, or over batches of a provider, and tested there.
ELSEWHERE = ("ziggurat_gateway_", "ziggurat_batch")


def test_every_metric_is_counted_somewhere_and_only_those_of_the_catalogue_are() -> None:
    used = set()
    for path in SOURCE.rglob("*.py"):
        if path.name == "catalogue.py":
            continue
        tree = ast.parse(path.read_text())
        used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        made = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert path.name == "metrics.py" or not {"Gauge", "Histogram"} & {
            n.func.id for n in made if isinstance(n.func, ast.Name)
        }, path
    named = {name for name, value in vars(catalogue).items() if isinstance(value, Metric)}
    assert named <= used, f"nothing counts {sorted(named - used)}"


def emitted() -> set[str]:
    """Names of the catalogue that have samples now."""
    found = {family.name for family in text_string_to_metric_families(metrics_text().decode()) if family.samples}
    return {name for name in METRICS.metrics if name in found or name.removesuffix("_total") in found}


@task(name="em.flaky", retry=Retry(attempts=2, initial=0.01))
async def flaky(works: bool) -> int:
    if not works:
        raise ValueError
    return 1


@workflow(name="em.main")
async def main(works: bool) -> int:
    await asyncio.sleep(0.01)
    assert await signal("go", int) == 1
    return await flaky(works)


class _Pool(WorkerPool):
    name = "p"

    async def look(self) -> PoolSeen:
        return PoolSeen(workers=(WorkerSeen(name="w", state="ready"),))

    async def scale(self, count: int) -> None:
        pass

    async def close(self, grace: float) -> None:
        pass


async def _call_models() -> Router:
    """Call a model that is down, then another that answers, one that is slow and is hedged, and one as a stream."""
    bad = create(EndpointConfig(name="bad", kind="scripted"), lambda *_: Reply(fault="failed"))
    good = create(EndpointConfig(name="good", kind="scripted"), lambda *_: Reply(text="hello", input_tokens=5))
    slow = create(EndpointConfig(name="slow", kind="scripted"), lambda *_: Reply(text="late", first_token=600.0))
    endpoints = {"bad": bad, "good": good, "slow": slow}
    models = {
        "m": ModelConfig(routes=["bad:x", "good:y"], price=Price(input=1.0)),
        "hedged": ModelConfig(routes=["slow:x", "good:y"], hedge=0.01, hedge_budget=1.0),
    }
    router = Router(endpoints, models, seed=1)
    llm.use_models(router)
    try:
        assert await llm.text("hi", model="m") == "hello"
        assert await llm.text("hi", model="hedged") == "hello"
        assert [piece async for piece in llm.stream("hi", model="good:y")]
    finally:
        llm.use_models(None)
    return router


async def test_what_the_catalogue_lists_is_emitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for metric in METRICS.metrics.values():
        monkeypatch.setattr(metric, "_children", {} if metric.label_names else metric.children())
    queue = MemoryQueue()
    looking = asyncio.create_task(Depths(queue).run())
    scaling = asyncio.create_task(Scaler(_Pool(), queue, Policy(min=1, max=2, slots=1)).run())
    async with system(tmp_path / "state.db", queue=queue, evict_always=True) as s:
        s.registry.add(flaky)
        for works in (True, False):
            run = await s.start(main, works)
            await s.rests(run)
            await s.signal(run, "go", 1)
            await s.engine.wait(run, 20.0)
        await queue.send([Message(id="x", task="em.flaky", payload=Raw(b"{}"))], delay=60.0)
        message = Message(id="y", task="em.flaky", payload=Raw(b"{}"))
        again = Delivery(message=message, worker="w", epoch=2, leased_until=0.0)
        counts = Counts()
        counts.begun(again)
        counts.fenced(again)
        dead = Event(seq=1, kind="step_failed", at=1.0, step=1, step_kind="task", name="em.flaky", detail="dead")
        Telling(Watchers()).event(Run(id="r", workflow="em.main", status="running"), dead)
        router = await _call_models()
        # Another look at the queue, which now holds something.
        looking.cancel()
        looking = asyncio.create_task(Depths(queue).run())
        async with asyncio.timeout(60):
            while not {"ziggurat_queue_messages", "ziggurat_pool_workers"} <= (found := emitted()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    for running in (looking, scaling):
        running.cancel()
    await asyncio.gather(looking, scaling, return_exceptions=True)
    await router.close()
    missing = {name for name in set(METRICS.metrics) - found if not name.startswith(ELSEWHERE)}
    assert not missing, f"listed and not emitted: {sorted(missing)}"


async def test_a_system_that_is_closed_is_shown_no_longer(tmp_path: Path) -> None:
    async with system(tmp_path / "state.db"):
        assert "ziggurat_runs_resident" in emitted()
        async with asyncio.timeout(60):
            while "ziggurat_worker_busy" not in emitted():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert not {"ziggurat_runs_resident", "ziggurat_outbox_messages", "ziggurat_worker_busy"} & emitted()
