"""The whole stack on the work that it is for: documents an hour, and what a document takes and costs.

    flood  all documents at once: documents an hour, CPU a document
    paced  10,000 documents an hour, one at a time: how long each takes

The same program, examples/document_analysis, as a script, durably in one process, and on four layers apart. The model is a stand-in that
takes 0.5 to 1.5 s for an answer.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Measured, environment, run_json
from benchmarks.queue import redis_server
from ziggurat import __version__

SIZES: dict[str, dict[str, Any]] = {
    "flood": {"documents": 660},
    "paced": {"documents": 132, "per_hour": 10_000},
}
QUICK: dict[str, dict[str, Any]] = {
    "flood": {"documents": 99},
    "paced": {"documents": 20, "per_hour": 10_000},
}
SIDES = {"script": "script", "Ziggurat, one process": "embedded", "Ziggurat, four layers apart": "apart"}
#: The medians of so many measurements count.
REPEATS = 3


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all sides, or those whose label contains one of `only`."""
    measured = Measured("stack", patience)
    measured.sizes = QUICK if quick else SIZES
    sides = [side for side in SIDES if not only or any(word.lower() in side.lower() for word in only)]
    measured.versions = {side: __version__ for side in sides if side != "script"}
    for workload, sizes in measured.sizes.items():
        for _ in range(REPEATS if workload == "flood" and not quick else 1):
            for side in sides:
                measured.add(side, workload, partial(_measure, SIDES[side], workload, sizes))
    return measured


def _measure(side: str, workload: str, sizes: dict[str, Any]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.stack_side", side, workload, json.dumps(sizes), folder]
    try:
        with redis_server() as redis, upstream() as url:
            return run_json(command, {"BENCH_REDIS": redis, "BENCH_UPSTREAM": url})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """Run the stand-in model, and give its base URL."""
    command = [sys.executable, "-m", "benchmarks.stack_upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
