"""Time as a parameter: everything that needs the hour takes a Clock, so that tests need no sleep.

`SystemClock` reads the machine; `ziggurat.testing.FakeClock` stands still until a test moves it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable


class Clock(ABC):
    """A source of the current time."""

    @abstractmethod
    def time(self) -> float:
        """Return the wall-clock time in seconds since the epoch, UTC."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean something."""

    def watch(self, moved: Callable[[], None]) -> Callable[[], None]:
        """Call back whenever the clock was moved by hand, as tests do; returns what ends that. Real clocks never call."""
        return _nothing


class SystemClock(Clock):
    """The machine's clock."""

    # The functions themselves, for a model call asks a dozen times; bound at import, because the guard that watches workflows replaces
    # `time.time`, and must not meet its own engine.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


def _nothing() -> None:
    pass
