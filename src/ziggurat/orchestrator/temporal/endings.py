"""How a generation of a run ends on Temporal: the command that closes it, with what its parent, or its next generation, must know."""

from __future__ import annotations

from msgspec import Raw
from temporalio.bridge.proto.workflow_commands.workflow_commands_pb2 import WorkflowCommand

from ziggurat.orchestrator.embedded.execution import Execution
from ziggurat.orchestrator.embedded.steps import Finished
from ziggurat.orchestrator.temporal.commands import Placement, search_attributes
from ziggurat.orchestrator.temporal.verdict import run_failure
from ziggurat.orchestrator.temporal.wire import (
    ABOUT_KEY,
    STATE_KEY,
    USAGE_METADATA,
    About,
    Origin,
    json_payload,
    origin_payload,
    record_payload,
    sealed_payload,
)
from ziggurat.records import Allowance, ErrorInfo, Event, Run, encode


def end_commands(
    finished: Finished, run: Run, program: Execution, seq: int, place: Placement, budgets: tuple[Allowance, ...]
) -> list[WorkflowCommand]:
    """Return the commands that end a run, or begin its next generation."""
    command = WorkflowCommand()
    usage = {USAGE_METADATA: encode(run.usage)} if run.usage.calls else {}
    if finished.status == "completed":
        result = sealed_payload(finished.result or Raw(b"null"), run.id, **usage)
        command.complete_workflow_execution.result.CopyFrom(result)
    elif finished.status == "failed":
        error = finished.error or ErrorInfo(type="Exception", message="The run failed.")
        command.fail_workflow_execution.failure.CopyFrom(run_failure(error, run.usage))
    elif finished.status == "cancelled":
        command.cancel_workflow_execution.details.payloads.append(json_payload(b"null", **usage))
    else:
        _continue(command, finished, run, program, seq, place, budgets)
    return [command]


def _continue(
    command: WorkflowCommand,
    finished: Finished,
    run: Run,
    program: Execution,
    seq: int,
    place: Placement,
    budgets: tuple[Allowance, ...],
) -> None:
    """Begin the next generation: the same id, new arguments, an empty history but for signals not taken yet."""
    made = command.continue_as_new_workflow_execution
    about = About(
        entry=run.entry,
        namespace=run.namespace,
        tags=run.tags,
        priority=run.priority,
        budget_usd=run.budget_usd,
        created_at=run.created_at,
        generation=run.generation + 1,
        epoch=run.epoch + 1,
        parent=run.parent,
        parent_step=run.parent_step,
        forked_from=run.forked_from,
        seed=run.seed,
        trace=run.trace,
        budgets=budgets,
        searchable=place.searchable,
    )
    at = program.loop.time()
    base = seq + 1  # The event run_continued of the generation that ends.
    events = [Event(seq=base + 1, kind="run_started", at=at, result=program.signal_ids())]
    for kind, name, payload in program.unclaimed():
        events.append(Event(seq=events[-1].seq + 1, kind=kind, at=at, name=name, result=payload))
    origin = Origin(about=about, carried=run.usage, base=base, events=events, state=program.state)
    made.workflow_type = run.workflow
    made.task_queue = place.task_queue
    made.arguments.extend([sealed_payload(finished.result or Raw(b"{}"), run.id), origin_payload(origin, run.id)])
    made.memo[ABOUT_KEY].CopyFrom(record_payload(about))
    if program.state is not None:
        made.memo[STATE_KEY].CopyFrom(json_payload(program.state))
    if place.searchable:
        for name, value in search_attributes(about).items():
            made.search_attributes.indexed_fields[name].CopyFrom(value)
