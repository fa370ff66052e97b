"""The commands that a run gives to Temporal, each made from one of our steps."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from temporalio.api.common.v1 import Payload, Priority, RetryPolicy
from temporalio.api.enums.v1 import WorkflowIdReusePolicy
from temporalio.bridge.proto.child_workflow.child_workflow_pb2 import ChildWorkflowCancellationType, ParentClosePolicy
from temporalio.bridge.proto.workflow_commands.workflow_commands_pb2 import (
    ActivityCancellationType,
    ScheduleActivity,
    StartChildWorkflowExecution,
    WorkflowCommand,
)

from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.orchestrator.temporal.wire import (
    ABOUT_KEY,
    SEARCH_NAMESPACE,
    SEARCH_TAGS,
    About,
    Origin,
    StepInfo,
    message_payload,
    origin_payload,
    record_payload,
    sealed_payload,
    search_payload,
)
from ziggurat.orchestrator.tracing import passed_on
from ziggurat.queues.temporal_link import task_queue_of
from ziggurat.records import Allowance, Message, Run

#: Seconds that Temporal waits, past an attempt's own limit, before it holds the attempt for lost: the worker, which knows the limit too,
#: is to say so first, and its coroutine may take a while to clean up.
PATIENCE = 60.0
#: Start-to-close of a task without a timeout of its own. Temporal wants one; the heartbeat finds a dead worker long before.
NO_TIMEOUT = 10 * 365 * 86_400.0
#: Temporal refuses timers of no length.
SHORTEST_TIMER = 0.001


class Placement(Struct, frozen=True, kw_only=True):
    """Where tasks go, and how soon a dead worker is noticed."""

    #: The task queue of the workflows; those of tasks begin with it.
    task_queue: str = "ziggurat"
    #: True: tasks wait on Temporal's own task queues. False: an activity of the orchestrator puts them on one of our queues.
    native: bool = True
    #: Seconds without a heartbeat after which an attempt is taken from its worker.
    lease: float = 30.0
    #: Whether the namespace has our search attributes.
    searchable: bool = True


def activity_id(message: str, task: str) -> str:
    """Return the id of the activity that is one attempt. It holds the step and the task, so that a contradiction names both."""
    return f"{message.rpartition('~')[2]} {task}"


def step_info(step: Step) -> StepInfo:
    """Return what the history keeps of a step."""
    retry = step.options.retry
    return StepInfo(
        step=step.number,
        requested=step.requested,
        requested_at=step.requested_at,
        failures=step.failures,
        attempts=retry.attempts,
        initial=retry.initial,
        factor=retry.factor,
        maximum=retry.maximum,
        jitter=retry.jitter,
    )


def schedule_attempt(seq: int, message: Message, info: StepInfo, place: Placement, *, eager: bool) -> WorkflowCommand:
    """Return the command that sends one attempt. Temporal delivers it again while workers die; other failures come back to the run.

    An `eager` one may come back in the server's answer, to this process, if it waits on the task queue of the runs.
    """
    command = WorkflowCommand()
    made: ScheduleActivity = command.schedule_activity
    made.seq = seq
    made.activity_id = activity_id(message.id, message.task)
    made.activity_type = message.task
    lane = message.lane
    # Those that dispatch are as those that drive runs, so a dispatch waits where the runs do.
    made.task_queue = task_queue_of(place.task_queue, lane.queue, lane.region) if place.native else place.task_queue
    made.arguments.extend([message_payload(message), record_payload(info)])
    limit = message.timeout + PATIENCE if message.timeout is not None else NO_TIMEOUT
    if not place.native:
        # The time on our queue is part of the activity's there; the relay's heartbeats bound it, and the worker the attempt's own time.
        limit = NO_TIMEOUT
    if message.deadline is not None:
        made.schedule_to_close_timeout.FromMilliseconds(max(1, int((message.deadline - message.sent_at) * 1000)))
    made.start_to_close_timeout.FromMilliseconds(int(limit * 1000))
    made.heartbeat_timeout.FromMilliseconds(int(place.lease * 1000))
    made.retry_policy.CopyFrom(_redelivery())
    made.cancellation_type = ActivityCancellationType.TRY_CANCEL
    made.do_not_eagerly_execute = not eager
    made.priority.CopyFrom(Priority(priority_key=lane.priority, fairness_key=lane.namespace[:64]))
    return command


def _redelivery() -> RetryPolicy:
    # Without end: the worker counts deliveries, as one that was drained does not count, and ends those of a poisonous message itself.
    policy = RetryPolicy(backoff_coefficient=2.0, maximum_attempts=0)
    policy.initial_interval.FromMilliseconds(100)
    policy.maximum_interval.FromMilliseconds(10_000)
    return policy


def start_timer(seq: int, delay: float) -> WorkflowCommand:
    """Return the command that sets a timer."""
    command = WorkflowCommand()
    command.start_timer.seq = seq
    command.start_timer.start_to_fire_timeout.FromMicroseconds(int(max(SHORTEST_TIMER, delay) * 1_000_000))
    return command


def cancel_attempt(seq: int) -> WorkflowCommand:
    """Return the command that asks the worker of an attempt to stop."""
    command = WorkflowCommand()
    command.request_cancel_activity.seq = seq
    return command


def cancel_timer(seq: int) -> WorkflowCommand:
    """Return the command that takes a timer back."""
    command = WorkflowCommand()
    command.cancel_timer.seq = seq
    return command


def cancel_child(seq: int, run: Run) -> WorkflowCommand:
    """Return the command that asks a child run to stop."""
    command = WorkflowCommand()
    command.cancel_child_workflow_execution.child_workflow_seq = seq
    command.cancel_child_workflow_execution.reason = f"the parent run {run.id} no longer waits for it"
    return command


def start_child(
    step: Step, run: Run, origin: Origin | None, now: float, place: Placement, budgets: tuple[Allowance, ...]
) -> WorkflowCommand:
    """Return the command that starts a child run. `origin` is what is left of it, where it is taken up again with its parent."""
    options = step.options
    if origin is None:
        about = About(
            entry=step.entry,
            namespace=run.namespace,
            tags=options.tags,
            priority=options.priority or run.priority,
            budget_usd=options.budget,
            created_at=now,
            parent=run.id,
            parent_step=step.number,
            trace=passed_on(run, step.number),
            budgets=budgets,
            searchable=place.searchable,
        )
        origin = Origin(about=about)
    command = WorkflowCommand()
    made: StartChildWorkflowExecution = command.start_child_workflow_execution
    made.seq = step.number
    made.workflow_id = step.child
    made.workflow_type = step.name
    made.task_queue = place.task_queue
    made.input.extend([sealed_payload(step.payload, step.child), origin_payload(origin, step.child)])
    cancels = options.on_parent_end == "cancel"
    made.parent_close_policy = (
        ParentClosePolicy.PARENT_CLOSE_POLICY_REQUEST_CANCEL if cancels else ParentClosePolicy.PARENT_CLOSE_POLICY_ABANDON
    )
    made.cancellation_type = ChildWorkflowCancellationType.TRY_CANCEL
    # A retried run starts its failed children anew under their old ids.
    made.workflow_id_reuse_policy = (
        WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY
        if run.epoch > run.generation
        else WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
    )
    made.memo[ABOUT_KEY].CopyFrom(record_payload(origin.about))
    if place.searchable:
        for name, value in search_attributes(origin.about).items():
            made.search_attributes.indexed_fields[name].CopyFrom(value)
    return command


def search_attributes(about: About) -> dict[str, Payload]:
    """Return the search attributes that a run has from its start."""
    found = {SEARCH_NAMESPACE: search_payload(about.namespace, "Keyword")}
    if about.tags:
        found[SEARCH_TAGS] = search_payload(tag_words(about.tags), "KeywordList")
    return found


def tag_words(tags: dict[str, str]) -> list[str]:
    """Return tags as the words by which they are searched."""
    return [f"{key}={value}" for key, value in sorted(tags.items())]


def keep_memo(**values: Any) -> WorkflowCommand:
    """Return the command that changes the memo; names stand for its keys."""
    command = WorkflowCommand()
    for key, payload in values.items():
        command.modify_workflow_properties.upserted_memo.fields[key].CopyFrom(payload)
    return command


def keep_searchable(**values: Payload) -> WorkflowCommand:
    """Return the command that changes search attributes."""
    command = WorkflowCommand()
    for key, payload in values.items():
        command.upsert_workflow_search_attributes.search_attributes.indexed_fields[key].CopyFrom(payload)
    return command
