"""Runs as Temporal keeps them, read back as our records: a description, a history, and what both say of a run."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, HistoryEventFilterType, WorkflowExecutionStatus, WorkflowTaskFailedCause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.errors import UnknownName
from ziggurat.orchestrator.embedded.execution import Mismatch, contradiction
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.telling import new_run_record
from ziggurat.orchestrator.temporal.translate import Translator
from ziggurat.orchestrator.temporal.verdict import BUDGET_EXCEEDED, run_error
from ziggurat.orchestrator.temporal.wire import About, Held
from ziggurat.queues.temporal_link import LinkOptions, unreachable
from ziggurat.records import ErrorInfo, Event, Run, Usage

_STATUS: dict[int, Any] = {
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING: "running",
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED: "completed",
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_FAILED: "failed",
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CANCELED: "cancelled",
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED: "cancelled",
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW: "running",
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TIMED_OUT: "failed",
}
#: Causes of a failed workflow task that say nothing against the program.
_HARMLESS = frozenset(
    {
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FAILOVER_CLOSE_COMMAND,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_STICKY_TASK_QUEUE,
    }
)
#: Ended runs whose record is remembered.
_REMEMBERED = 256


#: What the program does, by the machine of the SDK that met an event which it does not expect.
_INSTEAD = {
    "Activity": "asks for a task there",
    "Timer": "sleeps there",
    "Child": "starts a child run there",
    "Complete": "ends there",
    "Fail": "fails there",
    "Cancel": "ends as cancelled there",
    "Continue": "continues as new there",
}


def status_of(status: int) -> Any:
    """Return our status for one of Temporal's."""
    return _STATUS.get(status, "running")


class Reading:
    """One execution: its description and its history so far."""

    def __init__(self, description: Any, payloads: Payloads = INLINE) -> None:
        self.description = description
        self.translator = Translator(payloads)
        self.task_failure: HistoryEvent | None = None
        #: The last workflow task that completed.
        self.last_good = 0
        #: Steps by the Temporal event that recorded them, for words about a contradiction.
        self._recorded: dict[int, tuple[int, str, str]] = {}

    def feed(self, event: HistoryEvent) -> None:
        """Take the next event."""
        kind = event.event_type
        if kind == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            self.task_failure, self.last_good = None, event.event_id
        elif kind == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            failed = event.workflow_task_failed_event_attributes
            # TMPRL1101: the worker was too slow, which says nothing against the program either.
            harmless = failed.cause in _HARMLESS or "TMPRL1101" in failed.failure.message
            self.task_failure = None if harmless else event
        elif kind == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            given = event.activity_task_scheduled_event_attributes
            info = wire.nth(given.input, 1)
            number = wire.read_payload(info, wire.StepInfo).step if info is not None else 0
            self._recorded[event.event_id] = number, "task", given.activity_type.name
        elif kind == EventType.EVENT_TYPE_TIMER_STARTED:
            timer = event.timer_started_event_attributes.timer_id
            self._recorded[event.event_id] = int(timer) if timer.isdigit() else 0, "timer", "sleep"
        elif kind == EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
            child = event.start_child_workflow_execution_initiated_event_attributes
            self._recorded[event.event_id] = 0, "child", child.workflow_type.name
        self.translator.feed(event)
        if event.event_id in self._recorded and not self._recorded[event.event_id][0]:
            number = next((c[0] for c in self.translator.open_children if c[2] == self._recorded[event.event_id][2]), 0)
            self._recorded[event.event_id] = number, *self._recorded[event.event_id][1:]

    @property
    def held(self) -> Held:
        """Whether the run is paused, or parked by its machine."""
        memo = self.description.workflow_execution_info.memo.fields
        return wire.read_payload(memo[wire.HELD_KEY], Held) if wire.HELD_KEY in memo else Held()

    def parked(self) -> str:
        """Return why the run cannot go on with the program as it is, or ""."""
        if self.task_failure is None:
            return ""
        given = self.task_failure.workflow_task_failed_event_attributes
        failure = given.failure
        if failure.application_failure_info.type == wire.PARKED:
            text = failure.message
            return self._worded(text) if text.startswith(("the history records", "at step")) else text
        return self._worded(self.explain(failure.message))

    def explain(self, message: str) -> str:
        """Return what the SDK says of a contradiction, with the step of the program that it is about."""
        return _asked_instead(message, self._recorded)

    def _worded(self, mismatch: str) -> str:
        name = self.description.workflow_execution_info.type.name
        run = new_run_record("", name, Raw(b"{}"), wire.Origin(), 0.0)
        return contradiction(run, Mismatch(mismatch))


