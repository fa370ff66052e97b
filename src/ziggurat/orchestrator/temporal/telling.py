"""What a run's record, its events and its failures say, for the machine that drives it and for whoever reads its history."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.verdict import run_error, usage_of
from ziggurat.orchestrator.temporal.wire import Origin
from ziggurat.program.deferring import Waiting
from ziggurat.records import Allowance, Message, Run, Usage
from ziggurat.units import human_dollars


def new_run_record(run_id: str, workflow: str, payload: Raw, origin: Origin, now: float) -> Run:
    """Return the record of a run as it begins."""
    about = origin.about
    return Run(
        id=run_id,
        workflow=workflow,
        status="running",
        payload=payload,
        namespace=about.namespace,
        entry=about.entry,
        tags=about.tags,
        priority=about.priority,
        budget_usd=about.budget_usd,
        usage=origin.carried,
        carried=origin.carried,
        created_at=about.created_at or now,
        started_at=now,
        generation=about.generation,
        epoch=about.epoch,
        parent=about.parent,
        parent_step=about.parent_step,
        forked_from=about.forked_from,
        seed=about.seed,
        trace=about.trace,
        state=origin.state,
    )


def attempt_fields(info: wire.StepInfo, message: Message, outcome: Any, waiting: Waiting) -> dict[str, Any]:
    """Return what the event of an ended attempt says of it. `waiting` knows what its step was told of before."""
    calls = waiting.fresh(outcome.calls)
    return {
        "step": info.step,
        "step_kind": "task",
        "name": message.task,
        "attempt": message.attempt,
        "requested": info.requested,
        "requested_at": info.requested_at,
        "sent_at": outcome.sent_at or message.sent_at,
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
        "error": outcome.error,
        "usage": usage_of(calls),
        "calls": calls,
        "worker": outcome.worker,
    }


def child_fields(child: str, result: Any) -> tuple[Usage, dict[str, Any]]:
    """Return what a child run consumed, and what its parent's event says of its end; `result` has completed, failed or cancelled set."""
    if result.HasField("completed"):
        payload = result.completed.result
        return wire.usage_in(payload), {"kind": "step_completed", "result": wire.raw_of(payload), "detail": child}
    if result.HasField("cancelled"):
        return Usage(), {"kind": "step_failed", "detail": "cancelled"}
    error, usage = run_error(result.failed.failure)
    cause = result.failed.failure.cause
    if cause.HasField("terminated_failure_info") or cause.HasField("canceled_failure_info"):
        return usage, {"kind": "step_failed", "detail": "cancelled"}
    return usage, {"kind": "step_failed", "error": error, "detail": "failed"}


def spent_text(run: Run) -> str:
    """Return the sentence about a spent budget."""
    return (
        f"The run has spent {human_dollars(run.usage.cost_usd)} of its budget of {human_dollars(run.budget_usd or 0.0)}. "
        f"Resume it with a larger one: ziggurat resume {run.id} --budget '$...'"
    )


def own_allowance(run: Run) -> tuple[Allowance, ...]:
    """Return the budget of a run as what its calls, and those of its children, draw on."""
    if run.budget_usd is None:
        return ()
    return (Allowance(f"run:{run.id}", run.budget_usd, run.usage.cost_usd),)


def limit_text(length: int, limit: int) -> str:
    """Return the sentence about a history that is too long."""
    return (
        f"The history has {length:,} events, over the limit of {limit:,}. "
        "Let the workflow call continue_as_new() before, or raise [orchestrator] history_limit and resume the run."
    )
