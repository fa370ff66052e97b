"""Budgets: dollars reserved before a call and settled after it, in all purses that the call draws on, or in none.

    reserve ─▶ granted ─▶ the call ─▶ settle(what it cost; the estimate, if it was sent and not answered)
            ├▶ wait: others have reserved what is left, and may give some of it back
            ├▶ soft: past the soft share; a cheaper model is asked instead, if one is named
            └▶ hard: BudgetExceeded, and the run is parked

A call reserves the most that it can cost: the prompt with a margin, and max_tokens or the model's context. Where that does not fit and
nobody else has reserved anything, the likely cost is enough, so what is left can be used; the overshoot is then the error of that one
estimate. The numbers are shared through the limit store; what histories and ledgers know is their floor.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from msgspec import Struct

from ziggurat.clock import Clock
from ziggurat.errors import BudgetExceeded
from ziggurat.inference.identity import new_id
from ziggurat.inference.ledger import Attribution, day_of
from ziggurat.inference.limits.caller import Caller
from ziggurat.inference.limits.interface import Answer, Held, Hold, Purse, Request, Settle
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.units import human_dollars

#: Seconds until a call that waits for others to settle asks again, at first and at most: many may wait for one.
ASK_AGAIN, ASK_AGAIN_MOST = 0.1, 1.0

#: Returns what is known to be spent: (kind of purse, its name, UTC day) → US dollars. Reads files, so it is called in a thread.
Baseline = Callable[[str, str, str], float]


class BudgetOptions(Struct, frozen=True, kw_only=True):
    """What may be spent, in US dollars; None is no limit. Days are UTC days."""

    call: float | None = None
    step: float | None = None
    day: float | None = None
    workflows: dict[str, float] = {}
    #: By namespace; "*" for each that is not named.
    tenants: dict[str, float] = {}
    #: The share of a budget after which the alias `downgrade` is used, if there is one.
    soft: float = 0.8
    downgrade: str = ""

    @property
    def any(self) -> bool:
        """True if something is limited."""
        return not (self.call is None and self.step is None and self.day is None) or bool(self.workflows or self.tenants)


class PastSoft(Exception):
    """A purse is past its soft limit: ask the cheaper model. Never leaves the router."""


class Cost(Struct, frozen=True):
    """What a call will cost, in US dollars: by all likelihood, and at most."""

    likely: float
    most: float


class Budgets:
    """What this process knows of budgets, and its way to the purses.

    Args:
        keeper: the way to the limit store.
        options: the settings' limits.
        baseline: what is known to be spent of a day, for a store that has forgotten it.
    """

    def __init__(
        self, keeper: Keeper, clock: Clock, options: BudgetOptions | None = None, baseline: Baseline | None = None
    ) -> None:
        self.options = options or BudgetOptions()
        self._keeper, self._clock, self._baseline = keeper, clock, baseline
        #: What was known when a purse of a day was first used here.
        self._known: dict[str, float] = {}
        self._today = ""

    def limits(self, caller: Caller) -> bool:
        """Say whether a caller's calls draw on any budget."""
        return self.options.any or bool(caller.budgets)

    async def reserve(self, by: Attribution, caller: Caller, step: str, cost: Cost, model: str, *, past_soft: bool) -> str:
        """Reserve what a call may cost, and return the reservation's id; "" if nothing limits it.

        Args:
            step: names the step over all its attempts.
            past_soft: False if a cheaper model can be asked instead.

        Raises BudgetExceeded, PastSoft.
        """
        options = self.options
        if options.call is not None and cost.likely > options.call:
            too_dear = BudgetExceeded(
                f"The call of the model {model!r} was not made: it would cost about {human_dollars(cost.likely)}, over the limit of "
                f"{human_dollars(options.call)} for one call. Shorten the prompt, lower max_tokens, or raise call in [inference.budgets].",
                model=model,
            )
            too_dear.budget = "call"
            raise too_dear
        purses = await self._purses(by, caller, step)
        if not purses:
            return ""
        hold = Hold(id=new_id(), purses=purses, most=max(cost.most, cost.likely), likely=cost.likely, past_soft=past_soft)
        asked, pause = False, ASK_AGAIN
        try:
            while True:
                asked = True
                held = await self._ask(hold)
                if held.answer == "granted":
                    return hold.id
                if held.answer == "soft":
                    raise PastSoft
                if held.answer == "hard":
                    purse = next(p for p in purses if p.key == held.key)
                    raise _exceeded(purse, held.spent, cost, model)
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(ASK_AGAIN_MOST, 1.5 * pause)
        except asyncio.CancelledError:
            if asked:
                self.settle(hold.id, 0.0)  # It may have been granted on the way.
            raise

    def settle(self, reservation: str, cost: float) -> None:
        """Replace a reservation by what the call cost. Returns at once; settling twice changes nothing."""
        if reservation:
            self._keeper.tell(Settle(id=reservation, cost=cost))

    async def _purses(self, by: Attribution, caller: Caller, step: str) -> tuple[Purse, ...]:
        options, day = self.options, day_of(self._clock.time())
        purses = [_purse(b.key, b.limit_usd, options, b.spent_usd) for b in caller.budgets]
        if options.step is not None and step:
            purses.append(_purse(f"step:{step}", options.step, options))
        tenant = options.tenants.get(by.namespace, options.tenants.get("*"))
        for kind, name, limit in (
            ("workflow", by.workflow, options.workflows.get(by.workflow)),
            ("tenant", by.namespace, tenant),
            ("day", "", options.day),
        ):
            if limit is not None:
                key = f"{kind}:{name}:{day}"
                purses.append(_purse(key, limit, options, await self._spent(key, kind, name, day)))
        return tuple(purses)

    async def _spent(self, key: str, kind: str, name: str, day: str) -> float:
        """Return what the ledgers knew of a purse when it was first used here; the store knows the rest."""
        if self._baseline is None:
            return 0.0
        if day != self._today:
            self._today = day
            self._known.clear()
        if key not in self._known:
            self._known[key] = await asyncio.to_thread(self._baseline, kind, name, day)
        return self._known[key]

    async def _ask(self, hold: Hold) -> Held:
        answers: list[Answer] = []
        if not self._keeper.remote:
            self._keeper.ask([hold], answers.extend)
        else:
            answers = await self._ask_thread([hold])
        [held] = answers
        assert isinstance(held, Held)
        return held

    async def _ask_thread(self, requests: list[Request]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Answer]] = loop.create_future()

        def done(answers: list[Answer]) -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(answers))

        self._keeper.ask(requests, done)
        return await future