def _asked_instead(message: str, recorded: dict[int, tuple[int, str, str]]) -> str:
    """Return what the SDK says of a contradiction in our words: the recorded step, and what the program asked for instead."""
    found = re.search(
        r"id of scheduled event '\d+\.(\d+)\.\d+ ([^']*)' does not match .* command '\d+\.(\d+)\.\d+ ([^']*)'", message
    )
    if found is not None:
        now = f"task {found[4]!r}" if found[3] == found[1] else f"step {found[3]}, task {found[4]!r}, there"
        return f"at step {found[1]} the history records task {found[2]!r}, but the program now asks for {now}"
    found = re.search(r"type of scheduled event '([^']*)' does not match \w+ type of [\w ]* command '([^']*)'", message)
    if found is not None:
        return f"the history records a child run of {found[1]!r}, but the program now asks for one of {found[2]!r}"
    event = re.search(r"Nondeterminism error: (\w+)[\w ]* machine does not handle this event: HistoryEvent\(id: (\d+)", message)
    if event is not None and (step := recorded.get(int(event[2]))) is not None:
        instead = _INSTEAD.get(event[1], "does something else there")
        return f"the history records step {step[0]}, {step[1]} {step[2]!r}, but the program now {instead}"
    event = re.search(r"HistoryEvent\(id: (\d+)", message)
    if event is not None and (step := recorded.get(int(event[1]))) is not None:
        return f"the history records step {step[0]}, {step[1]} {step[2]!r}, but the program did not ask for it there"
    told = re.search(r'message: "([^"]+)"', message)
    return (told[1] if told is not None else message).rstrip(".")


