"""The results of the benchmark `stack` as a table."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import median

HEAD = ["", "documents an hour", "CPU ms a document", "cost a document", "s a document at 10,000 an hour: p50", "p99"]


def rows(sides: dict[str, dict[str, list[dict[str, Any]]]]) -> list[list[str]]:
    """Return one row a side."""
    found = []
    for side, workloads in sides.items():
        flood, paced = workloads.get("flood", []), workloads.get("paced", [])
        figures = [
            (median(flood, "documents_per_hour"), "{:,.0f}"),
            (median(flood, "cpu_ms_per_document"), "{:,.1f}"),
            (median(flood, "cost_usd_per_document"), "${:.6f}"),
            *[(None if value is None else value / 1e3, "{:.2f}") for value in (median(paced, "p50_ms"), median(paced, "p99_ms"))],
        ]
        found.append([side, *("–" if value is None else form.format(value) for value, form in figures)])
    return found
