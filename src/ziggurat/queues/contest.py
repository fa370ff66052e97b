"""One receive's choice among lines that a store keeps: the policy of `scheduling`, for backends that hold no messages in memory.

A store names its candidates, each a line with the moment its oldest message became ready; the contest says whose turn it is, one
message at a time. What it remembers between receives, whose turn it was, stays in the process: each process is fair in what it takes,
so all together are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

from ziggurat.queues.scheduling import LevelTurns, Ring

#: Turns that are remembered, by queue, level and namespace; past this many they are forgotten and start anew.
TURNS_KEPT = 10_000


class Candidate:
    """A line that has ready messages. `since` is when the oldest became ready; `rows` is for the store, which fetches them late."""

    __slots__ = ("line", "queue", "namespace", "priority", "since", "rows")

    def __init__(self, line: int, queue: str, namespace: str, priority: int, since: float) -> None:
        self.line, self.queue, self.namespace, self.priority, self.since = line, queue, namespace, priority, since
        self.rows: list[Any] = []


class Turns:
    """What one kind of receiver remembers from one receive to the next."""

    def __init__(self, queues: Sequence[str], levels: LevelTurns) -> None:
        self.queues = list(dict.fromkeys(queues))
        self.levels = levels
        self._served: dict[tuple[str, int, str], int] = {}
        self._count = count(1)

    def last(self, candidate: Candidate) -> int:
        """Return the number of the turn at which this candidate's namespace was served last, 0 for never."""
        return self._served.get((candidate.queue, candidate.priority, candidate.namespace), 0)

    def serve(self, candidate: Candidate) -> None:
        if len(self._served) > TURNS_KEPT:
            self._served.clear()
        self._served[candidate.queue, candidate.priority, candidate.namespace] = next(self._count)
        self.queues.remove(candidate.queue)
        self.queues.append(candidate.queue)


_Heap = list[tuple[float, int, Candidate]]


class Contest:
    """Call `next`, then tell it what became of the candidate: `served` or `dropped`."""

    def __init__(self, candidates: Iterable[Candidate], turns: Turns) -> None:
        self._turns = turns
        self._levels: dict[int, dict[str, Ring[_Heap]]] = {}
        # Those served longest ago first; among those never served, the one with the oldest message.
        for it in sorted(candidates, key=lambda it: (turns.last(it), it.since)):
            ring = self._levels.setdefault(it.priority, {}).setdefault(it.queue, Ring())
            heapq.heappush(ring.setdefault(it.namespace, []), (it.since, it.line, it))

    def next(self, now: float) -> Candidate | None:
        """Return the candidate whose oldest message is next, or None when there is none."""
        first: dict[int, Candidate] = {}
        for level, rings in self._levels.items():
            queue = next(queue for queue in self._turns.queues if queue in rings)
            heap = next(iter(rings[queue].values()))
            first[level] = heap[0][2]
        if len(first) < 2:
            return next(iter(first.values()), None)
        return first[self._turns.levels.choose({level: now - it.since for level, it in first.items()})]

    def served(self, candidate: Candidate, since: float | None) -> None:
        """Note that its oldest message was taken; `since` is the next one's, None when there is no other."""
        ring = self._levels[candidate.priority][candidate.queue]
        heap = ring[candidate.namespace]
        if since is None:
            self.dropped(candidate)
        else:
            candidate.since = since
            heapq.heapreplace(heap, (since, candidate.line, candidate))
        if candidate.namespace in ring:
            ring.served(candidate.namespace)
        self._turns.serve(candidate)

    def dropped(self, candidate: Candidate) -> None:
        """Note that it cannot be served now: a limit holds it back, or it is empty."""
        rings = self._levels[candidate.priority]
        ring = rings[candidate.queue]
        heap = ring[candidate.namespace]
        heapq.heappop(heap)
        if not heap:
            del ring[candidate.namespace]
        if not ring:
            del rings[candidate.queue]
        if not rings:
            del self._levels[candidate.priority]