def _purse(key: str, limit: float, options: BudgetOptions, spent: float = 0.0) -> Purse:
    return Purse(key=key, limit=limit, soft=limit * options.soft, spent=spent)


def _exceeded(purse: Purse, spent: float, cost: Cost, model: str) -> BudgetExceeded:
    """Return the error of a call that a purse cannot pay, with what can be done about it."""
    kind, _, name = purse.key.partition(":")
    what, _, day = name.rpartition(":")
    if kind == "run":
        whose, remedy = f"the budget of the run {name}", f"Resume it with a larger one: ziggurat resume {name} --budget '+$1'"
    elif kind == "step":
        whose, remedy = "the budget of a step", "Raise step in [inference.budgets], and resume the run."
    elif kind in _OF_DAY:
        setting, words = _OF_DAY[kind]
        whose = words.format(what)
        remedy = f"A new day begins at 00:00 UTC after {day}; or raise {setting} in [inference.budgets]. Then resume the run."
    else:
        whose, remedy = f"the budget of the {kind} {what!r}", "Raise it, or wait until it begins anew."
    error = BudgetExceeded(
        f"The call of the model {model!r} was not made: it would cost about {human_dollars(cost.likely)}, and "
        f"{human_dollars(spent)} of {human_dollars(purse.limit)} has been spent of {whose}. {remedy}",
        model=model,
    )
    error.run_id = name if kind == "run" else ""
    error.budget = kind if kind in ("step", "day") else f"{kind}:{what if kind in _OF_DAY else name}"
    return error


#: Purses of a day: their setting, and how they are called.
_OF_DAY = {
    "day": ("day", "the day's budget"),
    "workflow": ("workflows", "the day's budget of the workflow {!r}"),
    "tenant": ("tenants", "the day's budget of the tenant {!r}"),
}
