"""schedules: workflows that start by themselves."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import (
    AsJson,
    Config,
    Reason,
    Tags,
    WorkflowRef,
    answer,
    answer_json,
    client_of,
    console,
    iso,
    read_json,
    read_moment,
    read_tags,
    run_async,
    run_hosting,
    say,
)
from ziggurat.errors import ConfigurationError, UnknownName

if TYPE_CHECKING:
    from ziggurat.client import Client
    from ziggurat.records import Schedule

app = typer.Typer(help="Workflows that start by themselves.", invoke_without_command=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]

#: Moments that `show` lists.
_SHOWN = 5


@app.callback()
def schedules(context: typer.Context, config: Config = None, as_json: AsJson = False) -> None:
    """Workflows that start by themselves; without a verb they are listed."""
    if context.invoked_subcommand is None:
        list_schedules(config, as_json)


@app.command("list")
def list_schedules(config: Config = None, as_json: AsJson = False) -> None:
    """List schedules, each with its next moment and its last run."""

    async def main() -> list[Schedule]:
        async with client_of(config, "observe") as client:
            return await client.schedules()

    found = run_async(main())
    if as_json:
        answer_json([_object(schedule) for schedule in found])
        return
    if not found:
        say("There are no schedules; `ziggurat schedules add` makes one, and so does [schedules.NAME] in ziggurat.toml.")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Name", "Workflow", "When", "Next", "Last run", ""):
        table.add_column(column, no_wrap=column != "", overflow="fold")
    for schedule in found:
        row = (schedule.name, schedule.workflow, _when(schedule), _next(schedule), schedule.last_run or "-", _note(schedule))
        table.add_row(*map(Text, row))
    console().print(table)


@app.command()
def show(name: Name, config: Config = None, as_json: AsJson = False) -> None:
    """Show one schedule and its next moments."""
    from ziggurat.orchestrator.schedules import next_moment

    async def main() -> Schedule:
        async with client_of(config, "observe") as client:
            return await _find(client, name)

    schedule = run_async(main())
    moments: list[float] = []
    moment = schedule.next_at
    while moment is not None and len(moments) < _SHOWN:
        moments.append(moment)
        moment = next_moment(schedule, moment)
    if as_json:
        answer_json({**_object(schedule), "next": [iso(m) for m in moments]})
        return
    shown = {
        "name": schedule.name,
        "workflow": schedule.workflow,
        "input": json.dumps(json.loads(bytes(schedule.payload)), ensure_ascii=False),
        "when": _when(schedule),
        "overlap": schedule.overlap,
        "made by": "ziggurat.toml" if schedule.origin == "settings" else "hand",
        "last run": schedule.last_run or "-",
        "note": _note(schedule) or "-",
    }
    for key, value in shown.items():
        answer(f"{key + ':':<10} {value}")
    for index, at in enumerate(moments):
        answer(f"{'next:' if index == 0 else '':<10} {_local(at, schedule)}")


@app.command()
def add(
    name: Name,
    workflow: WorkflowRef,
    cron: Annotated[list[str] | None, typer.Option(help="When: minute hour day month weekday; may be repeated.")] = None,
    every: Annotated[str | None, typer.Option(metavar="DURATION", help="When, as an interval such as 15m.")] = None,
    timezone: Annotated[str, typer.Option(help="The zone of --cron, such as Europe/Berlin.")] = "UTC",
    input: Annotated[
        str, typer.Option("--input", "-i", metavar="JSON", help="The arguments: JSON, @file, or - for stdin.")
    ] = "{}",
    overlap: Annotated[str, typer.Option(help="While the run before goes on: skip, queue, allow or cancel.")] = "skip",
    jitter: Annotated[str, typer.Option(metavar="DURATION", help="The most by which a start is put off.")] = "0s",
    catch_up: Annotated[str, typer.Option(metavar="DURATION", help="How late a missed moment is still made up.")] = "1h",
    budget: Annotated[
        str | None, typer.Option(metavar="MONEY", help="What each run may spend on models, such as '$0.50'.")
    ] = None,
    tag: Tags = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a schedule, or change the one of that name."""
    from pydantic import ValidationError

    from ziggurat.settings import ScheduleSettings

    given: dict[str, Any] = {
        "workflow": workflow, "input": read_json(input, "The input"), "cron": cron or [], "every": every, "timezone": timezone,
        "overlap": overlap, "jitter": jitter, "catch_up": catch_up, "tags": read_tags(tag), "budget": budget,
    }  # fmt: skip
    try:
        wanted = ScheduleSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigurationError(
            f"--{option} cannot be read: {first['msg'].removeprefix('Value error, ').rstrip('.')}."
        ) from error

    async def main() -> Schedule:
        async with client_of(config, "control") as client:
            return await client.schedule(name, wanted)

    made = run_hosting(main())
    if as_json:
        answer_json(_object(made))
    else:
        answer(f"{made.name}: {_when(made)}, next {_next(made)}")
        say("Runs start while `ziggurat serve` or `ziggurat up` is running.")


