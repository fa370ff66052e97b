"""Moments that runs wait for, in one heap, with one timer of the event loop for the nearest."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from ziggurat.clock import Clock
from ziggurat.telemetry import events

#: The heap is cleaned of forgotten entries when they are more than half of it, and more than this.
_STALE_MIN = 10_000
#: Longest sleep of the loop's timer, in seconds: wall clocks jump, so look again.
_LOOK_AGAIN = 60.0


class Timers:
    """Calls `due(run, step)` when a moment has come; step 0 means the run as a whole. A (run, step) has one moment at a time."""

    def __init__(self, clock: Clock, due: Callable[[str, int], None]) -> None:
        self._clock, self._call = clock, due
        self._heap: list[tuple[float, str, int]] = []
        #: The moment that counts, by (run, step); entries of the heap that differ from it are stale.
        self._moments: dict[tuple[str, int], float] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = float("inf")

    def add(self, when: float, run: str, step: int) -> None:
        """Call at a moment. An evicted run that comes back asks again for what it asked before; that costs nothing."""
        known = self._moments.get((run, step))
        if known is not None and (known == when or (step == 0 and known < when)):
            return
        self._moments[run, step] = when
        heapq.heappush(self._heap, (when, run, step))
        if when < self._armed_for:
            self._arm(when)

    def forget(self, run: str, step: int) -> None:
        """Call no more for this step."""
        if self._moments.pop((run, step), None) is not None:
            stale = len(self._heap) - len(self._moments)
            if stale > _STALE_MIN and stale > len(self._moments):
                self._heap = [(when, r, s) for (r, s), when in self._moments.items()]
                heapq.heapify(self._heap)

    def stop(self) -> None:
        """Call no more."""
        if self._handle is not None:
            self._handle.cancel()
        self._heap.clear()
        self._moments.clear()

    def fire(self) -> None:
        """Call for every moment that has come, and set the loop's timer for the next. Tests with a fake clock call it directly."""
        self._armed_for = float("inf")
        now = self._clock.time()
        while self._heap and self._heap[0][0] <= now:
            when, run, step = heapq.heappop(self._heap)
            if self._moments.get((run, step)) == when:
                del self._moments[run, step]
                try:
                    self._call(run, step)
                except Exception:
                    events.RUN_LEFT(trace_of=True, run=run)
        if self._heap:
            self._arm(self._heap[0][0])

    def __len__(self) -> int:
        return len(self._moments)

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = when
        delay = min(max(0.0, when - self._clock.time()), _LOOK_AGAIN)
        self._handle = asyncio.get_running_loop().call_later(delay, self.fire)
