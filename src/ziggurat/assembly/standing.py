"""How limits and budgets stand now, for people: what the settings say, what the limit store knows, and what the ledger holds.

Whoever makes calls, workers, gateways, this process, tells the store with its signs of life what it has at each endpoint (`Load`); so
one look at the store shows calls that wait anywhere, and limits that a provider reported to whoever called it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import Struct

from ziggurat.assembly.ledgers import baseline, ledger_files
from ziggurat.assembly.limiting import build_limit_store, limits_of
from ziggurat.clock import Clock, SystemClock
from ziggurat.inference.ledger import CostFilter, costs, day_of
from ziggurat.inference.limits.interface import Levels, LimitStore, Load, StoreDown, Wanted
from ziggurat.inference.limits.tickets import Rule
from ziggurat.inference.router import Router
from ziggurat.settings import Settings

What = Literal["tokens", "requests", "calls"]
Whose = Literal["endpoint", "model", "tenant", "key"]


class LimitUse(Struct, frozen=True, kw_only=True):
    """A limit, and how much of it is in use."""

    #: Whose limit it is: an endpoint's, one of its models', a tenant's or a gateway key's; and the name of that one.
    whose: Whose
    endpoint: str
    name: str
    #: "tokens" and "requests" are of a minute, "calls" are at a time.
    what: What
    limit: float
    #: Used within the last minute, or under way now; what a process has taken in advance counts as used.
    used: float
    #: The share of it that may still be drawn at once, from 0 to 1.
    free: float


class EndpointUse(Struct, frozen=True, kw_only=True):
    """What all processes together have at an endpoint."""

    endpoint: str
    in_flight: int = 0
    #: Calls that wait, by priority, 1 first.
    waiting: dict[int, int] = {}
    #: Seconds for which it is left alone after a 429.
    cooling: float = 0.0
    #: Calls at a time that 429s have taught, over all processes; None where nothing was learned.
    learned: float | None = None
    #: Processes that call it.
    processes: int = 0


class LimitsUse(Struct, frozen=True, kw_only=True):
    """How all limits stand. `trouble` says why the store could not be looked at; then nothing is known to be in use."""

    endpoints: list[EndpointUse]
    limits: list[LimitUse]
    trouble: str = ""


class BudgetUse(Struct, frozen=True, kw_only=True):
    """A budget of the settings, and how much of it is spent."""

    #: As `BudgetExceeded.budget` names it: "call", "step", "day", "workflow:NAME", "tenant:NAMESPACE".
    key: str
    kind: Literal["call", "step", "day", "workflow", "tenant"]
    name: str
    limit_usd: float
    #: From where on the cheaper model is asked, where one is named.
    soft_usd: float
    #: Spent and reserved in its window; 0 for a call and a step, which have one window each.
    spent_usd: float = 0.0
    reserved_usd: float = 0.0
    #: When the window ends, for those of a day.
    renews_at: float | None = None


class Standing:
    """Looks at the limits and budgets of a system. Safe to use from any thread; a look reads files or asks a server.

    Args:
        settings: the system's.
        router: the inference layer of this process, whose calls are seen even where limits are not shared.
    """

    def __init__(self, settings: Settings, router: Router | None = None, clock: Clock | None = None) -> None:
        self._settings, self._router = settings, router
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._store: LimitStore | None = None

    def close(self) -> None:
        """Let go of the store."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def limits(self) -> LimitsUse:
        """Return how limits stand."""
        inference = self._settings.inference
        flows, slots = self._configured()
        gates = tuple(inference.endpoints)
        try:
            told = self._look(Wanted())
            loads = [load for holder in told.loads.values() for load in holder] if self._is_shared() else self._own_loads()
            for load in loads:
                # Those that somebody draws on now: limits that a provider reported, and tenants and keys that nobody wrote down.
                flows |= load.flows
                slots |= load.slots
            seen, trouble = self._look(Wanted(flows=flows, slots=tuple(slots), gates=gates)), ""
        except StoreDown as error:
            seen, loads, trouble = Levels(), [], str(error)
        return LimitsUse(
            endpoints=[_endpoint(name, loads, seen) for name in inference.endpoints],
            limits=sorted(
                [*_flows(flows, seen), *_slots(slots, seen)], key=lambda one: (_ORDER[one.whose], one.endpoint, one.name)
            ),
            trouble=trouble,
        )

    def budgets(self, namespaces: Iterable[str] = ()) -> list[BudgetUse]:
        """Return the budgets of the settings, those of a day with what is spent of them by the ledger and by the limit store.

        Where "*" gives each tenant a budget, those are shown that spent something today, and those of `namespaces`.
        """
        wanted, day = self._settings.inference.budgets, day_of(self._clock.time())
        found = [("call", "", wanted.call), ("step", "", wanted.step), ("day", "", wanted.day)]
        found += [("workflow", name, limit) for name, limit in wanted.workflows.items()]
        found += [("tenant", name, limit) for name, limit in self._tenants(day, namespaces).items()]
        purses = {(kind, name): f"{kind}:{name}:{day}" for kind, name, _ in found if kind not in ("call", "step")}
        try:
            seen = self._look(Wanted(purses=tuple(purses.values()))).purses
        except StoreDown:
            seen = {}  # What the ledger knows is shown all the same.
        known = baseline(self._settings)
        ends = datetime.fromisoformat(f"{day}T00:00:00+00:00").astimezone(UTC) + timedelta(days=1)
        uses: list[BudgetUse] = []
        for kind, name, limit in found:
            if limit is None:
                continue
            of_day = (kind, name) in purses
            spent, reserved = seen.get(purses.get((kind, name), ""), (0.0, 0.0))
            uses.append(
                BudgetUse(
                    key=f"{kind}:{name}" if name else kind,
                    kind=kind,  # type: ignore[arg-type]
                    name=name,
                    limit_usd=limit,
                    soft_usd=limit * wanted.soft,
                    spent_usd=max(spent, known(kind, name, day)) if of_day else 0.0,
                    reserved_usd=reserved,
                    renews_at=ends.timestamp() if of_day else None,
                )
            )
        return uses

    def spent_by(self, runs: Iterable[str]) -> dict[str, float]:
        """Return what trees of runs have spent, by the run whose budget it is, as far as the limit store knows."""
        try:
            purses = self._look(Wanted(purses=tuple(f"run:{run}" for run in runs))).purses
        except StoreDown:
            return {}
        return {key.partition(":")[2]: spent for key, (spent, _) in purses.items()}

    def _tenants(self, day: str, namespaces: Iterable[str]) -> dict[str, float]:
        wanted = self._settings.inference.budgets.tenants
        found = {name: limit for name, limit in wanted.items() if name != "*"}
        if "*" in wanted:
            start = datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()
            rows = costs(ledger_files(self._settings), ("tenant",), CostFilter(since=start))
            for name in (self._settings.app.namespace, *namespaces, *(row.group[0] for row in rows)):
                found.setdefault(name, wanted["*"])
        return found

    def _configured(self) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
        inference = self._settings.inference
        rules: list[Rule] = []
        for name, endpoint in inference.endpoints.items():
            rules.append(Rule(f"endpoint:{name}", limits_of(endpoint.limits), False))
            rules += [Rule(f"model:{name}:{model}", limits_of(limits), True) for model, limits in endpoint.model_limits.items()]
        named = {name: limits for name, limits in inference.limits.tenants.items() if name != "*"}
        rules += [Rule(f"tenant:{name}", limits_of(limits), True) for name, limits in named.items()]
        flows = {key: (rate, burst) for rule in rules for key, rate, burst, _ in rule.draws(0.0)}
        return flows, {f"{rule.key}:calls": rule.limits.concurrency for rule in rules if rule.limits.concurrency}

    def _is_shared(self) -> bool:
        return self._router is None or self._router.keeper.remote

    def _own_loads(self) -> list[Load]:
        assert self._router is not None
        return self._router.loads()

    def _look(self, wanted: Wanted) -> Levels:
        with self._lock:
            if not self._is_shared():
                assert self._router is not None
                return self._router.keeper.store.look(wanted)
            if self._store is None:
                self._store = build_limit_store(self._settings)
            return self._store.look(wanted)


