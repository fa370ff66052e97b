"""A storm: faults drawn from a seed, over a plant at work, and what must be true when it has passed.

kill worker          kill -9, and another one is started
freeze worker        SIGSTOP until its leases are long over, then SIGCONT: a zombie
kill orchestrator    kill -9, and another one is started
restart, flush       of the Redis server: kill -9 and start again; FLUSHALL
pause                of the Redis server: it does not answer for a while
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from msgspec import Raw, Struct

from tests.chaos.errands import Errand, doomed, result_of, tour
from tests.chaos.plant import UP, Plant
from tests.conformance.redis_servers import RedisServer
from ziggurat.records import ENDED, Event, Run, RunFilter, StartRequest

WORKERS = 4


class Scale(Struct, frozen=True, kw_only=True):
    """How much there is to do, and how much goes wrong meanwhile."""

    #: Tasks in all, seconds that each takes at most, and runs whose task kills its worker.
    tasks: int
    seconds: float
    poisons: int
    #: Faults, and seconds between two at most.
    faults: int
    gap: float
    #: Seconds after which the storm is stuck.
    limit: float
    #: How many of a hundred tasks fail their first attempt, and their first two.
    failing: tuple[int, int] = (8, 2)


class Fault(Struct, frozen=True):
    """One line of the schedule: after so many seconds, what to do, and for how long."""

    after: float
    kind: str
    seconds: float = 0.0


class Effect(Struct, frozen=True, array_like=True):
    """One line of the log of effects."""

    at: float
    what: str
    step: str
    attempt: int
    pid: int
    #: Of the delivery that the attempt goes by at this moment.
    epoch: int


class Storm:
    """One storm. Call `rage`, then `check`.

    Args:
        lease, deliveries: as in the plant's settings.
        server, durable: the Redis server, if that is the queue, and whether what it holds outlives it.
        label: begins the ids of the runs, so that several storms may pass over one plant.
        spare_orchestrator: whether it is not killed; what `plant.spared` holds is not either.
    """

    def __init__(
        self,
        plant: Plant,
        seed: int,
        scale: Scale,
        *,
        lease: float,
        deliveries: int,
        server: RedisServer | None = None,
        durable: bool = True,
        label: str = "",
        spare_orchestrator: bool = False,
    ) -> None:
        self._spare_orchestrator, self._label = spare_orchestrator, label
        self.plant, self.seed, self.scale, self.server, self.durable = plant, seed, scale, server, durable
        self.lease, self.deliveries = lease, deliveries
        chance = random.Random(seed)
        self.tours = self._plan(chance)
        self.poisons = [f"{label}doomed-{number}" for number in range(scale.poisons)]
        self.schedule = self._schedule(chance)
        self._chance = chance
        #: Moments at which the queue lost everything.
        self.losses: list[float] = []
        #: From when to when the queue's server was away.
        self.outages: list[tuple[float, float]] = []
        self.done: Counter[str] = Counter()
        #: What a thawed worker did too late, by the number of the thaw.
        self._excused: dict[int, Effect] = {}
        self.seconds = 0.0
        #: Set once all runs have ended: no other fault begins.
        self._over = asyncio.Event()
        self.unended = len(self.tours) + len(self.poisons)

    # -- what is drawn ---------------------------------------------------------------------------------------------

    def _plan(self, chance: random.Random) -> dict[str, list[list[Errand]]]:
        """Return runs by id, adding up to so many tasks."""
        tours: dict[str, list[list[Errand]]] = {}
        left = self.scale.tasks
        while left > 0:
            groups: list[list[Errand]] = []
            for _ in range(chance.randint(1, 5)):
                size = min(left, chance.choice((1, 1, 2, 4)))
                groups.append(
                    [
                        (
                            round(chance.random() * self.scale.seconds, 2),
                            chance.choices((0, 1, 2), (100 - sum(self.scale.failing), *self.scale.failing))[0],
                        )
                        for _ in range(size)
                    ]
                )
                left -= size
                if not left:
                    break
            tours[f"{self._label}tour-{len(tours)}"] = groups
        return tours

    def _schedule(self, chance: random.Random) -> list[Fault]:
        kinds = {"kill worker": 4, "freeze worker": 4, "kill orchestrator": 0 if self._spare_orchestrator else 2}
        if self.server is not None:
            kinds |= {"restart": 2, "flush": 1, "pause": 1}
        faults = []
        for _ in range(self.scale.faults):
            kind = chance.choices(list(kinds), list(kinds.values()))[0]
            seconds = self.lease * (1.2 + chance.random()) if kind == "freeze worker" else chance.random()
            faults.append(Fault(round(chance.random() * self.scale.gap, 2), kind, round(seconds, 2)))
        return faults

    def __repr__(self) -> str:
        faults = ", ".join(f"{it.after:g} s {it.kind} ({it.seconds:g} s)" for it in self.schedule)
        return f"seed {self.seed}: {len(self.tours)} runs of {self.scale.tasks} tasks, {len(self.poisons)} doomed; {faults}"

    def progress(self) -> str:
        """Say how far it is."""
        begun = len(self.tours) + len(self.poisons)
        return f"seed {self.seed}: {begun - self.unended} of {begun} runs, {self.done.total()} of {len(self.schedule)} faults"

    # -- what happens ----------------------------------------------------------------------------------------------

    async def rage(self, trouble: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Start the runs and let the faults happen until all have ended; or `trouble` in the place of the faults, to its end."""
        plant = self.plant
        began = time.monotonic()
        if plant.orchestrator is None:
            for _ in range(WORKERS):
                plant.start_worker()
            plant.start_orchestrator()
            await plant.ready(WORKERS)
        tending = asyncio.create_task(self._tend())
        raging = asyncio.create_task((trouble or self._faults)())
        try:
            async with asyncio.timeout(self.scale.limit):
                await self._start_runs()
                if trouble is not None:
                    await raging  # It may start more runs until its end.
                await self._until_ended(raging)
        except TimeoutError:
            raise AssertionError(f"{self!r}\nThe runs did not end: {await self._report()}") from None
        finally:
            # A fault that has begun is seen through: a server that was paused or killed as the last run ended must be there afterwards.
            self._over.set()
            if trouble is None:
                await asyncio.wait([raging], timeout=UP)
            for task in (raging, tending):
                task.cancel()
            await asyncio.gather(raging, tending, return_exceptions=True)
            for worker in list(plant.frozen):
                plant.thaw(worker)
            self.seconds = time.monotonic() - began
        # All are to be there for what follows.
        while len(plant.workers) < WORKERS:
            plant.start_worker()

    async def _tend(self) -> None:
        """Start a worker for each that ended by itself: the poison's victims."""
        while True:
            for _ in range(self.plant.reap()):
                self.plant.start_worker()
            await asyncio.sleep(0.1)

    async def _start_runs(self) -> None:
        names = [*self.tours, *self.poisons]
        self._chance.shuffle(names)
        at_once = asyncio.Semaphore(50)

        async def start(name: str) -> None:
            async with at_once:
                await self._start_run(name)

        await asyncio.gather(*[start(name) for name in names])

    async def _start_run(self, name: str) -> None:
        workflow, arguments = (tour.name, {"key": name, "groups": self.tours.get(name)})
        if name in self.poisons:
            workflow, arguments = doomed.name, {"key": name}
        request = StartRequest(workflow=workflow, payload=Raw(msgspec.json.encode(arguments)), id=name)
        await self.plant.ask(lambda orchestrator: orchestrator.start(request))

    async def start_as_many(self, suffix: str) -> None:
        """Start the tours that were drawn once more, under names with this suffix."""
        more = {f"{name}{suffix}": groups for name, groups in self.tours.items() if "+" not in name}
        self.tours |= more
        for name in more:
            await self._start_run(name)

    async def _until_ended(self, raging: asyncio.Task[None]) -> None:
        while True:
            if raging.done():
                raging.result()
            runs = await self.runs()
            self.unended = len(self.tours) + len(self.poisons) - sum(run.status in ENDED for run in runs.values())
            if all(run.status in ENDED for run in runs.values()) and len(runs) == len(self.tours) + len(self.poisons):
                return
            await asyncio.sleep(0.3)

    async def _faults(self) -> None:
        for fault in self.schedule:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(fault.after):
                    await self._over.wait()
            if self._over.is_set():
                return
            await self._strike(fault)
            self.done[fault.kind] += 1

    async def _strike(self, fault: Fault) -> None:
        plant, server = self.plant, self.server
        if fault.kind == "kill worker":
            plant.kill_worker(await self._victim())
            plant.start_worker()
        elif fault.kind == "freeze worker":
            worker = await self._victim()
            plant.freeze(worker)
            asyncio.get_running_loop().call_later(fault.seconds, plant.thaw, worker)
        elif fault.kind == "kill orchestrator":
            plant.kill_orchestrator()
            await asyncio.sleep(fault.seconds)
            plant.start_orchestrator()
        elif fault.kind == "restart" and server is not None:
            began = time.time()
            server.kill()
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(server.start)
            self.outages.append((began, time.time()))
            if not self.durable:
                self.losses.append(time.time())
        elif fault.kind == "flush" and server is not None:
            await asyncio.to_thread(server.command, "FLUSHALL")
            self.losses.append(time.time())
        elif fault.kind == "pause" and server is not None:
            began = time.time()
            server.pause()
            await asyncio.sleep(fault.seconds)
            server.resume()
            self.outages.append((began, time.time()))

    async def _victim(self) -> subprocess.Popen[bytes]:
        """Return a worker at work, waiting until it is not the only one: others must go on."""
        while len(workers := self.plant.at_work()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return self._chance.choice([worker for worker in workers if worker is not self.plant.spared])

    async def runs(self) -> dict[str, Run]:
        """Return all runs by id, without results."""
        return {run.id: run for run in await self.plant.ask(lambda orchestrator: orchestrator.list(RunFilter(limit=100_000)))}

    async def _report(self) -> str:
        parts = []
        for run in (await self.runs()).values():
            if run.status not in ENDED:
                steps = await self.plant.ask(lambda orchestrator, run=run: orchestrator.steps(run.id))  # type: ignore[misc]
                waits = [f"{step.step} {step.name} {step.status} attempt {step.attempt}" for step in steps if not step.ended_at]
                parts.append(f"{run.id} is {run.status} {run.reason!r}: {waits}")
        return "; ".join(parts[:20])

    # -- what must be true -----------------------------------------------------------------------------------------

    def effects(self) -> dict[str, list[Effect]]:
        """Return what every step did, in order."""
        found: dict[str, list[Effect]] = defaultdict(list)
        for line in self.plant.log.read_bytes().splitlines():
            effect = msgspec.json.decode(line, type=Effect)
            found[effect.step].append(effect)
        return found

    async def check(self) -> dict[str, Any]:
        """Assert what every storm must leave true; returns figures to look at."""
        effects = self.effects()
        wrong: list[str] = []
        again = recorded = 0
        for name in [*self.tours, *self.poisons]:
            run = await self.plant.ask(lambda orchestrator, name=name: orchestrator.get(name))  # type: ignore[misc]
            events = await self.plant.ask(lambda orchestrator, name=name: orchestrator.history(name, limit=10_000))  # type: ignore[misc]
            if name in self.tours:
                wanted = msgspec.json.encode(result_of(name, self.tours[name]))
                if run.status != "completed" or bytes(run.result or b"") != wanted:
                    wrong.append(f"{name} is {run.status} with {run.result!r}, not {wanted!r}: {run.error}")
            else:
                wrong += self._check_doomed(run, events, effects)
            steps = [event for event in events if event.kind == "step_completed" and event.step_kind == "task"]
            if len({event.step for event in steps}) != len(steps):
                wrong.append(f"{name} has a step that was recorded twice")
            for event in steps:
                key = f"{name}~0.{event.step}"
                recorded += 1
                again += sum(it.what == "begin" for it in effects[key]) - event.attempt
                wrong += self._check_step(key, event, effects[key])
        assert not wrong, f"{self!r}\n{len(wrong)} things are wrong: " + "\n".join(wrong[:40])
        # Attempts that ended in a process which had lost their lease: zombies, refused by the queue or stopped before that.
        refused = self.plant.said("worker").count(" is lost, so this attempt's outcome is dropped")
        return {"recorded": recorded, "begun again": again, "refused": refused, "seconds": round(self.seconds), **self.done}

    def _check_step(self, key: str, event: Event, effects: list[Effect]) -> list[str]:
        """A step that is recorded was run last by the worker whose outcome was recorded, and by nobody since."""
        begun = [it for it in effects if it.what == "begin"]
        while len(begun) > 1 and begun[-1].at > event.at and self._caught(begun[-1]):
            begun.pop()
        last = begun[-1]
        wrong = []
        if last.at > event.at:
            wrong.append(f"{key} began again {last.at - event.at:.3f} s after it was recorded")
        if f"-{last.pid}-" not in event.worker:
            # Unless the message came back, by a newer delivery, to a worker that was still at it, or that could not yet tell of its end.
            ended = [it for it in effects if it.what == "end" and f"-{it.pid}-" in event.worker]
            untold = any(began < event.at and it.at < over for it in ended for began, over in self.outages)
            if max((it.epoch for it in ended), default=0) <= last.epoch and not untold:
                wrong.append(f"{key} was recorded of {event.worker}, a zombie: {last.pid} had it")
        planned = 1 + self._planned_failures(key)
        if event.attempt != planned:
            wrong.append(f"{key} took {event.attempt} attempts, not {planned}")
        return wrong

    def _caught(self, effect: Effect) -> bool:
        """Say whether a worker did this as it thawed: it had looked at its lease, and was frozen before the task's first line.

        Nobody can close that gap. It is so narrow that a freeze catches one attempt in it at most; more are the worker's fault.
        """
        for number, (pid, at) in enumerate(self.plant.thaws):
            if pid == effect.pid and at <= effect.at <= at + 2.0 and self._excused.setdefault(number, effect) == effect:
                return True
        return False

    def _planned_failures(self, key: str) -> int:
        name, _, step = key.partition("~0.")
        if name not in self.tours:
            return 0
        # Steps are numbered in the order in which they are asked for; timers are steps too.
        number = 0
        for place, group in enumerate(self.tours[name]):
            for _, fails in group:
                number += 1
                if number == int(step):
                    return fails
            number += place % 3 == 2
        raise AssertionError(f"{key} is no step of its run")

    def _check_doomed(self, run: Run, events: list[Event], effects: dict[str, list[Effect]]) -> list[str]:
        """A poisoned run failed of its dead letter, after exactly the deliveries that a message has."""
        failed = [event for event in events if event.kind == "step_failed"]
        if run.status != "failed" or [event.detail for event in failed] != ["dead"]:
            return [f"{run.id} is {run.status}, with {[(event.name, event.detail) for event in failed]}"]
        begun = [it for it in effects[f"{run.id}~0.{failed[0].step}"] if it.what == "begin"]
        # A queue that lost everything starts to count anew; a fault can end a delivery before its task has begun.
        counts = [0] * (len(self.losses) + 1)
        for it in begun:
            counts[sum(loss < it.at for loss in self.losses)] += 1
        if max(counts) > self.deliveries:
            return [f"the poison of {run.id} was begun {counts} times"]
        message = failed[0].error.message if failed[0].error else ""
        if f"{self.deliveries} " not in message:
            return [f"{run.id} died for another reason: {message}"]
        return []
