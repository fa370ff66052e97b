"""The gauges of the engine: runs by status, and how many are in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sized
from pathlib import Path

from ziggurat.clock import Clock
from ziggurat.orchestrator.embedded.store import Reader
from ziggurat.records import RunFilter
from ziggurat.telemetry.catalogue import RUNS, RUNS_RESIDENT

#: Seconds for which a count of the state file serves: it walks an index, which takes a tenth of a second at a million runs.
COUNT_KEPT = 15.0


class Gauges:
    """Shows an open engine until `stop`.

    Args:
        path: the state file; it is read on a connection of its own, in the thread that makes a page of metrics.
        residents: the runs in memory.
    """

    def __init__(self, path: Path, residents: Sized, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._counted: dict[tuple[str, ...], float] = {}
        self._counted_at = float("-inf")
        self._lock = threading.Lock()
        self._stops: list[Callable[[], None]] = [
            RUNS.watch(self._runs),
            RUNS_RESIDENT.watch(lambda: {(): float(len(residents))}),
        ]

    def stop(self) -> None:
        """Show it no longer."""
        for stop in self._stops:
            stop()

    def _runs(self) -> dict[tuple[str, ...], float]:
        with self._lock:
            if self._clock.monotonic() - self._counted_at >= COUNT_KEPT:
                reader = Reader(self._path)
                try:
                    counts = reader.count(RunFilter())
                finally:
                    reader.close()
                # A status that no run has any more goes to 0 rather than away.
                self._counted = {**dict.fromkeys(self._counted, 0.0), **{(s,): float(n) for s, n in counts.items()}}
                self._counted_at = self._clock.monotonic()
            return self._counted
