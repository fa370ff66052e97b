"""Verbs that change a run's course: retry and fork start a new execution from recorded events, a parked run is tried again.

A retry is a new Temporal execution under the run's id, a fork one under a new id. Either gets the events that it shares with the old one
as part of its input, and its machine applies them before anything else. So recorded steps stay recorded whichever of them are kept, which
Temporal's own reset, cutting a history at one workflow task, cannot do.
"""

from __future__ import annotations

from msgspec import Raw
from msgspec.structs import replace
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import RequestCancelWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from ziggurat.artifacts import Payloads, is_sealed
from ziggurat.clock import Clock
from ziggurat.errors import Conflict, UnknownName
from ziggurat.orchestrator.embedded.newborn import new_id
from ziggurat.orchestrator.embedded.resident import total_usage
from ziggurat.orchestrator.embedded.surgery import asked_at, fork_events, retry_events
from ziggurat.orchestrator.temporal.commands import Placement
from ziggurat.orchestrator.temporal.opening import begin
from ziggurat.orchestrator.temporal.reading import Reader
from ziggurat.orchestrator.temporal.wire import About, Origin
from ziggurat.program.registry import Registry
from ziggurat.queues.temporal_link import LinkOptions
from ziggurat.records import DeadLetter, Event, Lane, Message, Run, Usage, message_id


