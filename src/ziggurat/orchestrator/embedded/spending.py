"""What runs spend on models, over their trees: the allowances that messages carry, and the parking of a tree whose budget is spent.

A run with a budget pays for its children too. Its spending is the sum of the ledger's rows of its tree (`calls`), read once when the run
is first asked about and added to from then on. Workers reserve against these allowances before each call, through the limit store that
they share; what a message says is the floor of what the store believes, so a store that lost everything learns it anew.

When a call would pass a limit, the run that made it is parked, and its parents up to the one whose budget it is (all of them, for a limit
of the settings): the person who waits for the topmost run sees why. Resuming that one resumes the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from ziggurat.orchestrator.embedded.resident import Resident
from ziggurat.orchestrator.embedded.store import Reader
from ziggurat.records import ENDED, Allowance, CallRecord, ErrorInfo, Outcome, Run
from ziggurat.units import human_dollars

#: The type of the failure that parks a run rather than failing its step.
BUDGET_EXCEEDED = "ziggurat.errors.BudgetExceeded"


class _Node:
    """A run as a part of a tree."""

    __slots__ = ("created_at", "limit", "parent", "raised_at", "spent")

    def __init__(self, run: Run) -> None:
        self.parent, self.limit, self.created_at = run.parent, run.budget_usd, run.created_at
        #: Spent by the tree; None until it was asked for.
        self.spent: float | None = None
        #: When it was last resumed: attempts sent before knew an older limit.
        self.raised_at = 0.0


class Runs(Protocol):
    """What spending needs of the runs in memory; the driver has it."""

    residents: dict[str, Resident]
    reader: Reader

    def resident(self, run_id: str) -> Resident | None:
        """Return a run in memory, or None if it does not exist or has ended or is parked."""

    def park(self, resident: Resident, reason: str, error: ErrorInfo | None = None) -> None:
        """Stop a run that cannot go on as things are, and say why."""


class Spending:
    """What the trees of runs have spent."""

    def __init__(self, runs: Runs, now: Callable[[], float]) -> None:
        self._runs, self._now = runs, now
        self._nodes: dict[str, _Node] = {}

    def allowances(self, run: Run) -> tuple[Allowance, ...]:
        """Return the budgets that the calls of a run draw on: its own, and those of the runs that it is a child of."""
        if run.budget_usd is None and not run.parent:
            return ()
        return tuple(
            Allowance(f"run:{run_id}", node.limit, self._spent(run_id, node, run))
            for run_id, node in self._lineage(run)
            if node.limit is not None
        )

    def over(self, run: Run) -> ErrorInfo | None:
        """Return why nothing more may be started for a run, or None: a budget that it draws on is spent."""
        for allowance in self.allowances(run):
            if 0 < allowance.spent_usd >= allowance.limit_usd:
                owner = allowance.key.partition(":")[2]
                text = (
                    f"The run {owner} has spent {human_dollars(allowance.spent_usd)} of its budget of "
                    f"{human_dollars(allowance.limit_usd)}. Resume it with a larger one: ziggurat resume {owner} --budget '+$1'"
                )
                return ErrorInfo(type=BUDGET_EXCEEDED, message=text, retryable=False, run_id=owner, budget=allowance.key)
        return None

    def add(self, run: Run, calls: list[CallRecord]) -> None:
        """Take in calls that are being recorded."""
        if calls and (run.parent or run.budget_usd is not None):
            cost = sum(call.usage.cost_usd + call.held_usd for call in calls)
            for _, node in self._lineage(run):
                if node.spent is not None:
                    node.spent += cost

    def forget(self, run: Run) -> None:
        """A run has ended, or is parked: what it spent is in the file."""
        node = self._nodes.get(run.id)
        # Attempts of a parked run that know its older limit may still be under way.
        if node is not None and (run.status in ENDED or not node.raised_at):
            del self._nodes[run.id]

    def resumed(self, run: Run) -> None:
        """A run was taken up again, perhaps with another budget."""
        node = self._nodes[run.id] = _Node(run)
        node.raised_at = self._now()

    def is_old(self, outcome: Outcome) -> bool:
        """Say whether an attempt that met a limit was sent before that limit was raised."""
        owner = outcome.error.run_id if outcome.error is not None else ""
        node = self._nodes.get(owner or outcome.run)
        return node is not None and outcome.sent_at < node.raised_at

    def park(self, resident: Resident, error: ErrorInfo) -> None:
        """Park a run and its parents, up to the one whose budget it is."""
        current: Resident | None = resident
        while current is not None and not current.finishing and not current.paused:
            run = current.run
            self._runs.park(current, error.message, error)
            if run.id == error.run_id or not run.parent:
                return
            current = self._runs.resident(run.parent)

    def _lineage(self, run: Run) -> Iterator[tuple[str, _Node]]:
        """Yield a run and the runs that it is a child of, upwards."""
        run_id, known = run.id, run
        while True:
            node = self._nodes.get(run_id)
            if node is None:
                node = self._nodes[run_id] = _Node(known)
            yield run_id, node
            run_id = node.parent
            if not run_id:
                return
            if run_id not in self._nodes:
                living = self._runs.residents.get(run_id)
                row = self._runs.reader.run(run_id) if living is None else None
                if living is None and row is None:
                    return  # Purged meanwhile: nobody is left to ask for its budget.
                known = living.run if living is not None else row[1]  # type: ignore[index]

    def _spent(self, run_id: str, node: _Node, asking: Run) -> float:
        if node.spent is None:
            node.spent = self._runs.reader.tree_cost(run_id, node.created_at)
        # The history counts what a forked run shares with its origin, and what older versions did not put into the ledger.
        return max(node.spent, asking.usage.cost_usd) if run_id == asking.id else node.spent
