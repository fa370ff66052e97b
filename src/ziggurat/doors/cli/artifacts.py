"""artifacts: save files to the store of the system, and get files from it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer, answer_json, say
from ziggurat.errors import ConfigurationError, UnknownName

if TYPE_CHECKING:
    from ziggurat.artifacts import Library

app = typer.Typer(help="Save files to the artifact store, and get files from it.", no_args_is_help=True)


def _library(config: Path | None) -> Library:
    from ziggurat.assembly import build_library
    from ziggurat.settings import load_settings

    return build_library(load_settings(config))


@app.command()
def save(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files to save.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Save files, and print each as an artifact: the JSON that an input takes.

    What no run refers to within the grace period of the settings is deleted again.
    """
    from ziggurat.artifacts import Artifact, use_library

    library = _library(config)
    use_library(library)
    try:
        saved = [dataclasses.asdict(Artifact.save_now(path)) for path in files]
    finally:
        use_library(None)
        library.close()
    if as_json:
        answer_json(saved)
    else:
        for artifact in saved:
            answer_json(artifact)


@app.command()
def get(
    key: Annotated[str, typer.Argument(metavar="KEY", help='The artifact\'s key, as in "key" of a result.')],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; - is stdout.")] = None,
    config: Config = None,
) -> None:
    """Get an artifact's content."""
    from ziggurat.artifacts import is_key

    if not is_key(key):
        raise UnknownName(f"{key!r} is not the key of an artifact; keys begin with zga_ or zge_ and are in the results of runs.")
    target = output if output is not None else Path(key)
    library = _library(config)
    try:
        chunks = library.chunks(key, "")
        if str(target) == "-":
            for chunk in chunks:
                sys.stdout.buffer.write(chunk)
            return
        if target.is_dir():
            raise ConfigurationError(f"{target} is a folder; name a file with --output.")
        beside = target.with_name(f".{target.name}.part")
        try:
            with beside.open("wb") as file:
                size = sum(file.write(chunk) for chunk in chunks)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    finally:
        library.close()
    say(f"{size:,} bytes")
    answer(str(target))
