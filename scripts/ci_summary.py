"""Adds up the JUnit files in a folder and prints one line per stage and the slowest tests, the total last.

Exits with 1 when no test ran: a gate that ran nothing has not passed.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SLOWEST_MAX = 10


def main(folder: Path) -> int:
    passed = failed = skipped = 0
    times: list[tuple[float, str]] = []
    for path in sorted(folder.glob("*.xml")):
        cases = list(ET.parse(path).getroot().iter("testcase"))
        bad = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
        left_out = sum(1 for case in cases if case.find("skipped") is not None)
        print(f"{path.stem:>14}: {len(cases) - bad - left_out} passed, {bad} failed, {left_out} skipped")
        times += [(float(case.get("time", "0")), f"{case.get('classname')}::{case.get('name')}") for case in cases]
        passed, failed, skipped = passed + len(cases) - bad - left_out, failed + bad, skipped + left_out
    for seconds, name in sorted(times, reverse=True)[:SLOWEST_MAX]:
        print(f"{seconds:>13.1f}s {name}")
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped")
    return 0 if passed + failed else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
