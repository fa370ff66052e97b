"""The schedules of the embedded engine: kept in its state file, and fired by the process that drives it.

For each schedule one timer stands at its next start. When it fires, the moments since the last one that was decided on are taken in
their order: each starts a run, waits, or is passed over, and then the decision is written down. Between the start and the note of it the
process may die: the next one decides the same moment again, and finds its run there.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import Payloads
from ziggurat.clock import Clock
from ziggurat.errors import KeyMissing, LayerUnreachable, UnknownName, ZigguratError
from ziggurat.orchestrator.embedded.journal import Journal
from ziggurat.orchestrator.embedded.timers import Timers
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.orchestrator.schedules import Schedules, accepted, backfill_moments, next_moment, run_request, start_at
from ziggurat.program.registry import Registry
from ziggurat.records import ENDED, Run, Schedule
from ziggurat.telemetry import events

#: Seconds between two looks at a run that is parked or paused while a moment waits for it.
_LOOK_AGAIN = 10.0
_PUT = "INSERT INTO schedules (name, data) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET data = excluded.data"
_REMOVE = "DELETE FROM schedules WHERE name = ?"


class EmbeddedSchedules(Schedules):
    """The schedules in a state file.

    Args:
        journal: the state file.
        orchestrator: where runs are started.
        registry: where workflows are looked up.
        payloads: seals the arguments, for the schedule while they are kept and for each run when it starts.
        fire: False keeps schedules without starting runs, as a process does that stays only as long as its own run.
    """

    def __init__(
        self,
        journal: Journal,
        orchestrator: Orchestrator,
        registry: Registry,
        clock: Clock,
        payloads: Payloads,
        *,
        fire: bool,
    ) -> None:
        self._payloads = payloads
        self._journal, self._orchestrator, self._registry, self._clock = journal, orchestrator, registry, clock
        self._fire = fire
        self._timers = Timers(clock, lambda name, _: self._spawn(name, self._due))
        self._known = {s.name: s for s in journal.reader.schedules()}
        #: One decision at a time for each schedule.
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unwatch: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin to fire: what was missed within each schedule's catch-up window first."""
        if self._fire:
            self._unwatch = self._clock.watch(self._timers.fire)
            for schedule in self._known.values():
                self._spawn(schedule.name, self._due)
                if schedule.waiting is not None:
                    self._spawn(schedule.name, self._when_free)

    async def stop(self) -> None:
        """Fire no more."""
        self._unwatch()
        self._timers.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settled(self) -> None:
        """Return once all that was due is decided on; moments that wait for a run to end stay waiting. For tests."""
        while tasks := [task for task in self._tasks if task.get_name().startswith("due ")]:
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- verbs ------------------------------------------------------------------------------------------------------

    async def put(self, schedule: Schedule) -> Schedule:
        schedule = accepted(schedule, self._registry, self._payloads)
        async with self._lock(schedule.name):
            old, now = self._known.get(schedule.name), self._clock.time()
            if old is None:
                new = replace(schedule, created_at=now, decided_at=now, next_at=None)
            else:
                new = replace(
                    schedule,
                    created_at=old.created_at,
                    # Other moments count from now on; the same ones go on from where they are.
                    decided_at=old.decided_at if _same_times(old, schedule) else now,
                    last_run=old.last_run,
                    waiting=old.waiting,
                    skipped=old.skipped,
                    paused=old.paused,
                    reason=old.reason,
                    next_at=None,
                )
            await self._keep(new)
        self._arm(new)
        return self._shown(new)

    async def list(self) -> builtins.list[Schedule]:
        return [self._shown(self._known[name]) for name in sorted(self._known)]

    async def remove(self, name: str) -> None:
        async with self._lock(name):
            self._get(name)
            await self._journal.durable(Write(statements=[(_REMOVE, (name,))]))
            del self._known[name]
            self._timers.forget(name, 1)

    async def pause(self, name: str, reason: str = "") -> None:
        async with self._lock(name):
            await self._keep(replace(self._get(name), paused=True, reason=reason or "paused by hand"))
            self._timers.forget(name, 1)

    async def resume(self, name: str) -> None:
        async with self._lock(name):
            schedule = self._get(name)
            if schedule.paused:
                await self._keep(replace(schedule, paused=False, reason="", decided_at=self._clock.time()))
        self._arm(self._get(name))

    async def trigger(self, name: str) -> Run:
        schedule = self._get(name)
        run = await self._start(schedule, self._clock.time(), by_hand=True)
        async with self._lock(name):
            await self._keep(replace(self._get(name), last_run=run.id))
        return run

    async def backfill(self, name: str, since: float, until: float) -> int:
        schedule = self._get(name)
        moments = backfill_moments(schedule, since, until)
        for moment in moments:
            await self._start(schedule, moment)
        return len(moments)

    # -- firing -----------------------------------------------------------------------------------------------------

    async def _due(self, name: str) -> None:
        """Decide on every moment of a schedule that has come, and set the timer for the next."""
        async with self._lock(name):
            schedule = self._known.get(name)
            if schedule is None or schedule.paused:
                return
            now = self._clock.time()
            # What is past the catch-up window is left out at once: a minutely schedule has half a million moments in a year.
            after = max(schedule.decided_at or schedule.created_at, now - schedule.catch_up)
            moment = next_moment(schedule, after)
            while moment is not None and start_at(schedule, moment) <= now:
                schedule = await self._decide(schedule, moment)
                moment = next_moment(schedule, moment)
        self._arm(schedule)

    async def _decide(self, schedule: Schedule, moment: float) -> Schedule:
        """Start the run of a moment, let it wait, or pass it over; write that down and return the schedule."""
        if schedule.overlap != "allow" and await self._is_busy(schedule):
            if schedule.overlap == "cancel":
                await self._orchestrator.cancel(schedule.last_run, f"the next moment of the schedule {schedule.name!r} has come")
            if schedule.overlap == "skip" or (schedule.overlap == "queue" and schedule.waiting is not None):
                return await self._keep(replace(schedule, decided_at=moment, skipped=schedule.skipped + 1))
            passed_over = schedule.skipped + (schedule.waiting is not None)
            first = schedule.waiting is None
            schedule = await self._keep(replace(schedule, decided_at=moment, waiting=moment, skipped=passed_over))
            if first:
                self._spawn(schedule.name, self._when_free)
            return schedule
        return await self._start_run(schedule, moment)

    async def _start_run(self, schedule: Schedule, moment: float) -> Schedule:
        decided = max(moment, schedule.decided_at or 0.0)
        try:
            run = await self._start(schedule, moment)
        except LayerUnreachable:
            raise
        except ZigguratError as error:
            events.SCHEDULE_FAILED(schedule=schedule.name, error=error)
            return await self._keep(replace(schedule, decided_at=decided, waiting=None, error=str(error)))
        return await self._keep(replace(schedule, decided_at=decided, waiting=None, last_run=run.id, error=""))

    async def _start(self, schedule: Schedule, moment: float, *, by_hand: bool = False) -> Run:
        request = run_request(schedule, moment, by_hand=by_hand)
        plain = self._payloads.open_now(schedule.payload, schedule.name)
        return await self._orchestrator.start(replace(request, payload=Raw(await self._payloads.seal(plain, request.id))))

    async def _is_busy(self, schedule: Schedule) -> bool:
        """Say whether the run of the last moment has not ended, or a moment waits for it."""
        if not schedule.last_run:
            return False
        try:
            return schedule.waiting is not None or (await self._orchestrator.get(schedule.last_run)).status not in ENDED
        except UnknownName:  # It was purged.
            return False

    async def _when_free(self, name: str) -> None:
        """Start the moment that waits, once the run that it waits for has ended."""
        while True:
            schedule = self._known.get(name)
            if schedule is None or schedule.waiting is None:
                return
            try:
                ended = (await self._orchestrator.wait(schedule.last_run)).status in ENDED
            except UnknownName:
                ended = True
            if not ended:  # Parked: a person has to see to it.
                await asyncio.sleep(_LOOK_AGAIN)
                continue
            async with self._lock(name):
                schedule = self._known.get(name)
                if schedule is not None and schedule.waiting is not None:
                    await self._start_run(schedule, schedule.waiting)
            return

    # -- inside -----------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, work: Callable[[str], Awaitable[None]]) -> None:
        async def guarded() -> None:
            try:
                await work(name)
            except LayerUnreachable:
                pass  # The state file was closed; the next process decides anew.
            except Exception:
                events.SCHEDULE_UNDECIDED(trace_of=True, schedule=name)
                if (schedule := self._known.get(name)) is not None:
                    self._arm(schedule)

        kind = "due" if work == self._due else "free"
        task = asyncio.get_running_loop().create_task(guarded(), name=f"{kind} ziggurat-schedule-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _arm(self, schedule: Schedule) -> None:
        if not self._fire or schedule.paused:
            return
        self._timers.forget(schedule.name, 1)
        moment = next_moment(schedule, max(schedule.decided_at or 0.0, self._clock.time() - schedule.catch_up))
        if moment is not None:
            self._timers.add(start_at(schedule, moment), schedule.name, 1)

    async def _keep(self, schedule: Schedule) -> Schedule:
        await self._journal.durable(Write(statements=[(_PUT, (schedule.name, msgspec.json.encode(schedule)))]))
        self._known[schedule.name] = schedule
        return schedule

    def _get(self, name: str) -> Schedule:
        found = self._known.get(name)
        if found is None:
            raise UnknownName(f"There is no schedule {name!r}{_others(self._known)}.")
        return found

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _shown(self, schedule: Schedule) -> Schedule:
        with contextlib.suppress(KeyMissing):  # Then it is shown as it is kept.
            schedule = replace(schedule, payload=Raw(self._payloads.outline(schedule.payload, schedule.name)))
        if schedule.paused:
            return schedule
        return replace(schedule, next_at=next_moment(schedule, max(self._clock.time(), schedule.decided_at or 0.0)))


def _same_times(old: Schedule, new: Schedule) -> bool:
    return (old.cron, old.every, old.timezone) == (new.cron, new.every, new.timezone)


def _others(known: Iterable[str]) -> str:
    names = sorted(known)
    return f"; there are: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}" if names else ", and none at all"
