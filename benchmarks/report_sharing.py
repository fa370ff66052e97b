"""The results of the benchmark `sharing` as rows of goals."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import median

HEAD = ["Goal", "Wanted", "Measured"]


def rows(sides: dict[str, dict[str, list[dict[str, Any]]]]) -> list[list[str]]:
    """Return one row a goal."""
    ours = sides.get("Ziggurat", {})
    share, quiet, flooded = (ours.get(name, []) for name in ("share", "unloaded", "flooded"))
    p99s = median(quiet, "p99_ms"), median(flooded, "p99_ms")
    ratio = p99s[1] / p99s[0] if p99s[0] and p99s[1] else None
    found: list[tuple[str, str, float | None, str]] = [
        ("16 processes: tokens used of those allowed", "0.99 to 1.01", median(share, "used_of_limit"), ".4f"),
        ("16 processes: calls that met a 429", "< 0.5 %", median(share, "limited_share"), ".2%"),
        ("16 processes: CPU of a call in a worker, ms", "≤ 2.5", median(share, "cpu_ms_per_call"), ".2f"),
        ("high calls, unloaded: p99, ms", "", p99s[0], ",.0f"),
        ("high calls while 600 low ones wait: p99, ms", "", p99s[1], ",.0f"),
        ("how many times as long", "≤ 1.5", ratio, ".2f"),
        ("low calls served meanwhile", "> 0", median(flooded, "low_served"), ",.0f"),
    ]
    return [[what, wanted, "–" if value is None else f"{value:{form}}"] for what, wanted, value, form in found]
