"""How `ziggurat up` looks: the live view on a terminal, and one line for each change where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ziggurat.doors.cli.uplook import PoolLook, QueueLook, UpLook
from ziggurat.doors.cli.view import STATUS_STYLES
from ziggurat.records import ENDED, Run
from ziggurat.units import human_dollars, human_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

#: Columns from which on a part is shown; narrower terminals do without it.
WIDE, MIDDLE = 100, 70
#: Rows that are not runs, queues and pools: heads, rates and blank lines.
FRAME_ROWS = 10
RUNS_LEAST, RUNS_MOST = 3, 10
QUEUES_MOST = 12
#: Cells of the bar that shows how full a pool's workers are.
BAR = 12
#: What bounds a pool that would be larger with more of it.
SCARCE = frozenset({"maximum", "quota", "budget", "limits"})
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ORDER = ("running", "pending", "waiting", "paused", "parked", "completed", "failed", "cancelled")


def draw(look: UpLook, width: int, height: int) -> RenderableType:
    """Return the view for a terminal of this size."""
    from rich.console import Group
    from rich.text import Text

    queues = _busiest(look.queues)
    rows = height - FRAME_ROWS - len(queues) - len(look.pools)
    parts: list[RenderableType] = [_head(look, width)]
    if look.draining:
        parts.append(Text(_draining(look), style="yellow"))
    parts += [Text(), _runs_line(look)]
    if look.newest:
        parts.append(_runs(look.newest, max(RUNS_LEAST, min(RUNS_MOST, rows)), width))
    if queues:
        parts += [Text(), _queues(queues, width)]
    if look.pools:
        parts += [Text(), _pools(look, width)]
    parts += [Text(), _foot(look)]
    if look.trouble:
        parts.append(Text(look.trouble, style="red"))
    return Group(*parts)


def _head(look: UpLook, width: int) -> Text:
    from rich.text import Text

    head = Text.assemble(("ziggurat", "bold"), "  ", (human_seconds(look.up) if look.up >= 1 else "starting", ""))
    facts = look.facts if width >= MIDDLE else {key: value for key, value in look.facts.items() if key == "api"}
    for name, value in facts.items():
        head.append(f"  {name} ", style="dim")
        head.append(value, style="cyan" if name == "api" else "")
    head.truncate(width, overflow="ellipsis")
    return head


def _draining(look: UpLook) -> str:
    working = sum(pool.size for pool in look.pools)
    if not working:
        return "Stopping."
    tasks = _count(sum(pool.running for pool in look.pools), "running task")
    left = f", {human_seconds(look.grace_left)} at most" if look.grace_left is not None else ""
    return f"Draining: {_count(working, 'worker')} with {tasks}{left}. Ctrl-C again hands them back to the queue at once."


def _runs_line(look: UpLook) -> Text:
    from rich.text import Text

    line = Text("Runs", style="bold")
    shown = [(status, look.runs[status]) for status in _ORDER if look.runs.get(status)]
    for status, number in shown:
        line.append("   ")
        line.append(f"{number:,} ", style="not bold")
        line.append(status, style=f"not bold {STATUS_STYLES.get(status, 'dim')}")
    if not shown:
        line.append("   none yet; start one with ", style="not bold dim")
        line.append("ziggurat run MODULE:WORKFLOW", style="not bold")
    return line


def _runs(runs: tuple[Run, ...], rows: int, width: int) -> Table:
    table = _grid(
        *(["left"] * 3 + ["right"] * 2 + ["left"] if width >= MIDDLE else ["left", "left", "right"]), ratio=width >= MIDDLE
    )
    from rich.text import Text

    # Some that ended are shown too, or a busy system would never show a failure.
    open_ = [run for run in runs if run.status not in ENDED]
    ended = [run for run in runs if run.status in ENDED]
    kept = open_[: max(rows - min(len(ended), 3), 0)]
    now = time.time()
    for run in [*kept, *ended[: rows - len(kept)]]:
        took = human_seconds(max(0.0, (run.ended_at or now) - (run.started_at or run.created_at)))
        status = Text(run.status, style=STATUS_STYLES.get(run.status, "dim"))
        if width < MIDDLE:
            table.add_row(Text(f"  {run.id}"), status, took)
            continue
        note = f"{run.error.type}: {run.error.message}" if run.error is not None else run.reason
        table.add_row(
            Text(f"  {run.id}"),
            Text(run.workflow, style="dim"),
            status,
            took,
            human_dollars(run.usage.cost_usd) if run.usage.calls else "",
            Text(" ".join(note.split()), style="dim"),
        )
    return table


def _queues(queues: list[QueueLook], width: int) -> Table:
    from rich.text import Text

    names = (
        ["Queues", "ready", "leased", "delayed", "dead", "oldest"] if width >= MIDDLE else ["Queues", "ready", "leased", "dead"]
    )
    curves = width >= WIDE
    table = _grid("left", *["right"] * (len(names) - 1), *(["right"] if curves else []))
    table.add_row(Text(names[0], style="bold"), *(Text(name, style="dim") for name in names[1:]), *([""] if curves else []))
    for queue in queues:
        depth = queue.depth
        cells = {
            "ready": _number(depth.ready),
            "leased": _number(depth.leased, "blue"),
            "delayed": _number(depth.delayed),
            "dead": _number(depth.dead, "red"),
            "oldest": Text(human_seconds(depth.oldest_age) if depth.ready else ""),
        }
        curve = [Text(sparkline(queue.curve), style="cyan")] if curves else []
        table.add_row(Text(f"  {queue.queue}"), *(cells[name] for name in names[1:]), *curve)
    return table


def _pools(look: UpLook, width: int) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    pools, middle = look.pools, width >= MIDDLE
    names = ["Pools", "workers", "busy", "wanted", *(["tasks", "each takes", "bound by"] if middle else [])]
    table = _grid("left", *(["right"] * (5 if middle else 3)), *(["left"] if middle else []))
    table.add_row(Text(names[0], style="bold"), *(Text(name, style="dim") for name in names[1:]))
    notes: list[RenderableType] = []
    digits = max((len(f"{pool.running}/{pool.slots}") for pool in pools), default=0)
    for pool in pools:
        row: list[RenderableType] = [
            Text(f"  {pool.pool}"),
            Text(workers_of(pool)),
            _number(pool.busy, "blue"),
            Text(f"{pool.wanted} ({pool.min}–{pool.max})"),
        ]
        if middle:
            row += [
                _slots(pool, bar=width >= WIDE, digits=digits),
                Text(human_seconds(pool.attempt_seconds) if pool.attempt_seconds is not None else "·"),
                Text("" if look.draining else pool.constraint, style="yellow" if pool.constraint in SCARCE else "dim"),
            ]
        table.add_row(*row)
        note = pool.trouble or ("" if look.draining else pool.explanation)
        if not note:
            continue
        prefix = f"{pool.pool}: " if len(pools) > 1 else ""
        notes.append(Padding(Text(prefix + note, style="red" if pool.trouble else "dim"), (0, 0, 0, 2)))
    return Group(table, *notes)


def _slots(pool: PoolLook, *, bar: bool, digits: int) -> Text:
    from rich.text import Text

    if not pool.slots:
        return Text("·", style="dim")
    text = Text(f"{pool.running}/{pool.slots}".rjust(digits))
    if bar:
        full = round(BAR * pool.running / pool.slots)
        text = Text.assemble(("━" * full, "blue"), ("━" * (BAR - full), "bright_black"), " ", text)
    return text


def workers_of(pool: PoolLook) -> str:
    """Return how many workers there are, and what those do that are not just ready."""
    parts = [f"{number} {word}" for number, word in ((pool.starting, "starting"), (pool.draining, "draining")) if number]
    return f"{pool.size} ({', '.join(parts)})" if parts else str(pool.size)


def _foot(look: UpLook) -> Text:
    from rich.text import Text

    workers = sum(pool.cost_per_hour for pool in look.pools)
    foot = Text.assemble(
        ("Rates", "bold"),
        f"  {look.steps_per_second:,.1f} steps/s  {look.tasks_per_second:,.1f} tasks/s",
        ("   Cost", "bold"),
        f"  {human_dollars(round(look.cost_usd, 6))} so far",
    )
    if look.cost_per_hour:
        foot.append(f"  {human_dollars(round(look.cost_per_hour, 4))}/h models")
    if workers:
        foot.append(f"  {human_dollars(workers)}/h workers")
    return foot


def sparkline(values: Iterable[int]) -> str:
    """Return values as a row of blocks, the largest full; nothing if there is only nothing."""
    values = list(values)
    top = max(values, default=0)
    if not top:
        return ""
    return "".join(_BLOCKS[-(-value * 8 // top)] for value in values)


def line_of(look: UpLook) -> str:
    """Return a look as one line of plain text, for logs and pipes."""
    runs = ", ".join(f"{look.runs[status]} {status}" for status in _ORDER if look.runs.get(status)) or "none"
    queues = ", ".join(
        f"{queue.queue} {queue.depth.ready} ready {queue.depth.leased} leased"
        + (f" {queue.depth.dead} dead" if queue.depth.dead else "")
        for queue in look.queues
        if queue.depth.ready or queue.depth.leased or queue.depth.dead
    )
    pools = ", ".join(f"{pool.pool} {workers_of(pool)} of {pool.wanted} wanted, {pool.running} tasks" for pool in look.pools)
    parts = [f"runs: {runs}", f"queues: {queues or 'empty'}", f"pools: {pools}" if pools else ""]
    parts.append(f"{look.steps_per_second:.1f} steps/s, {human_dollars(round(look.cost_usd, 6))}")
    if look.draining:
        parts.insert(0, "draining")
    return "; ".join(part for part in parts if part) + (f"; {look.trouble}" if look.trouble else "")


def what_changed(look: UpLook) -> object:
    """Return what a plain line is worth writing for: two looks with the same say the same but for time and rates."""
    return (
        look.runs,
        [(queue.queue, queue.depth.ready, queue.depth.leased, queue.depth.delayed, queue.depth.dead) for queue in look.queues],
        [
            (pool.starting, pool.ready, pool.draining, pool.running, pool.wanted, pool.constraint, pool.trouble)
            for pool in look.pools
        ],
        look.draining,
        look.trouble,
    )


def _busiest(queues: tuple[QueueLook, ...]) -> list[QueueLook]:
    """Return the queues that fit, those with the most to do first where they do not all."""
    if len(queues) <= QUEUES_MOST:
        return list(queues)
    kept = sorted(queues, key=lambda queue: -(queue.depth.ready + queue.depth.leased))[:QUEUES_MOST]
    return sorted(kept, key=lambda queue: queue.queue)


def _grid(*justify: str, ratio: bool = False) -> Table:
    """Return a table without lines; with `ratio` its last column takes the rest of the line and is cut there."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2), expand=ratio)
    for number, side in enumerate(justify):
        last = ratio and number == len(justify) - 1
        table.add_column(justify=side, no_wrap=True, overflow="ellipsis", ratio=1 if last else None)  # type: ignore[arg-type]
    return table


def _number(value: int, style: str = "") -> Text:
    from rich.text import Text

    return Text(f"{value:,}", style=style) if value else Text("·", style="dim")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
