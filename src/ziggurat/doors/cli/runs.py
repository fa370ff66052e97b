"""list, show and history: look at runs. Nothing here drives or changes one."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import (
    AsJson,
    Config,
    RunId,
    Tags,
    answer,
    answer_json,
    client_of,
    console,
    iso,
    read_moment,
    read_tags,
    run_async,
    run_object,
    say,
)
from ziggurat.errors import ConfigurationError

if TYPE_CHECKING:
    from ziggurat.client import Handle
    from ziggurat.records import Event, Run, StepView

STATUSES = ("pending", "running", "waiting", "paused", "parked", "completed", "failed", "cancelled")

Status = Annotated[
    list[str] | None, typer.Option("--status", "-s", metavar="STATUS", help=f"May be repeated: {', '.join(STATUSES)}.")
]
Workflow = Annotated[str, typer.Option("--workflow", "-w", metavar="NAME", help="Runs of this workflow.")]
Since = Annotated[str, typer.Option("--since", metavar="WHEN", help="Made since then: 2h, 3d, 2026-05-01, 2026-05-01T12:00.")]
Search = Annotated[str, typer.Option("--search", metavar="TEXT", help="Text that the id contains.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")]


def list_runs(
    status: Status = None,
    workflow: Workflow = "",
    since: Since = "",
    search: Search = "",
    tag: Tags = None,
    limit: Limit = 50,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    where: dict[str, Any] = {"workflow": workflow, "search": search, "tags": read_tags(tag), "limit": limit}
    where["status"] = read_statuses(status)
    where["since"] = read_moment(since, "time") if since else None

    async def main() -> list[Run]:
        async with client_of(config, "observe") as client:
            return await client.runs(**where)

    runs = run_async(main())
    if as_json:
        answer_json([run_object(run, result=False) for run in runs])
    elif runs:
        from ziggurat.doors.cli.view import runs_table

        console().print(runs_table(runs, time.time()))
        if len(runs) == limit:
            say(f"These are the newest {limit}; see more with --limit, or fewer with --status, --workflow, --since or --search.")
    else:
        say("There are no such runs.")


def read_statuses(given: list[str] | None) -> tuple[str, ...]:
    """Return statuses, which may be joined by commas. Raises ConfigurationError on an unknown one."""
    statuses = tuple(part.strip() for text in given or () for part in text.split(",") if part.strip())
    for status in statuses:
        if status not in STATUSES:
            raise ConfigurationError(f"There is no status {status!r}; the statuses are: {', '.join(STATUSES)}.")
    return statuses


def show(run: RunId, config: Config = None, as_json: AsJson = False) -> None:
    """Show one run: its input, its steps, its state and what it came to."""

    async def main() -> tuple[Run, list[StepView], dict[str, str]]:
        from ziggurat.assembly import links

        async with client_of(config, "observe") as client:
            handle: Handle[Any] = client.handle(run)
            return await handle.info(), await handle.steps(), links(client.settings, run)

    found, steps, elsewhere = run_async(main())
    if as_json:
        shown = run_object(found)
        shown["reason"] = found.reason
        shown["tags"] = found.tags
        shown["input"] = json.loads(bytes(found.payload))
        shown["state"] = json.loads(bytes(found.state)) if found.state is not None else None
        shown["steps"] = [step_object(step) for step in steps]
        shown["links"] = elsewhere
        answer_json(shown)
    else:
        _print_run(found, steps, elsewhere)


def _print_run(run: Run, steps: list[StepView], elsewhere: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ziggurat.doors.cli.view import STATUS_STYLES, describe_value, steps_table, usage_text

    screen = console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: Any) -> None:
        if value:
            table.add_row(name, value if isinstance(value, Text) else Text(str(value)))

    row("run", run.id)
    row("workflow", f"{run.workflow}  {run.entry}".strip())
    row("status", Text(run.status, style=STATUS_STYLES.get(run.status, "")))
    row("reason", run.reason)
    row("started", iso(run.started_at))
    row("ended", iso(run.ended_at))
    row("wakes", iso(run.wake_at))
    row("tags", ", ".join(f"{key}={value}" for key, value in sorted(run.tags.items())))
    row("parent", f"{run.parent} at step {run.parent_step}" if run.parent else "")
    row("forked from", run.forked_from)
    row("budget", f"${run.budget_usd:g}" if run.budget_usd is not None else "")
    row("usage", usage_text(run.usage).strip())
    for name, url in elsewhere.items():
        row(f"on {name}", url)
    row("input", describe_value(json.loads(bytes(run.payload))))
    row("state", describe_value(json.loads(bytes(run.state))) if run.state is not None else "")
    if run.error is not None:
        row("error", Text(f"{run.error.type}: {run.error.message}", style="red"))
    screen.print(table)
    if steps:
        screen.print()
        screen.print(steps_table(steps))
    if run.result is not None:
        from ziggurat.doors.cli.run import result_text

        answer("")
        answer(result_text(run))
    if run.error is not None and run.error.traceback:
        answer("")
        answer(run.error.traceback.rstrip())


def step_object(step: StepView) -> dict[str, Any]:
    """Return a step as JSON."""
    return {
        "step": step.step,
        "kind": step.kind,
        "name": step.name,
        "status": step.status,
        "attempt": step.attempt,
        "started_at": iso(step.started_at),
        "ended_at": iso(step.ended_at),
        "usage": {
            "input_tokens": step.usage.input_tokens,
            "output_tokens": step.usage.output_tokens,
            "cost_usd": step.usage.cost_usd,
        },
        "error": {"type": step.error.type, "message": step.error.message} if step.error is not None else None,
        "detail": step.detail,
    }


def history(
    run: RunId,
    after: Annotated[int, typer.Option("--after", min=0, help="Only events past this position.")] = 0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show a run's history, event by event."""

    async def main() -> list[Event]:
        async with client_of(config, "observe") as client:
            handle: Handle[Any] = client.handle(run)
            return await handle.history()

    events = [event for event in run_async(main()) if event.seq > after]
    if as_json:
        import msgspec

        answer(msgspec.json.encode(events).decode())
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("#", "At", "Event", "Step", "Name", "What"):
        table.add_column(
            column, justify="right" if column in ("#", "Step") else "left", no_wrap=column != "What", overflow="fold"
        )
    for event in events:
        step = str(event.step) if event.step else ""
        table.add_row(str(event.seq), iso(event.at), event.kind, step, Text(event.name), Text(_what(event)))
    console().print(table)


def _what(event: Event) -> str:
    """Return the telling part of an event on one line."""
    from ziggurat.doors.cli.view import describe_value, usage_text

    if event.error is not None:
        return f"{event.error.type}: {' '.join(event.error.message.split())}"
    if event.result is not None:
        return describe_value(json.loads(bytes(event.result)), 120) + (usage_text(event.usage) if event.usage else "")
    return event.detail
