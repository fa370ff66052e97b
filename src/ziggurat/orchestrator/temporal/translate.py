"""Temporal's history of a run, read as our events.

A reader has no program, and needs none: the arguments of each activity say which step it is, and `verdict.judge` says what became of it.
Events get the positions at which `machine.py` applied them. Temporal hands a run what happened between two workflow tasks at once, so
events are gathered until a workflow task has begun and completed, and put in the machine's order: signals first, then the rest as it came.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw
from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.errors import ZigguratError
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.telling import attempt_fields, child_fields
from ziggurat.orchestrator.temporal.verdict import completed_outcome, detail_of, failed_outcome, judge, run_error
from ziggurat.orchestrator.temporal.wire import Held, Origin, StepInfo
from ziggurat.program.deferring import Waiting
from ziggurat.records import ErrorInfo, Event, Message

#: Arguments up to this many bytes are shown in an event.
KEEP_INPUT = 2_000


class Translator:
    """Reads one Temporal execution, which is one generation of a run: feed it the events in their order, take ours from `events`."""

    def __init__(self, payloads: Payloads = INLINE) -> None:
        self._payloads = payloads
        self.events: list[Event] = []
        self.origin = Origin()
        self.payload = Raw(b"{}")
        self.started: HistoryEvent | None = None
        #: The event that closed the execution, if it is closed.
        self.closed: HistoryEvent | None = None
        self._seq = 0
        self._at = 0.0
        self._signals: list[dict[str, Any]] = []
        self._others: list[dict[str, Any]] = []
        self._seen_signals: set[str] = set()
        self._begun_at = 0.0
        #: Attempts and children by the Temporal event that scheduled them.
        self._attempts: dict[int, tuple[Message, StepInfo]] = {}
        self._children: dict[int, tuple[int, str, str]] = {}
        self._cancelled: set[int] = set()
        #: Child runs that were asked for and have not started yet, by the event that asked.
        self.starting: set[int] = set()
        self._cancelled_children: set[str] = set()
        #: Steps under way: attempts by the event that scheduled them, timers and children by their number.
        self.open_timers: dict[int, float] = {}
        #: Timers that wait for a next attempt.
        self.open_retries: set[str] = set()
        #: Whether the run is held: "paused", "parked" or "".
        self._held = ""
        #: The hard limit of what the run may spend, if it was resumed with another.
        self.budget_usd: float | None = None
        #: What is known of steps whose attempts ended to wait for a model's answer.
        self._waiting: dict[int, Waiting] = {}

    @property
    def position(self) -> int:
        """The position of the last event."""
        return self._seq

    def feed(self, event: HistoryEvent) -> None:
        """Take the next event of the history."""
        read = _READERS.get(event.event_type)
        if read is not None:
            read(self, event, _seconds(event.event_time))

    def flush(self) -> None:
        """Give positions to what no workflow task has taken yet, as the next one will."""
        signals, others = self._signals, self._others
        self._signals, self._others = [], []
        for fields in signals:
            if fields["kind"] in ("run_paused", "run_resumed") and bool(self._held) == (fields["kind"] == "run_paused"):
                continue  # Paused twice, or resumed while it ran.
            if fields["kind"] == "signal_received" and fields["detail"]:
                if fields["detail"] in self._seen_signals:
                    continue
                self._seen_signals.add(fields["detail"])
            self._add(**fields)
        for fields in others:
            self._judge(fields)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _add(self, *, kind: Any, at: float = 0.0, **fields: Any) -> None:
        self._seq += 1
        self._held = _HOLDS.get(kind, self._held)
        self._at = max(self._at, self._begun_at or at)
        self.events.append(Event(seq=self._seq, kind=kind, at=self._at, **fields))

    def _judge(self, fields: dict[str, Any]) -> None:
        """Add an event; an attempt's end is judged here, when the moment is known at which the run learned of it."""
        if fields.get("kind") == "cancel_requested" and self._held == "paused":
            self._add(kind="run_resumed", at=fields["at"])
        attempt = fields.pop("attempted", None)
        if attempt is None:
            self._add(**fields)
            return
        message, info, outcome = attempt
        now = max(self._at, self._begun_at or fields["at"])
        verdict = judge(message, info, outcome, now)
        waiting = self._waiting.setdefault(info.step, Waiting())
        shown = attempt_fields(info, message, outcome, waiting)
        if verdict.kind == "attempt_failed":
            detail = detail_of(outcome)
            waiting.ended(detail, outcome.error, shown["calls"])
            self._add(
                kind="attempt_failed",
                at=fields["at"],
                retry_at=verdict.retry_at,
                detail=detail,
                result=outcome.heartbeat,
                **shown,
            )
            return
        kept = Raw(bytes(message.payload)) if len(message.payload) <= KEEP_INPUT else None
        detail = outcome.status if verdict.kind == "step_failed" else ""
        self._add(kind=verdict.kind, at=fields["at"], result=outcome.result, detail=detail, input=kept, **shown)

    def _start(self, event: HistoryEvent, at: float) -> None:
        self.started = event
        given = event.workflow_execution_started_event_attributes
        self.payload = wire.raw_of(wire.nth(given.input, 0))
        second = wire.nth(given.input, 1)
        if second is not None:
            try:
                self.origin = wire.read_origin(second, given.workflow_id, self._payloads)
            except (msgspec.MsgspecError, ZigguratError):
                pass  # Another client's second argument, or one whose store or key is not here; the run itself is parked for it.
        self._seq = self.origin.base
        for kept in self.origin.events:
            self.events.append(kept)
            self._seq, self._at = kept.seq, max(self._at, kept.at)
            if kept.kind == "attempt_failed":
                self._waiting.setdefault(kept.step, Waiting()).ended(kept.detail, kept.error, kept.calls)
            if kept.kind == "signal_received" and kept.detail:
                self._seen_signals.add(kept.detail)
            if kept.kind == "run_started" and kept.result is not None:
                self._seen_signals.update(msgspec.json.decode(kept.result, type=list[str]))
        if not self.origin.events:
            self._others.append({"kind": "run_started", "at": at, "detail": self.origin.about.entry})

    def _task_begun(self, event: HistoryEvent, at: float) -> None:
        self._begun_at = at

    def _task_failed(self, event: HistoryEvent, at: float) -> None:
        self._begun_at = 0.0

    def _task_completed(self, event: HistoryEvent, at: float) -> None:
        self.flush()
        self._begun_at = 0.0

    def _attempt_sent(self, event: HistoryEvent, at: float) -> None:
        given = event.activity_task_scheduled_event_attributes
        first, second = wire.nth(given.input, 0), wire.nth(given.input, 1)
        if first is not None and second is not None:
            self._attempts[event.event_id] = wire.read_payload(first, Message), wire.read_payload(second, StepInfo)

    def _attempt_cancelled(self, event: HistoryEvent, at: float) -> None:
        self._cancelled.add(event.activity_task_cancel_requested_event_attributes.scheduled_event_id)

    def _attempt_done(self, event: HistoryEvent, at: float) -> None:
        given = event.activity_task_completed_event_attributes
        found = self._take_attempt(given.scheduled_event_id)
        if found is not None:
            outcome = completed_outcome(found[0], wire.nth(given.result, 0))
            self._others.append({"at": at, "attempted": (*found, outcome)})

    def _attempt_failed(self, event: HistoryEvent, at: float) -> None:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
            scheduled = event.activity_task_failed_event_attributes.scheduled_event_id
            failure = event.activity_task_failed_event_attributes.failure
        else:
            scheduled = event.activity_task_timed_out_event_attributes.scheduled_event_id
            failure = event.activity_task_timed_out_event_attributes.failure
        found = self._take_attempt(scheduled)
        if found is not None:
            self._others.append({"at": at, "attempted": (*found, failed_outcome(found[0], failure))})

    def _attempt_gone(self, event: HistoryEvent, at: float) -> None:
        self._attempts.pop(event.activity_task_canceled_event_attributes.scheduled_event_id, None)

    def _take_attempt(self, scheduled: int) -> tuple[Message, StepInfo] | None:
        found = self._attempts.pop(scheduled, None)
        return None if scheduled in self._cancelled else found

    @property
    def open_attempts(self) -> list[tuple[Message, StepInfo]]:
        """The attempts that Temporal has, in the order in which they were sent."""
        return [found for scheduled, found in self._attempts.items() if scheduled not in self._cancelled]

    @property
    def open_children(self) -> list[tuple[int, str, str]]:
        """The child runs under way, as (step, id, workflow)."""
        return [c for c in self._children.values() if c[1] not in self._cancelled_children]

    def _timer_set(self, event: HistoryEvent, at: float) -> None:
        given = event.timer_started_event_attributes
        if given.timer_id.isdigit() and int(given.timer_id) < wire.RETRY_TIMERS:
            self.open_timers[int(given.timer_id)] = at + given.start_to_fire_timeout.ToMilliseconds() / 1000
        else:
            self.open_retries.add(given.timer_id)

    def _timer_gone(self, event: HistoryEvent, at: float) -> None:
        timer = event.timer_canceled_event_attributes.timer_id
        self.open_retries.discard(timer)
        self.open_timers.pop(int(timer) if timer.isdigit() else 0, None)

    def _timer_fired(self, event: HistoryEvent, at: float) -> None:
        timer = event.timer_fired_event_attributes.timer_id
        self.open_retries.discard(timer)
        number = int(timer) if timer.isdigit() else 0
        if 0 < number < wire.RETRY_TIMERS:
            self.open_timers.pop(number, None)
            self._others.append({"kind": "timer_fired", "at": at, "step": number, "step_kind": "timer", "name": "sleep"})

    def _signal(self, event: HistoryEvent, at: float) -> None:
        given = event.workflow_execution_signaled_event_attributes
        value = wire.raw_of(wire.nth(given.input, 0))
        if given.signal_name == wire.PAUSE:
            reason = msgspec.json.decode(value) or "paused by hand"
            self._signals.append({"kind": "run_paused", "at": at, "detail": reason})
        elif given.signal_name == wire.RESUME:
            asked = msgspec.json.decode(value, type=wire.Resume | None)
            if asked is not None and asked.budget_usd is not None:
                self.budget_usd = asked.budget_usd
            self._signals.append({"kind": "run_resumed", "at": at})
        elif given.signal_name == wire.PARK:
            return  # What comes of it is told by the memo.
        else:
            second = wire.nth(given.input, 1)
            detail = msgspec.json.decode(second.data, type=str) if second is not None else ""
            self._signals.append(
                {"kind": "signal_received", "at": at, "name": given.signal_name, "result": value, "detail": detail}
            )

    def _cancel(self, event: HistoryEvent, at: float) -> None:
        cause = event.workflow_execution_cancel_requested_event_attributes.cause
        self._others.append({"kind": "cancel_requested", "at": at, "detail": cause})

    def _child_asked(self, event: HistoryEvent, at: float) -> None:
        given = event.start_child_workflow_execution_initiated_event_attributes
        second = wire.nth(given.input, 1)
        step = wire.read_origin(second, given.workflow_id, self._payloads).about.parent_step if second is not None else 0
        self.starting.add(event.event_id)
        self._children[event.event_id] = step, given.workflow_id, given.workflow_type.name

    def _child_started(self, event: HistoryEvent, at: float) -> None:
        self.starting.discard(event.child_workflow_execution_started_event_attributes.initiated_event_id)

    def _child_cancelled(self, event: HistoryEvent, at: float) -> None:
        given = event.request_cancel_external_workflow_execution_initiated_event_attributes
        self._cancelled_children.add(given.workflow_execution.workflow_id)

    def _child_refused(self, event: HistoryEvent, at: float) -> None:
        given = event.start_child_workflow_execution_failed_event_attributes
        self.starting.discard(given.initiated_event_id)
        step, child, name = self._children.pop(given.initiated_event_id, (0, "", ""))
        if child not in self._cancelled_children:
            text = f"The child run of {name!r} was not started: the id {child!r} belongs to another run."
            error = ErrorInfo(type="ziggurat.errors.Conflict", message=text)
            self._others.append(
                {"kind": "step_failed", "at": at, "step": step, "step_kind": "child", "name": name, "error": error}
            )

    def _child_ended(self, event: HistoryEvent, at: float) -> None:
        given: Any = getattr(event, event.WhichOneof("attributes") or "")
        step, child, name = self._children.pop(given.initiated_event_id, (0, "", ""))
        if not step or child in self._cancelled_children:
            return
        usage, fields = child_fields(child, _as_result(event, given))
        self._others.append(
            {**fields, "at": at, "step": step, "step_kind": "child", "name": name, "usage": usage if usage.calls else None}
        )

    def _patched(self, event: HistoryEvent, at: float) -> None:
        given = event.marker_recorded_event_attributes
        if given.marker_name == "core_patch":
            data = wire.raw_of(wire.nth(given.details["patch-data"], 0)) if "patch-data" in given.details else Raw(b"{}")
            self._add(kind="patched", at=at, name=msgspec.json.decode(data).get("id", ""))

    def _memo_changed(self, event: HistoryEvent, at: float) -> None:
        memo = event.workflow_properties_modified_event_attributes.upserted_memo.fields
        if wire.HELD_KEY in memo:
            held = wire.read_payload(memo[wire.HELD_KEY], Held)
            if held.status == "parked":
                self._add(kind="run_parked", at=at, detail=held.reason)

    def _close(self, event: HistoryEvent, at: float) -> None:
        self.flush()
        self.closed = event
        kind = _ENDS[event.event_type]
        fields: dict[str, Any] = {}
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
            fields["error"] = run_error(event.workflow_execution_failed_event_attributes.failure)[0]
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
            fields["detail"] = event.workflow_execution_terminated_event_attributes.reason
        elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
            fields["detail"] = str(self.origin.about.generation + 1)
        self._add(kind=kind, at=at, **fields)


