"""Moments that runs wait for, in one heap, with one timer of the event loop for the nearest."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from ziggurat.clock import Clock

#: The heap is cleaned of forgotten entries when they may be more than half of it, and more than this.
_STALE_MIN = 10_000
#: Longest sleep of the loop's timer: wall clocks jump, so look again.
_LOOK_AGAIN = 60.0


class Timers:
    """Calls `due(run, step)` when a moment has come. Entries are cheap and may be forgotten; `due` checks them."""

    def __init__(self, clock: Clock, due: Callable[[str, int], None]) -> None:
        self._clock, self._call = clock, due
        self._heap: list[tuple[float, str, int]] = []
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = float("inf")
        self._stale = 0
        #: Says whether an entry still matters; set by the engine.
        self.alive: Callable[[str, int], bool] | None = None

    def add(self, when: float, run: str, step: int) -> None:
        """Call at a moment; step 0 means the run as a whole."""
        heapq.heappush(self._heap, (when, run, step))
        if when < self._armed_for:
            self._arm(when)

    def forget(self) -> None:
        """Note that one entry no longer matters."""
        self._stale += 1
        if self._stale > _STALE_MIN and self._stale * 2 > len(self._heap) and self.alive is not None:
            alive = self.alive
            self._heap = [entry for entry in self._heap if not entry[2] or alive(entry[1], entry[2])]
            heapq.heapify(self._heap)
            self._stale = 0

    def stop(self) -> None:
        """Call no more."""
        if self._handle is not None:
            self._handle.cancel()
        self._heap.clear()

    def fire(self) -> None:
        """Call for every moment that has come, and set the loop's timer for the next. Tests with a fake clock call it directly."""
        self._armed_for = float("inf")
        now = self._clock.time()
        while self._heap and self._heap[0][0] <= now:
            _, run, step = heapq.heappop(self._heap)
            self._call(run, step)
        if self._heap:
            self._arm(self._heap[0][0])

    def __len__(self) -> int:
        return len(self._heap)

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = when
        delay = min(max(0.0, when - self._clock.time()), _LOOK_AGAIN)
        self._handle = asyncio.get_running_loop().call_later(delay, self.fire)
