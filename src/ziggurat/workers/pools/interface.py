"""What a pool of workers promises, wherever they run: to be seen, and to be made larger or smaller without harm to work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from msgspec import Struct

from ziggurat.workers.usage import Used


class WorkerSeen(Struct, frozen=True, kw_only=True):
    """One worker of a pool."""

    name: str
    state: Literal["starting", "ready", "draining"]
    #: Attempts under way, and how many there may be.
    busy: int = 0
    slots: int = 0
    #: Why it takes no work, if it does not.
    trouble: str = ""


class PoolSeen(Struct, frozen=True, kw_only=True):
    """A pool as it is now."""

    workers: tuple[WorkerSeen, ...] = ()
    #: Attempts that ended since the pool exists, and the seconds that they ran; they count workers that are gone, and never fall.
    ended: int = 0
    seconds: float = 0.0
    #: What those attempts took of each endpoint, and how long their calls waited for limits.
    used: dict[str, Used] = {}
    waited: float = 0.0
    #: Why the pool is smaller than it should be, as a sentence; empty if it is not.
    trouble: str = ""

    @property
    def size(self) -> int:
        """Workers that run or start; those that drain do not count."""
        return sum(worker.state != "draining" for worker in self.workers)

    @property
    def busy(self) -> int:
        """Of those, the ones that have work."""
        return sum(worker.state != "draining" and worker.busy > 0 for worker in self.workers)


class WorkerPool(ABC):
    """Workers that are scaled together."""

    name: str

    @abstractmethod
    async def look(self) -> PoolSeen:
        """Return the pool as it is now."""

    @abstractmethod
    async def scale(self, count: int) -> None:
        """Come nearer to `count` workers: start what is missing, retire idle ones of a surplus. Returns at once.

        A busy worker is not retired; the surplus is smaller until it is idle. One that takes work at the very moment finishes it.
        """

    @abstractmethod
    async def close(self, grace: float) -> None:
        """End all workers: running attempts have `grace` seconds, what is unfinished then goes back to the queue."""
