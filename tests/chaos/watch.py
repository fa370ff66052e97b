"""Looks at the processes of a plant while a storm goes on: how far it is, and what they hold of memory and files.

A line goes to the output every half minute, so that a test of hours can be followed, and the figures of every calm moment are kept:
what grows from one to the next is a leak.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator

from msgspec import Struct

from tests.chaos.plant import Plant
from tests.conformance.redis_servers import RedisServer

#: Seconds between two lines of progress.
EVERY = 30.0
MIB = 1 << 20
#: Calm moments before which nothing can be said: the first are warm-up, and a third of the rest must be more than one.
ENOUGH = 7
#: What may be added from the first third to the last: a part of the memory and some MiB, and some files.
MORE, MORE_BYTES, MORE_FILES = 0.25, 24 * MIB, 8


class Held(Struct, frozen=True):
    """What one process holds: resident bytes and open files."""

    memory: int
    files: int

    def __str__(self) -> str:
        return f"{self.memory / MIB:.0f} MiB and {self.files} files"


def held_by(pid: int) -> Held | None:
    """Return what a process holds, or None if it is gone, or the system does not show it."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/statm", "rb") as statm:
            pages = int(statm.read().split()[1])
        return Held(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")))
    return None


class Watch:
    """What was seen of a plant.

    Args:
        server: the Redis server, if there is one.
    """

    def __init__(self, plant: Plant, server: RedisServer | None = None) -> None:
        self._plant, self._server = plant, server
        #: What the processes held at each calm moment, by role.
        self.calm: dict[str, list[Held]] = {}

    def look(self) -> dict[str, Held]:
        """Return what the processes hold now; of several workers, the largest figures."""
        plant = self._plant
        pids = {"test": [os.getpid()], "worker": [worker.pid for worker in plant.workers if worker.poll() is None]}
        if plant.orchestrator is not None and plant.orchestrator.poll() is None:
            pids["orchestrator"] = [plant.orchestrator.pid]
        if plant.spared is not None:
            pids["spared worker"] = [plant.spared.pid]
        if self._server is not None:
            pids["redis"] = [self._server.pid]
        found = {}
        for role, numbers in pids.items():
            helds = [held for pid in numbers if (held := held_by(pid)) is not None]
            if helds:
                found[role] = Held(max(held.memory for held in helds), max(held.files for held in helds))
        return found

    def note(self) -> str:
        """Keep what is seen now as that of a calm moment; returns it as text."""
        for role, held in (found := self.look()).items():
            self.calm.setdefault(role, []).append(held)
        return _text(found)

    async def follow(self, progress: Callable[[], str]) -> None:
        """Print a line every half minute until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            say(f"  {progress()}; {_text(self.look())}")

    def growth(self) -> Iterator[str]:
        """Yield a sentence for each process that came to hold more from calm moment to calm moment. Nothing before there are enough."""
        for role, helds in self.calm.items():
            if len(helds) < ENOUGH:
                continue
            kept = helds[1:]
            third = len(kept) // 3
            early, late = kept[:third], kept[-third:]
            memory = [statistics.median(held.memory for held in part) for part in (early, late)]
            files = [statistics.median(held.files for held in part) for part in (early, late)]
            if memory[1] > memory[0] * (1 + MORE) + MORE_BYTES:
                yield f"{role} grew from {memory[0] / MIB:.0f} to {memory[1] / MIB:.0f} MiB"
            if files[1] > files[0] + MORE_FILES:
                yield f"{role} had {files[0]:g} open files, then {files[1]:g}"


def _text(found: dict[str, Held]) -> str:
    return ", ".join(f"{role} {held}" for role, held in found.items())


def say(text: str) -> None:
    """Print at once: whoever follows a test of hours reads a file."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
