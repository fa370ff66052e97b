"""What a run answers to those who ask it something: queries, updates, which it does not take, and a task that it cannot do."""

from __future__ import annotations

from temporalio.bridge.proto.workflow_activation.workflow_activation_pb2 import QueryWorkflow
from temporalio.bridge.proto.workflow_commands.workflow_commands_pb2 import WorkflowCommand
from temporalio.bridge.proto.workflow_completion.workflow_completion_pb2 import WorkflowActivationCompletion

from ziggurat.orchestrator.embedded.execution import Execution
from ziggurat.orchestrator.embedded.resident import open_view
from ziggurat.orchestrator.temporal import wire
from ziggurat.records import StepView


def answer(query: QueryWorkflow, program: Execution | None, position: int) -> WorkflowCommand:
    """Return the answer to a query: the run's state, its open steps, or the position of its last event."""
    command = WorkflowCommand()
    given = command.respond_to_query
    given.query_id = query.query_id
    if query.query_type == wire.STEPS:
        views: list[StepView] = [open_view(step) for step in program.steps.values()] if program is not None else []
        given.succeeded.response.CopyFrom(wire.record_payload(views))
    elif query.query_type == wire.STATE:
        state = program.state if program is not None else None
        given.succeeded.response.CopyFrom(wire.json_payload(state if state is not None else b"null"))
    elif query.query_type == wire.POSITION:
        given.succeeded.response.CopyFrom(wire.record_payload(position))
    else:
        given.failed.message = f"A run answers the queries {wire.STATE!r}, {wire.STEPS!r} and {wire.POSITION!r}."
        given.failed.application_failure_info.type = "UnknownQuery"
    return command


def refuse_update(protocol: str) -> WorkflowCommand:
    """Return the answer to an update."""
    command = WorkflowCommand()
    command.update_response.protocol_instance_id = protocol
    command.update_response.rejected.message = "A Ziggurat run takes signals, not updates; send a signal."
    command.update_response.rejected.application_failure_info.type = "Unsupported"
    return command


def fail_task(completion: WorkflowActivationCompletion, message: str, type_: str) -> None:
    """Fail a workflow task: nothing of it is recorded but why, and Temporal tries it again."""
    completion.failed.SetInParent()
    completion.failed.failure.message = message
    completion.failed.failure.source = "ziggurat"
    completion.failed.failure.application_failure_info.type = type_
