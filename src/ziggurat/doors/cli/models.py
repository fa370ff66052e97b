"""models: the aliases, where they are served, and whether they answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer, answer_json, iso, run_async, say
from ziggurat.errors import InvalidData, UnknownName, ZigguratError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ziggurat.inference.switches import Book, Switch
    from ziggurat.settings import Settings

app = typer.Typer(help="Aliases of models, and where they are served.", invoke_without_command=True)

#: Seconds that one route may take to answer the check.
_PATIENCE = 60.0


@app.callback()
def list_models(context: typer.Context, config: Config = None, as_json: AsJson = False) -> None:
    """List the aliases with their routes: endpoints, prices, regions, qualities, and how replicas are."""
    if context.invoked_subcommand is not None:
        return
    from ziggurat.assembly.route_look import look_at_routes
    from ziggurat.doors.cli.model_list import as_json as describe
    from ziggurat.doors.cli.model_list import show
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    standing = _book(settings).standing()
    aliases = {alias: list(model.routes) for alias, model in settings.inference.models.items()}
    aliases |= {alias: list(switch.routes) for alias, switch in standing.items()}
    rows = [
        {**_describe(settings, alias, route), "share": _share(standing.get(alias), index), "switched": alias in standing}
        for alias, routes in aliases.items()
        for index, route in enumerate(routes)
    ]
    rows += [
        {**_describe(settings, alias, switch.shadow), "share": "shadow", "switched": True}
        for alias, switch in standing.items()
        if switch.shadow
    ]
    standings = run_async(look_at_routes(settings, [(row["alias"], f"{row['endpoint']}:{row['model']}") for row in rows]))
    rows = [{**row, **describe(standing)} for row, standing in zip(rows, standings, strict=True)]
    if as_json:
        answer_json(rows)
    else:
        show(rows)


def _share(switch: Switch | None, index: int) -> str:
    """Return the share of calls that begin with a route, "" where they all begin with the first."""
    return f"{switch.weights[index]:.0%}" if switch is not None and index < len(switch.weights) else ""


def _book(settings: Settings) -> Book:
    from ziggurat.assembly import build_switches

    store = build_switches(settings)
    try:
        return store.read()
    finally:
        store.close()


def _change(settings: Settings, change: Callable[[Book], Book]) -> Book:
    from ziggurat.assembly import build_switches

    store = build_switches(settings)
    try:
        return store.change(change)
    finally:
        store.close()


def _somebody() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # A container without a user of that number.
        return "someone"


@app.command("set")
def set_model(
    what: Annotated[
        str, typer.Argument(metavar="ALIAS=ROUTE", help="fast=gmi:MODEL, fast=FIRST,SECOND or fast=90%:FIRST,10%:SECOND.")
    ],
    shadow: Annotated[
        str, typer.Option(metavar="ROUTE", help="Send a copy of each call there, whose answer nobody waits for.")
    ] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias elsewhere, now: workers and gateways follow within seconds, without a restart."""
    from ziggurat.inference.switches import check_routes, parse_switch
    from ziggurat.settings import load_settings
    from ziggurat.settings.demands import unserved

    settings = load_settings(config)
    alias, equals, routes = what.partition("=")
    if not equals or not alias:
        raise InvalidData(f"{what!r} cannot be read; write ALIAS=ROUTE, such as fast=gmi:deepseek-ai/DeepSeek-V4-Pro.")
    switch = parse_switch(routes, shadow)
    check_routes([*switch.routes, *([shadow] if shadow else [])], settings.inference.endpoints)
    if said := unserved(alias, settings.inference.models.get(alias), switch.routes, settings.inference.endpoints):
        raise InvalidData(said)
    book = _change(settings, lambda book: book.switched(alias, switch, at=time.time(), by=_somebody()))
    _tell(alias, book, as_json)


@app.command()
def rollback(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Which one.")], config: Config = None, as_json: AsJson = False
) -> None:
    """Take the last switch of an alias back; past the first one it is what the settings say."""
    from ziggurat.settings import load_settings

    book = _change(load_settings(config), lambda book: book.rolled_back(alias, at=time.time(), by=_somebody()))
    _tell(alias, book, as_json)


@app.command()
def history(
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Which one.")], config: Config = None, as_json: AsJson = False
) -> None:
    """List the switches of an alias, the newest first: what, when, by whom."""
    from ziggurat.settings import load_settings

    past = _book(load_settings(config)).aliases.get(alias, [])[::-1]
    if as_json:
        answer_json([_switch(alias, one) for one in past])
    elif not past:
        say(f"The model {alias!r} was never switched; it is what the settings say.")
    for one in () if as_json else past:
        answer(f"{one.version}  {iso(one.at)}  {one.by or '-'}  {_written(one)}")


def _tell(alias: str, book: Book, as_json: bool) -> None:
    switch = book.standing().get(alias)
    if as_json:
        answer_json(_switch(alias, switch) if switch is not None else {"alias": alias, "routes": None, "version": book.version})
    else:
        answer(f"{alias}: {_written(switch) if switch is not None else 'what the settings say'}")


def _switch(alias: str, switch: Switch) -> dict[str, Any]:
    return {
        "alias": alias,
        "routes": switch.routes,
        "weights": switch.weights,
        "shadow": switch.shadow,
        "version": switch.version,
        "at": iso(switch.at),
        "by": switch.by,
    }


def _written(switch: Switch) -> str:
    shares = [f"{weight:.0%}:" for weight in switch.weights] or [""] * len(switch.routes)
    routes = ", ".join(f"{share}{route}" for share, route in zip(shares, switch.routes, strict=True))
    return f"{routes}{f', shadowed by {switch.shadow}' if switch.shadow else ''}"


def _describe(settings: Settings, alias: str, route: str) -> dict[str, Any]:
    from ziggurat.settings import EndpointSettings

    name, _, upstream = route.partition(":")
    endpoint = settings.inference.endpoints.get(name) or EndpointSettings(kind="openai")
    key = ""
    if name not in settings.inference.endpoints:
        key = "no such endpoint here"
    elif endpoint.api_key is not None:
        key = f"{endpoint.api_key.variable} ({'set' if endpoint.api_key.present() else 'not set'})"
    return {
        "alias": alias,
        "endpoint": name,
        "model": upstream,
        "kind": endpoint.kind,
        "base_url": endpoint.base_url or ", ".join(endpoint.urls),
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
