"""The results of the API benchmark as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import median

#: What is asked, and how the table calls it.
_ASKED = {
    "list": "first page",
    "deep": "a page 2,000 runs deep",
    "failed": "by status",
    "tag": "by tag",
    "search": "by a part of the id",
    "count": "count by status",
    "describe": "one run",
}


def lines(sides: dict[str, dict[str, list[dict[str, Any]]]], table: Any) -> list[str]:
    """Return the tables, without the line about the machine."""
    looked = {name: workloads["look"] for name, workloads in sides.items() if "look" in workloads}
    rows = [
        [shown, *[_ms(found, f"{key}_p50_ms") + " / " + _ms(found, f"{key}_p99_ms") for found in looked.values()]]
        for key, shown in _ASKED.items()
    ]
    parts = [table(["ms, median / p99", *looked], rows)]
    followed = sides.get("Ziggurat", {}).get("streams", [])
    if followed:
        parts += [
            "",
            table(
                ["200 readers of one run", ""],
                [
                    ["a token is late by, ms, median / p99", _ms(followed, "p50_ms") + " / " + _ms(followed, "p99_ms")],
                    ["readers that got every token", f"{median(followed, 'complete_readers') or 0:.0f}"],
                    ["the server's CPU for an event and a reader, µs", f"{median(followed, 'cpu_us_per_event') or 0:.0f}"],
                ],
            ),
        ]
    return parts


def _ms(rows: list[dict[str, Any]], key: str) -> str:
    value = median(rows, key)
    return "–" if value is None else f"{value:.1f}"
