"""costs: what model calls cost, by workflow, model, tenant or day, as a table, a plot, CSV or JSON."""

from __future__ import annotations

import csv
import sys
from datetime import date, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer, answer_json, console, read_moment, say
from ziggurat.errors import ConfigurationError
from ziggurat.units import human_dollars

if TYPE_CHECKING:
    from ziggurat.inference.ledger import CostRow

#: Cells of the longest bar of a plot, and the eighths of a cell.
_WIDTH = 50
_EIGHTHS = " ▏▎▍▌▋▊▉█"
#: The longest span of days whose empty days are filled in.
_DAYS_MAX = 400

By = Annotated[
    str,
    typer.Option(
        "--by", metavar="WHAT", help="workflow, model, tenant, day, run, key, endpoint, upstream or status; several with commas."
    ),
]
Since = Annotated[str, typer.Option("--since", metavar="WHEN", help="Made since then: 2h, 7d, 2026-05-01.")]
Until = Annotated[str, typer.Option("--until", metavar="WHEN", help="Made before then.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Rows to show at most, the dearest first.")]


def costs(
    by: By = "workflow",
    since: Since = "",
    until: Until = "",
    workflow: Annotated[str, typer.Option("--workflow", help="Only calls of this workflow.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only calls of this alias.")] = "",
    tenant: Annotated[str, typer.Option("--tenant", help="Only calls of this namespace.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only calls of this run.")] = "",
    plot: Annotated[bool, typer.Option("--plot", help="Draw bars.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
    limit: Limit = 100,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what model calls cost: those of runs, and those of scripts and of the gateway on this machine."""
    from ziggurat.assembly import ledger_files
    from ziggurat.inference import ledger
    from ziggurat.settings import load_settings

    if plot + as_csv + as_json > 1:
        raise ConfigurationError("--plot, --csv and --json are three answers to one question; choose one.")
    dimensions = [name.strip() for name in by.split(",") if name.strip()]
    where = ledger.CostFilter(
        since=read_moment(since, "time") if since else None,
        until=read_moment(until, "time") if until else None,
        workflow=workflow,
        model=model,
        namespace=tenant,
        run=run,
    )
    files = ledger_files(load_settings(config))
    rows = ledger.costs(files, dimensions, where)
    if as_json:
        answer_json([_object(dimensions, row) for row in rows])
        return
    if as_csv:
        _write_csv(dimensions, rows)
        return
    if not rows:
        say("There are no model calls" + (" in that time or of that kind." if where != ledger.CostFilter() else " yet."))
        return
    if plot:
        _draw(dimensions, rows[:limit])
    else:
        _tabulate(dimensions, rows, limit)
    if len(rows) > limit:
        say(f"These are {limit} of {len(rows)}; see more with --limit.")
    unpriced = sum(row.calls for row in ledger.costs(files, ("price",), where) if row.group == ("unpriced",))
    if unpriced:
        say(f"{unpriced} of the calls have no known price and count as $0; set prices in [inference.endpoints.NAME.prices].")


def _object(dimensions: list[str], row: CostRow) -> dict[str, Any]:
    shown: dict[str, Any] = dict(zip(dimensions, row.group, strict=True))
    return shown | {name: getattr(row, name) for name in row.__struct_fields__ if name != "group"}


def _write_csv(dimensions: list[str], rows: list[CostRow]) -> None:
    from ziggurat.inference.ledger import CostRow

    numbers = [name for name in CostRow.__struct_fields__ if name != "group"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*dimensions, *numbers])
    for row in rows:
        writer.writerow([*row.group, *(getattr(row, name) for name in numbers)])


def _tabulate(dimensions: list[str], rows: list[CostRow], limit: int) -> None:
    from rich.table import Table
    from rich.text import Text

    held = any(row.unanswered for row in rows)
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=len(rows) > 1, footer_style="bold")
    total = _sum(rows)
    for number, name in enumerate(dimensions):
        table.add_column(name.capitalize(), footer="" if number else "All", no_wrap=True)
    columns: list[tuple[str, Any]] = [
        ("Calls", lambda row: f"{row.calls:,}"),
        ("Input", lambda row: f"{row.input_tokens:,}"),
        ("Cached", lambda row: f"{row.cached_tokens:,}"),
        ("Output", lambda row: f"{row.output_tokens:,}"),
        ("Reasoning", lambda row: f"{row.reasoning_tokens:,}"),
        ("Cost", lambda row: human_dollars(row.cost_usd)),
    ]
    if held:
        columns += [("Unanswered", lambda row: f"{row.unanswered:,}"), ("Perhaps", lambda row: human_dollars(row.held_usd))]
    for title, cell in columns:
        table.add_column(title, justify="right", no_wrap=True, footer=cell(total))
    for row in rows[:limit]:
        table.add_row(*(Text(value or "-") for value in row.group), *(cell(row) for _, cell in columns))
    console().print(table)
    if held:
        say("Unanswered calls were sent and brought no answer; the provider may have billed them. They are no part of the cost.")


def _sum(rows: list[CostRow]) -> CostRow:
    from ziggurat.inference.ledger import CostRow

    numbers = {name: sum(getattr(row, name) for row in rows) for name in CostRow.__struct_fields__ if name != "group"}
    return CostRow(group=(), **numbers)


def _draw(dimensions: list[str], rows: list[CostRow]) -> None:
    """Draw one bar a row; days without calls are drawn too, so that time runs evenly."""
    bars = [(" · ".join(value or "-" for value in row.group) or "all", row.cost_usd) for row in rows]
    if dimensions == ["day"]:
        bars = _every_day(dict(bars))
    most = max((cost for _, cost in bars), default=0.0)
    wide = max(len(label) for label, _ in bars)
    for label, cost in bars:
        eighths = round(cost / most * _WIDTH * 8) if most else 0
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        answer(f"{label:<{wide}}  {bar:<{_WIDTH}}  {human_dollars(cost)}")


def _every_day(found: dict[str, float]) -> list[tuple[str, float]]:
    first, last = date.fromisoformat(min(found)), date.fromisoformat(max(found))
    if (last - first).days > _DAYS_MAX:
        return list(found.items())
    days = [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    return [(day, found.get(day, 0.0)) for day in days]
