"""The HTTP API with 100,000 runs behind it, beside Temporal's; and one run that 200 readers follow.

    look     list a page (first, deep, by status, by tag, by a part of the id), count, describe: one request after the other
    streams  200 readers of one run's live stream: how late a token is, and what it costs the server

Prefect's API was left out: its server and its dependencies do not install beside ours, and an environment of its own is not set up yet.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.harness import Measured, run_side
from ziggurat import __version__

SIZES: dict[str, dict[str, Any]] = {
    "look": {"runs": 100_000, "peer_runs": 10_000, "times": 200},
    "streams": {"readers": 200, "tokens": 250, "pace": 0.04},
}
QUICK: dict[str, dict[str, Any]] = {
    "look": {"runs": 5_000, "peer_runs": 200, "times": 20},
    "streams": {"readers": 20, "tokens": 20, "pace": 0.02},
}
#: The medians of so many measurements count.
REPEATS = 3
SIDES = [("Ziggurat", "benchmarks.ours_api", ("look", "streams")), ("Temporal", "benchmarks.peers.temporal_api", ("look",))]


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all sides, or those whose label contains one of `only`."""
    measured = Measured("api", patience)
    measured.sizes = QUICK if quick else SIZES
    for label, module, workloads in SIDES:
        if only and not any(word.lower() in label.lower() for word in only):
            continue
        measured.versions[label] = __version__ if label == "Ziggurat" else _temporal()
        for workload in workloads:
            for _ in range(1 if quick else REPEATS):

                def measure(module: str = module, workload: str = workload) -> dict[str, Any]:
                    return run_side(sys.executable, module, workload, measured.sizes[workload], {})

                measured.add(label, workload, measure)
    return measured


def _temporal() -> str:
    from importlib.metadata import version

    return version("temporalio")
