"""The embedded orchestrator: one process, one SQLite file, no server.

`EmbeddedOrchestrator` is the control surface; `Driver` does the driving; `Writer` makes things durable; the state file's map is in
`store.py`. Everything but the writer's commits happens on the event loop that called `open`.
"""

from __future__ import annotations

import asyncio
import builtins
import gc
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial
from pathlib import Path

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import Conflict, LayerUnreachable
from ziggurat.orchestrator.embedded import guard
from ziggurat.orchestrator.embedded.cleaning import Cleaner
from ziggurat.orchestrator.embedded.dispatch import Dispatcher
from ziggurat.orchestrator.embedded.driver import Driver
from ziggurat.orchestrator.embedded.family import Family
from ziggurat.orchestrator.embedded.gauges import Gauges
from ziggurat.orchestrator.embedded.inbox import Inbox
from ziggurat.orchestrator.embedded.journal import Journal
from ziggurat.orchestrator.embedded.lock import StateLock
from ziggurat.orchestrator.embedded.newborn import fork_run, new_run
from ziggurat.orchestrator.embedded.options import EngineOptions
from ziggurat.orchestrator.embedded.recovery import recover
from ziggurat.orchestrator.embedded.resident import Resident, total_usage
from ziggurat.orchestrator.embedded.scheduling import EmbeddedSchedules
from ziggurat.orchestrator.embedded.spending import BUDGET_EXCEEDED
from ziggurat.orchestrator.embedded.store import UNBURY, UNBURY_RUN, event_row, run_row
from ziggurat.orchestrator.embedded.surgery import asked_at, current_generation, fork_events, rebound, retry_events
from ziggurat.orchestrator.embedded.viewing import Viewer
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.orchestrator.interface import Capabilities, Orchestrator
from ziggurat.program.registry import Registry
from ziggurat.queues.interface import Queue
from ziggurat.records import ENDED, DeadLetter, Event, Run, RunEvent, RunFilter, StartRequest, StepView, Usage
from ziggurat.telemetry import events
from ziggurat.units import human_seconds

#: Longest time between two purges of what is past its retention, in seconds.
_RETAIN_EVERY = 600.0


