"""deadletters: messages that the queue gave up, and what to do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer, answer_json, client_of, console, iso, run_async, say
from ziggurat.errors import ConfigurationError, UnknownName

if TYPE_CHECKING:
    from ziggurat.records import DeadLetter

app = typer.Typer(help="Messages that were given up after their last delivery.", invoke_without_command=True)

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of dead letters.")]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

#: More letters than a state file holds.
_EVERY = 10_000_000


Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")]


@app.callback()
def letters(context: typer.Context, limit: Limit = 50, config: Config = None, as_json: AsJson = False) -> None:
    """Messages that were given up after their last delivery; without a verb they are listed."""
    if context.invoked_subcommand is None:
        list_letters(limit, config, as_json)


@app.command("list")
def list_letters(limit: Limit = 50, config: Config = None, as_json: AsJson = False) -> None:
    """List dead letters, newest first, each with its reason."""

    async def main() -> list[DeadLetter]:
        async with client_of(config, "observe") as client:
            return await client.dead_letters(limit)

    letters = run_async(main())
    if as_json:
        answer_json([_object(letter) for letter in letters])
        return
    if not letters:
        say("There are no dead letters.")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Id", "Task", "Run", "Died", "Deliveries", "Reason"):
        table.add_column(column, no_wrap=column != "Reason", overflow="fold")
    for letter in letters:
        message = letter.message
        row = (letter.id, message.task, message.run, iso(letter.died_at) or "", str(letter.deliveries), letter.reason)
        table.add_row(*map(Text, row))
    console().print(table)


@app.command()
def redrive(ids: Ids = None, all: All = False, config: Config = None, as_json: AsJson = False) -> None:
    """Give dead letters another chance: their failed runs are taken up from those steps."""
    _each("redrive", "runs_taken_up", ids, all, config, as_json)


@app.command()
def discard(ids: Ids = None, all: All = False, config: Config = None, as_json: AsJson = False) -> None:
    """Forget dead letters."""
    _each("discard", "discarded", ids, all, config, as_json)


def _each(verb: str, done: str, ids: list[str] | None, all: bool, config: Any, as_json: bool) -> None:
    if bool(ids) == all:
        raise ConfigurationError(f"Say which dead letters to {verb}: ids, or --all.")

    async def main() -> int:
        async with client_of(config, "control") as client:
            known = [letter.id for letter in await client.dead_letters(_EVERY)]
            if unknown := sorted(set(ids or ()) - set(known)):
                raise UnknownName(
                    f"There is no dead letter {unknown[0]!r}; `ziggurat deadletters list` shows those that there are."
                )
            return await (client.redrive if verb == "redrive" else client.discard)(ids or known)

    count = run_async(main())
    if as_json:
        answer_json({done: count})
    else:
        noun = "dead letter" if verb == "discard" else "run"
        answer(f"{count} {noun}{'' if count == 1 else 's'} {'discarded' if verb == 'discard' else 'taken up'}")


def _object(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "task": letter.message.task,
        "run": letter.message.run,
        "queue": letter.message.lane.queue,
        "reason": letter.reason,
        "deliveries": letter.deliveries,
        "died_at": iso(letter.died_at),
    }