class Surgery:
    """Changes the course of runs that stopped."""

    def __init__(
        self,
        client: Client,
        link: LinkOptions,
        reader: Reader,
        registry: Registry,
        place: Placement,
        clock: Clock,
        payloads: Payloads,
    ) -> None:
        self._payloads = payloads
        self._client, self._link, self._reader = client, link, reader
        self._registry, self._place, self._clock = registry, place, clock

    # -- retry ----------------------------------------------------------------------------------------------------

    async def retry(self, run: Run) -> Run:
        """Take a failed run up again from the step that failed."""
        origin = await self._retried(run)
        await self._begin(run.id, run, run.payload, origin, WorkflowIDReusePolicy.ALLOW_DUPLICATE)
        self._reader.forget(run.id)
        return await self._reader.run(run.id)

    async def _retried(self, run: Run) -> Origin:
        """Return what a failed run starts from when it is taken up again, and the same for the child run that it failed of."""
        reading = await self._reader.read(run.id)
        reading.translator.flush()
        events = reading.translator.events
        kept = retry_events(run, events)
        last = events[-1].seq if events else 0
        note = Event(seq=last + 1, kind="run_retried", at=max(self._clock.time(), events[-1].at if events else 0.0))
        before = reading.translator.origin
        # What the cut events consumed was paid for all the same.
        carried = total_usage(run.carried, events) + total_usage(Usage(), kept).negated()
        children = dict(before.children)
        if run.error is not None and run.error.run_id and run.error.run_id != run.id:
            try:
                child = await self._reader.run(run.error.run_id)
            except UnknownName:
                child = None
            if child is not None and child.status == "failed" and child.parent == run.id:
                children[child.id] = await self._retried(child)
        about = replace(before.about, epoch=before.about.epoch + 1, budget_usd=run.budget_usd, created_at=run.created_at)
        return Origin(
            about=replace(about, parent=run.parent, parent_step=run.parent_step),
            carried=carried,
            base=before.base,
            events=[*kept, note],
            state=run.state,
            children=children,
        )

    # -- fork -----------------------------------------------------------------------------------------------------

    async def fork(self, run: Run, step: int, payload: Raw | None, id_: str) -> Run:
        """Start a new run that shares every recorded step before `step`."""
        reading = await self._reader.read(run.id)
        reading.translator.flush()
        events = reading.translator.events
        workflow = self._registry.workflow(run.workflow, run.entry)
        kept = fork_events(events, step, asked_at(workflow, run, events, step, self._payloads))
        now = self._clock.time()
        forked = id_ or new_id(run.workflow, now)
        if payload is not None:
            workflow.arguments.decode(await self._payloads.open(payload, forked))
        kept = [
            replace(e, result=self._rebound(e.result, run.id, forked), input=self._rebound(e.input, run.id, forked)) for e in kept
        ]
        before = reading.translator.origin
        at = max(now, kept[-1].at if kept else 0.0)
        top = max(_top(kept, before.base), before.base)
        note = Event(seq=top + 1, kind="run_forked", at=at, detail=f"{run.id} before step {step}")
        about = About(
            entry=run.entry,
            namespace=run.namespace,
            tags=run.tags,
            priority=run.priority,
            budget_usd=run.budget_usd,
            created_at=now,
            generation=run.generation,
            forked_from=run.id,
            seed=run.seed or run.id,
        )
        origin = Origin(about=about, base=before.base, events=[*kept, note])
        shared = self._rebound(run.payload, run.id, forked) or run.payload
        await self._begin(forked, run, payload or shared, origin, WorkflowIDReusePolicy.REJECT_DUPLICATE)
        return await self._reader.run(forked)

    def _rebound(self, data: Raw | None, run: str, to: str) -> Raw | None:
        return Raw(self._payloads.rebind(data, run, to)) if data is not None and is_sealed(data) else data

    async def _begin(self, id_: str, run: Run, payload: Raw, origin: Origin, reuse: WorkflowIDReusePolicy) -> None:
        try:
            await begin(self._client, self._link, self._place, id_, run.workflow, payload, origin, reuse)
        except WorkflowAlreadyStartedError:
            raise Conflict(f"The id {id_!r} belongs to another run; choose a new one.") from None

    # -- a parked run ---------------------------------------------------------------------------------------------

    async def try_again(self, run: str) -> None:
        """Let a run that its program contradicts go on at once, with the program as it is now: Temporal's reset to the task that failed."""
        reading = await self._reader.read(run)
        failed = reading.task_failure
        if failed is None:
            return
        request = ResetWorkflowExecutionRequest(
            namespace=self._link.namespace,
            workflow_execution=reading.description.workflow_execution_info.execution,
            reason="resumed",
            workflow_task_finish_event_id=failed.event_id,
            request_id=f"{run}-{failed.event_id}-{self._clock.time()}",
        )
        try:
            await self._client.workflow_service.reset_workflow_execution(request, retry=True)
        except RPCError as error:
            raise self._reader.translate(run, error) from error

    async def request_cancel(self, run: str, reason: str) -> None:
        """Ask a run to stop. Raises RPCError."""
        request = RequestCancelWorkflowExecutionRequest(
            namespace=self._link.namespace, workflow_execution=WorkflowExecution(workflow_id=run), reason=reason
        )
        await self._client.workflow_service.request_cancel_workflow_execution(request, retry=True)

    # -- dead letters ---------------------------------------------------------------------------------------------

    async def dead_letters(self, failed: list[Run], limit: int) -> list[DeadLetter]:
        """Return the messages that were given up, from the histories of failed runs, newest first."""
        letters: list[DeadLetter] = []
        for run in failed:
            events = await self._reader.events(run.id)
            if dead := [e for e in events if e.kind == "step_failed" and e.detail == "dead"]:
                whole = await self._reader.run(run.id)
                letters.extend(_letter(whole, event) for event in dead)
        letters.sort(key=lambda letter: letter.died_at, reverse=True)
        return letters[:limit] if limit >= 0 else letters


def _letter(run: Run, event: Event) -> DeadLetter:
    message = Message(
        id=message_id(run.id, run.epoch, event.step, event.attempt),
        task=event.name,
        payload=event.input if event.input is not None else Raw(b"{}"),
        run=run.id,
        generation=run.epoch,
        step=event.step,
        attempt=event.attempt,
        workflow=run.workflow,
        lane=Lane(namespace=run.namespace),
        sent_at=event.sent_at,
    )
    reason = event.error.message if event.error is not None else "The queue gave it up."
    return DeadLetter(id=message.id, message=message, reason=reason, deliveries=0, died_at=event.at)


def _top(events: list[Event], base: int) -> int:
    return max((event.seq for event in events), default=base)
