"""signal, cancel, pause, resume, retry, fork and purge: act on runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import (
    AsJson,
    Config,
    Reason,
    RunId,
    RunIds,
    answer,
    answer_json,
    client_of,
    read_json,
    read_moment,
    run_async,
    run_object,
    say,
)
from ziggurat.doors.cli.files import with_saved_files
from ziggurat.doors.cli.runs import Status, Workflow, read_statuses
from ziggurat.errors import ConfigurationError

if TYPE_CHECKING:
    from ziggurat.client import Client, Handle
    from ziggurat.records import Run

_NOBODY = "No process runs the system now. This is recorded, and the run goes on with: ziggurat watch {id}"


def signal(
    run: RunId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name.")],
    value: Annotated[str, typer.Argument(metavar="JSON", help="Its value as JSON; @file reads it, - takes stdin.")] = "null",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Send a signal to a run."""
    payload = read_json(value, "The JSON of the signal's value")
    _act([run], config, as_json, lambda handle: handle.signal(name, payload))


def cancel(run: RunIds, reason: Reason = "", config: Config = None, as_json: AsJson = False) -> None:
    """Ask runs to stop; their running tasks are told too."""
    _act(run, config, as_json, lambda handle: handle.cancel(reason))


def pause(run: RunIds, reason: Reason = "", config: Config = None, as_json: AsJson = False) -> None:
    """Let running attempts finish, and hold everything else."""
    _act(run, config, as_json, lambda handle: handle.pause(reason))


def resume(
    run: RunIds,
    budget: Annotated[
        str,
        typer.Option(
            "--budget", metavar="AMOUNT", help="What a run may spend in all, such as '$2', or '+$1' for that much more."
        ),
    ] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Let paused or parked runs go on."""
    _act(run, config, as_json, lambda handle: handle.resume(budget=budget or None))


def retry(run: RunIds, config: Config = None, as_json: AsJson = False) -> None:
    """Take failed runs up again from the step that failed; what succeeded is kept."""
    _act(run, config, as_json, lambda handle: handle.retry())


def fork(
    run: RunId,
    step: Annotated[int, typer.Option("--step", min=1, help="The first step to run anew; those before are shared.")] = 1,
    input: Annotated[str, typer.Option("--input", "-i", metavar="JSON", help="Other input than the run's own.")] = "",
    id: Annotated[str, typer.Option("--id", metavar="ID", help="Names the new run.")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Start a new run that shares a run's recorded steps before a point, and print its id."""
    value = read_json(input, "The JSON of --input") if input else None

    async def main() -> None:
        async with client_of(config, "control") as client:
            handle: Handle[Any] = client.handle(run)
            filled = value
            if value is not None:
                _, filled = await with_saved_files(client, (await handle.info()).workflow, value)
            forked: Handle[Any] = await handle.fork(step, input=filled, id=id)
            if as_json:
                answer_json(run_object(await forked.info()))
            else:
                answer(forked.id)
            if client.attachment.hosted:
                say(_NOBODY.format(id=forked.id))

    run_async(main())


def _act(runs: list[str], config: Path | None, as_json: bool, verb: Callable[[Handle[Any]], Awaitable[Any]]) -> None:
    async def main() -> list[Run]:
        async with client_of(config, "control") as client:
            return [await _acted(client, id, verb) for id in runs]

    acted = run_async(main())
    if as_json:
        answer_json([run_object(run) for run in acted] if len(acted) > 1 else run_object(acted[0]))
    else:
        for run in acted:
            answer(f"{run.id} {run.status}")


async def _acted(client: Client, id: str, verb: Callable[[Handle[Any]], Awaitable[Any]]) -> Run:
    handle: Handle[Any] = client.handle(id)
    await verb(handle)
    run = await handle.info()
    if client.attachment.hosted and run.ended_at is None and run.status not in ("paused", "parked"):
        say(_NOBODY.format(id=id))
    return run


def purge(
    older_than: Annotated[str, typer.Option("--older-than", metavar="WHEN", help="Ended before: 30d, 2026-05-01.")] = "",
    status: Status = None,
    workflow: Workflow = "",
    everything: Annotated[bool, typer.Option("--all", help="All ended runs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Delete ended runs with their histories. What is under way is never touched."""
    if not (older_than or status or workflow or everything):
        raise ConfigurationError("Say which ended runs to delete: --older-than, --status, --workflow, or --all.")
    ended_before = read_moment(older_than, "age") if older_than else None
    statuses: Any = read_statuses(status)
    if not yes and not as_json:
        typer.confirm("Delete these runs with their histories, for good?", abort=True, err=True)

    async def main() -> int:
        async with client_of(config, "control") as client:
            return await client.purge(status=statuses, workflow=workflow, ended_before=ended_before)

    count = run_async(main())
    if as_json:
        answer_json({"purged": count})
    else:
        answer(f"{count} run{'' if count == 1 else 's'} deleted")
