"""models: the aliases, where they are served, and whether they answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer_json, console, run_async, say
from ziggurat.errors import UnknownName, ZigguratError

if TYPE_CHECKING:
    from ziggurat.settings import Settings

app = typer.Typer(help="Aliases of models, and where they are served.", invoke_without_command=True)

#: Seconds that one route may take to answer the check.
_PATIENCE = 60.0


@app.callback()
def list_models(context: typer.Context, config: Config = None, as_json: AsJson = False) -> None:
    """List the aliases with their routes and endpoints."""
    if context.invoked_subcommand is not None:
        return
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    rows = [_describe(settings, alias, route) for alias, model in settings.inference.models.items() for route in model.routes]
    if as_json:
        answer_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Alias", "Endpoint", "Model", "Kind", "URL", "Key"):
        table.add_column(column, no_wrap=True)
    last = ""
    for row in rows:
        alias = row["alias"] if row["alias"] != last else ""
        last = row["alias"]
        table.add_row(alias, row["endpoint"], row["model"], row["kind"], row["base_url"], row["key"])
    console().print(table)


def _describe(settings: Settings, alias: str, route: str) -> dict[str, Any]:
    name, _, upstream = route.partition(":")
    endpoint = settings.inference.endpoints[name]
    key = ""
    if endpoint.api_key is not None:
        key = f"{endpoint.api_key.variable} ({'set' if endpoint.api_key.present() else 'not set'})"
    return {
        "alias": alias,
        "endpoint": name,
        "model": upstream,
        "kind": endpoint.kind,
        "base_url": endpoint.base_url,
        "key": key,
    }


@app.command()
def check(
    alias: Annotated[list[str] | None, typer.Argument(metavar="ALIAS", help="Which ones; all by default.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Ask every route for a few tokens, and say how long it took and what it cost. Exits with 3 if one does not answer."""
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    models = settings.inference.models
    for name in alias or ():
        if name not in models:
            raise UnknownName(f"There is no model {name!r}; the models are: {', '.join(models)}.")
    routes = list(dict.fromkeys(route for name in alias or models for route in models[name].routes))
    rows = run_async(_ask_all(settings, routes))
    if as_json:
        answer_json(rows)
    else:
        for row in rows:
            took = f"{row['seconds']:.2f} s, {row['tokens']} tokens" if row["ok"] else row["error"]
            say(f"{'ok  ' if row['ok'] else 'FAIL'} {row['route']}: {took}")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(3)


async def _ask_all(settings: Settings, routes: list[str]) -> list[dict[str, Any]]:
    from ziggurat.assembly import build_models
    from ziggurat.records import ChatMessage, Prompt

    rows: list[dict[str, Any]] = []
    for route in routes:
        # One router a route: its alias has no other route to fall back to.
        router = build_models(settings, aliases={"check": [route]})
        prompt = Prompt(
            messages=[ChatMessage(role="user", content="Say: ok")],
            model="check",
            max_tokens=8,
            temperature=0.0,
            timeout=_PATIENCE,
        )
        began = time.monotonic()
        row: dict[str, Any] = {"route": route, "ok": True, "seconds": 0.0, "tokens": 0, "cost_usd": 0.0, "error": None}
        try:
            completion = await router.complete(prompt)
            row["tokens"] = completion.usage.input_tokens + completion.usage.output_tokens
            row["cost_usd"] = completion.usage.cost_usd
        except ZigguratError as error:
            row.update(ok=False, error=" ".join(str(error).split()))
        finally:
            await router.close()
        row["seconds"] = round(time.monotonic() - began, 3)
        rows.append(row)
    return rows
