"""Metrics of worker processes that come and go: each shows its own, the server says where they are, and the pool forgets nothing."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Project
from tests.e2e.test_up import FLOWS, SETTINGS, Up, begin, let_go, started

#: Long, so that no worker is retired while it is looked at.
STAYS = SETTINGS.format(grace="30s").replace('idle_window = "1s"', 'idle_window = "10m"').replace("max = 3", "max = 2")


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def counted(url: str, name: str) -> float:
    """Return the sum of a metric over all labels, on one page."""
    families = text_string_to_metric_families(_fetch(f"{url}/metrics").decode())
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


class Watched(Up):
    """A running `ziggurat up` with its API."""

    @property
    def url(self) -> str:
        return str(self.described["api"])

    def targets(self) -> dict[str, str]:
        """Return the URLs of the targets, by worker."""
        found: list[dict[str, Any]] = json.loads(_fetch(f"{self.url}/metrics/targets"))
        assert all(target["labels"]["pool"] == "default" for target in found)
        return {target["labels"]["worker"]: f"http://{target['targets'][0]}" for target in found}


def test_every_worker_process_shows_its_metrics_and_the_server_says_where(project: Project) -> None:
    project.write("flows.py", FLOWS)
    project.write("ziggurat.toml", STAYS)
    up = Watched(project, "--port", "0")
    assert up.targets() == {}
    names = [f"n{number}" for number in range(4)]
    begin(project, "burst", names)
    up.until(lambda: started(project, *names), "every task of the burst runs")
    up.until(lambda: len(up.targets()) == 2, "both workers are targets")

    def all_of(name: str) -> Callable[[], float]:
        return lambda: sum(counted(url, name) for url in up.targets().values())

    assert all_of("ziggurat_worker_attempts_started_total")() == 4
    assert all_of("ziggurat_worker_busy")() == 4
    assert counted(up.url, "ziggurat_worker_attempts_started_total") == 0, "the server runs no tasks"
    let_go(project, *names)
    up.until(lambda: all_of("ziggurat_worker_attempts_ended_total")() == 4, "the attempts of both workers add up")
    up.until(lambda: counted(up.url, "ziggurat_pool_attempts_ended_total") == 4, "and the pool knows them")
    shown = project.ok("workers", "--json").json
    assert {worker["worker"]: f"http://{worker['metrics']}" for worker in shown} == up.targets()
    assert all(_fetch(f"{url}/healthz") for url in up.targets().values())
    killed = shown[0]
    os.kill(killed["pid"], signal.SIGKILL)
    up.until(lambda: killed["worker"] not in up.targets(), "a worker that was killed is no target any more")
    assert counted(up.url, "ziggurat_pool_attempts_ended_total") == 4, "what it counted is not lost"
    up.end(signal.SIGTERM)


def test_a_worker_on_its_own_shows_metrics_unless_told_not_to(project: Project) -> None:
    project.write("flows.py", FLOWS)
    project.write("ziggurat.toml", STAYS)
    worker = project.begin("worker", "--json")
    assert worker.stdout is not None
    port = json.loads(worker.stdout.readline())["health_port"]
    assert counted(f"http://127.0.0.1:{port}", "ziggurat_worker_slots") == 2
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    project.environ["ZIGGURAT_TELEMETRY__METRICS"] = "false"
    silent = project.begin("worker", "--json")
    assert silent.stdout is not None
    assert json.loads(silent.stdout.readline())["health_port"] is None
    silent.send_signal(signal.SIGTERM)
    assert silent.wait(60) == 0
