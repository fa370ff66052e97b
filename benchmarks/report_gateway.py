"""The page of the gateway's benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import median

Rows = list[dict[str, Any]]


def render(
    data: dict[str, Any], machine_line: Callable[[dict[str, Any]], str], table: Callable[[list[str], list[list[str]]], str]
) -> str:
    """Return the results as Markdown."""
    sides: dict[str, dict[str, Rows]] = data["sides"]
    head = [
        "",
        "requests/s of one core",
        "p50 / p99 ms under it",
        "CPU µs a request",
        "added p50 / p99 ms",
        "the same in bursts of four",
        "CPU µs a chunk",
        "RSS MiB",
    ]
    parts = [machine_line(data), "", table(head, [_row(data, name) for name in sides]), ""]
    ours = sides.get("Ziggurat", {})
    if ours:
        parts += [table(["Goal", "Wanted", "Measured"], _goals(ours, sides.get("direct", {}))), ""]
    return "\n".join(parts)


def _row(data: dict[str, Any], name: str) -> list[str]:
    workloads: dict[str, Rows] = data["sides"][name]
    saturated, streams = (workloads.get(w, []) for w in ("saturate", "streams"))
    version = data["versions"].get(name, "")
    label = f"**{name}** {version}" if name == "Ziggurat" else f"{name} {version}".strip()
    direct = data["sides"].get("direct", {})
    added: list[str] = []
    for workload in ("steady", "bursts"):
        rows = workloads.get(workload, [])
        both = [_added(rows, direct.get(workload, []), key) for key in ("p50_ms", "p99_ms")]
        added.append(" / ".join(_cell(value, ".1f", rows) for value in both))
    memory = workloads.get("memory", [])
    grown = "–"
    if memory and "mib_after" in memory[0]:
        grown = f"{memory[0]['mib_before']:.0f} → {memory[0]['mib_after']:.0f} after {memory[0]['requests']:,}"
    return [
        label,
        _cell(median(saturated, "requests_per_s"), ",.0f", saturated),
        f"{_cell(median(saturated, 'p50_ms'), '.1f', saturated)} / {_cell(median(saturated, 'p99_ms'), '.1f', saturated)}",
        _cell(median(saturated, "cpu_us_per_request"), ",.0f", saturated),
        *added,
        _cell(median(streams, "cpu_us_per_chunk"), ",.0f", streams),
        grown,
    ]


def _cell(value: float | None, form: str, rows: Rows) -> str:
    if value is None:
        return "failed" if rows and all("failed" in row for row in rows) else "–"
    return f"{value:{form}}"


def _added(rows: Rows, direct: Rows, key: str) -> float | None:
    """Return what stands between a client and the upstream: the latency less that of a direct call."""
    found, without = median(rows, key), median(direct, key)
    return None if found is None or without is None or rows is direct else found - without


def _goals(ours: dict[str, Rows], direct: dict[str, Rows]) -> list[list[str]]:
    memory = ours.get("memory", [])
    grown = memory[0]["mib_after"] - memory[0]["mib_before"] if memory and "mib_after" in memory[0] else None
    asked = memory[0]["requests"] if memory and "requests" in memory[0] else 0
    rows: list[tuple[str, str, float | None, str]] = [
        (
            "requests/s of one core, limits, budgets and ledger on",
            "≥ 2,000",
            median(ours.get("saturate", []), "requests_per_s"),
            ",.0f",
        ),
        ("added latency, p50, ms", "≤ 2", _added(ours.get("steady", []), direct.get("steady", []), "p50_ms"), ".2f"),
        ("CPU of a relayed chunk, µs", "≤ 120", median(ours.get("streams", []), "cpu_us_per_chunk"), ",.0f"),
        (f"memory that {asked:,} requests leave behind, MiB", "flat", grown, ".1f"),
        ("CPU of a call in a worker, µs", "≤ 2,500", median(ours.get("worker", []), "cpu_us_per_call"), ",.0f"),
        ("CPU of a streamed chunk in a worker, µs", "≤ 200", median(ours.get("worker", []), "cpu_us_per_chunk"), ",.0f"),
    ]
    return [[what, wanted, "–" if value is None else f"{value:{form}}"] for what, wanted, value, form in rows]