class Reader:
    """Reads runs. Every method raises UnknownName for a run that does not exist, and LayerUnreachable.

    Payloads are read as they travel: whoever shows one opens it. The codec is for programs, which must find what is stored in memory.
    """

    def __init__(self, client: Client, link: LinkOptions, payloads: Payloads) -> None:
        self._client, self._link, self._payloads = client, link, payloads
        self._ended: OrderedDict[str, Run] = OrderedDict()

    async def describe(self, run: str, execution: str = "") -> Any:
        """Return Temporal's description of a run, or of one of its executions."""
        request = DescribeWorkflowExecutionRequest(
            namespace=self._link.namespace, execution=WorkflowExecution(workflow_id=run, run_id=execution)
        )
        try:
            found = await self._client.workflow_service.describe_workflow_execution(request, retry=True)
        except RPCError as error:
            raise self.translate(run, error) from error
        return found

    def translate(self, run: str, error: RPCError) -> Exception:
        """Return our error for one of a call about a run."""
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT) and "amespace" not in error.message:
            return UnknownName(
                f"There is no run {run!r} in the namespace {self._link.namespace!r} of {self._link.address}. "
                "`ziggurat list` shows the runs that there are."
            )
        return unreachable(self._link, error)

    async def begin(self, run: str, execution: str) -> Reading:
        """Return a reading of an execution that has read nothing of the history yet."""
        return Reading(await self.describe(run, execution), self._payloads)

    async def read(self, run: str, execution: str = "") -> Reading:
        """Return a run's description and the history of its newest execution, or of the one that is named."""
        return await self._read(run, await self.describe(run, execution))

    async def _read(self, run: str, description: Any) -> Reading:
        reading = Reading(description, self._payloads)
        info = description.workflow_execution_info
        token = b""
        while True:
            request = GetWorkflowExecutionHistoryRequest(
                namespace=self._link.namespace,
                execution=WorkflowExecution(workflow_id=run, run_id=info.execution.run_id),
                next_page_token=token,
            )
            try:
                page = await self._client.workflow_service.get_workflow_execution_history(request, retry=True)
            except RPCError as error:
                raise self.translate(run, error) from error
            for event in page.history.events:
                reading.feed(event)
            token = page.next_page_token
            if not token:
                return reading

    async def run(self, run: str) -> Run:
        """Return the record of a run."""
        description = await self.describe(run)
        execution = description.workflow_execution_info.execution.run_id
        if execution in self._ended:
            self._ended.move_to_end(execution)
            return self._ended[execution]
        reading = await self._read(run, description)
        found = run_record(reading)
        if reading.translator.closed is not None and found.ended_at is not None:
            self._ended[execution] = found
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        return found

    async def exported(self, run: str) -> Raw:
        """Return the history of a run's newest execution in the JSON form of Temporal's tools."""
        handle = self._client.get_workflow_handle(run)
        try:
            return Raw((await handle.fetch_history()).to_json().encode())
        except RPCError as error:
            raise self.translate(run, error) from error

    async def live(self, run: str) -> Run:
        """Return a run's record with its status as it is now, and the rest as far as a description alone tells it."""
        description = await self.describe(run)
        found = listed_run(description.workflow_execution_info)
        if found.status != "running":
            return found
        if description.HasField("pending_workflow_task"):
            # Whether it is being driven, or cannot be, is in the history.
            return await self.run(run) if description.pending_workflow_task.attempt > 1 else found
        return found if _is_busy(description) else replace(found, status="waiting")

    async def closing(self, run: str) -> bool:
        """Wait until the run's newest execution has closed, which is then True, or the server is tired of the question."""
        request = GetWorkflowExecutionHistoryRequest(
            namespace=self._link.namespace,
            execution=WorkflowExecution(workflow_id=run),
            wait_new_event=True,
            skip_archival=True,
            history_event_filter_type=HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT,
        )
        try:
            answer = await self._client.workflow_service.get_workflow_execution_history(request)
            if answer.history.events:
                return True
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                raise self.translate(run, error) from error
        # An answer that comes at once and changes nothing, as of a server that goes, must not be asked for in a tight loop.
        await asyncio.sleep(0.005)
        return False

    async def events(self, run: str) -> list[Event]:
        """Return the events of a run: those of its generation, and of the one before, which stays readable."""
        reading = await self.read(run)
        reading.translator.flush()
        events = reading.translator.events
        started = reading.translator.started
        before = started.workflow_execution_started_event_attributes.continued_execution_run_id if started is not None else ""
        if before and reading.translator.origin.about.generation:
            try:
                earlier = (await self.read(run, before)).translator
            except UnknownName:
                return events  # It is past the namespace's retention.
            if earlier.closed is not None and earlier.origin.about.generation < reading.translator.origin.about.generation:
                events = earlier.events + events
        return events

    def forget(self, run_id: str) -> None:
        """Forget what is remembered of a run."""
        for execution in [e for e, run in self._ended.items() if run.id == run_id]:
            del self._ended[execution]


def run_record(reading: Reading) -> Run:
    """Return the record of a run from what was read of it."""
    reader, description = reading.translator, reading.description
    reader.flush()
    info = description.workflow_execution_info
    started = info.start_time.ToNanoseconds() / 1e9
    about = wire.with_moment(reader.origin.about, info.search_attributes.indexed_fields)
    origin = replace(reader.origin, about=about)
    run = new_run_record(info.execution.workflow_id, info.type.name, reader.payload, origin, started)
    if not run.parent and info.parent_execution.workflow_id:
        run = replace(run, parent=info.parent_execution.workflow_id)
    usage = reader.origin.carried
    for event in reader.events:
        if event.usage is not None:
            usage = usage + event.usage
    memo = info.memo.fields
    state = wire.raw_of(memo[wire.STATE_KEY]) if wire.STATE_KEY in memo else reader.origin.state
    status = status_of(info.status)
    run = replace(run, usage=usage, state=state, events=reader.position, status=status)
    if reader.budget_usd is not None:
        run = replace(run, budget_usd=reader.budget_usd)
    if status == "running":
        return _live(run, reading)
    return _ended(run, reading, info)


