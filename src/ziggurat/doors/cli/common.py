"""What all commands share: their options, how they print, how they fail.

stdout holds the answer and nothing else: text for people, or with --json one JSON value. Everything said beside it goes to stderr.
Third-party modules are imported where they are used, so that `ziggurat --help` stays quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ziggurat.errors import ConfigurationError, InvalidData, ZigguratError

if TYPE_CHECKING:
    from rich.console import Console

    from ziggurat.assembly import Mode
    from ziggurat.client import Client
    from ziggurat.records import Run

T = TypeVar("T")

#: The exit code after Ctrl-C, as shells have it: 128 + SIGINT.
INTERRUPTED = 130


# -- options --------------------------------------------------------------------------------------------------------


def _complete_run(incomplete: str) -> list[str]:
    from ziggurat.doors.cli.completion import run_ids

    return run_ids(incomplete)


def _complete_workflow(incomplete: str) -> list[str]:
    from ziggurat.doors.cli.completion import workflow_names

    return workflow_names(incomplete)


Config = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Settings file; ./ziggurat.toml if there is one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", autocompletion=_complete_run)]
RunIds = Annotated[list[str], typer.Argument(metavar="RUN", help="Ids of runs.", autocompletion=_complete_run)]
WorkflowRef = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:WORKFLOW",
        help="The workflow: module:name, path/to/file.py:name, or the name of one in \\[app] modules.",
        autocompletion=_complete_workflow,
    ),
]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="A label; may be repeated.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]


# -- running --------------------------------------------------------------------------------------------------------


def run_hosting(main: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine of a command that may run tasks; a sys.exit in one of them ends that task only."""
    from ziggurat.workers.process import run

    return run(main)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine of a command that looks or acts, on an event loop of its own."""
    return asyncio.run(main)


@contextlib.asynccontextmanager
async def client_of(config: Path | None, mode: Mode) -> AsyncIterator[Client]:
    """Open a client of the configured system; see `ziggurat.client.Client` for the modes."""
    from ziggurat.client import Client
    from ziggurat.settings import load_settings

    async with Client(load_settings(config), mode=mode) as client:
        yield client


# -- input ----------------------------------------------------------------------------------------------------------


def read_json(text: str, what: str) -> Any:
    """Return the value of JSON text, of the file that "@path" names, or of stdin for "-". Raises InvalidData."""
    source = what
    try:
        if text == "-":
            source, text = "The JSON on stdin", sys.stdin.read()
        elif text.startswith("@"):
            source = f"The JSON in {text[1:]}"
            text = Path(text[1:]).read_text(encoding="utf-8")
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidData(f"{source} is not valid at {place}: {error.msg[:1].lower()}{error.msg[1:]}.") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidData(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def read_tags(given: list[str] | None) -> dict[str, str]:
    """Return tags from KEY=VALUE texts. Raises ConfigurationError."""
    tags: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"The tag {text!r} must be written as KEY=VALUE.")
        tags[key] = value
    return tags


def read_moment(text: str, what: str) -> float:
    """Return a moment, in seconds since the epoch, from a date, a date and time, or how long ago ("2h"). Raises ConfigurationError."""
    import time

    from ziggurat.units import seconds

    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.astimezone()).timestamp()
    try:
        return time.time() - seconds(text)
    except ConfigurationError:
        raise ConfigurationError(
            f"The {what} {text!r} cannot be read; write how long ago ('2h', '3d') or when ('2026-05-01', '2026-05-01T12:00')."
        ) from None


# -- output ---------------------------------------------------------------------------------------------------------


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that writes plain text where there is no terminal."""
    from rich.console import Console

    # A table that nobody reads on a terminal must not be folded at 80 columns.
    wide = None if (sys.stderr if stderr else sys.stdout).isatty() or "COLUMNS" in os.environ else 200
    return Console(stderr=stderr, width=wide, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """Say something to people, beside the answer."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def answer(text: str) -> None:
    """Print the answer."""
    print(text, flush=True)  # noqa: T201


def answer_json(value: Any) -> None:
    """Print the answer as one JSON value on one line."""
    answer(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def iso(moment: float | None) -> str | None:
    """Return a moment as ISO 8601 in UTC, to the millisecond."""
    if not moment:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_object(run: Run, *, result: bool = True) -> dict[str, Any]:
    """Return a run in the shape that --json promises."""
    shown: dict[str, Any] = {"id": run.id, "workflow": run.workflow, "status": run.status}
    if result:
        shown["result"] = json.loads(bytes(run.result)) if run.result is not None else None
    error: dict[str, Any] | None = None
    if run.error is not None:
        error = {"type": run.error.type, "message": run.error.message}
        if run.error.step is not None:
            error["step"] = run.error.step
    elif run.status == "parked":
        error = {"type": "RunParked", "message": run.reason}
    shown["error"] = error
    shown["usage"] = {
        "input_tokens": run.usage.input_tokens,
        "output_tokens": run.usage.output_tokens,
        "cost_usd": run.usage.cost_usd,
    }
    shown["started_at"] = iso(run.started_at)
    shown["ended_at"] = iso(run.ended_at)
    return shown


# -- failing --------------------------------------------------------------------------------------------------------


def report(error: BaseException, *, as_json: bool) -> int:
    """Say in one line what went wrong, and return the exit code.

    An error of a person's making is one sentence. Anything else is a bug of ours: one line too, and the traceback goes to a file.
    """
    while isinstance(error, BaseExceptionGroup):  # Of work done side by side: what failed first ended the rest.
        error = error.exceptions[0]
    code, kind = 1, type(error).__name__
    if isinstance(error, ZigguratError):
        code, text = error.exit_code, str(error)
    elif hasattr(error, "format_message"):  # The command line itself is wrong; typer's class for it is private.
        code, kind, text = 2, "UsageError", _usage(error)
    elif isinstance(error, typer.Abort):
        text = "Nothing was done."
    elif isinstance(error, (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)) and error.filename:
        code, text = 2, f"{error.filename} cannot be used: {error.strerror}."
    elif isinstance(error, SystemExit):
        text = f"The program called sys.exit({error.code!r}) where none may: at import, or outside a task."
    else:
        text = f"Unexpected {kind}: {_shorten(str(error))} This is a bug; its traceback is in {_save_traceback(error)}."
    text = " ".join(text.split())
    say(f"error: {text}")
    if as_json:
        answer_json({"error": {"type": kind, "message": text, "exit_code": code}})
    return code


def _usage(error: Any) -> str:
    text = str(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}; see `{context.command_path if context is not None else 'ziggurat'} --help`."


def _shorten(text: str) -> str:
    text = " ".join(text.split())[:300]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _save_traceback(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="ziggurat-error-", suffix=".txt", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
            return file.name
    except OSError:
        return "no file, because none could be written"
