"""Runs benchmarks and writes their results: `python -m benchmarks [NAME] [--quick] [--only SIDE]`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from benchmarks import report
from benchmarks.harness import PATIENCE, say

#: Every benchmark is a module with `run`; the names are the arguments of this command.
BENCHMARKS = ("embedded", "queue", "gateway", "api", "temporal", "sharing", "stack")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Ziggurat beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once each, nothing saved: does everything work?")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SIDE", help="leave out sides whose name does not contain this"
    )
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds to wait for a quiet machine, in all")
    given = parser.parse_args()
    # Ended politely, a benchmark ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The benchmark was asked to stop."))
    for name in given.names or BENCHMARKS:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
        module = importlib.import_module(f"benchmarks.{name}")
        measured = module.run(
            quick=given.quick,
            only=given.only,
            patience=0.0 if given.quick else given.patience,
        )
        if not given.quick and not given.only:
            say(f"Written to {measured.save()}.")
            report.write_page()
        print(report.render(measured.data()))


if __name__ == "__main__":
    main()
