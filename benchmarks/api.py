"""The HTTP API with 100,000 runs behind it, beside Prefect's and Temporal's; and one run that 200 readers follow.

    look     list a page (first, deep, by status, by tag, by a part of the id), count, describe: one request after the other
    streams  200 readers of one run's live stream: how late a token is, and what it costs the server

Prefect has as many flow runs, written into its database; Temporal has fewer workflows, because each takes milliseconds to start.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Any

from benchmarks.harness import Measured, run_side, say
from benchmarks.peers import install
from ziggurat import __version__

SIZES: dict[str, dict[str, Any]] = {
    "look": {"runs": 100_000, "peer_runs": 10_000, "times": 200},
    "streams": {"readers": 200, "tokens": 250, "pace": 0.04},
}
QUICK: dict[str, dict[str, Any]] = {
    "look": {"runs": 5_000, "peer_runs": 200, "times": 20},
    "streams": {"readers": 20, "tokens": 20, "pace": 0.02},
}
#: The medians of so many measurements of ours count; the peers, whose sides take minutes to fill, are measured once.
REPEATS = 3

#: Label, module, its workloads, and its environment under build/peers; ours when empty.
SIDES = [
    ("Ziggurat", "benchmarks.ours_api", ("look", "streams"), ""),
    ("Temporal", "benchmarks.peers.temporal_api", ("look",), ""),
    ("Prefect", "benchmarks.peers.prefect_api", ("look",), "prefect"),
]


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all sides, or those whose label contains one of `only`."""
    measured = Measured("api", patience)
    measured.sizes = QUICK if quick else SIZES
    for label, module, workloads, environment in SIDES:
        if only and not any(word.lower() in label.lower() for word in only):
            continue
        why = install.install(environment) if environment else ""
        if why:
            say(f"{label} is left out: {why}.")
            continue
        measured.versions[label] = _version(label)
        python = install.python_of(environment) if environment else sys.executable
        for workload in workloads:
            for _ in range(REPEATS if label == "Ziggurat" and not quick else 1):

                def measure(python: Any = python, module: str = module, workload: str = workload) -> dict[str, Any]:
                    return run_side(python, module, workload, measured.sizes[workload], {})

                measured.add(label, workload, measure)
    return measured


def _version(label: str) -> str:
    if label == "Prefect":
        return str(install.wanted()["prefect"]["pip"][0].partition("==")[2])
    return __version__ if label == "Ziggurat" else version("temporalio")
