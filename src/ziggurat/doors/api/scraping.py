"""/metrics/targets: where Prometheus finds the workers, which come and go.

The format is Prometheus's own for this, https://prometheus.io/docs/prometheus/latest/http_sd/: a list of {"targets", "labels"}, whole at
every answer, so that a worker which is gone is gone from the next one. The workers told where they are themselves, in their records on the
queue; nobody has to be told of them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request
from pydantic import Field

from ziggurat import records
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import hub_of
from ziggurat.doors.api.shapes import Answer
from ziggurat.telemetry.served import is_local

router = APIRouter(route_class=Guarded, tags=["health"])


class Target(Answer):
    """One process to scrape."""

    targets: list[str] = Field(description="Its address, as host:port; the path is /metrics.")
    labels: dict[str, str] = Field(description="What Prometheus adds to its metrics: `worker`, `pool` and `host`.")


@router.get("/metrics/targets", openapi_extra=guarded("viewer", system=True))
async def targets(request: Request) -> list[Target]:
    """List the worker processes that show metrics, in the form of Prometheus's HTTP service discovery."""
    return targets_of(await hub_of(request).queue.workers(), socket.gethostname())


def targets_of(workers: Iterable[records.Presence], host: str) -> list[Target]:
    """Return one target for each process of these workers that can be reached from `host`: loopback is this machine's only."""
    processes: dict[str, list[records.Presence]] = {}
    for worker in workers:
        if worker.metrics and (worker.host == host or not is_local(worker.metrics)):
            processes.setdefault(worker.metrics, []).append(worker)
    return [Target(targets=[address], labels=_labels(found)) for address, found in processes.items()]


def _labels(workers: Sequence[records.Presence]) -> dict[str, str]:
    """A process may run a worker of each of several pools; it is one target all the same."""
    return {
        "worker": ",".join(sorted(worker.worker for worker in workers)),
        "pool": ",".join(sorted({worker.pool for worker in workers})),
        "host": workers[0].host,
    }
