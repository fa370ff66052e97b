"""Watching a run: its history as Temporal writes it, mixed with what its program and its tasks show in the meantime."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from msgspec.structs import replace
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import Client
from temporalio.service import RPCError

from ziggurat.orchestrator.embedded.watching import Watcher, Watchers
from ziggurat.orchestrator.temporal.reading import Reader, Reading, run_record
from ziggurat.queues.temporal_link import UNREACHABLE, LinkOptions
from ziggurat.records import STOPPED, Event, RunEvent, StepView

#: Events of ours after which a run has another status.
_STATUS_AFTER = {"run_paused": "paused", "run_resumed": "running", "run_parked": "parked"}


class Follower:
    """Follows one run from its history's beginning to its end."""

    def __init__(self, client: Client, link: LinkOptions, reader: Reader, watchers: Watchers) -> None:
        self._client, self._link, self._reader, self._watchers = client, link, reader, watchers

    async def follow(self, run: str, after: int) -> AsyncGenerator[RunEvent, None]:
        """Yield what happens to a run, its history past `after` first, until it has ended or is parked. Raises UnknownName."""
        found = await self._reader.run(run)
        watcher = self._watchers.add(run)
        reading = asyncio.create_task(self._read_on(run, after, watcher), name=f"ziggurat-watch-{run}")
        try:
            yield RunEvent(run=run, kind="status", status="running" if found.status in STOPPED else found.status)
            steps: dict[int, StepView] = {}
            while True:
                happening = watcher.take()
                if happening is None:
                    if reading.done():
                        reading.result()
                        return
                    arrival = watcher.arrival()
                    await asyncio.wait([arrival, reading], return_when=asyncio.FIRST_COMPLETED)
                    continue
                shown = _with_step(happening, steps)
                if shown is not None:
                    yield shown
                if happening.kind == "status" and happening.status in STOPPED:
                    return
        finally:
            self._watchers.remove(run, watcher)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reading

    async def _read_on(self, run: str, after: int, watcher: Watcher) -> None:
        """Read the history as it grows and put what is new before the watcher, until the run has ended or is parked."""
        seen = after
        for event in await self._earlier(run):
            if event.seq > seen:
                watcher.put(RunEvent(run=run, kind="history", offset=event.seq, event=event))
                seen = event.seq
        while True:
            description = await self._reader.describe(run)
            execution = description.workflow_execution_info.execution.run_id
            if await self._read_execution(run, execution, seen, watcher):
                return
            # It continued as new, or was taken up anew.
            await asyncio.sleep(0.02)

    async def _earlier(self, run: str) -> list[Event]:
        events = await self._reader.events(run)
        current = await self._reader.read(run)
        return [event for event in events if event.seq <= current.translator.origin.base]

    async def _read_execution(self, run: str, execution: str, seen: int, watcher: Watcher) -> bool:
        """Read one execution to its end; returns False if another one follows."""
        reading = await self._reader.begin(run, execution)
        told = 0
        token = b""
        while True:
            request = GetWorkflowExecutionHistoryRequest(
                namespace=self._link.namespace,
                execution=WorkflowExecution(workflow_id=run, run_id=execution),
                next_page_token=token,
                wait_new_event=True,
            )
            try:
                page = await self._client.workflow_service.get_workflow_execution_history(request, retry=True)
            except RPCError as error:
                if error.status in UNREACHABLE:
                    await asyncio.sleep(0.5)
                    continue
                raise self._reader.translate(run, error) from error
            for temporal in page.history.events:
                reading.feed(temporal)
                for view in _opened(temporal, reading):
                    watcher.put(RunEvent(run=run, kind="step", step=view))
            events = reading.translator.events
            for event in events[told:]:
                if event.seq > seen:
                    watcher.put(RunEvent(run=run, kind="history", offset=event.seq, event=event))
                if (status := _STATUS_AFTER.get(event.kind)) is not None:
                    watcher.put(RunEvent(run=run, kind="status", status=status, reason=event.detail))
                    if status == "parked" and event is events[-1]:
                        return True
            told = len(events)
            if reading.translator.closed is not None:
                return await self._closed(run, execution, watcher)
            if parked := reading.parked():
                watcher.put(RunEvent(run=run, kind="status", status="parked", reason=parked))
                return True
            token = page.next_page_token
            if not token:
                return await self._closed(run, execution, watcher)

    async def _closed(self, run: str, execution: str, watcher: Watcher) -> bool:
        reading = await self._reader.read(run)
        if reading.description.workflow_execution_info.execution.run_id != execution:
            return False
        record = run_record(reading)
        if record.status not in STOPPED:
            return False
        watcher.put(RunEvent(run=run, kind="status", status=record.status, reason=record.reason))
        return True


def _opened(event: Any, reading: Reading) -> list[StepView]:
    """Return the step that an event of Temporal's opens, as people look at it."""
    translator = reading.translator
    at = event.event_time.ToNanoseconds() / 1e9
    if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED and translator.open_attempts:
        message, info = translator.open_attempts[-1]
        return [
            StepView(step=info.step, kind="task", name=message.task, status="scheduled", attempt=message.attempt, requested_at=at)
        ]
    if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED:
        timer = event.timer_started_event_attributes.timer_id
        number = int(timer) if timer.isdigit() else 0
        if number in translator.open_timers:
            due = translator.open_timers[number]
            return [StepView(step=number, kind="timer", name="sleep", status="waiting", requested_at=at, ended_at=due)]
    if event.event_type == EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED and translator.open_children:
        step, child, name = translator.open_children[-1]
        return [StepView(step=step, kind="child", name=name, status="waiting", requested_at=at, detail=child)]
    return []


def _with_step(happening: RunEvent, steps: dict[int, StepView]) -> RunEvent | None:
    """Note steps, and turn the news that an attempt began into the step as it is now."""
    if happening.step is not None:
        steps[happening.step.step] = happening.step
    progress = happening.progress
    if progress is None or progress.kind != "started":
        return happening
    known = steps.get(progress.step)
    if known is None or known.attempt != progress.attempt:
        return None
    steps[progress.step] = replace(known, status="running", started_at=progress.at)
    return RunEvent(run=happening.run, kind="step", step=steps[progress.step])
