"""What `ziggurat up` shows, as numbers: one look at the system after another, and what changed between them.

`UpLook` is the picture without any drawing; `ziggurat.doors.cli.upview` draws it, and --json prints it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from msgspec import Struct, field

from ziggurat.assembly import System
from ziggurat.assembly.scaled import ScaledPool
from ziggurat.errors import ZigguratError
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.records import ENDED, Depth, Run, RunFilter
from ziggurat.telemetry import catalogue
from ziggurat.workers.usage import Used

#: Seconds over which rates are measured: of work, and of money, which comes in lumps.
RATE_WINDOW, MONEY_WINDOW = 5.0, 60.0
#: Runs in a look: those under way, and those that ended last.
RUNS_SHOWN = 20
#: Counting runs takes at most this part of the time: with a million of them it is done less often.
COUNTING_PART = 0.05
#: Looks whose ready messages a queue's curve shows.
CURVE = 40
UNDER_WAY = ("running", "pending", "waiting", "paused", "parked")


class PoolLook(Struct, frozen=True, kw_only=True):
    """A pool of worker processes."""

    pool: str
    #: Workers by state, those that have work among them, and attempts under way of those that may be.
    starting: int = 0
    ready: int = 0
    draining: int = 0
    busy: int = 0
    running: int = 0
    slots: int = 0
    #: How many there should be, what bound that choice, and why, as a sentence.
    wanted: int = 0
    min: int = 0
    max: int = 0
    constraint: str = ""
    explanation: str = ""
    #: Why it is smaller than it should be; empty if it is not.
    trouble: str = ""
    #: Seconds that the last of those waiting will wait; None for for ever.
    predicted_wait: float | None = None
    #: Mean seconds of an attempt, and what the workers that are wanted cost in an hour.
    attempt_seconds: float | None = None
    cost_per_hour: float = 0.0

    @property
    def size(self) -> int:
        """Workers that are there."""
        return self.starting + self.ready + self.draining


class QueueLook(Struct, frozen=True, kw_only=True):
    """A queue, and how many messages were ready on it at the last looks."""

    queue: str
    depth: Depth
    curve: tuple[int, ...] = ()


class UpLook(Struct, frozen=True, kw_only=True):
    """The system at one moment."""

    at: float
    #: Seconds since it began.
    up: float
    draining: bool = False
    #: Seconds of the grace period that are left to running tasks; None while nothing drains.
    grace_left: float | None = None
    runs: dict[str, int] = {}
    newest: tuple[Run, ...] = ()
    queues: tuple[QueueLook, ...] = ()
    pools: tuple[PoolLook, ...] = ()
    #: Steps recorded and attempts ended in a second.
    steps_per_second: float = 0.0
    tasks_per_second: float = 0.0
    #: What model calls cost since it began, and cost in an hour at the rate of the last minute.
    cost_usd: float = 0.0
    cost_per_hour: float = 0.0
    #: What could not be seen, as a sentence; empty when all could.
    trouble: str = ""
    #: Facts that do not change, for the head line.
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def unfinished(self) -> int:
        """Runs that have not ended."""
        return sum(count for status, count in self.runs.items() if status not in ENDED)


class Rate:
    """How fast a total grows, over a window of time."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._samples: deque[tuple[float, float]] = deque()

    def look(self, now: float, total: float) -> float:
        """Take in a total, and return its growth in a second."""
        samples = self._samples
        samples.append((now, total))
        while len(samples) > 2 and now - samples[1][0] >= self._window:
            samples.popleft()
        passed = now - samples[0][0]
        return max(0.0, total - samples[0][1]) / passed if passed > 0 else 0.0


