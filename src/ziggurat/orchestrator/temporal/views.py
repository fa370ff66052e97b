"""What a run is doing now, asked of the worker that drives it, or read from its history when no worker answers."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
from msgspec.structs import replace
from temporalio.client import WorkflowHandle, WorkflowQueryFailedError, WorkflowQueryRejectedError
from temporalio.common import RawValue
from temporalio.service import RPCError

from ziggurat.errors import UnknownName
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.reading import Reader, Reading
from ziggurat.records import Run, StepView

#: Seconds that a worker has for an answer.
_ANSWER = 3.0
#: Live runs of a list whose status is looked up at a time.
_AT_ONCE = 32


async def look_at_steps(handle: WorkflowHandle[Any, Any], reading: Reading) -> list[StepView]:
    """Return the steps that are under way. Signals that a run waits for are known to its worker only."""
    views = await _asked(handle)
    if views is None:
        views = _read(reading)
    pending = {activity.activity_id.split(".")[1]: activity for activity in reading.description.pending_activities}
    shown: list[StepView] = []
    for view in views:
        activity = pending.get(str(view.step)) if view.kind == "task" else None
        if activity is not None and activity.HasField("last_started_time") and activity.state == 2:
            started = activity.last_started_time.ToNanoseconds() / 1e9
            view = replace(view, status="running", started_at=started)
        shown.append(view)
    return shown


async def _asked(handle: WorkflowHandle[Any, Any]) -> list[StepView] | None:
    try:
        answer = await handle.query(wire.STEPS, result_type=RawValue, rpc_timeout=timedelta(seconds=_ANSWER))
        return msgspec.json.decode(answer.payload.data, type=list[StepView])
    except (RPCError, WorkflowQueryFailedError, WorkflowQueryRejectedError, msgspec.MsgspecError):
        return None


def _read(reading: Reading) -> list[StepView]:
    translator = reading.translator
    views = [
        StepView(step=info.step, kind="task", name=message.task, status="scheduled", attempt=message.attempt,
                 requested_at=info.requested_at)
        for message, info in translator.open_attempts
    ]  # fmt: skip
    for number, due in translator.open_timers.items():
        views.append(StepView(step=number, kind="timer", name="sleep", status="waiting", ended_at=due))
    for step, child, name in translator.open_children:
        views.append(StepView(step=step, kind="child", name=name, status="waiting", detail=child))
    return views


async def with_live_status(reader: Reader, runs: list[Run]) -> list[Run]:
    """Return runs of a list with the status that visibility does not know: whether one that has not ended works, waits or is parked."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def look(run: Run) -> Run:
        if run.status != "running":
            return run
        async with gate:
            try:
                now = await reader.live(run.id)
            except UnknownName:
                return run
        return replace(run, status=now.status, reason=now.reason, wake_at=now.wake_at, error=now.error or run.error)

    return list(await asyncio.gather(*(look(run) for run in runs)))