@app.command()
def pause(name: Name, reason: Reason = "", config: Config = None, as_json: AsJson = False) -> None:
    """Start nothing until resume."""
    _act(config, as_json, name, "paused", lambda client: client.pause_schedule(name, reason))


@app.command()
def resume(name: Name, config: Config = None, as_json: AsJson = False) -> None:
    """Go on from now; moments that passed meanwhile are not made up."""
    _act(config, as_json, name, "resumed", lambda client: client.resume_schedule(name))


@app.command()
def remove(name: Name, config: Config = None, as_json: AsJson = False) -> None:
    """Forget a schedule; its runs go on."""
    _act(config, as_json, name, "removed", lambda client: client.unschedule(name))


@app.command("run")
def run_now(name: Name, config: Config = None, as_json: AsJson = False) -> None:
    """Start a run now, whatever else is running, and print its id."""

    async def main() -> str:
        async with client_of(config, "control") as client:
            return (await client.trigger(name)).id

    run = run_hosting(main())
    if as_json:
        answer_json({"schedule": name, "run": run})
    else:
        answer(run)


@app.command()
def backfill(
    name: Name,
    since: Annotated[str, typer.Option("--from", metavar="WHEN", help="The first moment: a date, a date and time, or 3d ago.")],
    until: Annotated[str, typer.Option("--to", metavar="WHEN", help="Moments before this one; now by default.")] = "0s",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Start a run for each past moment that has none."""
    start, end = read_moment(since, "moment"), read_moment(until, "moment")

    async def main() -> int:
        async with client_of(config, "control") as client:
            return await client.backfill(name, start, end)

    count = run_hosting(main())
    if as_json:
        answer_json({"schedule": name, "moments": count})
    else:
        answer(f"{count} moment{'' if count == 1 else 's'} {'has its run' if count == 1 else 'have their runs'}")


# -- inside ---------------------------------------------------------------------------------------------------------


def _act(config: Any, as_json: bool, name: str, done: str, verb: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client_of(config, "control") as client:
            await verb(client)

    run_async(main())
    if as_json:
        answer_json({"schedule": name, "done": done})
    else:
        answer(f"{name}: {done}")


async def _find(client: Client, name: str) -> Schedule:
    found = [schedule for schedule in await client.schedules() if schedule.name == name]
    if not found:
        raise UnknownName(f"There is no schedule {name!r}; `ziggurat schedules` shows those that there are.")
    return found[0]


def _object(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "workflow": schedule.workflow,
        "input": json.loads(bytes(schedule.payload)),
        "cron": schedule.cron,
        "every": schedule.every,
        "timezone": schedule.timezone,
        "overlap": schedule.overlap,
        "paused": schedule.paused,
        "reason": schedule.reason,
        "next_at": iso(schedule.next_at),
        "last_run": schedule.last_run or None,
        "skipped": schedule.skipped,
        "error": schedule.error or None,
        "origin": schedule.origin,
    }


def _when(schedule: Schedule) -> str:
    from ziggurat.units import human_seconds

    parts = [f"every {human_seconds(schedule.every)}"] if schedule.every is not None else []
    zone = "" if schedule.timezone == "UTC" else f" {schedule.timezone}"
    return ", ".join(parts + [f"{expression}{zone}" for expression in schedule.cron])


def _next(schedule: Schedule) -> str:
    if schedule.paused:
        return "paused"
    return _local(schedule.next_at, schedule) if schedule.next_at is not None else "never"


def _local(moment: float, schedule: Schedule) -> str:
    from datetime import datetime

    from ziggurat.orchestrator.schedules import zone

    return datetime.fromtimestamp(moment, zone(schedule.timezone)).strftime("%Y-%m-%d %H:%M:%S %Z")


def _note(schedule: Schedule) -> str:
    parts = [schedule.reason] if schedule.paused else []
    if schedule.waiting is not None:
        parts.append(f"a moment waits for {schedule.last_run}")
    if schedule.skipped:
        parts.append(f"{schedule.skipped} passed over")
    if schedule.error:
        parts.append(schedule.error)
    return "; ".join(parts)
