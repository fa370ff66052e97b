"""run, start and watch: one run from here."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import UNSET

from ziggurat.doors.cli.common import (
    INTERRUPTED,
    AsJson,
    Config,
    RunId,
    Tags,
    WorkflowRef,
    answer,
    answer_json,
    client_of,
    read_json,
    read_tags,
    run_async,
    run_hosting,
    run_object,
    say,
)
from ziggurat.doors.cli.files import with_saved_files

if TYPE_CHECKING:
    from ziggurat.client import Handle
    from ziggurat.records import Run

Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        "-i",
        metavar="JSON",
        help="A JSON object whose keys are the workflow's parameters; @file reads it, - takes stdin. "
        'A value "@report.pdf" is that file, where an Artifact is due. Not needed for a run that exists.',
    ),
]
Id = Annotated[str, typer.Option("--id", metavar="ID", help="Names the run; starting an id twice starts once.")]
Priority = Annotated[int | None, typer.Option("--priority", min=1, max=5, help="1 (served most often) to 5.")]
Budget = Annotated[str | None, typer.Option("--budget", metavar="USD", help="What the run may spend on models, such as 0.05.")]


def run(
    workflow: WorkflowRef,
    input: Input = None,
    id: Id = "",
    tag: Tags = None,
    priority: Priority = None,
    budget: Budget = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Start a run, watch it live, and print its result.

    With the id of an unfinished run it resumes and watches that one; with the id of a finished one it prints its result.
    """
    options: dict[str, Any] = {"id": id, "tags": read_tags(tag), "priority": priority, "budget": budget}
    value = UNSET if input is None else read_json(input, "The JSON of --input")

    async def main() -> int:
        async with client_of(config, "host") as client:
            handle: Handle[Any] = await client.start_with(*await with_saved_files(client, workflow, value), **options)
            return await watch_to_end(handle, as_json, again=f"ziggurat run {workflow} --id {handle.id}")

    raise typer.Exit(run_hosting(main()))


def watch(run: RunId, config: Config = None, as_json: AsJson = False) -> None:
    """Watch a run until it ends, driving it from here if no other process does, and print its result."""

    async def main() -> int:
        async with client_of(config, "host") as client:
            handle: Handle[Any] = client.handle(run)
            return await watch_to_end(handle, as_json, again=f"ziggurat watch {run}")

    raise typer.Exit(run_hosting(main()))


def start(
    workflow: WorkflowRef,
    input: Input = None,
    id: Id = "",
    tag: Tags = None,
    priority: Priority = None,
    budget: Budget = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Start a run and print its id at once. Whatever process runs the system drives it."""
    options: dict[str, Any] = {"id": id, "tags": read_tags(tag), "priority": priority, "budget": budget}
    value = UNSET if input is None else read_json(input, "The JSON of --input")

    async def main() -> None:
        async with client_of(config, "control") as client:
            handle: Handle[Any] = await client.start_with(*await with_saved_files(client, workflow, value), **options)
            if as_json:
                answer_json(run_object(await handle.info()))
            else:
                answer(handle.id)
            if client.attachment.hosted:
                say(f"No process runs the system now. The run is recorded; drive it with: ziggurat watch {handle.id}")

    run_async(main())


async def watch_to_end(handle: Handle[Any], as_json: bool, again: str) -> int:
    """Show a run live until it ends or is parked, print what it came to, and return the exit code."""
    from ziggurat.doors.cli.view import view_of

    found = await handle.info()
    try:
        if found.status in ("paused", "parked"):
            await handle.resume()
        if found.ended_at is None:
            with view_of(found) as view:
                async for happening in handle.events():
                    view.apply(happening)
        found = await handle.wait()
    except asyncio.CancelledError:
        say(f"Interrupted. The run {handle.id} is kept as recorded; go on with: {again}")
        return INTERRUPTED
    return print_end(found, as_json)


def print_end(run: Run, as_json: bool) -> int:
    """Print a stopped run: its result, or its error. Returns the exit code."""
    from ziggurat.client import ended_error

    if as_json:
        answer_json(run_object(run))
    if run.status == "completed":
        if not as_json:
            answer(result_text(run))
        return 0
    say(f"error: {' '.join(str(ended_error(run)).split())}")
    if run.status == "failed":
        say(f"Take it up again from the step that failed with: ziggurat retry {run.id} && ziggurat watch {run.id}")
    return 1


def result_text(run: Run) -> str:
    """Return a run's result for people: text as it is, everything else as indented JSON."""
    value = json.loads(bytes(run.result)) if run.result is not None else None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
