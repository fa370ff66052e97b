"""The results of the Temporal benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import median

_KINDS = {"runs": "One task after the other", "fan-out": "Many tasks at a time"}
_HEAD = ["", "tasks/s", "time of a task, plain SDK = 1", "CPU of the worker process, ms a task", "CPU of the server, ms a task"]


def render(data: dict[str, Any], machine: str, table: Callable[[list[str], list[list[str]]], str]) -> str:
    """Return what each side does in a second, and what a task costs it beside the plain SDK."""
    parts = [machine, ""]
    for kind, title in _KINDS.items():
        sizes = data["sizes"].get(kind, {})
        count, tasks = sizes.get("runs", 0), sizes.get("tasks", 0)
        amount = f"{count} runs of {tasks} tasks" if count > 1 else f"one run of {tasks} tasks"
        parts += [f"{title}, {amount}:", "", table(_HEAD, _rows(data["sides"], kind)), ""]
    return "\n".join(parts)


def _rows(sides: dict[str, Any], kind: str) -> list[list[str]]:
    plain = median(sides.get("plain SDK", {}).get(kind, []), "ms_per_task")
    rows = []
    for side, kinds in sides.items():
        found = kinds.get(kind, [])
        rate, cost = median(found, "tasks_per_second"), median(found, "ms_per_task")
        ratio = cost / plain if cost is not None and plain else None
        own, served = median(found, "own_cpu_ms"), median(found, "server_cpu_ms")
        rows.append(
            [f"**{side}**" if side == "Ziggurat" else side, _cell(rate, 0), _cell(ratio, 2), _cell(own, 2), _cell(served, 2)]
        )
    return rows


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