class Looks:
    """Looks at a running system again and again."""

    def __init__(self, system: System, facts: dict[str, str] | None = None) -> None:
        self._system = system
        self._facts = facts or {}
        self._began = time.monotonic()
        self._steps, self._tasks, self._money = Rate(RATE_WINDOW), Rate(RATE_WINDOW), Rate(MONEY_WINDOW)
        self._steps_at_start = _steps()
        self._curves: dict[str, deque[int]] = {}
        self._runs: dict[str, int] = {}
        self._count_at = 0.0
        self._newest: tuple[Run, ...] = ()
        self._drain_until: float | None = None

    async def look(self, *, last: bool = False) -> UpLook:
        """Return the system as it is now. What cannot be seen is left as it was, and said. The last look counts the runs in any case."""
        system, now = self._system, time.monotonic()
        troubles: list[str] = []
        try:
            async with asyncio.timeout(5.0):
                await self._look_at_runs(system.orchestrator, now, last)
        except (ZigguratError, TimeoutError) as error:
            troubles.append(str(error) or "The orchestrator does not answer.")
        try:
            async with asyncio.timeout(5.0):
                depths = await system.queue.depth()
                for name, depth in depths.items():
                    self._curves.setdefault(name, deque(maxlen=CURVE)).append(depth.ready)
        except (ZigguratError, TimeoutError) as error:
            depths = {}
            troubles.append(str(error) or "The queue does not answer.")
        if system.draining and self._drain_until is None:
            self._drain_until = now + max((pool.grace for pool in system.pools), default=0.0)
        pools, ended, used = [], 0, Used()
        for pool in system.pools:
            if isinstance(pool, ScaledPool):
                pools.append(await _pool(pool))
                seen = pool.scaler.seen
                ended += seen.ended
                used = sum(seen.used.values(), used)
        return UpLook(
            at=time.time(),
            up=now - self._began,
            draining=system.draining,
            grace_left=max(0.0, self._drain_until - now) if self._drain_until is not None else None,
            runs=self._runs,
            newest=self._newest,
            queues=tuple(
                QueueLook(queue=name, depth=depth, curve=tuple(self._curves[name])) for name, depth in sorted(depths.items())
            ),
            pools=tuple(pools),
            steps_per_second=self._steps.look(now, _steps() - self._steps_at_start),
            tasks_per_second=self._tasks.look(now, ended),
            cost_usd=used.cost_usd,
            cost_per_hour=self._money.look(now, used.cost_usd) * 3600.0,
            trouble=" ".join(troubles),
            facts=self._facts,
        )

    async def _look_at_runs(self, orchestrator: Orchestrator | None, now: float, last: bool) -> None:
        if orchestrator is None or (now < self._count_at and not last):
            return
        self._runs = await orchestrator.count(RunFilter())
        open_ = await orchestrator.list(RunFilter(status=UNDER_WAY, limit=RUNS_SHOWN))
        ended = await orchestrator.list(RunFilter(status=tuple(sorted(ENDED)), limit=RUNS_SHOWN))
        self._newest = (*open_, *ended)
        self._count_at = now + (time.monotonic() - now) / COUNTING_PART


async def _pool(pool: ScaledPool) -> PoolLook:
    # Not what the scaler saw: it looks no more once the pool drains.
    seen = pool.scaler.seen = await pool.processes.look()
    scaler, decision = pool.scaler, pool.scaler.decision
    states = [worker.state for worker in seen.workers]
    wait = decision.predicted_wait if decision is not None else None
    return PoolLook(
        pool=pool.name,
        starting=states.count("starting"),
        ready=states.count("ready"),
        draining=states.count("draining"),
        busy=sum(worker.busy > 0 for worker in seen.workers),
        running=sum(worker.busy for worker in seen.workers),
        slots=sum(worker.slots for worker in seen.workers),
        wanted=decision.count if decision is not None else 0,
        min=scaler.policy.min,
        max=scaler.policy.max,
        constraint=decision.constraint if decision is not None else "",
        explanation=decision.explanation if decision is not None else "",
        trouble=seen.trouble or next((worker.trouble for worker in seen.workers if worker.trouble), ""),
        predicted_wait=wait if wait is not None and wait != float("inf") else None,
        attempt_seconds=scaler.duration,
        cost_per_hour=decision.cost_per_hour if decision is not None else 0.0,
    )


def _steps() -> float:
    """Steps that this process has recorded."""
    return sum(child.value for child in catalogue.STEPS.children().values())


def look_object(look: UpLook) -> dict[str, Any]:
    """Return a look in the shape that --json promises: one line a look."""
    return {
        "at": look.at,
        "up_seconds": round(look.up, 3),
        "draining": look.draining,
        "runs": look.runs,
        "queues": [
            {
                "queue": queue.queue,
                "ready": queue.depth.ready,
                "leased": queue.depth.leased,
                "delayed": queue.depth.delayed,
                "dead": queue.depth.dead,
                "oldest_age_seconds": round(queue.depth.oldest_age, 3),
            }
            for queue in look.queues
        ],
        "pools": [{name: getattr(pool, name) for name in PoolLook.__struct_fields__} for pool in look.pools],
        "rates": {"steps_per_second": round(look.steps_per_second, 3), "tasks_per_second": round(look.tasks_per_second, 3)},
        "cost": {
            "models_usd": look.cost_usd,
            "models_usd_per_hour": look.cost_per_hour,
            "workers_usd_per_hour": sum(pool.cost_per_hour for pool in look.pools),
        },
        "trouble": look.trouble,
    }