def _seconds(moment: Any) -> float:
    return float(moment.ToNanoseconds() / 1e9)


class _Result:
    """The end of a child run in the shape in which an activation tells it."""

    def __init__(self, kind: str, content: Any) -> None:
        self._kind = kind
        setattr(self, kind, content)

    def HasField(self, name: str) -> bool:  # noqa: N802 - as protobuf spells it
        return name == self._kind


class _Content:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def _as_result(event: HistoryEvent, given: Any) -> _Result:
    if event.event_type == EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED:
        return _Result("completed", _Content(result=wire.nth(given.result, 0)))
    if event.event_type == EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED:
        return _Result("failed", _Content(failure=_wrapped(given.failure)))
    return _Result("cancelled", None)


def _wrapped(failure: Any) -> Any:
    return Failure(cause=failure)


#: Events after which a run is held, or no longer.
_HOLDS = {"run_paused": "paused", "run_parked": "parked", "run_resumed": ""}

_ENDS: dict[int, Any] = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: "run_completed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "run_failed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "run_failed",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "run_cancelled",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "run_cancelled",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: "run_continued",
}

_READERS: dict[int, Any] = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED: Translator._start,
    EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED: Translator._task_begun,
    EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED: Translator._task_failed,
    EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT: Translator._task_failed,
    EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED: Translator._task_completed,
    EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED: Translator._attempt_sent,
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED: Translator._attempt_cancelled,
    EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: Translator._attempt_done,
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED: Translator._attempt_failed,
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: Translator._attempt_failed,
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED: Translator._attempt_gone,
    EventType.EVENT_TYPE_TIMER_STARTED: Translator._timer_set,
    EventType.EVENT_TYPE_TIMER_CANCELED: Translator._timer_gone,
    EventType.EVENT_TYPE_TIMER_FIRED: Translator._timer_fired,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED: Translator._signal,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED: Translator._cancel,
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED: Translator._child_asked,
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED: Translator._child_refused,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED: Translator._child_started,
    EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: Translator._child_cancelled,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: Translator._child_ended,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: Translator._child_ended,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: Translator._child_ended,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: Translator._child_ended,
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: Translator._child_ended,
    EventType.EVENT_TYPE_MARKER_RECORDED: Translator._patched,
    EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED: Translator._memo_changed,
    **dict.fromkeys(_ENDS, Translator._close),
}
