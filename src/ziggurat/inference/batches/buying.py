"""What calls in batches cost and whom: held against budgets when they are placed, put right and recorded when they are answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ziggurat.errors import BudgetExceeded
from ziggurat.inference import telling
from ziggurat.inference.admission import Admission
from ziggurat.inference.batches.interface import Line
from ziggurat.inference.ledger import attributing, current_attribution
from ziggurat.inference.limits.budgets import Cost, PastSoft
from ziggurat.inference.limits.caller import current_caller
from ziggurat.inference.routes import Route
from ziggurat.program.context import AttemptContext, current_attempt
from ziggurat.records import CallRecord, Prompt

_NOTHING = Cost(likely=0.0, most=0.0)


class Buyer:
    """Holds, corrects and records.

    Args:
        admission: the estimates, and the budgets.
        ledger: takes the record of every call.
        pause: waits by the router's clock.
    """

    def __init__(
        self, admission: Admission, ledger: Callable[[CallRecord], None] | None, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self._admission, self._ledger = admission, ledger
        self.pause = pause

    async def hold(self, route: Route, shaped: Prompt) -> float | None:
        """Count what a call will cost as spent, until it is known better, and return it in US dollars.

        As spent and not as reserved: a reservation ends with the process that made it, and a batch does not. None: the budget is past its
        soft share, and the router has a cheaper model. Raises BudgetExceeded.
        """
        caller, budgets = current_caller(), self._admission.budgets
        cost = self._admission.estimate(route, shaped, batch=True)
        if cost.most > 0 and budgets.limits(caller):
            attempt = current_attempt()
            step = attempt.info.idempotency_key if attempt is not None else ""
            past = budgets.options.downgrade in ("", shaped.model)
            try:
                held = await budgets.reserve(current_attribution(), caller, step, cost, shaped.model, past_soft=past)
            except PastSoft:
                return None
            budgets.settle(held, cost.likely)
        return cost.likely

    async def correct(self, line: Line, cost_usd: float) -> None:
        """Put what a call cost in the place of its estimate."""
        caller, budgets = current_caller(), self._admission.budgets
        if line.estimate == cost_usd or not budgets.limits(caller):
            return
        step = line.key.partition(":")[0] if line.by.step else ""
        try:
            held = await budgets.reserve(line.by, caller, step, _NOTHING, line.model, past_soft=True)
        except BudgetExceeded:
            return  # It is spent, by more than this; the ledger has the sum.
        budgets.settle(held, cost_usd - line.estimate)

    def recorded(self, record: CallRecord, line: Line, attempt: AttemptContext | None) -> None:
        """Tell of a call that was answered, or that may be billed."""
        if attempt is not None:
            attempt.record_call(record)
        telling.counted(record)
        if self._ledger is not None:
            with attributing(line.by):
                self._ledger(record)
