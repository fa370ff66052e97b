"""The list of `ziggurat models`: aliases, where they are served, what that costs, and how replicas are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ziggurat.doors.cli.common import console, say
from ziggurat.units import human_dollars

if TYPE_CHECKING:
    from ziggurat.assembly.route_look import RouteStanding


def as_json(standing: RouteStanding) -> dict[str, Any]:
    """Return the fields that machines read of a route."""
    paid = standing.per_million
    return {
        "region": standing.region,
        "quality": standing.quality or None,
        "input_usd_per_million": paid[0] if paid is not None else None,
        "output_usd_per_million": paid[1] if paid is not None else None,
        "usd_per_hour": standing.per_hour,
        "price_version": standing.price_version,
        "replicas": [
            {
                "url": replica.url,
                "health": replica.health,
                "running": replica.running,
                "waiting": replica.waiting,
                "trouble": replica.trouble,
            }
            for replica in standing.replicas
        ],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the list for people; columns that nobody filled are left out."""
    from rich.table import Table

    columns = ["Alias", "Endpoint", "Model", "Share", "Kind", "Price", "Region", "Quality", "URL", "Key"]
    empty = {
        name for name, key in (("Share", "share"), ("Region", "region"), ("Quality", "quality")) if not any(r[key] for r in rows)
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        if column not in empty:
            table.add_column(column, no_wrap=True)
    last = ""
    for row in rows:
        alias = f"{row['alias']}{' (switched)' if row['switched'] else ''}" if row["alias"] != last else ""
        last = row["alias"]
        replicas = row["replicas"]
        well = sum(replica["health"] == "well" for replica in replicas)
        cells = {
            "Alias": alias,
            "Endpoint": row["endpoint"],
            "Model": row["model"],
            "Share": row["share"],
            "Kind": row["kind"],
            "Price": _price(row),
            "Region": row["region"],
            "Quality": str(row["quality"] or ""),
            "URL": f"{len(replicas)} replicas, {well} well" if replicas else row["base_url"],
            "Key": row["key"],
        }
        table.add_row(*(cells[column] for column in columns if column not in empty))
        for replica in replicas:
            cells = dict.fromkeys(columns, "") | {"URL": f"  {replica['health']:<8}{replica['url']}{_load(replica)}"}
            table.add_row(*(cells[column] for column in columns if column not in empty))
    console().print(table)
    for replica in {replica["url"]: replica for row in rows for replica in row["replicas"]}.values():
        if replica["trouble"]:
            say(f"{replica['url']} is ill: {replica['trouble']}")


def _price(row: dict[str, Any]) -> str:
    """Return what a route costs in a few letters: for a million tokens of input and of output, or for an hour."""
    if row["usd_per_hour"] and row["price_version"] == "hourly":
        return f"{human_dollars(row['usd_per_hour'])}/h"
    if row["input_usd_per_million"] is None:
        return "unknown"
    if not row["input_usd_per_million"] and not row["output_usd_per_million"]:
        return "free"
    return f"{human_dollars(row['input_usd_per_million'])}/{human_dollars(row['output_usd_per_million'])} per M"


def _load(replica: dict[str, Any]) -> str:
    if replica["running"] is None:
        return ""
    return f" ({replica['running']} running, {replica['waiting'] or 0} waiting)"
