"""queues and workers: what waits, what runs, and who is alive to run it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer_json, client_of, console, iso, run_async, say
from ziggurat.units import human_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from ziggurat.client import Client
    from ziggurat.records import Depth, Presence

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")]
Interval = Annotated[float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="Seconds between two looks of --watch.")]

#: What a look finds: JSON for machines, a table for people, and a sentence in its place when there is nothing to show.
Look = Callable[["Client"], Awaitable[tuple[list[dict[str, Any]], "RenderableType", str]]]


def queues(watch: Watch = False, interval: Interval = 1.0, config: Config = None, as_json: AsJson = False) -> None:
    """Show what each queue holds: ready, leased to workers, delayed, dead, and how long the oldest has waited."""

    async def look(client: Client) -> tuple[list[dict[str, Any]], RenderableType, str]:
        depths, there = await client.queues(), await client.workers()
        rows = [queue_object(name, depths[name], there) for name in sorted(depths)]
        return rows, queues_table(rows, knows_workers=bool(there)), _nothing_waits(client)

    run_async(_show(look, config, watch, interval, as_json))


def workers(watch: Watch = False, interval: Interval = 1.0, config: Config = None, as_json: AsJson = False) -> None:
    """Show the workers that are alive: what they serve, what they run, and why one takes no work."""

    async def look(client: Client) -> tuple[list[dict[str, Any]], RenderableType, str]:
        there = await client.workers()
        return [worker_object(one) for one in there], workers_table(there, time.time()), _nobody_works(client)

    run_async(_show(look, config, watch, interval, as_json))


async def _show(look: Look, config: Path | None, watch: bool, interval: float, as_json: bool) -> None:
    async with client_of(config, "observe") as client:
        screen = console()
        if not watch:
            rows, table, nothing = await look(client)
            if as_json:
                answer_json(rows)
            elif rows:
                screen.print(table)
            else:
                say(nothing)
            return
        if as_json or not screen.is_terminal:
            # One line a look for machines, one table a look for a file.
            while True:
                rows, table, nothing = await look(client)
                if as_json:
                    answer_json(rows)
                else:
                    screen.print(table if rows else nothing)
                await asyncio.sleep(interval)
        from rich.live import Live
        from rich.text import Text

        with Live(console=screen, auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                rows, table, nothing = await look(client)
                live.update(table if rows else Text(nothing), refresh=True)
                await asyncio.sleep(interval)


def queue_object(name: str, depth: Depth, workers: list[Presence]) -> dict[str, Any]:
    """Return a queue in the shape that --json promises."""
    return {
        "queue": name,
        "ready": depth.ready,
        "leased": depth.leased,
        "delayed": depth.delayed,
        "dead": depth.dead,
        "oldest_age_seconds": round(depth.oldest_age, 3),
        "workers": sum(name in worker.queues and not worker.draining for worker in workers),
    }


def worker_object(worker: Presence) -> dict[str, Any]:
    """Return a worker in the shape that --json promises."""
    return {
        "worker": worker.worker,
        "pool": worker.pool,
        "host": worker.host,
        "pid": worker.pid,
        "state": _state(worker),
        "queues": list(worker.queues),
        "region": worker.region,
        "busy": worker.busy,
        "slots": worker.slots,
        "running": worker.running,
        "ended": worker.ended,
        "ended_in": worker.ended_in,
        "trouble": worker.trouble,
        "metrics": worker.metrics,
        "started_at": iso(worker.started_at),
        "seen_at": iso(worker.seen_at),
    }


def queues_table(rows: list[dict[str, Any]], *, knows_workers: bool) -> RenderableType:
    """Return queues as a table; one that has work and nobody to do it says so."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Queue", "Ready", "Leased", "Delayed", "Dead", "Oldest", "Workers"):
        table.add_column(column, justify="left" if column == "Queue" else "right", no_wrap=True)
    for row in rows:
        unserved = knows_workers and not row["workers"]
        table.add_row(
            Text(row["queue"]),
            *(
                Text(f"{row[key]:,}" if row[key] else "·", style="" if row[key] else "dim")
                for key in ("ready", "leased", "delayed")
            ),
            Text(f"{row['dead']:,}" if row["dead"] else "·", style="red" if row["dead"] else "dim"),
            human_seconds(row["oldest_age_seconds"]) if row["ready"] else "",
            Text("none", style="red" if row["ready"] else "dim") if unserved else str(row["workers"] or ""),
        )
    return table


def workers_table(workers: list[Presence], now: float) -> RenderableType:
    """Return workers as a table."""
    from rich.table import Table
    from rich.text import Text

    styles = {"busy": "blue", "idle": "green", "draining": "yellow", "stuck": "red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Worker", "Pool", "State", "Busy", "Ended", "Up", "Queues", "Running"):
        table.add_column(
            column,
            justify="right" if column in ("Busy", "Ended", "Up") else "left",
            no_wrap=column not in ("Queues", "Running"),
            overflow="fold",
        )
    for worker in workers:
        state = _state(worker)
        running = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in worker.running.items())
        place = f" in {worker.region}" if worker.region else ""
        table.add_row(
            Text(worker.worker),
            Text(worker.pool),
            Text(state, style=styles[state]),
            f"{worker.busy}/{worker.slots}",
            f"{worker.ended:,}",
            human_seconds(max(0.0, now - worker.started_at)),
            Text(", ".join(worker.queues) + place),
            Text(worker.trouble or running, style="red" if worker.trouble else "dim"),
        )
    return table


def _state(worker: Presence) -> str:
    if worker.draining:
        return "draining"
    if worker.trouble:
        return "stuck"
    return "busy" if worker.busy else "idle"


def _nothing_waits(client: Client) -> str:
    if _local(client):
        return (
            "The queue lives in the process that runs the system, and none does; start it with `ziggurat serve` or `ziggurat up`."
        )
    return "No queue has held anything yet."


def _nobody_works(client: Client) -> str:
    from ziggurat.assembly import shows_workers

    if not shows_workers(client.settings):
        backend = client.settings.queue.backend
        return f'A queue of the kind "{backend}" cannot tell who works on it; ask the workers themselves, with --health-port.'
    return "No worker is alive. Start some with `ziggurat up`, `ziggurat serve` or `ziggurat worker`."


def _local(client: Client) -> bool:
    from ziggurat.assembly import LOCAL_QUEUES

    return client.settings.queue.backend in LOCAL_QUEUES and not client.attachment.remote
