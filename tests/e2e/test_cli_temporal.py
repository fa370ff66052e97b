"""The system on Temporal as people run it: all four layers in processes of their own, by settings only."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.redis_servers import REDIS_8, RedisServer, running
from tests.conformance.temporal_servers import TemporalServer, needed, temporal_server
from tests.conftest import missing_service
from tests.e2e.conftest import Project

ROOT = Path(__file__).parents[2]


@pytest.fixture(name="redis")
def _redis() -> Iterator[RedisServer]:
    with running(REDIS_8, missing_service) as server:
        yield server


@pytest.fixture(name="temporal")
def _temporal(tmp_path: Path) -> Iterator[TemporalServer]:
    needed()
    with temporal_server(tmp_path) as server:
        yield server


def test_the_document_example_runs_unchanged_on_temporal_and_redis_with_two_worker_processes(
    project: Project, redis: RedisServer, temporal: TemporalServer
) -> None:
    """Only the settings differ between the script in one process and the four layers in processes of their own."""
    project.environ["PYTHONPATH"] = str(ROOT)
    models = """
        [app]
        modules = ["examples.document_analysis.workflow"]
        [inference.endpoints.script]
        kind = "scripted"
        [inference.models.fast]
        routes = ["script:any"]
        """
    apart = (
        f'{models}[orchestrator]\nbackend = "temporal"\nurl = "{temporal.address}"\n'
        f'[queue]\nbackend = "redis"\nurl = "{redis.url}"\n'
    )
    project.write("alone.toml", models + '[orchestrator]\npath = "alone.db"\n')
    project.write("apart.toml", apart)
    # The batch itself serves no queue of the example, so that the workers do all of it.
    project.write("visit.toml", apart + '[workers.visitor]\nqueues = ["none"]\n')
    documents = [str(path) for path in sorted((ROOT / "examples/document_analysis/documents").iterdir())[:4]]
    batch = ("batch", "examples.document_analysis.workflow:analyze", *documents, "--name", "docs")
    project.ok(*batch, "--output", "alone.jsonl", "--config", "alone.toml")

    driving = project.begin("worker", "--orchestrator", "--config", "apart.toml")
    workers = [project.begin("worker", "--config", "apart.toml") for _ in range(2)]
    project.ok(*batch, "--output", "apart.jsonl", "--config", "visit.toml")
    alone, found = (_reports(project.folder / name) for name in ("alone.jsonl", "apart.jsonl"))
    assert len(alone) == len(documents)
    assert found == alone
    served = {
        event["worker"]
        for id_ in found
        for event in project.ok("history", id_, "--json", "--config", "visit.toml").json
        if event.get("worker")
    }
    assert {name.rsplit("-", 2)[1] for name in served} <= {str(worker.pid) for worker in workers}
    assert served
    for process in (*workers, driving):
        assert project.end(process, signal.SIGTERM).code == 0


def _reports(path: Path) -> dict[str, object]:
    return {(found := json.loads(line))["id"]: (found["status"], found["result"]) for line in path.read_text().splitlines()}
