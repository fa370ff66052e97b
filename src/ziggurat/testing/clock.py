"""A clock that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Callable

from ziggurat.clock import Clock

#: Where a FakeClock starts: a Tuesday in November 2023, far enough from zero that a forgotten conversion shows.
START = 1_700_000_000.0


class FakeClock(Clock):
    """Moves only by `advance` (all time) and `step_wall` (the wall clock alone, as an administrator or NTP does).

    Parts that set timers on the event loop watch the clock, so that `advance` fires what has become due; a test then gives the loop a
    turn (`await asyncio.sleep(0)`) and needs no real waiting.
    """

    def __init__(self, start: float = START) -> None:
        self._wall = start
        self._monotonic = 1_000.0
        self._watchers: list[Callable[[], None]] = []

    def time(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass, then tell those who watch."""
        if seconds < 0:
            raise ValueError("Time does not go back; use step_wall to set the wall clock.")
        self._wall += seconds
        self._monotonic += seconds
        self._tell()

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back without any time passing."""
        self._wall += seconds
        self._tell()

    def watch(self, moved: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(moved)

        def stop() -> None:
            if moved in self._watchers:
                self._watchers.remove(moved)

        return stop

    def _tell(self) -> None:
        for moved in list(self._watchers):
            moved()