_ORDER: dict[str, int] = {"endpoint": 0, "model": 1, "tenant": 2, "key": 3}


def _endpoint(name: str, loads: Iterable[Load], seen: Levels) -> EndpointUse:
    mine = [load for load in loads if load.endpoint == name]
    waiting: dict[int, int] = {}
    for load in mine:
        for priority, count in load.waiting.items():
            waiting[priority] = waiting.get(priority, 0) + count
    learned = [load.learned for load in mine if load.learned is not None]
    return EndpointUse(
        endpoint=name,
        in_flight=sum(load.in_flight for load in mine),
        waiting=dict(sorted(waiting.items())),
        cooling=seen.cooling.get(name, 0.0),
        learned=sum(learned) if learned else None,
        processes=len(mine),
    )


def _flows(flows: dict[str, tuple[float, float]], seen: Levels) -> Iterable[LimitUse]:
    for key, (rate, burst) in flows.items():
        level, used = seen.flows.get(key, (burst, 0.0))
        yield _use(key, limit=rate * 60.0, used=used, free=max(0.0, min(1.0, level / burst)))


def _slots(slots: dict[str, int], seen: Levels) -> Iterable[LimitUse]:
    for key, limit in slots.items():
        used = seen.slots.get(key, 0)
        yield _use(key, limit=float(limit), used=float(used), free=max(0.0, 1.0 - used / limit) if limit else 0.0)


def _use(key: str, *, limit: float, used: float, free: float) -> LimitUse:
    """Return a limit from its key, such as "endpoint:gmi:tokens" or "model:gmi:deepseek-ai/V4:requests": upstream names may hold colons."""
    rest, _, what = key.rpartition(":")
    whose, _, name = rest.partition(":")
    endpoint = ""
    if whose in ("endpoint", "model"):
        endpoint, _, name = name.partition(":")
    return LimitUse(whose=whose, endpoint=endpoint, name=name or endpoint, what=what, limit=limit, used=used, free=free)  # type: ignore[arg-type]
