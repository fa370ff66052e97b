"""Who is next before a gate: levels by weight with ageing, tenants in turns, then first come, first served.

    level 1 ── tenant a: ▮▮▮        Levels take turns in proportion to their weights (smooth weighted round-robin, nginx's method), so a
            └─ tenant b: ▮          flood of low calls costs a high one a turn at most, and no level starves. A level that was not
    level 3 ── tenant a: ▮▮▮▮▮      served for AGEING seconds counts as one higher. Within a level tenants take turns.

Ageing goes by when the level was last served, not by how long its next call has waited: a backlog of low calls that takes minutes, but is
being worked off, starves nobody, and must not come to stand beside the high ones once it is a minute old.

Pure: the time is passed in, nothing is locked. A place that cannot go on is blocked for a while and does not hold the others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar

WEIGHTS = {1: 16, 2: 8, 3: 4, 4: 2, 5: 1}
#: Seconds of waiting that lift a level by one.
AGEING = 15.0


class Waiting(Protocol):
    """What waits in a line."""

    priority: int
    tenant: str
    since: float


W = TypeVar("W", bound=Waiting)


class Line(Generic[W]):
    """Calls that wait, by priority and tenant."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, deque[W]]] = {}
        self._credit: dict[int, float] = dict.fromkeys(WEIGHTS, 0.0)
        self._served: dict[int, float] = {}
        #: The turn that `next` gave last: its level, and what each level that could have had it is due.
        self._turn: tuple[int, dict[int, float]] = (0, {})
        #: Until when levels from a number on wait, and until when a tenant does.
        self._levels_until: dict[int, float] = {}
        self._tenants_until: dict[str, float] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, call: W) -> bool:
        tenants = self._levels.get(_level(call))
        return tenants is not None and call in tenants.get(call.tenant, ())

    def add(self, call: W) -> None:
        """Let a call wait at the end of its place."""
        level = _level(call)
        self._levels.setdefault(level, OrderedDict()).setdefault(call.tenant, deque()).append(call)
        self._count += 1

    def serve(self, call: W, now: float) -> None:
        """Let the call whose turn it is go on. A turn that came to nothing counts for nobody: its level keeps its claim to the next."""
        chosen, due = self._turn
        for level, weight in due.items():
            self._credit[level] += weight
        if due:
            self._credit[chosen] -= sum(due.values())
            self._turn = (0, {})
        self._served[_level(call)] = now
        self.remove(call)

    def priority(self, call: W, now: float) -> float:
        """Return a call's priority, lifted by one level for each AGEING seconds that its level was not served."""
        level = _level(call)
        since = max(call.since, self._served.get(level, call.since))
        return max(1.0, level - max(0.0, now - since) / AGEING)

    def remove(self, call: W) -> bool:
        """Let a call wait no longer; says whether it did. Its tenant goes to the end of its level: it had its turn."""
        level = _level(call)
        tenants = self._levels.get(level)
        calls = tenants.get(call.tenant) if tenants is not None else None
        if tenants is None or calls is None or call not in calls:
            return False
        calls.remove(call)
        self._count -= 1
        if calls:
            tenants.move_to_end(call.tenant)
        else:
            del tenants[call.tenant]
            if not tenants:
                del self._levels[level]
                self._credit[level] = 0.0
        return True

    def block(self, call: W, until: float, *, tenant_only: bool) -> None:
        """Let the call's place wait until a moment: its tenant, or its level and those below, which may take even less."""
        if tenant_only:
            self._tenants_until[call.tenant] = until
        else:
            self._levels_until[_level(call)] = until

    def unblock(self) -> None:
        """Let all places try again: something has come back."""
        self._levels_until.clear()
        self._tenants_until.clear()

    def next(self, now: float) -> W | None:
        """Return the call whose turn it is, which stays in the line until it is served; None if all places are blocked."""
        heads: dict[int, W] = {}
        for level, tenants in self._levels.items():
            if any(at <= level and until > now for at, until in self._levels_until.items()):
                continue
            head = next((c[0] for t, c in tenants.items() if self._tenants_until.get(t, 0.0) <= now), None)
            if head is not None:
                heads[level] = head
        self._turn = (0, {})
        if len(heads) <= 1:
            return next(iter(heads.values()), None)
        due = {level: float(WEIGHTS[int(self.priority(head, now))]) for level, head in heads.items()}
        chosen = max(heads, key=lambda level: (self._credit[level] + due[level], -level))
        self._turn = (chosen, due)
        return heads[chosen]

    def wait(self, now: float) -> float:
        """Return the seconds until a blocked place may try again; 0 if none is blocked."""
        moments = [u for u in (*self._levels_until.values(), *self._tenants_until.values()) if u > now]
        return min(moments) - now if moments else 0.0

    def levels(self) -> dict[int, int]:
        """Return how many wait, by priority."""
        return {level: sum(map(len, tenants.values())) for level, tenants in self._levels.items()}

    def calls(self) -> list[W]:
        """Return all that wait."""
        return [call for tenants in self._levels.values() for calls in tenants.values() for call in calls]


def _level(call: Waiting) -> int:
    return min(max(call.priority, 1), 5)
