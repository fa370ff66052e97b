"""Renders results as Markdown, and writes them into docs/reference/benchmarks.md between the markers of each benchmark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from benchmarks import report_api, report_gateway, report_sharing, report_stack, report_temporal
from benchmarks.harness import RESULTS, ROOT, median

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
Rows = list[dict[str, Any]]
Data = dict[str, Any]

#: Column, workload, figure, whether more is better, digits.
_COLUMNS: list[tuple[str, str, str, bool, int]] = [
    ("A: ms a step", "A", "ms_per_step", False, 2),
    ("B: steps/s", "B", "steps_per_s", True, 0),
    ("C: steps/s", "C", "steps_per_s", True, 0),
    ("D: starts/s", "D", "starts_per_s", True, 0),
    ("D: KiB a waiter", "D", "kib", False, 0),
    ("E: s to all done", "E", "seconds", False, 1),
]


def write_page() -> None:
    """Write the newest result of each benchmark into the page."""
    page = PAGE.read_text()
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text())
        begin, end = f"<!-- begin {data['name']} -->", f"<!-- end {data['name']} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = f"{begin}\n\n{render(data)}\n{end}"
        page = pattern.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    PAGE.write_text(page)


def render(data: Data) -> str:
    """Return the results of one benchmark as Markdown."""
    return _RENDERERS[data["name"]](data)


def _embedded(data: Data) -> str:
    sides: dict[str, dict[str, Rows]] = data["sides"]
    engines = [name for name in sides if "A" in sides[name]]
    parts = [_machine_line(data), "", _table(["", *[c[0] for c in _COLUMNS]], [_engine_row(data, name) for name in engines]), ""]
    peers = [name for name in engines if name != "Ziggurat"]
    if "Ziggurat" in engines and peers:
        ratios = [[name, *_ratios(sides["Ziggurat"], sides[name])] for name in peers]
        parts += [
            "How many times as fast, or as small, Ziggurat is:",
            "",
            _table(["beside", *[c[0] for c in _COLUMNS]], ratios),
            "",
        ]
    if "Ziggurat" in engines:
        parts += [_table(["Goal", "Wanted", "Measured"], _goals(sides)), "", *_limits(sides), ""]
    return "\n".join(parts)


def _machine_line(data: Data) -> str:
    machine = data["machine"]
    noise = f"Others used {data['others_cpu']:.0%} of the machine meanwhile (median)"
    noise += ": **noisy**, so look at ratios rather than at figures." if data["noisy"] else "."
    return (
        f"Measured {data['at']} on {machine['cores']} cores with {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}, SQLite {machine['sqlite']}. {noise}"
    )


def _engine_row(data: Data, name: str) -> list[str]:
    version = data["versions"].get(name, "")
    cells = [f"{name} {version}".strip() if name != "Ziggurat" else f"**Ziggurat** {version}"]
    for _, workload, key, _, digits in _COLUMNS:
        rows = data["sides"][name].get(workload, [])
        value = _figure(rows, key)
        cell = "–" if value is None else f"{value:,.{digits}f}"
        if value is None and rows:
            cell = "failed"
        if workload == "D" and key == "starts_per_s" and rows and "runs" in rows[0]:
            cell += f" ({rows[0]['runs']:,})" if rows[0]["runs"] != 2000 else ""
        if workload == "E" and value is not None:
            cell += f" ({rows[0]['ran_again']} ran twice)"
        cells.append(cell)
    return cells


def _figure(rows: Rows, key: str) -> float | None:
    if key == "kib":
        found = [
            sum(value for role, value in row["kib_per_waiter"].items() if role != "client")
            for row in rows
            if "kib_per_waiter" in row
        ]
        return found[0] if found else None
    return median(rows, key)


def _ratios(ours: dict[str, Rows], theirs: dict[str, Rows]) -> list[str]:
    cells = []
    for _, workload, key, more_is_better, _ in _COLUMNS:
        a, b = _figure(ours.get(workload, []), key), _figure(theirs.get(workload, []), key)
        if not a or not b:
            cells.append("–")
            continue
        ratio = a / b if more_is_better else b / a
        cells.append(f"{ratio:,.1f} ×" if ratio < 100 else f"{ratio:,.0f} ×")
    return cells


def _goals(sides: dict[str, dict[str, Rows]]) -> list[list[str]]:
    ours = sides["Ziggurat"]
    many, waiters = ours.get("B1000", []), ours.get("D100k", [])
    rows: list[tuple[str, str, float | None, str]] = [
        ("durable steps/s, 1,000 concurrent runs of 20 steps", "≥ 10,000", median(many, "steps_per_s"), ",.0f"),
        ("commits for one sequential step", "1", median(ours.get("A", []), "commits_per_step"), ".2f"),
        ("100,000 waiting runs: started, runs/s", "≥ 5,000", median(waiters, "starts_per_s"), ",.0f"),
        ("100,000 waiting runs: resident memory, MiB", "≤ 1,024", median(waiters, "resident_mib"), ",.0f"),
        ("100,000 waiting runs: recovery in a new process, s", "≤ 30", median(waiters, "recovery_s"), ".1f"),
        ("a process that does `import ziggurat`, ms", "≤ 250", median(ours.get("import", []), "process_ms"), ",.0f"),
    ]
    return [[what, wanted, "–" if value is None else f"{value:{form}}"] for what, wanted, value, form in rows]


def _limits(sides: dict[str, dict[str, Rows]]) -> list[str]:
    """Say what bounds the speed, from the same run."""
    ours, disk = sides["Ziggurat"], sides.get("this machine", {}).get("disk", [])
    single, grouped, sync = median(disk, "rows_per_s_at_1"), median(disk, "rows_per_s_at_512"), median(disk, "fdatasync_ms")
    step, rate, cpu = median(ours.get("A", []), "ms_per_step"), median(ours.get("B1000", []), "steps_per_s"), None
    cpu = median(ours.get("B1000", []), "cpu_us_per_step")
    if not (single and grouped and step and rate and cpu and sync):
        return []
    disk_line = (
        f"- **The disk.** One fdatasync takes {sync:.2f} ms. SQLite commits {single:,.0f} single rows a second with "
        f"`synchronous=FULL`, so {1e3 / single:.2f} ms bounds a sequential step from below; a step takes {step:.2f} ms. At 512 rows "
        f"a commit the disk takes {grouped:,.0f} rows a second, {grouped / rate:.0f} times what the engine gives it: with many runs, "
        "the disk is not the limit."
    )
    processor_line = (
        f"- **The processor.** With 1,000 runs a step costs {cpu:.0f} µs of CPU, the writer's thread included. The engine and its "
        f"workers share one interpreter, and so hardly more than one core: {1e6 / cpu:,.0f} steps/s would fill one core, and "
        f"{rate:,.0f} were done."
    )
    return [disk_line, processor_line]


def _queue(data: Data) -> str:
    sides: dict[str, dict[str, Rows]] = data["sides"]
    rows, ours = [], sides.get("Ziggurat", {})
    for name, workloads in sides.items():
        rate, latencies = median(workloads.get("drain", []), "tasks_per_s"), workloads.get("latency", [])
        cells = ["–" if rate is None else f"{rate:,.0f}"]
        cells += [
            "–" if value is None else f"{value:.1f}" for value in (median(latencies, "p50_ms"), median(latencies, "p99_ms"))
        ]
        own = median(ours.get("drain", []), "tasks_per_s")
        cells.append("–" if not own or not rate or name == "Ziggurat" else f"{own / rate:.1f} ×")
        rows.append(
            [f"**{name}** {data['versions'][name]}" if name == "Ziggurat" else f"{name} {data['versions'][name]}", *cells]
        )
    head = ["", "tasks/s, one worker process", "ms to the task's first line: p50", "p99", "Ziggurat's rate beside it"]
    parts = [_machine_line(data), "", _table(head, rows), ""]
    recorded = [median(ours.get("latency", []), f"recorded_{key}_ms") for key in ("p50", "p99")]
    if recorded[0] is not None:
        parts += [
            f"With Ziggurat, the outcome is in the durable history {recorded[0]:.1f} ms after the call (p99 {recorded[1]:.1f} ms).",
            "",
        ]
    return "\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _gateway(data: Data) -> str:
    return report_gateway.render(data, _machine_line, _table)


def _api(data: Data) -> str:
    return "\n".join([_machine_line(data), "", *report_api.lines(data["sides"], _table), ""])


def _temporal(data: Data) -> str:
    return report_temporal.render(data, _machine_line(data), _table)


def _sharing(data: Data) -> str:
    return "\n".join([_machine_line(data), "", _table(report_sharing.HEAD, report_sharing.rows(data["sides"])), ""])


def _stack(data: Data) -> str:
    return "\n".join([_machine_line(data), "", _table(report_stack.HEAD, report_stack.rows(data["sides"])), ""])


_RENDERERS: dict[str, Callable[[Data], str]] = {
    "embedded": _embedded,
    "queue": _queue,
    "gateway": _gateway,
    "temporal": _temporal,
    "api": _api,
    "sharing": _sharing,
    "stack": _stack,
}