def _is_busy(description: Any) -> bool:
    """Say whether attempts are under way, or a child run that was asked for has not started yet."""
    return bool(description.pending_activities) or any(not child.run_id for child in description.pending_children)


def _live(run: Run, reading: Reading) -> Run:
    held = reading.held
    if parked := reading.parked():
        return replace(run, status="parked", reason=parked)
    if held.status:
        return replace(run, status=held.status, reason=held.reason, error=_spent(held))
    reader, description = reading.translator, reading.description
    begins = description.HasField("pending_workflow_task") or not reading.last_good
    if begins or _is_busy(description) or reader.open_retries or reader.starting:
        return run
    wake = min(reader.open_timers.values(), default=None)
    parts: list[str] = []
    if (children := len(reader.open_children)) > 0:
        parts.append(f"{children} child run{'s' if children > 1 else ''}")
    if wake is not None:
        parts.append("a timer")
    reason = f"waits for {' and '.join(parts)}" if parts else "waits for a signal"
    return replace(run, status="waiting", wake_at=wake, reason=reason)


def _spent(held: Held) -> ErrorInfo | None:
    """Return the spent budget that holds a run, as a failure; None if it is held for another reason."""
    if not held.budget:
        return None
    owner = held.budget.partition(":")[2] if held.budget.startswith("run:") else ""
    return ErrorInfo(type=BUDGET_EXCEEDED, message=held.reason, retryable=False, run_id=owner, budget=held.budget)


def _ended(run: Run, reading: Reading, info: Any) -> Run:
    run = replace(run, ended_at=_close_time(info))
    closed = reading.translator.closed
    if closed is None:
        return run
    if run.status == "completed":
        given = closed.workflow_execution_completed_event_attributes
        return replace(run, result=wire.raw_of(wire.nth(given.result, 0)))
    if closed.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
        return replace(run, error=run_error(closed.workflow_execution_failed_event_attributes.failure)[0])
    if run.status == "failed":
        return replace(run, error=ErrorInfo(type="TimeoutError", message="The run did not end within its Temporal timeout."))
    if closed.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
        return replace(run, reason=closed.workflow_execution_terminated_event_attributes.reason)
    return run


def _close_time(info: Any) -> float:
    # To the microsecond, as visibility keeps it: a list and a description must tell of the same end.
    return float(info.close_time.ToMicroseconds() / 1e6)


def listed_run(info: Any) -> Run:
    """Return the record of a run from what a list says of it: without payload, result and usage, but with its cost."""
    memo = info.memo.fields
    about = wire.read_payload(memo[wire.ABOUT_KEY], About) if wire.ABOUT_KEY in memo else About()
    about = wire.with_moment(about, info.search_attributes.indexed_fields)
    held = wire.read_payload(memo[wire.HELD_KEY], Held) if wire.HELD_KEY in memo else Held()
    started = info.start_time.ToNanoseconds() / 1e9
    cost = info.search_attributes.indexed_fields.get(wire.SEARCH_COST)
    run = new_run_record(info.execution.workflow_id, info.type.name, Raw(b"{}"), wire.Origin(about=about), started)
    status = status_of(info.status)
    if status == "running" and held.status:
        run = replace(run, reason=held.reason, error=_spent(held))
        status = held.status
    return replace(
        run,
        status=status,
        usage=Usage(cost_usd=msgspec.json.decode(cost.data, type=float)) if cost is not None else Usage(),
        ended_at=_close_time(info) if info.HasField("close_time") else None,
        parent=run.parent or info.parent_execution.workflow_id,
        state=None,
    )