class EmbeddedOrchestrator(Orchestrator):
    """The orchestrator in this process.

    Args:
        path: the state file; made if missing.
        queue: an open queue, on which tasks are sent.
        registry: where workflows are looked up.
        options: limits.
        clock: the time.
        payloads: the seam through which payloads pass; everything stays inline where there is none.
        drive: False opens the state for control verbs only: runs are changed but not driven.
    """

    capabilities = Capabilities()
    schedules: EmbeddedSchedules

    def __init__(
        self,
        path: Path | str,
        queue: Queue,
        registry: Registry,
        *,
        options: EngineOptions | None = None,
        clock: Clock | None = None,
        payloads: Payloads = INLINE,
        drive: bool = True,
    ) -> None:
        self.path = Path(path)
        self._drive = drive
        self.options = options or EngineOptions()
        self.clock = clock or SystemClock()
        self.queue, self.registry, self.payloads = queue, registry, payloads
        self.lock = StateLock(self.path)
        self._tasks: builtins.list[asyncio.Task[None]] = []
        #: Held while the history of a run that stopped is worked on: two hands on one history would write the same positions.
        self._surgery = asyncio.Lock()
        self._open = False

    # -- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Lock the state file, bring it up to date, and go on with unfinished runs.

        Raises StateLocked or StateUnusable.
        """
        self.lock.acquire(self.clock.time())
        try:
            self._journal = Journal(self.path)
        except BaseException:
            self.lock.release()
            raise
        self._dispatcher = Dispatcher(
            self.queue,
            self.clock,
            lambda outcomes: self._inbox.take(outcomes),
            lambda lost: self._inbox.resend(lost),
            self._journal.write,
            self.payloads,
            sweep=self.options.sweep,
            sweep_age=self.options.sweep_age,
        )
        self.driver = Driver(
            self._journal.reader,
            self._journal.write,
            self._dispatcher,
            lambda run, step: self._inbox.due(run, step),
            self.registry,
            self.options,
            self.clock,
            self.payloads,
        )
        self.driver.kin = Family(self.driver)
        self._viewer = Viewer(self.path, self._journal, self.driver)
        self._cleaner = Cleaner(self._journal, self.payloads.library, self.clock, self.options.artifact_grace)
        self._inbox = Inbox(self.driver, self._dispatcher, self.options, self.clock)
        fire = self._drive and self.options.fire_schedules
        self.schedules = EmbeddedSchedules(self._journal, self, self.registry, self.clock, self.payloads, fire=fire)
        guard.install()
        # A collection of the oldest generation walks every run in memory and stops everything for a quarter of a second at 10,000 of
        # them. Runs that leave memory undo their own cycles, so it can be ten times as rare.
        self._thresholds = gc.get_threshold()
        gc.set_threshold(*self._thresholds[:2], max(self._thresholds[2], 100))
        self._open = True
        if self._drive:
            self._gauges = Gauges(self.path, self.driver.residents, self.clock)
            self._dispatcher.start()
            self._tasks = [
                asyncio.create_task(recover(self.driver), name="ziggurat-recover"),
                asyncio.create_task(self._take_progress(), name="ziggurat-progress"),
            ]
            self._tasks.append(asyncio.create_task(self._cleaner.run(), name="ziggurat-clean"))
            self.schedules.start()
            if self.options.retention is not None:
                self._tasks.append(asyncio.create_task(self._retain(self.options.retention), name="ziggurat-retention"))

    async def close(self) -> None:
        """Stop driving, write what is pending, and let go of the state file."""
        if not self._open:
            return
        self._open = False
        await self.schedules.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.driver.timers.stop()
        await self._dispatcher.stop()
        await self.driver.stowing.stop()
        if self._drive:
            self._gauges.stop()
        for resident in builtins.list(self.driver.residents.values()):
            execution, resident.execution = resident.execution, None
            if execution is not None:
                execution.discard()
        await self._journal.close()
        self.lock.release()
        guard.uninstall()
        gc.set_threshold(*self._thresholds)

    # -- inside the engine ----------------------------------------------------------------------------------------

    async def _retain(self, retention: float) -> None:
        """Purge runs that ended longer ago than they are kept, now and then."""
        while True:
            purged = await self.purge(RunFilter(ended_before=self.clock.time() - retention))
            if purged:
                events.RUNS_PURGED(runs=purged, age=human_seconds(retention))
            await asyncio.sleep(min(max(retention / 10, 1.0), _RETAIN_EVERY))

    async def _take_progress(self) -> None:
        while True:
            try:
                self._inbox.progress(await self.queue.progress(1024, 5.0))
            except LayerUnreachable:
                await asyncio.sleep(1.0)

    # -- starting -------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> Run:
        if request.id:
            existing = self._existing(request)
            if existing is not None:
                await self._settled_writes(request.id)
                return existing
        # Bad input is refused at the door. Arguments that no longer fit later, because the code changed, park the run.
        arguments = self.registry.workflow(request.workflow, request.entry).arguments
        arguments.decode(await self.payloads.open(request.payload, request.id))
        run = new_run(request, self.clock.time())
        resident, write = self.driver.admit(run)
        await self._journal.durable(write)
        return resident.run

    def _existing(self, request: StartRequest) -> Run | None:
        resident = self.driver.residents.get(request.id)
        row = None if resident is not None else self._journal.reader.run(request.id)
        run = resident.run if resident is not None else row[1] if row is not None else None
        if run is not None and run.workflow != request.workflow:
            raise Conflict(
                f"The id {request.id!r} belongs to a run of {run.workflow!r}; choose another id for {request.workflow!r}."
            )
        return run

    # -- verbs ----------------------------------------------------------------------------------------------------

    async def signal(self, run: str, name: str, payload: Raw, *, signal_id: str = "") -> None:
        resident = self._awake(run, "signal")
        if signal_id and resident.knows_signal(signal_id):
            await self._settled_writes(run)
            return
        event = self.driver.event(resident, "signal_received", name=name, result=payload, detail=signal_id)
        await self._record(resident, event)

    async def cancel(self, run: str, reason: str = "") -> None:
        found = self._stored(run)
        if found.status in ENDED:
            return
        if found.status == "parked":
            async with self._surgery:
                await self._journal.durable(Write())
                row = self._row(run)
                if row[1].status == "parked":
                    await self._journal.durable(self.driver.kin.end_parked(*row, reason))
                    return
        if found.status == "paused":
            await self.resume(run)
        resident = self._awake(run, "cancel")
        await self._record(resident, self.driver.event(resident, "cancel_requested", detail=reason))

    async def pause(self, run: str, reason: str = "") -> None:
        resident = self._awake(run, "pause")
        if resident.paused:
            return
        resident.paused = True
        event = self.driver.event(resident, "run_paused", detail=reason)
        resident.run = replace(resident.run, status="paused", reason=reason or "paused by hand", wake_at=None)
        await self._record_with_row(resident, event)

    async def resume(self, run: str, *, budget_usd: float | None = None) -> None:
        found = self._stored(run)
        if found.status == "paused":
            resident = self.driver.residents.get(run) or self._load_paused(run)
            resident.paused = False
            event = self.driver.event(resident, "run_resumed")
            budget = budget_usd if budget_usd is not None else resident.run.budget_usd
            resident.run = replace(resident.run, status="running", reason="", budget_usd=budget)
            await self._record_with_row(resident, event, partial(self.driver.go_on, resident))
        elif found.status == "parked":
            async with self._surgery:
                await self._take_up(run, "run_resumed", "parked", budget_usd)
                await self._resume_children(run)
        elif found.status in ENDED:
            raise Conflict(f"The run {run} is {found.status} and cannot be resumed{_retry_hint(found)}.")

    async def _resume_children(self, run: str) -> None:
        """Take up the children that were parked because a budget was spent: it is their parent's, and was raised."""
        for child in self._journal.reader.children(run):
            if child.status == "parked" and child.error is not None and child.error.type == BUDGET_EXCEEDED:
                await self._take_up(child.id, "run_resumed", "parked")
                await self._resume_children(child.id)

    async def retry(self, run: str) -> Run:
        found = self._stored(run)
        if found.status != "failed":
            raise Conflict(f"The run {run} is {found.status}; only a failed run can be retried.")
        async with self._surgery:
            await self._retry(run)
        return self._stored(run)

    async def _retry(self, run: str) -> None:
        """Take up the child run whose failure a run failed of before the run itself, so that it finds the child under way."""
        error = self._stored(run).error
        if error is not None and error.run_id:
            row = self._journal.reader.run(error.run_id)
            if row is not None and row[1].status == "failed":
                await self._retry(error.run_id)
        await self._take_up(run, "run_retried", "failed")

    async def _take_up(self, run: str, kind: str, status: str, budget_usd: float | None = None) -> None:
        """Bring a run back that stopped with `status`: a parked one with its history as it is, a failed one without its failure."""
        self.driver.parked.pop(run, None)
        await self._journal.durable(Write())
        key, found = self._row(run)
        if found.status != status:
            return
        kept = retry_events(found, self._journal.reader.events(key)) if status == "failed" else None
        resident = self._cold(key, found)
        event = self.driver.event(resident, kind)
        # A retry is a new epoch of message ids: an outcome of the history as it was must not be taken for one of the new.
        epoch = found.epoch + (kept is not None)
        carried = found.carried
        budget = budget_usd if budget_usd is not None else found.budget_usd
        if kept is not None:
            # What the cut events consumed was paid for all the same.
            everything = total_usage(carried, current_generation(self._journal.reader.events(key)))
            carried = everything + total_usage(Usage(), current_generation(kept)).negated()
        revived = replace(
            found,
            carried=carried,
            budget_usd=budget,
            status="running",
            reason="",
            error=None,
            result=None,
            ended_at=None,
            # Which patches the program passes with the mended code is decided anew.
            events=event.seq if kept is None else 0,
            epoch=epoch,
        )
        statements: builtins.list[tuple[str, tuple[object, ...]]] = [(UNBURY_RUN, (run,))]
        rows = [event_row(key, event)]
        if kept is not None:
            statements.append(("DELETE FROM events WHERE run = ?", (key,)))
            rows = [event_row(key, e) for e in kept] + rows
        await self._journal.durable(Write(rows, [run_row(key, revived)], statements))
        self.driver.spending.resumed(revived)
        self.driver.resident(run)

    async def fork(self, run: str, step: int, *, payload: Raw | None = None, id: str = "") -> Run:
        key, found = self._row(run)
        await self._settled_writes(run)
        events = self._journal.reader.events(key)
        workflow = self.registry.workflow(found.workflow, found.entry)
        kept = fork_events(events, step, asked_at(workflow, found, events, step, self.payloads))
        now = self.clock.time()
        if id and self._journal.reader.run(id) is not None:
            raise Conflict(f"The id {id!r} belongs to another run; choose a new one for the fork.")
        forked = fork_run(found, now, id, payload)
        stowing = self.driver.stowing
        kept = rebound(kept, stowing, run, forked.id)
        if payload is None:
            forked = replace(forked, payload=stowing.rebound(found.payload, run, forked.id) or found.payload)
        self.driver.last_key += 1
        resident = self._cold(self.driver.last_key, forked)
        resident.next_seq = (kept[-1].seq if kept else 0) + 1
        event = self.driver.event(resident, "run_forked", detail=f"{run} before step {step}")
        await self._journal.durable(Write([event_row(resident.key, e) for e in [*kept, event]], [run_row(resident.key, forked)]))
        self.driver.telling.event(forked, event)
        self.driver.resident(forked.id)
        return self._stored(forked.id)

    async def dead_letters(self, limit: int = 100) -> builtins.list[DeadLetter]:
        return self._journal.reader.dead_letters(limit)

    async def redrive(self, ids: Collection[str]) -> int:
        runs = dict.fromkeys(letter.message.run for letter in self._journal.reader.dead_letters(-1) if letter.id in set(ids))
        failed = [run for run in runs if self._stored(run).status == "failed"]
        for run in failed:
            await self.retry(run)
        await self.discard(ids)
        return len(failed)

    async def discard(self, ids: Collection[str]) -> int:
        known = {letter.id for letter in self._journal.reader.dead_letters(-1)} & set(ids)
        await self._journal.durable(Write(statements=[(UNBURY, (id_,)) for id_ in known]))
        return len(known)

    async def purge(self, where: RunFilter) -> int:
        keys = await self._journal.read(lambda reader: reader.ended_keys(where))
        if not keys and where.search:
            found = self._journal.reader.run(where.search)
            if found is not None:
                raise Conflict(f"The run {where.search} is {found[1].status}; only ended runs can be purged. Cancel it first.")
        await self._cleaner.purge(keys)
        return len(keys)

    # -- looking --------------------------------------------------------------------------------------------------

    async def get(self, run: str) -> Run:
        return await self._viewer.get(run)

    async def list(self, where: RunFilter) -> builtins.list[Run]:
        return await self._viewer.list(where)

    async def count(self, where: RunFilter) -> dict[str, int]:
        return await self._journal.read(lambda reader: reader.count(where))

    async def history(self, run: str, *, after: int = 0, limit: int = 1000) -> builtins.list[Event]:
        key, _ = self._row(run)
        return self._journal.reader.events(key, after=after, limit=limit)

    async def steps(self, run: str) -> builtins.list[StepView]:
        return await self._viewer.steps(run, drive=self._drive)

    async def wait(self, run: str, timeout: float | None = None) -> Run:
        return await self._viewer.wait(run, timeout)

    def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        return self._viewer.watch(run, after)

    def when_dropped(self, call: Callable[[str], None]) -> None:
        self._dispatcher.dropped = call

    # -- inside ---------------------------------------------------------------------------------------------------

    def _row(self, run: str) -> tuple[int, Run]:
        return self._viewer.row(run)

    def _stored(self, run: str) -> Run:
        return self._viewer.stored(run)

    def _awake(self, run: str, verb: str) -> Resident:
        """Return a run in memory for a verb that needs its program. Raises Conflict if it has ended or is parked."""
        found = self._stored(run)
        resident = self._load_paused(run) if found.status == "paused" else self.driver.resident(run)
        if resident is None or resident.finishing:
            found = self._stored(run)
            hint = f": {found.reason} Resume it first." if found.status == "parked" else "."
            raise Conflict(f"The run {run} is {found.status} and cannot take the verb {verb!r}{hint}")
        return resident

    def _load_paused(self, run: str) -> Resident:
        resident = self.driver.residents.get(run) or self.driver.load(*self._row(run))
        if resident is None:
            raise Conflict(f"The run {run} cannot go on: {self._stored(run).reason}")
        return resident

    def _cold(self, key: int, run: Run) -> Resident:
        """Return a run for writing a few events of it, without its program and unknown to the driver."""
        events = self._journal.reader.events(key)
        resident = Resident(key, run, events[-1].seq + 1 if events else 1)
        resident.at = events[-1].at if events else run.created_at
        return resident

    async def _settled_writes(self, run: str) -> None:
        """Wait until what is known of a run in memory is in the file."""
        if run in self.driver.residents:
            await self._journal.durable(Write())

    async def _record(self, resident: Resident, event: Event) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.driver.record(resident, event, lambda: None if future.done() else future.set_result(None))
        await self._journal.wait(future)

    async def _record_with_row(self, resident: Resident, event: Event, after: Callable[[], None] | None = None) -> None:
        resident.writes += 1
        resident.row_status, resident.row_wake = resident.run.status, resident.run.wake_at

        def done() -> None:
            resident.writes -= 1
            if resident.execution is not None:
                resident.execution.applied = event.seq
            self.driver.watchers.event(resident.run, event)
            self.driver.watchers.status(resident.run)
            if after is not None:
                after()

        await self._journal.durable(Write([event_row(resident.key, event)], [run_row(resident.key, resident.run)], done=done))


def _retry_hint(run: Run) -> str:
    return "; use retry to take it up from the step that failed" if run.status == "failed" else ""
