"""keys: API keys of the HTTP API, in the control file of this folder's system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer, answer_json, console, iso, say

if TYPE_CHECKING:
    from pathlib import Path

    from ziggurat.doors.api.keys import Key, Keyring

app = typer.Typer(help="API keys: who may call the HTTP API, and what they may do.", invoke_without_command=True)

_NAME = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]


def _keyring(config: Path | None) -> Keyring:
    from ziggurat.clock import SystemClock
    from ziggurat.doors.api.control_file import ControlFile
    from ziggurat.doors.api.keys import Keyring
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    return Keyring(ControlFile(settings.resolve(settings.server.path)), SystemClock())


@app.callback()
def list_keys(context: typer.Context, config: Config = None, as_json: AsJson = False) -> None:
    """List the keys, without their text, which is shown only when one is made."""
    if context.invoked_subcommand is not None:
        return
    keys = _keyring(config).every_key()
    if as_json:
        answer_json([_object(key) for key in keys])
        return
    if not keys:
        say("There are no API keys. Make one with: ziggurat keys create NAME --role operator")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Name", "Id", "Role", "Namespace", "Made", "Used", "Ends", "State"):
        table.add_column(column, no_wrap=True)
    for key in keys:
        shown = _object(key)
        ends, state = shown["expires_at"] or "never", "revoked" if key.revoked_at else ""
        row = (key.name, key.id, key.role, key.namespace, shown["created_at"] or "", shown["used_at"] or "never", ends, state)
        table.add_row(*map(Text, row))
    console().print(table)


@app.command()
def create(
    name: _NAME,
    role: Annotated[
        str, typer.Option("--role", help="viewer looks, operator starts runs and acts on them, admin does all.")
    ] = "viewer",
    namespace: Annotated[str, typer.Option("--namespace", help="The tenant that it belongs to; * for all of them.")] = "*",
    expires: Annotated[str, typer.Option("--expires", metavar="DURATION", help="After how long it ends, such as 90d.")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only a hash of it is kept."""
    from ziggurat.units import seconds

    lifetime = seconds(expires, what="--expires") if expires else None
    key, text = _keyring(config).create(name, role, namespace, lifetime)
    if as_json:
        answer_json({**_object(key), "key": text})
    else:
        say(f"The key {name!r} ({role}, namespace {namespace}) is shown this once:")
        answer(text)


@app.command()
def revoke(name: _NAME, config: Config = None, as_json: AsJson = False) -> None:
    """Revoke a key, by name or id, and end its logins; a server that runs knows at once."""
    key = _keyring(config).revoke(name)
    if as_json:
        answer_json(_object(key))
    else:
        answer(f"{key.name} revoked")


def _object(key: Key) -> dict[str, Any]:
    times = {name: iso(getattr(key, name)) for name in ("created_at", "expires_at", "revoked_at", "used_at")}
    return {"id": key.id, "name": key.name, "role": key.role, "namespace": key.namespace, **times}
