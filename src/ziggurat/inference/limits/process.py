"""The limit store of one process: records in a dictionary. Nothing outlives the process, and nothing needs to."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ziggurat.clock import Clock, SystemClock
from ziggurat.inference.limits.book import MemoryBook, carry_out, look_at
from ziggurat.inference.limits.interface import Answer, Levels, LimitStore, Request, Wanted


class ProcessStore(LimitStore):
    """A store for one process, or for tests with several holders in one. Safe to use from any thread."""

    remote = False

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._book = MemoryBook()
        self._lock = threading.Lock()

    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        with self._lock:
            now = self._clock.time()
            return [carry_out(self._book, holder, request, now) for request in requests]

    def look(self, wanted: Wanted) -> Levels:
        with self._lock:
            return look_at(self._book, wanted, self._clock.time())

    def purse(self, key: str) -> tuple[float, float]:
        state = self._book.get(f"purse:{key}")
        return (state.spent, state.reserved) if state is not None else (0.0, 0.0)
