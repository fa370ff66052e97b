"""The queue of the embedded system: messages in this process's memory.

It keeps every promise of the interface except durability: when the process ends, its messages are gone, and the orchestrator, whose
history is the truth, sends them again. Nothing is encoded or copied, no task runs in the background, and no asyncio object is made
for a message: a call that has to wait makes one future, and one timer stands for all leases, delays and rates.

    send ─▶ ready (lines) ─receive─▶ leased ─settle─▶ outcomes ─ack_outcomes─▶ gone
              ▲    ▲ due                │
              │  delayed ◀──────────────┤ release(delay), lease ran out
              └─────────────────────────┤
                         dead letters ◀─┘ after max_deliveries

Leases run on the monotonic clock, so a step of the wall clock ends none. They are all of one length, which makes the table of leased
messages, kept in the order of their last renewal, a sorted one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import Raw, Struct

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import QueueUnavailable
from ziggurat.queues.bell import Bell
from ziggurat.queues.crashbook import CrashBook
from ziggurat.queues.deadletters import dead_outcome, lease_ran_out, process_died
from ziggurat.queues.interface import Capabilities, Queue, QueueOptions
from ziggurat.queues.lines import DELAYED, GONE, LEASED, READY, Entry, Lines, View
from ziggurat.queues.outbox import NEVER, Outbox
from ziggurat.queues.presences import Presences
from ziggurat.queues.refusals import lane_full, too_large
from ziggurat.records import DeadLetter, Delivery, Depth, Message, Outcome, Presence, Progress

#: Progress that nobody fetched is kept up to this many records; the oldest are dropped first.
PROGRESS_KEPT = 10_000
#: A timer late by more than so many seconds shows that the event loop stood still.
STOOD_STILL = 0.5


class _Dead(Struct, gc=False, frozen=True):
    """A dead letter, and what a redriven message must remember: its epochs go on, so old holders stay fenced."""

    letter: DeadLetter
    epoch: int
    heartbeat: Raw | None


class MemoryQueue(Queue):
    """A queue in this process.

    Args:
        options: the policy.
        clock: the time; tests move it.
        crashbook: a file that remembers what was worked on when the process died, so that a message that kills its process becomes a
            dead letter after `max_deliveries` like any other. None remembers nothing.
    """

    capabilities = Capabilities(presence=True, tells_suspects=True)

    def __init__(self, options: QueueOptions | None = None, *, clock: Clock | None = None, crashbook: Path | None = None) -> None:
        self.options = options or QueueOptions()
        self._crashbook_path = crashbook
        self._book: CrashBook | None = None
        self._clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._lease = self.options.lease
        self._lines = Lines(self.options.weights, self.options.ageing)
        self._entries: dict[str, Entry] = {}
        self._leased: dict[str, Entry] = {}
        self._delayed: list[tuple[float, int, Entry]] = []
        #: Cancelled ones among the delayed, dropped when they are the most of the heap.
        self._husks = 0
        self._dead: dict[str, _Dead] = {}
        self._outbox = Outbox()
        self._presences = Presences(self._clock)
        self._progress: deque[Progress] = deque(maxlen=PROGRESS_KEPT)
        self._cancelled: dict[str, dict[str, None]] = {}
        self._work, self._results, self._news, self._cancels = Bell(), Bell(), Bell(), Bell()
        self._count = 0
        #: No lease, delay, rate or outcome is due before this moment; what the timer is set to.
        self._due = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._stop_watching = self._clock.watch(self._moved)
        self._closed = False

    async def open(self) -> None:
        if self._crashbook_path is not None and self._book is None:
            self._book = CrashBook(self._crashbook_path)
        if self._closed:
            self._closed = False
            self._stop_watching = self._clock.watch(self._moved)

    async def close(self) -> None:
        self._closed = True
        if self._book is not None:
            self._book.close()
            self._book = None
        self._stop_watching()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, NEVER
        for table in (self._entries, self._leased, self._delayed, self._dead, self._outbox, self._presences):
            table.clear()
        self._progress.clear()
        self._cancelled.clear()
        self._lines.clear()
        for bell in (self._work, self._results, self._news, self._cancels):
            bell.ring()

    # -- the orchestrator's side ---------------------------------------------------------------------------------

    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        now = self._begin()
        self._admit(messages)
        entries, outbox, dead, lines = self._entries, self._outbox, self._dead, self._lines
        put, count = lines.put, self._count
        lane, line = None, None
        for message in messages:
            id_ = message.id
            if id_ in entries or id_ in outbox:
                continue
            if message.concurrency is not None or message.rate is not None:
                line = lines.line(message)
                lane = None
            elif message.lane is not lane or line is None:
                lane = message.lane
                line = lines.line(message)
            if dead:
                dead.pop(id_, None)  # Sent anew, it is no longer given up.
            count += 1
            entry = Entry(message=message, line=line, receipt=count)
            entries[id_] = entry
            line.held += 1
            if self._book is not None and id_ in self._book.lost:
                entry.deliveries = self._book.lost[id_]
                if entry.deliveries >= self.options.max_deliveries:
                    self._bury(entry, process_died(entry.deliveries))
                    continue
            if delay > 0:
                self._delay(entry, now + delay)
            else:
                put(entry, now)
        self._count = count
        self._work.ring()

    def _admit(self, messages: Sequence[Message]) -> None:
        """Refuse a batch of which one message is too large, or that one lane cannot take. Nothing of it is taken then."""
        largest = self.capabilities.largest_message
        for message in messages:
            if len(message.payload) > largest:
                raise too_large(message, largest)
        if len(self._entries) + len(messages) <= self.options.capacity:
            return  # Even all of them on one lane would fit.
        new = {
            message.id: message.lane for message in messages if message.id not in self._entries and message.id not in self._outbox
        }
        full = self._lines.room(Counter(new.values()), self.options.capacity)
        if full is not None:
            raise lane_full(full, self.options.capacity)

    def _delay(self, entry: Entry, due: float) -> None:
        entry.state, entry.until = DELAYED, due
        entry.line.delayed += 1
        self._count += 1
        heapq.heappush(self._delayed, (due, self._count, entry))
        self._arm(due)

    async def outcomes(self, limit: int, wait: float) -> list[Outcome]:
        return await self._results.first(lambda: self._take_outcomes(limit), wait)

    def _take_outcomes(self, limit: int) -> list[Outcome]:
        due = self._begin() + self._lease
        taken = self._outbox.take(limit, due)
        if taken:
            self._arm(due)
        return taken

    async def ack_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        self._begin()
        self._outbox.acknowledge(outcomes)

    async def cancel(self, ids: Collection[str]) -> None:
        self._begin()
        for id_ in ids:
            entry = self._entries.get(id_)
            if entry is None:
                continue
            if entry.state == LEASED:
                if not entry.cancelled:
                    entry.cancelled = True
                    self._cancelled.setdefault(entry.worker, {})[id_] = None
                    self._cancels.ring()
            elif entry.state == READY:
                self._lines.remove(entry)
                self._forget(entry)
            else:
                entry.state = GONE
                entry.line.delayed -= 1
                self._husks += 1
                self._forget(entry)
        if self._husks * 2 > len(self._delayed):
            self._delayed = [place for place in self._delayed if place[2].state == DELAYED]
            heapq.heapify(self._delayed)
            self._husks = 0

    async def missing(self, ids: Collection[str]) -> set[str]:
        self._begin()
        return {id_ for id_ in ids if id_ not in self._entries and id_ not in self._outbox}

    async def progress(self, limit: int, wait: float) -> list[Progress]:
        return await self._news.first(lambda: self._take_progress(limit), wait)

    def _take_progress(self, limit: int) -> list[Progress]:
        self._begin()
        return [self._progress.popleft() for _ in range(min(limit, len(self._progress)))]

    # -- the worker's side ---------------------------------------------------------------------------------------

    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        view = self._lines.view(queues, region)
        return await self._work.first(lambda: self._lease_to(worker, view, limit), wait)

    def _lease_to(self, worker: str, view: View, limit: int) -> list[Delivery]:
        now = self._begin()
        taken = self._lines.take(view, limit, now, trusted := self.options.trusted)
        # A rate that held a line back on the way must wake it, whether or not others had something.
        self._arm(min(now + self._lease, self._lines.rate_due) if taken else self._lines.rate_due)
        until = now + self._lease
        leased_until = self._clock.time() + self._lease
        leased = self._leased
        if self._book is not None and taken:
            self._book.leased([entry.message.id for entry in taken])
        deliveries = []
        for entry in taken:
            message = entry.message
            entry.state = LEASED
            entry.epoch = epoch = entry.epoch + 1
            entry.deliveries += 1
            entry.worker = worker
            entry.until = until
            leased[message.id] = entry
            deliveries.append(
                Delivery(
                    message=message,
                    worker=worker,
                    epoch=epoch,
                    leased_until=leased_until,
                    heartbeat=entry.heartbeat or message.heartbeat,
                    suspect=entry.deliveries > trusted,
                    receipt=entry.receipt,
                )
            )
        return deliveries

    def _holding(self, delivery: Delivery) -> Entry | None:
        """Return the entry that a delivery still owns, or None when it is fenced."""
        entry = self._leased.get(delivery.message.id)
        if (
            entry is not None
            and entry.epoch == delivery.epoch
            and entry.worker == delivery.worker
            and entry.receipt == delivery.receipt
        ):
            return entry
        return None

    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        now = self._begin()
        lost: set[str] = set()
        for delivery in deliveries:
            id_ = delivery.message.id
            entry = self._holding(delivery)
            if entry is None:
                lost.add(id_)
                continue
            if details and id_ in details:
                entry.heartbeat = Raw(details[id_])
            entry.until = now + self._lease
            del self._leased[id_]
            self._leased[id_] = entry  # To the end: the table is in the order of lease ends.
        return lost

    async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        self._begin()
        fenced: set[str] = set()
        leased, entries, outbox = self._leased, self._entries, self._outbox
        freed = False
        for delivery, outcome in settled:
            message = delivery.message
            id_ = message.id
            entry = self._holding(delivery)
            if entry is None:
                fenced.add(id_)
                continue
            del leased[id_], entries[id_]
            entry.state = GONE
            entry.line.held -= 1
            if message.concurrency is not None:
                freed |= self._lines.ended(entry)
            if entry.cancelled:
                self._forget_cancel(entry)
            outbox.put(outcome)
        if self._book is not None:
            self._book.done([delivery.message.id for delivery, _ in settled if delivery.message.id not in fenced])
        self._results.ring()
        if freed:
            self._work.ring()
        return fenced

    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        now = self._begin()
        fenced: set[str] = set()
        for delivery in deliveries:
            entry = self._holding(delivery)
            if entry is None:
                fenced.add(delivery.message.id)
                continue
            self._lines.unstarted(entry, now)
            if not reason:
                entry.deliveries -= 1
            self._return(entry, now, delay, reason)
        if self._book is not None:
            self._book.returned([delivery.message.id for delivery in deliveries if delivery.message.id not in fenced])
        self._work.ring()
        return fenced

    async def cancellations(self, worker: str, wait: float) -> list[str]:
        return await self._cancels.first(lambda: self._take_cancellations(worker), wait)

    def _take_cancellations(self, worker: str) -> list[str]:
        self._begin()
        return list(self._cancelled.pop(worker, ()))

    async def publish(self, progress: Sequence[Progress]) -> None:
        self._begin()
        self._progress.extend(progress)
        self._news.ring()

    # -- everyone's ----------------------------------------------------------------------------------------------

    async def depth(self, queues: Iterable[str] | None = None) -> dict[str, Depth]:
        now = self._begin()
        found = self._lines.depth(queues, now)
        for dead in self._dead.values():
            queue = dead.letter.message.lane.queue
            if queues is None or queue in found:
                found[queue] = found.get(queue, Depth()) + Depth(dead=1)
        return found

    async def announce(self, presences: Sequence[Presence], *, ttl: float) -> None:
        self._presences.announce(presences, ttl)

    async def workers(self) -> list[Presence]:
        return self._presences.present()

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        self._begin()
        newest = reversed(self._dead.values())
        return [dead.letter for dead, _ in zip(newest, range(limit), strict=False)]

    async def redrive(self, ids: Collection[str]) -> int:
        now = self._begin()
        redriven = 0
        for id_ in ids:
            if id_ in self._entries or (dead := self._dead.pop(id_, None)) is None:
                continue
            self._outbox.withdraw(id_)  # If nobody recorded yet that it died, it did not.
            self._count += 1
            message = dead.letter.message
            line = self._lines.line(message)
            line.held += 1
            entry = Entry(message=message, line=line, epoch=dead.epoch, heartbeat=dead.heartbeat, receipt=self._count)
            self._entries[id_] = entry
            self._lines.put(entry, now)
            redriven += 1
        self._work.ring()
        return redriven

    async def discard(self, ids: Collection[str]) -> int:
        self._begin()
        return sum(self._dead.pop(id_, None) is not None for id_ in ids)

    def stored(self) -> int:
        """Return how many objects are kept now, of every kind: what must return to where it was when all work is done."""
        tables = (self._entries, self._leased, self._delayed, self._dead, self._progress, self._cancelled, self._presences)
        return sum(len(table) for table in tables) + self._outbox.stored() + self._lines.stored()

    # -- time and ends -------------------------------------------------------------------------------------------

    def _begin(self) -> float:
        """Start a verb: nothing that is due may be seen as it was before. Returns the time."""
        if self._closed:
            raise QueueUnavailable("The memory queue is closed; open it, or connect a new client.")
        now = self._monotonic()
        if now >= self._due:
            self._sweep(now)
        return now

    def _arm(self, due: float) -> None:
        if due >= self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - self._monotonic()), self._fired)

    def _fired(self) -> None:
        fired = self._timer
        self._moved()
        if self._timer is fired:
            # The loop's clock ran ahead of ours by its resolution, or a test holds ours: come back.
            self._timer = None
            due, self._due = self._due, NEVER
            self._arm(due)

    def _moved(self) -> None:
        """Look at the clock, because the timer fired or a test moved it."""
        now = self._monotonic()
        if now >= self._due:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Do what is due: end leases, ready delayed messages, let rates go on, offer outcomes again. Then set the timer anew."""
        if self._timer is not None:
            if asyncio.get_running_loop().time() - self._timer.when() > STOOD_STILL:
                # A task had the event loop to itself, so no worker could renew a lease. The workers of this process live as long as it
                # does: to end their leases now would run their tasks twice, and bury those that compute for long.
                for entry in self._leased.values():
                    entry.until = now + self._lease
            self._timer.cancel()
        self._timer, self._due = None, NEVER
        leases = self._sweep_leases(now)
        while self._delayed and self._delayed[0][0] <= now:
            due, _, entry = heapq.heappop(self._delayed)
            if entry.state == GONE:
                self._husks -= 1
            else:
                entry.line.delayed -= 1
                self._lines.put(entry, due)
        self._lines.wake_rates(now)
        self._lines.prune(now)
        again = self._outbox.offer_again(now)
        if self._outbox.waiting:
            self._results.ring()
        self._work.ring()
        delays = self._delayed[0][0] if self._delayed else NEVER
        self._arm(min(leases, delays, self._lines.rate_due, again))

    def _sweep_leases(self, now: float) -> float:
        """End the leases that ran out; returns when the next one does."""
        ended = []
        next_due = NEVER
        for entry in self._leased.values():
            if entry.until > now:
                next_due = entry.until
                break
            ended.append(entry)
        for entry in ended:
            self._lines.ended(entry)
            self._return(entry, now, 0.0, "")
        return next_due

    def _return(self, entry: Entry, now: float, delay: float, reason: str) -> None:
        """A delivery came to nothing: the message goes back to its line, or to the dead letters if that was its last."""
        del self._leased[entry.message.id]
        if entry.cancelled:
            self._forget_cancel(entry)
            self._forget(entry)
        elif entry.deliveries >= self.options.max_deliveries:
            self._bury(entry, reason or lease_ran_out(entry.deliveries, entry.worker))
        elif delay > 0:
            self._delay(entry, now + delay)
        else:
            self._lines.put_back(entry)

    def _bury(self, entry: Entry, reason: str) -> None:
        message, at = entry.message, self._clock.time()
        self._forget(entry)
        letter = DeadLetter(id=message.id, message=message, reason=reason, deliveries=entry.deliveries, died_at=at)
        self._dead[message.id] = _Dead(letter, entry.epoch, entry.heartbeat)
        outcome = dead_outcome(message, reason, worker=entry.worker, heartbeat=entry.heartbeat, at=at)
        self._outbox.put(outcome)
        self._results.ring()

    def _forget(self, entry: Entry) -> None:
        entry.state = GONE
        entry.line.held -= 1
        del self._entries[entry.message.id]

    def _forget_cancel(self, entry: Entry) -> None:
        told = self._cancelled.get(entry.worker)
        if told is not None:
            told.pop(entry.message.id, None)
            if not told:
                del self._cancelled[entry.worker]
