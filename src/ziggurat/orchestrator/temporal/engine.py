"""The orchestrator on Temporal: the control of runs whose histories a Temporal server keeps.

    TemporalOrchestrator ─┬─ Reader, Follower, Listing    what there is, read from the server
                          ├─ Surgery                      retry and fork: a new execution from recorded events
                          ├─ Cleaner                      runs past their retention, artifacts that no run refers to
                          └─ Hosting                      workflow workers and the relay, where runs are driven

Any number of processes may open it at once, to drive runs or only to control them.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any, cast

import msgspec
from msgspec import Raw
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RawValue, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import Conflict, InvalidData, LayerUnreachable, UnknownName
from ziggurat.orchestrator.embedded import guard
from ziggurat.orchestrator.embedded.newborn import new_id
from ziggurat.orchestrator.embedded.resident import step_views
from ziggurat.orchestrator.embedded.watching import Watchers
from ziggurat.orchestrator.interface import Capabilities, Orchestrator
from ziggurat.orchestrator.recording import Recording
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.awaiting import Awaiting
from ziggurat.orchestrator.temporal.carriage import Carriage
from ziggurat.orchestrator.temporal.cleaning import Cleaner
from ziggurat.orchestrator.temporal.commands import Placement
from ziggurat.orchestrator.temporal.following import Follower
from ziggurat.orchestrator.temporal.hosting import Hosting
from ziggurat.orchestrator.temporal.listing import Listing
from ziggurat.orchestrator.temporal.namespace import make_searchable
from ziggurat.orchestrator.temporal.opening import begin
from ziggurat.orchestrator.temporal.options import TemporalOptions
from ziggurat.orchestrator.temporal.program import Surroundings
from ziggurat.orchestrator.temporal.reading import Reader
from ziggurat.orchestrator.temporal.relay import Relay
from ziggurat.orchestrator.temporal.schedules import TemporalSchedules
from ziggurat.orchestrator.temporal.stopping import Stopping
from ziggurat.orchestrator.temporal.surgery import Surgery
from ziggurat.orchestrator.temporal.telling import new_run_record
from ziggurat.orchestrator.temporal.views import look_at_steps
from ziggurat.program.registry import Registry
from ziggurat.queues.interface import Queue
from ziggurat.queues.temporal_hand import HasHand
from ziggurat.queues.temporal_link import LinkOptions, connect
from ziggurat.records import ENDED, STOPPED, DeadLetter, Event, Progress, Run, RunEvent, RunFilter, StartRequest, StepView

#: Longest wait in seconds until a worker has heeded a wish to pause or resume; without a worker it is heeded once there is one.
_HEED = 10.0


class TemporalOrchestrator(Orchestrator):
    """The orchestrator on a Temporal server.

    Args:
        link: where the server is.
        queue: an open queue; with `options.native`, the queue on Temporal's own task queues.
        registry: where workflows are looked up.
        options: limits.
        clock: the time.
        drive: False opens control only: runs are changed, and driven by other processes.
        payloads: the seam through which payloads pass; everything stays inline where there is none.
    """

    def __init__(
        self,
        link: LinkOptions,
        queue: Queue,
        registry: Registry,
        *,
        options: TemporalOptions | None = None,
        clock: Clock | None = None,
        drive: bool = True,
        payloads: Payloads = INLINE,
    ) -> None:
        self.link, self.queue, self.registry = link, queue, registry
        self.options = options or TemporalOptions()
        self.clock = clock or SystemClock()
        self._drive, self.payloads = drive, payloads
        self.capabilities = Capabilities(
            limits=queue.capabilities.limits,
            immediate_list=False,
            immediate_purge=False,
            listed_usage=False,
            remote_progress=not self.options.native,
            awaits=False,
            discard=False,
        )
        self._watchers = Watchers()
        self._hosting: Hosting | None = None
        #: Those who wait for the end of a run.
        self._waiting: set[Stopping] = set()
        self._tasks: builtins.list[asyncio.Task[None]] = []
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop
        self._dropped: Callable[[str], None] = lambda step: None
        self.searchable = False

    def when_dropped(self, call: Callable[[str], None]) -> None:
        self._dropped = call

    # -- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, and drive runs if this process is to. Raises LayerUnreachable."""
        self._loop = asyncio.get_running_loop()
        client = self._client = await connect(self.link, Carriage(self.payloads))
        self.searchable = await make_searchable(client, self.link)
        self._reader = Reader(client, self.link, self.payloads)
        self._listing = Listing(client, self.link, self._reader, searchable=self.searchable)
        self._awaiting = Awaiting(self._reader, self.steps)
        self._follower = Follower(client, self.link, self._reader, self._watchers)
        place = Placement(
            task_queue=self.link.task_queue,
            native=self.options.native,
            lease=self.options.lease,
            searchable=self.searchable,
        )
        self._place = place
        self._surgery = Surgery(client, self.link, self._reader, self.registry, place, self.clock, self.payloads)
        self.schedules = TemporalSchedules(
            client, self.link, self.registry, self.clock, self.payloads, self.start, searchable=self.searchable
        )
        grace, retention = self.options.artifact_grace, self.options.retention
        self.cleaner = Cleaner(
            client, self.link, self._listing, self.payloads.library, self.clock, grace=grace, retention=retention
        )
        if not self._drive:
            return
        guard.install()
        fed = cast(HasHand, self.queue) if self.options.native and self.options.eager else None
        surroundings = Surroundings(
            registry=self.registry,
            place=place,
            payloads=self.payloads,
            history_suggest=self.options.history_suggest,
            history_limit=self.options.history_limit,
            show=self._show,
            dropped=lambda step: self._dropped(step),
            parked=self._tell_parked,
            # A dispatch is no burden to this process; a task goes where somebody wants it.
            hungry=(lambda: fed.hungry) if fed is not None else (lambda: not self.options.native),
        )
        relay = None if self.options.native else Relay(client, self.queue, self.options.relay)
        hosting = Hosting(client, surroundings, self.options, relay=relay, hand=fed.reach() if fed is not None else None)
        try:
            await hosting.open()
        except BaseException:
            guard.uninstall()
            raise
        self._hosting = hosting
        self._tasks = [asyncio.create_task(self._take_progress(), name="ziggurat-progress")]
        if self.options.cleans:
            self._tasks.append(asyncio.create_task(self.cleaner.run(), name="ziggurat-cleaner"))

    async def close(self) -> None:
        """Let go. Runs go on in other processes, or at the next open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        hosting, self._hosting = self._hosting, None
        if hosting is not None:
            await hosting.close()
            guard.uninstall()
        self._client = None

    def _show(self, run: str, kind: str, data: bytes) -> None:
        """Show what a workflow emitted; called from the threads that drive runs."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._watchers.emitted, run, self.clock, kind, data)

    async def _take_progress(self) -> None:
        while True:
            try:
                self._tell(await self.queue.progress(1024, 5.0))
            except LayerUnreachable:
                await asyncio.sleep(1.0)

    def _tell(self, items: builtins.list[Progress]) -> None:
        for item in items:
            if item.run in self._watchers:
                self._watchers.tell(RunEvent(run=item.run, kind="progress", progress=item))

    @property
    def client(self) -> Client:
        """The connection. Raises LayerUnreachable if the orchestrator is not open."""
        if self._client is None:
            raise LayerUnreachable("The orchestrator on Temporal is not open.")
        return self._client

    def _handle(self, run: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(run)

    # -- starting -------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> Run:
        try:
            workflow = self.registry.workflow(request.workflow, request.entry)
            workflow.arguments.decode(await self.payloads.open(request.payload, request.id))
        except InvalidData:
            existing = await self._existing(request)
            if existing is not None:
                return existing
            raise
        now = self.clock.time()
        run_id = request.id or new_id(request.workflow, now)
        about = wire.About(
            entry=request.entry,
            namespace=request.namespace,
            tags=request.tags,
            priority=request.priority,
            budget_usd=request.budget_usd,
            created_at=now,
            trace=request.trace,
        )
        origin = wire.Origin(about=about)
        try:
            await begin(
                self.client, self.link, self._place, run_id, request.workflow, request.payload, origin,
                WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )  # fmt: skip
        except WorkflowAlreadyStartedError:
            existing = await self._existing(request)
            if existing is None:
                raise Conflict(f"The id {run_id!r} was taken and freed at this moment; start again.") from None
            return existing
        return new_run_record(run_id, request.workflow, request.payload, origin, now)

    async def _existing(self, request: StartRequest) -> Run | None:
        if not request.id:
            return None
        try:
            run = await self._reader.run(request.id)
        except UnknownName:
            return None
        if run.workflow != request.workflow:
            raise Conflict(
                f"The id {request.id!r} belongs to a run of {run.workflow!r}; choose another id for {request.workflow!r}."
            )
        return run

    # -- verbs ----------------------------------------------------------------------------------------------------

    async def signal(self, run: str, name: str, payload: Raw, *, signal_id: str = "") -> None:
        found = await self._reader.live(run)
        if found.status in STOPPED:
            raise _stopped(found, "signal")
        await self._send(run, name, payload, signal_id)

    async def _send(self, run: str, name: str, payload: Raw, signal_id: str = "") -> None:
        args = [RawValue(wire.json_payload(payload))]
        if signal_id:
            args.append(RawValue(wire.json_payload(msgspec.json.encode(signal_id))))
        try:
            await self._handle(run).signal(name, args=args)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                raise _stopped(await self._reader.run(run), "signal") from error
            raise self._reader.translate(run, error) from error

    async def cancel(self, run: str, reason: str = "") -> None:
        found = await self._reader.run(run)
        if found.status in ENDED:
            return
        if found.status == "paused":
            await self._send(run, wire.RESUME, Raw(b"null"))
        try:
            if found.status == "parked":
                # Its program cannot be run to clean up, so it ends as it stands.
                await self._handle(run).terminate(reason=reason or "cancelled while it was parked")
                self._reader.forget(run)
            else:
                await self._surgery.request_cancel(run, reason)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:  # Else it has ended meanwhile.
                raise self._reader.translate(run, error) from error

    async def pause(self, run: str, reason: str = "") -> None:
        found = await self._reader.run(run)
        if found.status in STOPPED:
            raise _stopped(found, "pause")
        if found.status != "paused":
            await self._send(run, wire.PAUSE, Raw(msgspec.json.encode(reason)))
            await self._heeded(run, "paused")

    async def resume(self, run: str, *, budget_usd: float | None = None) -> None:
        found = await self._reader.run(run)
        if found.status in ENDED:
            hint = "; use retry to take it up from the step that failed" if found.status == "failed" else ""
            raise Conflict(f"The run {run} is {found.status} and cannot be resumed{hint}.")
        if found.status not in ("paused", "parked"):
            return
        held = (await self._reader.read(run)).held
        if held.status:
            await self._send(run, wire.RESUME, Raw(msgspec.json.encode(wire.Resume(budget_usd))))
            await self._heeded(run, "")
        else:
            await self._surgery.try_again(run)

    async def _heeded(self, run: str, status: str) -> None:
        """Wait a while until a worker has heeded a wish, so that whoever wished it sees it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEED):
                while True:
                    description = await self._reader.describe(run)
                    memo = description.workflow_execution_info.memo.fields
                    held = wire.read_payload(memo[wire.HELD_KEY], wire.Held) if wire.HELD_KEY in memo else wire.Held()
                    if held.status == status or description.workflow_execution_info.HasField("close_time"):
                        return
                    await asyncio.sleep(0.02)

    async def retry(self, run: str) -> Run:
        found = await self._reader.run(run)
        if found.status != "failed":
            raise Conflict(f"The run {run} is {found.status}; only a failed run can be retried.")
        return await self._surgery.retry(found)

    async def fork(self, run: str, step: int, *, payload: Raw | None = None, id: str = "") -> Run:
        return await self._surgery.fork(await self._reader.run(run), step, payload, id)

    # -- looking --------------------------------------------------------------------------------------------------

    async def get(self, run: str) -> Run:
        return await self._reader.run(run)

    async def list(self, where: RunFilter) -> builtins.list[Run]:
        if where.awaiting:
            return await self._awaiting.runs(self._listing, where)
        return await self._listing.live_runs(where)

    async def count(self, where: RunFilter) -> dict[str, int]:
        return await self._listing.count(where)

    async def history(self, run: str, *, after: int = 0, limit: int = 1000) -> builtins.list[Event]:
        events = [event for event in await self._reader.events(run) if event.seq > after]
        return events[:limit] if limit >= 0 else events

    async def record(self, run: str) -> Recording:
        return Recording(
            run=await self._reader.run(run),
            events=await self._reader.events(run),
            temporal=await self._reader.exported(run),
        )

    async def steps(self, run: str) -> builtins.list[StepView]:
        reading = await self._reader.read(run)
        reading.translator.flush()
        settled = step_views(reading.translator.events, None)
        if reading.translator.closed is not None:
            return settled
        views = {view.step: view for view in await look_at_steps(self._handle(run), reading)}
        views.update({view.step: view for view in settled})
        return [views[number] for number in sorted(views)]

    async def wait(self, run: str, timeout: float | None = None) -> Run:
        stopping = Stopping(self._reader, run, self.options)
        self._waiting.add(stopping)
        try:
            async with asyncio.timeout(timeout):
                return await stopping.wait()
        finally:
            self._waiting.discard(stopping)

    def _tell_parked(self, run: str, why: str) -> None:
        """Let those here who wait for a run look at it; called from the threads that drive runs."""
        with contextlib.suppress(RuntimeError):
            for stopping in [s for s in self._waiting.copy() if s.run == run]:
                self._loop.call_soon_threadsafe(stopping.hint)

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        async with contextlib.aclosing(self._follower.follow(run, after)) as events:
            async for event in events:
                yield event

    # -- what was given up ----------------------------------------------------------------------------------------

    async def dead_letters(self, limit: int = 100) -> builtins.list[DeadLetter]:
        return await self._surgery.dead_letters(await self._failed(), limit)

    async def _failed(self) -> builtins.list[Run]:
        return await self._listing.runs(RunFilter(status=("failed",), limit=1000))

    async def redrive(self, ids: Collection[str]) -> int:
        letters = await self._surgery.dead_letters(await self._failed(), -1)
        runs = dict.fromkeys(letter.message.run for letter in letters if letter.id in set(ids))
        for run in runs:
            await self.retry(run)
        return len(runs)

    async def discard(self, ids: Collection[str]) -> int:
        raise Conflict(
            "On Temporal a dead letter is part of its run's history and cannot be forgotten alone; purge the failed run instead."
        )

    async def purge(self, where: RunFilter) -> int:
        return await self._listing.purge(where)


def _stopped(run: Run, verb: str) -> Conflict:
    hint = f": {run.reason} Resume it first." if run.status == "parked" else "."
    return Conflict(f"The run {run.id} is {run.status} and cannot take the verb {verb!r}{hint}")
