"""Keeps a pool as large as its load wants: looks, chooses, scales, and says what bound the choice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import QueueUnavailable
from ziggurat.queues.interface import Queue
from ziggurat.records import Depth
from ziggurat.telemetry import events
from ziggurat.telemetry.catalogue import POOL_ENDED, POOL_SECONDS, POOL_WANTED, POOL_WORKERS
from ziggurat.workers.autoscale import Decision, Load, Meter, Policy, Recent, Standstill, Stats, desired
from ziggurat.workers.pools.interface import PoolSeen, WorkerPool
from ziggurat.workers.quota import Appetite, Quotas

#: Seconds between two looks.
INTERVAL = 0.25


class Scaler:
    """Scales one pool by the depth of its queues.

    Args:
        queues: the queues that the pool serves; None for all that the queue knows.
        quotas: what inference allows; the pool shares it with the others that joined.
    """

    def __init__(
        self,
        pool: WorkerPool,
        queue: Queue,
        policy: Policy,
        *,
        queues: Sequence[str] | None = None,
        quotas: Quotas | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.pool = pool
        self.policy = policy
        self._queue = queue
        self._queues = queues
        clock = clock or SystemClock()
        self._appetite = Appetite(clock)
        self._quotas = quotas or Quotas(())
        self._quotas.join(pool.name, self._appetite)
        self._recent = Recent(clock)
        self._meter = Meter(clock)
        self._standstill = Standstill(clock)
        #: What was last seen and chosen, for views.
        self.seen = PoolSeen()
        self.depth = Depth()
        self.decision: Decision | None = None

    @property
    def duration(self) -> float | None:
        """Mean seconds of one attempt, as measured."""
        return self._meter.duration

    @property
    def arrivals(self) -> float:
        """Tasks that arrive in a second, as measured."""
        return self._meter.arrivals

    async def run(self) -> None:
        """Look and scale until cancelled. While the queue is unavailable the pool stays as it is."""
        stops = [
            POOL_WORKERS.watch(self._workers),
            POOL_WANTED.watch(self._wanted),
            # Here, because what a worker counted goes with it, and a pool that breathes loses workers between two scrapes.
            POOL_ENDED.watch(lambda: {(self.pool.name,): float(self.seen.ended)}),
            POOL_SECONDS.watch(lambda: {(self.pool.name,): self.seen.seconds}),
        ]
        try:
            await self._run()
        finally:
            for stop in stops:
                stop()

    async def _run(self) -> None:
        down = False
        while True:
            try:
                await self.look()
                down = False
            except QueueUnavailable as error:
                if not down:
                    events.POOL_NOT_SCALED(pool=self.pool.name, error=error)
                down = True
            except Exception:
                events.POOL_FAILED(trace_of=True, pool=self.pool.name)
            await asyncio.sleep(INTERVAL)

    async def look(self) -> Decision:
        """Look once and scale. Raises QueueUnavailable."""
        depths = await self._queue.depth(self._queues)
        seen = await self.pool.look()
        depth = sum(depths.values(), Depth())
        self._meter.look(ended=seen.ended, seconds=seen.seconds, backlog=depth.ready + depth.leased)
        self._appetite.look(used=seen.used, seconds=seen.seconds, waited=seen.waited)
        load = Load(
            waiting=depth.ready,
            # The queue counts what every pool leased; the workers' own count is the pool's.
            running=sum(worker.busy for worker in seen.workers if worker.state != "draining"),
            duration=self._meter.duration,
            arrivals=self._meter.arrivals,
        )
        idle = sum(worker.state == "ready" and not worker.busy and not worker.trouble for worker in seen.workers)
        blocked = self._standstill.look(waiting=depth.ready, idle=idle)
        stats = Stats(
            loads=(load,),
            workers=seen.size,
            busy=seen.busy,
            recent_demand=self._recent.largest(self.policy.idle_window),
            blocked=blocked,
            quota=self._quotas.of(self.pool.name),
        )
        decision = desired(stats, self.policy)
        # What idle workers leave is no demand to keep workers for.
        self._recent.note(min(decision.demand, seen.busy + 1) if blocked else decision.demand)
        before = self.decision
        if before is None or (decision.count, decision.constraint) != (before.count, before.constraint):
            events.POOL_WANTS(
                pool=self.pool.name, workers=decision.count, constraint=decision.constraint, explanation=decision.explanation
            )
        self.seen, self.depth, self.decision = seen, depth, decision
        await self.pool.scale(decision.count)
        return decision

    def _workers(self) -> dict[tuple[str, ...], float]:
        states = [worker.state for worker in self.seen.workers]
        return {(self.pool.name, state): float(states.count(state)) for state in ("starting", "ready", "draining")}

    def _wanted(self) -> dict[tuple[str, ...], float]:
        decision = self.decision
        return {(self.pool.name, decision.constraint): float(decision.count)} if decision is not None else {}

    def bound(self, **changes: int) -> None:
        """Change the policy's minimum or maximum while it runs."""
        self.policy = replace(self.policy, **changes)
