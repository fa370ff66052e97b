"""The hours of rented endpoints as a part of what calls cost.

An endpoint with an hourly price costs the same whether it is asked or not. While calls are under way its price flows, at
`price x replicas` an hour, in equal parts to the calls that are under way: a call that has the endpoint to itself for ten seconds pays ten
seconds of it, two at a time pay five each. So the costs of all calls add up to the busy time, exactly; idle time is nobody's call and is
no part of any cost. Processes that share the endpoint each meter their own calls, and divide the price by how many processes are alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Meter:
    """Shares an hourly price among the calls that are under way.

    Args:
        dollars_per_hour: of all replicas together; 0 for an endpoint that is paid by tokens.
        processes: returns how many processes make calls now.
    """

    __slots__ = ("_at", "_calls", "_flowed", "_lock", "_per_second", "_processes")

    def __init__(self, dollars_per_hour: float, processes: Callable[[], int]) -> None:
        self._per_second = dollars_per_hour / 3600.0
        self._processes = processes
        self._lock = threading.Lock()
        self._calls = 0
        self._at = 0.0
        #: What one call would have paid that was under way all the time.
        self._flowed = 0.0

    @property
    def runs(self) -> bool:
        """True if the endpoint is paid by the hour."""
        return self._per_second > 0

    def begin(self, now: float) -> float:
        """Take in that a call begins; returns what `end` wants back. `now` is monotonic."""
        if not self._per_second:
            return 0.0
        with self._lock:
            self._flow(now)
            self._calls += 1
            return self._flowed

    def end(self, began: float, now: float) -> float:
        """Take in that a call ends, and return its part in US dollars."""
        if not self._per_second:
            return 0.0
        with self._lock:
            self._flow(now)
            self._calls -= 1
            return self._flowed - began

    def _flow(self, now: float) -> None:
        if self._calls:
            self._flowed += self._per_second * max(0.0, now - self._at) / self._calls / max(1, self._processes())
        self._at = now
