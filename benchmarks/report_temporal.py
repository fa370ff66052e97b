"""The results of the Temporal benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import median


def render(data: dict[str, Any], machine: str, table: Callable[[list[str], list[list[str]]], str]) -> str:
    """Return tasks per second of each side, and what a task costs beside the plain SDK."""
    sides = data["sides"]
    base = {kind: median(rows, "ms_per_task") for kind, rows in sides.get("plain SDK", {}).items()}
    rows = []
    for side, kinds in sides.items():
        cells = [side]
        for kind in ("runs", "fan-out"):
            found = kinds.get(kind, [])
            rate, cost = median(found, "tasks_per_second"), median(found, "ms_per_task")
            plain = base.get(kind)
            cells.append("-" if rate is None else f"{rate:,.0f}")
            cells.append("-" if cost is None or not plain else f"{cost / plain:.2f}")
        rows.append(cells)
    head = [
        "",
        "40 runs of 10 tasks, tasks/s",
        "cost of a task, plain SDK = 1",
        "400 tasks at a time, tasks/s",
        "cost, plain SDK = 1",
    ]
    return "\n".join([machine, "", table(head, rows), ""])
