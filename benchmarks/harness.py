"""What every benchmark shares: fresh processes, a quiet machine or a note that it was not, and results as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

#: The machine counts as quiet when others use less than this share of its cores.
QUIET = 0.10
#: Seconds spent waiting for quiet over a whole benchmark, at most.
PATIENCE = 480.0
#: One measurement that takes longer is given up.
TIMEOUT = 400.0


class Measured:
    """The measurements of one benchmark, as they are made.

    Args:
        name: of the benchmark.
        patience: how many seconds may be spent waiting for a quiet machine.
    """

    def __init__(self, name: str, patience: float = PATIENCE) -> None:
        self.name = name
        self._patience = patience
        self._others: list[float] = []
        #: By side, then by workload: the figures of each repetition.
        self.sides: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.versions: dict[str, str] = {}
        self.sizes: dict[str, Any] = {}

    def add(self, side: str, workload: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Wait for quiet, measure once, note how much of the machine others used meanwhile, and say how it went."""
        self._wait_for_quiet()
        machine, own = _busy_seconds(), _children_seconds()
        began = time.monotonic()
        found: dict[str, Any] | None
        try:
            with favoured():
                found = measure()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found, failure = None, str(error).strip().splitlines()[-1][:300]
        seconds = time.monotonic() - began
        others = (_busy_seconds() - machine - (_children_seconds() - own)) / (seconds * (os.cpu_count() or 1))
        kept = self.sides.setdefault(side, {}).setdefault(workload, [])
        if found is None:
            kept.append({"failed": failure})
            say(f"{side:22} {workload:3} failed: {failure}")
            return None
        self._others.append(others)
        found["others_cpu"] = round(max(0.0, others), 3)
        kept.append(found)
        say(f"{side:22} {workload:3} {shown(found)}")
        return found

    def save(self) -> Path:
        """Write the results to benchmarks/results and return the file."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{self.name}.json"
        path.write_text(json.dumps(self.data(), indent=1) + "\n")
        return path

    def data(self) -> dict[str, Any]:
        """Return everything that was measured, and on what, as JSON."""
        others = statistics.median(self._others) if self._others else 0.0
        found = {
            "name": self.name,
            "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "machine": machine_seen(),
            "noisy": others > QUIET,
            "others_cpu": round(max(0.0, others), 3),
            "versions": self.versions,
            "sizes": self.sizes,
            "sides": self.sides,
        }
        rounded: dict[str, Any] = _rounded(found)
        return rounded

    def _wait_for_quiet(self) -> None:
        cores = os.cpu_count() or 1
        while self._patience > 0:
            began, busy = time.monotonic(), _busy_seconds()
            time.sleep(1.0)
            seconds = time.monotonic() - began
            if (_busy_seconds() - busy) / (seconds * cores) < QUIET:
                return
            self._patience -= seconds


@contextlib.contextmanager
def favoured() -> Iterator[None]:
    """Put this session, and so every side alike, before others on the processor, where the system has such a thing and allows it."""
    group = Path("/proc/self/autogroup")
    try:
        before = group.read_text().split()[-1]
        group.write_text("-10")
    except (OSError, IndexError):
        yield
        return
    try:
        yield
    finally:
        group.write_text(before)


def run_json(command: Sequence[str | Path], env: dict[str, str] | None = None, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Run a process that prints "RESULT " and an object, and return the object. Raises RuntimeError with what it said last."""
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(env),
    )
    try:
        printed, _ = process.communicate(timeout=timeout)
    except BaseException:
        process.terminate()  # A side ends its own processes then.
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    for line in printed.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return found
    raise RuntimeError(printed.strip() or f"The process ended with {process.returncode} and said nothing.")


def run_side(python: Path | str, module: str, workload: str, sizes: dict[str, int], env: dict[str, str]) -> dict[str, Any]:
    """Run one workload of a side in a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        found = run_json([python, "-m", module, workload, json.dumps(sizes), folder], env)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment of all sides: bytecode is cached, and no setting of this shell takes part."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ZIGGURAT_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


def machine_seen() -> dict[str, Any]:
    """Return what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def median(rows: Iterable[dict[str, Any]], key: str) -> float | None:
    """Return the median of a figure over the repetitions that have it."""
    values = [row[key] for row in rows if key in row]
    return statistics.median(values) if values else None


def shown(found: dict[str, Any]) -> str:
    """Return figures in one line."""
    return ", ".join(f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items())


def say(text: str) -> None:
    """Print to stderr at once: a benchmark takes minutes and should show that it lives."""
    print(text, file=sys.stderr, flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value


def _busy_seconds() -> float:
    """Return the CPU time that the whole machine has spent on something."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = fields[3] + fields[4]
    # guest time is part of user time already.
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
