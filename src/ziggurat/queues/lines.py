"""Messages that are ready, kept so that the next one by policy is found at once: what a backend that holds them in memory needs.

    queue ── level (priority) ── ring of namespaces ── group (region) ── lines, the one with the oldest head first ── entries

A line holds the messages of one lane that share their limits: a concurrency key that is full, or a rate that must wait, parks its own
line and nobody else's. With one lane and no limits, which is the embedded system's usual case, a batch is taken with one lookup.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Raw, Struct

from ziggurat.queues.scheduling import Buckets, LevelTurns, Ring, Slots
from ziggurat.records import Depth, Lane, Message

#: Where an entry is in its life. READY and DELAYED wait, LEASED is with a worker, GONE is a husk that a line has yet to drop.
READY, DELAYED, LEASED, GONE = range(4)
#: Empty lines are kept for their next message up to this many, then swept.
LINES_KEPT = 1024
#: A worker that names another set of queues is another view; their turns are forgotten past this many.
VIEWS_KEPT = 1024

LineKey = tuple[Lane, str, str]


class Entry(Struct, gc=False, kw_only=True):
    """A message on the queue. Entries and their lines point at each other, so `Lines.clear` is what ends them."""

    message: Message
    line: Line
    #: Position in the order of becoming ready, and when that was.
    seq: int = 0
    since: float = 0.0
    state: int = READY
    epoch: int = 0
    #: Deliveries that count toward the limit; hand-backs do not.
    deliveries: int = 0
    worker: str = ""
    #: When the lease ends, or a delayed message is due.
    until: float = 0.0
    heartbeat: Raw | None = None
    cancelled: bool = False
    #: Tells this life of the message's id from an earlier one.
    receipt: int = 0


class Line:
    """Messages of one lane with the same limits, in the order in which they became ready."""

    __slots__ = ("key", "lane", "limited", "fifo", "returned", "live", "delayed", "held", "listed_at", "parked")

    def __init__(self, key: LineKey) -> None:
        self.key = key
        self.lane = key[0]
        self.limited = bool(key[1] or key[2])
        self.fifo: deque[Entry] = deque()
        #: Those that came back from a worker, as a heap: they are older than the rest and keep their order.
        self.returned: list[tuple[int, Entry]] = []
        self.live = self.delayed = self.held = 0
        #: The `seq` under which a group lists this line, -1 for not listed.
        self.listed_at = -1
        self.parked = False

    def head(self) -> Entry | None:
        """Return the oldest ready entry, dropping husks before it."""
        returned, fifo = self.returned, self.fifo
        while returned and returned[0][1].state != READY:
            heapq.heappop(returned)
        if returned:
            return returned[0][1]
        while fifo and fifo[0].state != READY:
            fifo.popleft()
        return fifo[0] if fifo else None

    def pop(self, limit: int) -> list[Entry]:
        """Take up to `limit` entries off the front."""
        fifo = self.fifo
        if self.live == len(fifo) and not self.returned:
            taken = [fifo.popleft() for _ in range(min(limit, self.live))]
            self.live -= len(taken)
            return taken
        taken = []
        while len(taken) < limit and (entry := self.head()) is not None:
            if self.returned:
                heapq.heappop(self.returned)
            else:
                fifo.popleft()
            taken.append(entry)
            self.live -= 1
        return taken

    def compact(self) -> None:
        """Drop husks when they are the most of the line: removing one from the middle of a deque would cost its length."""
        if self.live == 0:
            self.fifo.clear()
            self.returned.clear()
        elif len(self.fifo) + len(self.returned) > 2 * self.live + 64:
            self.fifo = deque(entry for entry in self.fifo if entry.state == READY)
            self.returned = [pair for pair in self.returned if pair[1].state == READY]
            heapq.heapify(self.returned)


class Group:
    """Lines of one namespace, level and region, as a heap by the age of their heads. Stale places are skipped when they surface."""

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Line]] = []
        self._count = 0

    def list(self, line: Line, seq: int) -> None:
        line.listed_at = seq
        self._count += 1
        heapq.heappush(self._heap, (seq, self._count, line))

    def first(self) -> tuple[Line, Entry] | None:
        heap = self._heap
        while heap:
            seq, count, line = heap[0]
            if line.listed_at != seq or line.parked:
                heapq.heappop(heap)
                continue
            head = line.head()
            if head is None:
                line.listed_at = -1
                heapq.heappop(heap)
            elif head.seq != seq:
                line.listed_at = head.seq
                heapq.heapreplace(heap, (head.seq, count, line))
            else:
                return line, head
        return None

    @property
    def alone(self) -> bool:
        return len(self._heap) == 1


class View:
    """What one kind of receiver looks at: its queues and regions, with the turns it has taken."""

    __slots__ = ("queues", "regions", "turns")

    def __init__(self, queues: Sequence[str], region: str, turns: LevelTurns) -> None:
        self.queues = list(dict.fromkeys(queues))
        self.regions = ("", region) if region else ("",)
        self.turns = turns


class _Next(Struct, gc=False):
    """The message that a level would serve next."""

    queue: str
    ring: Ring[dict[str, Group]]
    namespace: str
    group: Group
    line: Line
    head: Entry


class Lines:
    """All ready messages, taken by policy. Every method is synchronous; `now` is in seconds on the caller's clock."""

    def __init__(self, weights: Mapping[int, int], ageing: float) -> None:
        self._weights, self._ageing = weights, ageing
        self._lines: dict[LineKey, Line] = {}
        self._shelves: dict[str, dict[int, Ring[dict[str, Group]]]] = {}
        self._views: dict[tuple[tuple[str, ...], str], View] = {}
        self.slots = Slots()
        self.buckets = Buckets()
        self._parked_by_key: dict[str, list[Line]] = {}
        self._parked_by_time: list[tuple[float, int, Line]] = []
        self._seq = 0
        self._prune_at = LINES_KEPT

    # -- putting -------------------------------------------------------------------------------------------------

    def line(self, message: Message) -> Line:
        """Return the line that a message belongs to."""
        concurrency, rate = message.concurrency, message.rate
        key = (message.lane, concurrency.key if concurrency else "", rate.key if rate else "")
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= self._prune_at:
                self._prune()
            line = self._lines[key] = Line(key)
        return line

    def put(self, entry: Entry, now: float) -> None:
        """Add an entry that has just become ready, behind all others of its line."""
        self._seq += 1
        entry.seq, entry.since, entry.state = self._seq, now, READY
        line = entry.line
        line.fifo.append(entry)
        line.live += 1
        if line.listed_at < 0 and not line.parked:
            self._list(line, self._seq)

    def put_back(self, entry: Entry) -> None:
        """Add an entry that a worker gave back or lost: it keeps its age, and so its place."""
        entry.state = READY
        line = entry.line
        heapq.heappush(line.returned, (entry.seq, entry))
        line.live += 1
        if not line.parked and (line.listed_at < 0 or entry.seq < line.listed_at):
            self._list(line, entry.seq)

    def remove(self, entry: Entry) -> None:
        """Take a ready entry out of its line."""
        entry.state = GONE
        line = entry.line
        line.live -= 1
        line.compact()

    def _list(self, line: Line, seq: int) -> None:
        lane = line.lane
        shelf = self._shelves.get(lane.queue)
        if shelf is None:
            shelf = self._shelves[lane.queue] = {}
        ring = shelf.get(lane.priority)
        if ring is None:
            ring = shelf[lane.priority] = Ring()
        groups = ring.get(lane.namespace)
        if groups is None:
            groups = ring[lane.namespace] = {}
        group = groups.get(lane.region)
        if group is None:
            group = groups[lane.region] = Group()
        group.list(line, seq)

    # -- taking --------------------------------------------------------------------------------------------------

    def view(self, queues: Sequence[str], region: str) -> View:
        """Return the view of a receiver. Those that look at the same share their turns."""
        key = (tuple(queues), region)
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= VIEWS_KEPT:
                self._views.clear()
            view = self._views[key] = View(queues, region, LevelTurns(self._weights, self._ageing))
        return view

    def take(self, view: View, limit: int, now: float, trusted: float = float("inf")) -> list[Entry]:
        """Take up to `limit` entries by the policy, occupying their concurrency slots and rate tokens.

        One that was delivered `trusted` times or more is taken alone.
        """
        taken: list[Entry] = []
        while len(taken) < limit:
            found, alone = self._next(view, now)
            if found is None:
                break
            line = found.line
            if line.limited and not self._claim(line, found.head, now):
                continue
            taken += line.pop(1 if line.limited or not alone else limit - len(taken))
            found.ring.served(found.namespace)
            if len(view.queues) > 1:
                view.queues.remove(found.queue)
                view.queues.append(found.queue)
        suspect = next((place for place, entry in enumerate(taken) if entry.deliveries >= trusted), None)
        if suspect is not None:
            for entry in taken[max(suspect, 1) :]:
                self.unstarted(entry, now)
                self.put_back(entry)
            del taken[max(suspect, 1) :]
        return taken

    def _next(self, view: View, now: float) -> tuple[_Next | None, bool]:
        """Return the next message by policy, and whether its line is the only one that competes."""
        levels: dict[int, _Next] = {}
        alone = True
        for queue in view.queues:
            shelf = self._shelves.get(queue)
            if shelf is None:
                continue
            for priority in list(shelf):
                ring = shelf[priority]
                found = self._first(queue, ring, view.regions)
                if not ring:
                    del shelf[priority]
                if found is None:
                    continue
                if priority in levels:
                    alone = False  # The queue that waited longer for its turn goes first.
                    continue
                alone = alone and len(ring) == 1 and len(ring[found.namespace]) == 1 and found.group.alone
                levels[priority] = found
        if len(levels) < 2:
            return next(iter(levels.values()), None), alone
        chosen = view.turns.choose({priority: now - found.head.since for priority, found in levels.items()})
        return levels[chosen], False

    @staticmethod
    def _first(queue: str, ring: Ring[dict[str, Group]], regions: tuple[str, ...]) -> _Next | None:
        """Return what a level serves next in these regions, dropping the namespaces that ran out on the way."""
        empty: list[str] = []
        best: _Next | None = None
        for namespace, groups in ring.items():
            for region in regions:
                group = groups.get(region)
                if group is None:
                    continue
                first = group.first()
                if first is None:
                    del groups[region]
                elif best is None or first[1].seq < best.head.seq:
                    best = _Next(queue, ring, namespace, group, *first)
            if best is not None:
                break
            if not groups:
                empty.append(namespace)
        for namespace in empty:
            del ring[namespace]
        return best

    # -- limits --------------------------------------------------------------------------------------------------

    def _claim(self, line: Line, head: Entry, now: float) -> bool:
        """Occupy what the message's limits ask for; else park its line until that may have changed."""
        message = head.message
        concurrency, rate = message.concurrency, message.rate
        if concurrency and self.slots.running(concurrency.key) >= concurrency.limit:
            self._park(line)
            self._parked_by_key.setdefault(concurrency.key, []).append(line)
            return False
        if rate and (wait := self.buckets.take(rate, now)) > 0:
            self._park(line)
            self._seq += 1
            heapq.heappush(self._parked_by_time, (now + wait, self._seq, line))
            return False
        if concurrency:
            self.slots.take(concurrency)
        return True

    @staticmethod
    def _park(line: Line) -> None:
        line.parked, line.listed_at = True, -1

    def _unpark(self, line: Line) -> None:
        line.parked = False
        if (head := line.head()) is not None:
            self._list(line, head.seq)

    def ended(self, entry: Entry) -> bool:
        """Free the concurrency slot of an attempt that is over. Says whether messages may have become available."""
        concurrency = entry.message.concurrency
        if concurrency is None:
            return False
        self.slots.free(concurrency.key)
        parked = self._parked_by_key.pop(concurrency.key, ())
        for line in parked:
            self._unpark(line)
        return bool(parked)

    def unstarted(self, entry: Entry, now: float) -> bool:
        """As `ended`, for an attempt that never began: its rate token is given back too."""
        freed = self.ended(entry)
        if (rate := entry.message.rate) is not None:
            self.buckets.give_back(rate, now)
            # Lines that wait for this key were told a later time. They look again when it comes; the token is not lost.
        return freed

    def wake_rates(self, now: float) -> bool:
        """Unpark the lines whose rate allows a start by now. Says whether there were any."""
        woken = False
        while self._parked_by_time and self._parked_by_time[0][0] <= now:
            self._unpark(heapq.heappop(self._parked_by_time)[2])
            woken = True
        return woken

    @property
    def rate_due(self) -> float:
        """When the next line that waits for its rate may go on."""
        return self._parked_by_time[0][0] if self._parked_by_time else float("inf")

    # -- looking -------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def __len__(self) -> int:
        return len(self._lines)

    def depth(self, queues: Iterable[str] | None, now: float) -> dict[str, Depth]:
        """Return ready, leased and delayed by queue; dead letters are counted elsewhere."""
        found: dict[str, Depth] = {} if queues is None else {queue: Depth() for queue in queues}
        for line in self._lines.values():
            queue = line.lane.queue
            if queues is not None and queue not in found:
                continue
            head = line.head()
            found[queue] = found.get(queue, Depth()) + Depth(
                line.live,
                line.held - line.live - line.delayed,
                line.delayed,
                0,
                max(0.0, now - head.since) if head else 0.0,
            )
        return found

    def room(self, lanes: Mapping[Lane, int], capacity: int) -> Lane | None:
        """Return a lane that cannot take so many more messages, or None when all can."""
        held = dict.fromkeys(lanes, 0)
        for line in self._lines.values():
            if line.lane in held:
                held[line.lane] += line.held
        return next((lane for lane, more in lanes.items() if held[lane] + more > capacity), None)

    def prune(self, now: float) -> None:
        """Forget full buckets and empty lines: keys that name users or documents would pile up otherwise."""
        self.buckets.prune(now)
        if len(self._lines) > LINES_KEPT:
            self._prune()

    def _prune(self) -> None:
        self._lines = {key: line for key, line in self._lines.items() if line.held or line.parked}
        self._prune_at = max(LINES_KEPT, 2 * len(self._lines))

    def stored(self) -> int:
        """Return how many entries, husks, slots and buckets are kept; empty lines are bounded and do not count."""
        return (
            sum(len(line.fifo) + len(line.returned) for line in self)
            + len(self.slots)
            + len(self.buckets)
            + len(self._parked_by_time)
        )

    def clear(self) -> None:
        """Forget everything."""
        for line in self._lines.values():
            line.fifo.clear()
            line.returned.clear()
        self._lines.clear()
        self._shelves.clear()
        self._views.clear()
        self._parked_by_key.clear()
        self._parked_by_time.clear()
