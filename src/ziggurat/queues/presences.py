"""Who works on a queue: what workers showed of themselves, each record for as long as its worker said that it holds."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from ziggurat.clock import Clock
from ziggurat.records import Presence


class Presences:
    """The records of one process's queue.

    A record ends by its own time, so that a worker which was killed is forgotten without anyone who looks after it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, tuple[float, Presence]] = {}

    def __len__(self) -> int:
        return len(self._until)

    def clear(self) -> None:
        """Forget all."""
        self._until.clear()

    def announce(self, presences: Iterable[Presence], ttl: float) -> None:
        """Keep records for `ttl` seconds; drop them if that is 0."""
        until, seen_at = self._clock.monotonic() + ttl, self._clock.time()
        for presence in presences:
            if ttl > 0:
                self._until[presence.worker] = until, replace(presence, seen_at=seen_at)
            else:
                self._until.pop(presence.worker, None)
        self._prune()

    def present(self) -> list[Presence]:
        """Return the records whose time is not over, by worker."""
        self._prune()
        return [presence for _, (_, presence) in sorted(self._until.items())]

    def _prune(self) -> None:
        now = self._clock.monotonic()
        for worker in [worker for worker, (until, _) in self._until.items() if until <= now]:
            del self._until[worker]
