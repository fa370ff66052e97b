"""Pools whose workers are processes of their own on this machine, as many as the load wants."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from ziggurat.queues.interface import Queue
from ziggurat.settings import Settings, WorkerSettings
from ziggurat.workers.autoscale import Policy
from ziggurat.workers.pools.nursery import NurseryStarter, supported
from ziggurat.workers.pools.processes import ProcessPool
from ziggurat.workers.pools.starting import CommandStarter
from ziggurat.workers.quota import EndpointLimits, Quotas
from ziggurat.workers.scaler import Scaler
from ziggurat.workers.worker import Worker


class ScaledPool:
    """One pool of `ziggurat worker` processes, scaled between its min and max."""

    def __init__(
        self,
        name: str,
        wanted: WorkerSettings,
        settings: Settings,
        queue: Queue,
        quotas: Quotas,
        nursery: NurseryStarter | None,
        output: Path | None,
    ) -> None:
        self.name = name
        self._wanted = wanted
        source = str(settings.source) if settings.source is not None else ""
        if nursery is not None:
            self.processes = ProcessPool(name, [name, source], starter=nursery, output=output)
        else:
            command = [sys.executable, "-m", "ziggurat", "worker", name, *(["--config", source] if source else [])]
            self.processes = ProcessPool(name, [], starter=CommandStarter(command, environ_of(settings)), output=output)
        policy = Policy(
            min=wanted.min,
            max=wanted.max,
            slots=wanted.concurrency,
            target_wait=wanted.target_wait,
            idle_window=wanted.idle_window,
            budget_per_hour=wanted.budget_per_hour,
            price_per_hour=wanted.price_per_hour,
        )
        served = None if "*" in wanted.queues else wanted.queues
        self.scaler = Scaler(self.processes, queue, policy, queues=served, quotas=quotas)
        self._scaling: asyncio.Task[None] | None = None

    @property
    def workers(self) -> list[Worker]:
        """The workers in this process: none."""
        return []

    @property
    def grace(self) -> float:
        """Seconds that running tasks have when it drains."""
        return self._wanted.grace

    @property
    def busy(self) -> int:
        """Worker processes that have work."""
        return self.scaler.seen.busy

    def open(self) -> None:
        """Begin to scale."""
        self._scaling = asyncio.create_task(self.scaler.run(), name=f"ziggurat-scaler-{self.name}")

    def serve_named(self) -> None:
        """Worker processes look for new queues themselves."""

    def hurry(self) -> None:
        """Hand back at once what draining workers have."""
        self.processes.hurry()

    async def stop(self, grace: float | None = None) -> None:
        """Drain every worker within `grace` seconds, the pool's own by default."""
        if self._scaling is not None:
            self._scaling.cancel()
            await asyncio.gather(self._scaling, return_exceptions=True)
            self._scaling = None
            await self.processes.close(self._wanted.grace if grace is None else grace)


def quotas_of(settings: Settings) -> Quotas:
    """Return what the configured endpoints allow all pools together."""
    return Quotas(
        EndpointLimits(
            endpoint=name,
            requests_per_minute=endpoint.limits.requests_per_minute,
            tokens_per_minute=endpoint.limits.tokens_per_minute,
            seats=endpoint.limits.concurrency,
        )
        for name, endpoint in settings.inference.endpoints.items()
    )


def nursery_of(settings: Settings) -> NurseryStarter | None:
    """Return what forks the worker processes of all pools, or None where that cannot be done."""
    return NurseryStarter([sys.executable, "-m", "ziggurat", "nursery"], environ_of(settings)) if supported() else None


def environ_of(settings: Settings) -> dict[str, str]:
    """Return the environment of worker processes: with the queue that this process uses, which may be another than the file says."""
    return {**os.environ, "ZIGGURAT_QUEUE__BACKEND": settings.queue.backend}
