"""The embedded engine beside Restate, Temporal's development server and DBOS: workloads A to E, and the limits of the machine.

Each measurement is a fresh process over a fresh state; the sides take turns, so that what the machine does meanwhile meets them all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.harness import Measured, run_side, say
from benchmarks.limits import measure_limits
from benchmarks.peers import install
from ziggurat import __version__

Sizes = dict[str, dict[str, int]]

#: What everybody runs. D is smaller for the peers: they start at a fraction of the speed.
SIZES: Sizes = {
    "A": {"steps": 100},
    "B": {"runs": 200, "steps": 10},
    "C": {"steps": 500},
    "D": {"runs": 2000},
    "E": {"runs": 100, "steps": 10, "step_ms": 50},
}
QUICK: Sizes = {
    "A": {"steps": 20},
    "B": {"runs": 20, "steps": 5},
    "C": {"steps": 50},
    "D": {"runs": 100},
    "E": {"runs": 20, "steps": 4, "step_ms": 50},
}
#: What Ziggurat alone runs: B at 1,000 runs, and D with 100,000 waiters.
OWN_SIZES: Sizes = {"B1000": {"runs": 1000, "steps": 20}, "D100k": {"runs": 100_000}}
OWN_QUICK: Sizes = {"B1000": {"runs": 100, "steps": 5}, "D100k": {"runs": 1000}}

#: How often each is measured; the medians count. The short ones are the ones that a neighbour can spoil.
REPEATS = {"A": 9, "B": 3, "C": 9, "D": 1, "E": 3, "B1000": 5, "D100k": 1}
#: A side that takes longer than so many seconds, or fails, is not asked again: its figure is no close call.
LONG = 3.0


class Contestant(Struct, frozen=True):
    """A side of the comparison."""

    label: str
    module: str
    #: Its environment under build/peers; ours when empty.
    environment: str = ""
    env: dict[str, str] = {}
    version: str = ""

    def python(self) -> Path | str:
        return install.python_of(self.environment) if self.environment else sys.executable


OURS = Contestant("Ziggurat", "benchmarks.ours", version=__version__)
PEERS = [
    Contestant("Restate", "benchmarks.peers.restate", "restate", version="server 1.7.12, SDK 1.3.0"),
    Contestant("Temporal, file", "benchmarks.peers.temporal", "temporal", version="server 1.32.0, SDK 1.35.0"),
    Contestant("Temporal, memory", "benchmarks.peers.temporal", "temporal", {"BENCH_TEMPORAL": "memory"}),
    Contestant("DBOS, SQLite", "benchmarks.peers.dbos", "dbos", version="3.4.0"),
    Contestant("DBOS, Postgres", "benchmarks.peers.dbos", "dbos", {"BENCH_DBOS": "postgres"}),
]


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all sides, or those whose label contains one of `only`."""
    measured = Measured("embedded", patience)
    sizes, own = (QUICK, OWN_QUICK) if quick else (SIZES, OWN_SIZES)
    measured.sizes = {**sizes, **own}
    sides = [side for side in (OURS, *PEERS) if _takes_part(side, only)]
    for side in sides:
        measured.versions[side.label] = side.version or measured.versions.get(side.label.partition(",")[0] + ", file", "")
    measure_limits(measured, quick=quick)
    for workload in [*sizes, *own]:
        given = (own if workload in own else sizes)[workload]
        taking_turns = [side for side in sides if workload in sizes or side is OURS]
        for _ in range(1 if quick else REPEATS[workload]):
            for side in list(taking_turns):

                def measure(side: Contestant = side, workload: str = workload, given: dict[str, int] = given) -> dict[str, Any]:
                    return run_side(side.python(), side.module, workload[0], given, side.env)

                found = measured.add(side.label, workload, measure)
                if found is None or found.get("seconds", 0.0) > LONG:
                    taking_turns.remove(side)
    return measured


def _takes_part(side: Contestant, only: list[str]) -> bool:
    if only and not any(word.lower() in side.label.lower() for word in only):
        return False
    if side.env.get("BENCH_DBOS") == "postgres" and not _has_postgres():
        say(f"{side.label} is left out: there is no Postgres server on this machine.")
        return False
    why = install.install(side.environment) if side.environment else ""
    if why:
        say(f"{side.label} is left out: {why}.")
    return not why


def _has_postgres() -> bool:
    return any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
