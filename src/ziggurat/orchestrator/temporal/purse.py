"""What a run's model calls draw on, and what its kin must know when that is spent.

A run parks when a call of its would pass a budget. If the budget is that of a run above it, or one of the settings, it tells its parent by
the signal PARK, which parks too and tells its own, up to the run whose budget it is: whoever waits for the topmost run sees why. When that
one is resumed, it tells its children by the signal RESUME, with the budgets as they are then, and they tell theirs. All of it follows from
the histories of those who are told.
"""

from __future__ import annotations

from collections.abc import Iterable

from temporalio.bridge.proto.workflow_commands.workflow_commands_pb2 import WorkflowCommand

from ziggurat.orchestrator.temporal.telling import own_allowance
from ziggurat.orchestrator.temporal.wire import PARK, RESUME, Park, Resume, record_payload
from ziggurat.records import Allowance, Run


class Purse:
    """The budgets of a run and of those above it."""

    def __init__(self) -> None:
        #: The budgets of the runs that it is a child of.
        self.above: tuple[Allowance, ...] = ()
        self._signals = 0

    def allowances(self, run: Run) -> tuple[Allowance, ...]:
        """Return what the calls of a run, and of its children, draw on."""
        return self.above + own_allowance(run)

    def is_spent(self, run: Run) -> bool:
        """Say whether a run has spent its own budget, so that nothing more may be started for it."""
        return run.budget_usd is not None and 0 < run.usage.cost_usd >= run.budget_usd

    def is_old(self, run: Run, met: Iterable[Allowance]) -> bool:
        """Say whether one of the limits that a call met has been raised since, so that nobody need stop for it."""
        limits = {allowance.key: allowance.limit_usd for allowance in self.allowances(run)}
        return any(limits.get(allowance.key, 0.0) > allowance.limit_usd for allowance in met)

    def tell_parent(self, run: Run, park: Park) -> list[WorkflowCommand]:
        """Return the command that parks a run's parent, unless the budget is the run's own."""
        if not run.parent or park.budget == f"run:{run.id}":
            return []
        return [self._signal(run.parent, PARK, park)]

    def tell_children(self, run: Run, children: Iterable[str]) -> list[WorkflowCommand]:
        """Return the commands that let children go on, with the budgets as they are now. Those that are not parked do not heed it."""
        resume = Resume(budgets=self.allowances(run))
        return [self._signal(child, RESUME, resume) for child in children]

    def _signal(self, run: str, name: str, content: Park | Resume) -> WorkflowCommand:
        self._signals += 1
        command = WorkflowCommand()
        made = command.signal_external_workflow_execution
        made.seq = self._signals
        made.workflow_execution.workflow_id = run
        made.signal_name = name
        made.args.append(record_payload(content))
        return command
