"""Outcomes of a queue in memory, from the worker's report until the orchestrator has recorded them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ziggurat.records import Outcome

NEVER = float("inf")


class Outbox:
    """Hands outcomes out in order, and again after a while, until they are acknowledged. One id holds one outcome at a time."""

    def __init__(self) -> None:
        #: All that are not acknowledged; of those, the ones to hand out, and when the ones that were handed out come again.
        self._held: dict[str, Outcome] = {}
        self._fresh: deque[Outcome] = deque()
        self._fetched: dict[str, float] = {}

    def put(self, outcome: Outcome) -> None:
        self._held[outcome.message] = outcome
        self._fresh.append(outcome)

    def take(self, limit: int, again: float) -> list[Outcome]:
        """Hand out up to `limit` outcomes; those that are not acknowledged come again at the moment `again`."""
        fresh, held = self._fresh, self._held
        taken: list[Outcome] = []
        while fresh and len(taken) < limit:
            outcome = fresh.popleft()
            if held.get(outcome.message) is outcome:
                taken.append(outcome)
        self._fetched.update(dict.fromkeys([outcome.message for outcome in taken], again))
        return taken

    def acknowledge(self, outcomes: Sequence[Outcome]) -> None:
        held, fetched = self._held, self._fetched
        for outcome in outcomes:
            id_ = outcome.message
            mine = held.get(id_)
            # After a redrive the same id has a second outcome, which the acknowledgement of the first must not remove.
            if mine is outcome or (mine is not None and mine.status == outcome.status):
                del held[id_]
                fetched.pop(id_, None)

    def withdraw(self, id_: str) -> None:
        """Take back the outcome of a message that lives again."""
        self._held.pop(id_, None)
        self._fetched.pop(id_, None)

    def offer_again(self, now: float) -> float:
        """Make what was handed out too long ago ready to be handed out again; returns when the next is due."""
        ended = []
        next_due = NEVER
        for id_, due in self._fetched.items():  # In the order of handing out, so sorted.
            if due > now:
                next_due = due
                break
            ended.append(id_)
        for id_ in ended:
            del self._fetched[id_]
            self._fresh.append(self._held[id_])
        return next_due

    def __contains__(self, id_: str) -> bool:
        return id_ in self._held

    @property
    def waiting(self) -> bool:
        """Whether there is something to hand out."""
        return bool(self._fresh)

    def stored(self) -> int:
        return len(self._held) + len(self._fresh) + len(self._fetched)

    def clear(self) -> None:
        self._held.clear()
        self._fresh.clear()
        self._fetched.clear()
