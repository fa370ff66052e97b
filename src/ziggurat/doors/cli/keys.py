"""gateway keys: the virtual keys that the gateway's clients send."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer, answer_json, console, iso, say
from ziggurat.errors import ConfigurationError
from ziggurat.units import dollars, human_dollars

if TYPE_CHECKING:
    from ziggurat.doors.gateway.keyring import StoredKey
    from ziggurat.settings import Settings

app = typer.Typer(help="Virtual keys: who may call which models, how often, and for how much.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called in lists and bills.")]


@app.command()
def create(
    name: Name,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="ALIAS", help="An alias that it may call; again for more; all by default."),
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="DOLLARS", help="What it may spend in a period, such as '$5'.")] = None,
    period: Annotated[str, typer.Option(metavar="PERIOD", help="What the budget is for: day or total.")] = "day",
    rpm: Annotated[int | None, typer.Option(min=1, help="Calls that it may start in a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help="Input and output tokens in a minute.")] = None,
    priority: Annotated[
        int, typer.Option(min=1, max=5, help="Whose calls go first where limits make calls wait: 1 before 5.")
    ] = 3,
    namespace: Annotated[str, typer.Option(help="The tenant that its calls belong to; else the request may name one.")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from ziggurat.doors.gateway.callers import Caller
    from ziggurat.doors.gateway.keyring import create_key
    from ziggurat.settings import load_settings
    from ziggurat.settings.gateway import PERIODS

    settings = load_settings(config)
    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise ConfigurationError("A key's name is printable text of 1 to 100 characters.")
    if name in settings.gateway.keys:
        raise ConfigurationError(f"There is a key {name!r} in the settings, under [gateway.keys]; choose another name.")
    if period not in PERIODS:
        raise ConfigurationError(f"The period {period!r} is not known; it is one of: {', '.join(PERIODS)}.")
    for alias in model or ():
        if alias not in settings.inference.models:
            known = ", ".join(settings.inference.models)
            raise ConfigurationError(f"There is no model {alias!r}; the aliases are: {known}.")
    caller = Caller(
        name=name,
        models=frozenset(model or ()),
        budget=None if budget is None else dollars(budget, what="budget"),
        period=period,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        priority=priority,
        namespace=namespace,
    )
    key = create_key(settings.resolve(settings.gateway.path), caller, time.time())
    if as_json:
        answer_json({"name": name, "key": key})
        return
    answer(key)
    say("This is the only time that it is shown; keep it where secrets are kept.")


@app.command("list")
def list_keys(config: Config = None, as_json: AsJson = False) -> None:
    """List the keys with what they may do and have spent; revoked ones too."""
    from ziggurat.doors.gateway.keyring import StoredKey, caller_of, stored_keys
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    keys = [StoredKey(caller=caller_of(name, key), source="ziggurat.toml") for name, key in settings.gateway.keys.items()]
    keys += stored_keys(settings.resolve(settings.gateway.path))
    spent = _spent(settings)
    rows = [_object(key, spent) for key in keys]
    if as_json:
        answer_json(rows)
        return
    if not rows:
        say("There are no keys. Make one with `ziggurat gateway keys create NAME`.")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Name", "Models", "Budget", "Spent today", "In all", "Limits", "Tenant", "Made", "State"):
        table.add_column(column, overflow="fold")
    for row in rows:
        budget = "" if row["budget_usd"] is None else f"{human_dollars(row['budget_usd'])} {row['period']}"
        limits = ", ".join(f"{row[key]:,} {key}" for key in ("rpm", "tpm") if row[key])
        state = "revoked" if row["revoked_at"] else "in use"
        cells = (row["name"], ", ".join(row["models"]) or "all", budget, human_dollars(row["spent_today_usd"]))
        more = (human_dollars(row["spent_usd"]), limits, row["namespace"], row["created_at"] or row["source"], state)
        table.add_row(*map(Text, (*cells, *more)))
    console().print(table)


@app.command()
def revoke(name: Name, config: Config = None) -> None:
    """Make a key useless; gateways that run notice within about a second."""
    from ziggurat.doors.gateway.keyring import revoke_key
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    if name in settings.gateway.keys:
        raise ConfigurationError(f"The key {name!r} is written in the settings; take [gateway.keys.{name}] out and restart.")
    revoke_key(settings.resolve(settings.gateway.path), name, time.time())
    say(f"The key {name!r} is revoked.")


def _spent(settings: Settings) -> dict[tuple[str, str], float]:
    """Return what keys have spent, by key and day."""
    from ziggurat.inference.ledger import costs

    rows = costs([settings.ledger_path], ("key", "day"))
    return {(row.group[0], row.group[1]): row.cost_usd + row.held_usd for row in rows}


def _object(key: StoredKey, spent: dict[tuple[str, str], float]) -> dict[str, Any]:
    from ziggurat.inference.ledger import day_of

    caller = key.caller
    return {
        "name": caller.name,
        "models": sorted(caller.models),
        "budget_usd": caller.budget,
        "period": caller.period,
        "spent_today_usd": spent.get((caller.name, day_of(time.time())), 0.0),
        "spent_usd": sum(usd for (name, _), usd in spent.items() if name == caller.name),
        "rpm": caller.requests_per_minute,
        "tpm": caller.tokens_per_minute,
        "namespace": caller.namespace,
        "source": key.source,
        "created_at": iso(key.created_at) if key.created_at is not None else None,
        "revoked_at": iso(key.revoked_at) if key.revoked_at is not None else None,
    }
