"""limits and budgets: what may be used and spent, how much of it is, who waits, and which runs are parked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer_json, client_of, console, iso, run_async, say
from ziggurat.units import human_dollars, human_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from ziggurat.assembly import BudgetUse, LimitsUse
    from ziggurat.records import Run

#: Cells of a bar.
_WIDTH = 20
_SPENT = "ziggurat.errors.BudgetExceeded"

Parked = Annotated[int, typer.Option("--limit", "-n", min=0, help="Parked runs to show at most.")]


def limits(config: Config = None, as_json: AsJson = False) -> None:
    """Show how much of each limit is in use now, and how many calls wait at each endpoint."""
    from ziggurat.assembly import Standing
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    standing = Standing(settings)
    try:
        found = standing.limits()
    finally:
        standing.close()
    if as_json:
        answer_json(_limits_object(found))
        return
    if found.limits:
        console().print(_limits_table(found))
    else:
        say("No limit is set, and no provider has reported one; set some in [inference.endpoints.NAME.limits].")
    for one in found.endpoints:
        if one.in_flight or one.waiting or one.cooling:
            waits = ", ".join(f"{count} of priority {priority}" for priority, count in one.waiting.items() if count)
            cooling = f"; left alone for {human_seconds(one.cooling)} after a 429" if one.cooling else ""
            under_way = f"{one.in_flight} call{'' if one.in_flight == 1 else 's'} under way"
            say(f"{one.endpoint}: {under_way}, {f'waiting {waits}' if waits else 'none waits'}{cooling}")
    if found.trouble:
        say(f"Nothing is known to be in use: {found.trouble}")
    elif settings.queue.backend == "memory" and not settings.inference.limits.store:
        say(
            "Limits are kept inside the process that makes the calls here, so this shows none in use; ask a server's /api/v1/limits."
        )


def _limits_object(found: LimitsUse) -> dict[str, Any]:
    return {
        "endpoints": [{name: getattr(one, name) for name in one.__struct_fields__} for one in found.endpoints],
        "limits": [{name: getattr(one, name) for name in one.__struct_fields__} for one in found.limits],
        "trouble": found.trouble,
    }


def _limits_table(found: LimitsUse) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("Limit of", "left"), ("What", "left"), ("Used", "right"), ("Of", "right"), ("", "left")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    words = {"tokens": "tokens a minute", "requests": "requests a minute", "calls": "calls at a time"}
    for one in found.limits:
        of = (
            f"{one.endpoint}:{one.name}"
            if one.whose == "model"
            else one.name
            if one.whose == "endpoint"
            else f"{one.whose} {one.name}"
        )
        table.add_row(Text(of), words[one.what], f"{one.used:,.0f}", f"{one.limit:,.0f}", Text(_bar(one.used, one.limit)))
    return table


def budgets(limit: Parked = 20, config: Config = None, as_json: AsJson = False) -> None:
    """Show what may be spent on models, what is, and which runs are parked because a budget is spent."""
    from ziggurat.assembly import Standing
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    parked = [run for run in run_async(_parked(config)) if run.error is not None and run.error.type == _SPENT]
    standing = Standing(settings)
    try:
        found = standing.budgets(sorted({run.namespace for run in parked}))
    finally:
        standing.close()
    counts: dict[str, int] = {}
    for run in parked:
        key = run.error.budget if run.error is not None else ""
        counts[key] = counts.get(key, 0) + 1
    if as_json:
        answer_json(
            {
                "budgets": [_budget_object(one, counts.get(one.key, 0)) for one in found],
                "parked": [_run_object(run) for run in parked],
            }
        )
        return
    if found:
        console().print(_budgets_table(found, counts))
    else:
        say("No budget is set; set some in [inference.budgets], or give a workflow or a run one of its own.")
    for run in parked[:limit]:
        say(f"{run.id} is parked: {run.reason}")
    if len(parked) > limit:
        say(f"These are {limit} of {len(parked)} parked runs; see more with --limit.")


async def _parked(config: Path | None) -> list[Run]:
    from ziggurat.errors import StateUnusable

    try:
        async with client_of(config, "observe") as client:
            return await client.runs(status="parked", limit=1000)
    except StateUnusable:
        return []  # There is no state file yet, and so no run.


def _budget_object(one: BudgetUse, parked: int) -> dict[str, Any]:
    shown = {name: getattr(one, name) for name in one.__struct_fields__}
    return {**shown, "renews_at": iso(one.renews_at) if one.renews_at is not None else None, "parked": parked}


def _run_object(run: Run) -> dict[str, Any]:
    budget = run.error.budget if run.error is not None else ""
    return {"run": run.id, "workflow": run.workflow, "namespace": run.namespace, "budget": budget, "reason": run.reason}


def _budgets_table(found: list[BudgetUse], parked: dict[str, int]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Budget", "Spent", "Reserved", "Of", "", "Parked"):
        table.add_column(column, justify="left" if column in ("Budget", "") else "right", no_wrap=True)
    words = {
        "call": "one call",
        "step": "one step",
        "day": "all of a day",
        "workflow": "workflow {} a day",
        "tenant": "tenant {} a day",
    }
    for one in found:
        of_day = one.renews_at is not None
        table.add_row(
            Text(words[one.kind].format(one.name)),
            human_dollars(one.spent_usd) if of_day else "",
            human_dollars(one.reserved_usd) if one.reserved_usd else "",
            human_dollars(one.limit_usd),
            Text(_bar(one.spent_usd + one.reserved_usd, one.limit_usd)) if of_day else "",
            str(parked.get(one.key, "")),
        )
    return table


def _bar(used: float, limit: float) -> str:
    """Return a bar of how much is used, and how much that is."""
    share = used / limit if limit else 0.0
    cells = max(0, min(_WIDTH, round(share * _WIDTH)))
    return f"{'█' * cells}{'░' * (_WIDTH - cells)} {share:.0%}"
