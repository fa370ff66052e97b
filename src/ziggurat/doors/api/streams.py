"""Live streams: what happens to a run, as server-sent events, for any number of readers.

    orchestrator.watch ──▶ RunStream (one a run that is read: a ring of encoded events) ──▶ readers, each with its place in the ring

A reader gets the run's history past its starting point, then what is under way, then what happens, each as

    id: SEQ-STREAM-N        give it back as Last-Event-ID to go on behind it
    event: history          data: an Event, as /history returns it
    event: step             data: a Step whose attempt was sent or began
    event: progress         data: {"kind", "step", "attempt", "delivery", "offset", "at", "data"}: tokens, and what it emits
    event: status           data: {"status", "reason"}
    event: end              data: {}: the run has ended or is parked; a stream that closes without it is to be resumed

Events of the history come once each, in order, also to a reader that resumes at another server. Progress is fenced: of each step only
the newest (attempt, delivery) is shown, its offsets count up, and a reader that sees a higher one drops what the lower had streamed. A
reader that resumes within KEEP seconds at the same server misses nothing; otherwise progress of attempts that have ended is gone.
A reader that is slower than the run loses the oldest progress, never an event of the history.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncGenerator

import msgspec
from msgspec import Struct

from ziggurat.doors.api import shapes
from ziggurat.errors import ZigguratError
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.records import Event, Progress, RunEvent
from ziggurat.telemetry import events

#: Events and bytes that a stream keeps for readers that lag or come back.
RING_EVENTS = 10_000
RING_BYTES = 8 * 1024 * 1024
#: Seconds that a stream outlives its last reader, for one that was cut off.
KEEP = 30.0
#: Seconds of silence after which a comment keeps proxies from closing the connection.
HEARTBEAT = 15.0
#: Events of the history read at once.
PAGE = 500
_SETTLES = frozenset({"step_completed", "step_failed", "timer_fired"})


class Item(Struct, frozen=True):
    """One event of a stream, encoded but for its id."""

    kind: str
    data: bytes
    #: The position in the history that a reader has reached with it.
    seq: int
    step: int = 0


class RunStream:
    """The happenings of one run, for all who read it. `start` before the first reader."""

    def __init__(self, orchestrator: Orchestrator, run: str, seq: int) -> None:
        self._orchestrator = orchestrator
        self._run = run
        #: Tells streams apart, so that a place in another is not taken for one in this.
        self.token = secrets.token_hex(4)
        #: The last event of the history that was passed on.
        self.seq = seq
        self._ring: deque[Item] = deque()
        self._bytes = 0
        #: The number of the oldest item of the ring.
        self.first = 0
        #: What a reader that comes now must be told of steps under way: step → its items.
        self._open: dict[int, list[Item]] = {}
        self._fences: dict[int, tuple[int, int, int]] = {}
        self._status: Item | None = None
        self._news = asyncio.Event()
        self.readers = 0
        self.ended = False
        #: True once the run itself has stopped; a stream that ended otherwise is to be resumed.
        self.finished = False
        self._following: asyncio.Task[None] | None = None

    @property
    def next(self) -> int:
        """The number of the item that comes next."""
        return self.first + len(self._ring)

    def start(self) -> None:
        """Begin to follow the run."""
        self._following = asyncio.create_task(self._follow(), name=f"ziggurat-stream-{self._run}")

    async def stop(self) -> None:
        """Follow it no longer; readers end."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        self._wake()

    async def _follow(self) -> None:
        try:
            async with contextlib.aclosing(self._orchestrator.watch(self._run, after=self.seq)) as happenings:
                async for happening in happenings:
                    self._take(happening)
            self.finished = True
        except ZigguratError as error:
            events.STREAM_CUT(run=self._run, error=error)
        except Exception:
            events.STREAM_FAILED(trace_of=True, run=self._run)
        finally:
            self.ended = True
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _take(self, happening: RunEvent) -> None:
        if happening.event is not None:
            self._history(happening.event)
        elif happening.step is not None:
            step = happening.step
            item = Item("step", shapes.step_of(step).model_dump_json().encode(), self.seq, step.step)
            attempt, _, _ = self._fences.get(step.step, (0, 0, -1))
            if step.attempt > attempt:
                self._fences[step.step] = (step.attempt, 0, -1)
                self._open[step.step] = []
            self._open.setdefault(step.step, []).append(item)
            self._put(item)
        elif happening.progress is not None:
            self._progress(happening.progress)
        elif happening.kind == "status":
            self._status = Item("status", _json({"status": happening.status, "reason": happening.reason}), self.seq)
            self._put(self._status)

    def _history(self, event: Event) -> None:
        self.seq = event.seq
        if event.kind in _SETTLES:
            self._open.pop(event.step, None)
            self._fences.pop(event.step, None)
        elif event.kind in ("run_retried", "run_continued"):
            self._open.clear()
            self._fences.clear()
        self._put(history_item(event))

    def _progress(self, progress: Progress) -> None:
        if progress.kind in ("calls", "started"):
            return
        here = (progress.attempt, progress.delivery, progress.offset)
        if progress.step:
            known = self._fences.get(progress.step, (0, 0, -1))
            if here <= known:
                return  # Of an attempt that another has taken the place of, or a piece that came before.
            if here[:2] > known[:2]:
                self._open[progress.step] = [i for i in self._open.get(progress.step, ()) if i.kind == "step"]
            self._fences[progress.step] = here
        shown = {
            "kind": progress.kind,
            "step": progress.step,
            "attempt": progress.attempt,
            "delivery": progress.delivery,
            "offset": progress.offset,
            "at": shapes.moment(progress.at),
            "data": progress.data,
        }
        item = Item("progress", _json(shown), self.seq, progress.step)
        if progress.step:
            kept = self._open.setdefault(progress.step, [])
            if len(kept) < RING_EVENTS:
                kept.append(item)
        self._put(item)

    def _put(self, item: Item) -> None:
        self._ring.append(item)
        self._bytes += len(item.data)
        while len(self._ring) > RING_EVENTS or (self._bytes > RING_BYTES and len(self._ring) > 1):
            self._bytes -= len(self._ring.popleft().data)
            self.first += 1
        self._wake()

    # -- readers ------------------------------------------------------------------------------------------------

    def encode(self, item: Item, number: int, seq: int) -> bytes:
        """Return an item as it goes over the wire. An item numbered 0 or less was made for one reader, outside the ring."""
        return b"id: %d-%s-%d\nevent: %s\ndata: %s\n\n" % (seq, self.token.encode(), number, item.kind.encode(), item.data)

    async def read(self, after: int, place: str = "") -> AsyncGenerator[bytes, None]:
        """Yield the stream for one reader: the history past `after`, or what follows the place of its last event."""
        seq = after
        at = self._place(place)
        if at is None:
            async for item in self._past(after):
                seq = item.seq
                yield self.encode(item, -1, seq)
            # Nothing has been awaited since the history was read up to `self.seq`.
            at = self.next
            for item in [
                *(i for step in sorted(self._open) for i in self._open[step]),
                *([self._status] if self._status else []),
            ]:
                yield self.encode(item, -1, seq)
        while True:
            if at < self.first:
                # It lagged: what it missed of the history is read again, what it missed of progress is lost.
                missed = self.next
                async for item in self._past(seq):
                    seq = item.seq
                    yield self.encode(item, -1, seq)
                at = max(missed, self.first)
            while self.first <= at < self.next:
                item = self._ring[at - self.first]
                at += 1
                if item.kind == "history":
                    if item.seq <= seq:
                        continue
                    seq = item.seq
                yield self.encode(item, at - 1, seq)
            if at < self.first:
                continue
            if self.ended:
                break
            try:
                # Not wait_for: on Python 3.11 it swallows a cancellation that comes together with the news.
                async with asyncio.timeout(HEARTBEAT):
                    await self._news.wait()
            except TimeoutError:
                yield b": still here\n\n"
        if self.finished:
            yield self.encode(Item("end", b"{}", seq), at, seq)

    def serves(self, place: str) -> bool:
        """Say whether a reader can be served here: while the run goes on anyone, after that who has not seen the end of it."""
        at = self._place(place)
        return not self.ended or (self.finished and at is not None and at < self.next)

    def _place(self, place: str) -> int | None:
        """Return the number of the item behind a reader's last one, or None if it was in another stream, or is gone."""
        _, _, rest = place.partition("-")
        token, _, number = rest.partition("-")
        if token != self.token or not number.isdigit() or not self.first - 1 <= int(number) < self.next:
            return None
        return int(number) + 1

    async def _past(self, after: int) -> AsyncGenerator[Item, None]:
        """Yield the history past a position until it has caught up with the stream."""
        while True:
            page = await self._orchestrator.history(self._run, after=after, limit=PAGE)
            for event in page:
                after = event.seq
                yield history_item(event)
            if after >= self.seq or not page:
                return


class Streams:
    """The streams of all runs that are read now."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._streams: dict[str, RunStream] = {}
        self._closing = False

    async def read(self, run: str, *, after: int, last: str) -> AsyncGenerator[bytes, None]:
        """Yield a run's stream for one reader; `last` is its Last-Event-ID, or empty. Raises UnknownName."""
        seq, _, _ = last.partition("-")
        after = int(seq) if seq.isdigit() else after
        stream = self._streams.get(run)
        if stream is None or not stream.serves(last):
            found = await self._orchestrator.get(run)
            stream = self._streams.get(run)
            if stream is None or not stream.serves(last):
                stream = self._streams[run] = RunStream(self._orchestrator, run, found.events)
                stream.start()
        stream.readers += 1
        try:
            yield b"retry: 1000\n\n"
            async with contextlib.aclosing(stream.read(after, last)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            stream.readers -= 1
            if not stream.readers and not self._closing:
                asyncio.get_running_loop().call_later(KEEP, self._forget, run, stream)

    def _forget(self, run: str, stream: RunStream) -> None:
        if not stream.readers and self._streams.get(run) is stream:
            del self._streams[run]
            stopping = asyncio.ensure_future(stream.stop())
            _stopping.add(stopping)
            stopping.add_done_callback(_stopping.discard)

    async def close(self) -> None:
        """End all streams; readers are told so, and resume at the next server."""
        self._closing = True
        streams, self._streams = [*self._streams.values()], {}
        await asyncio.gather(*(stream.stop() for stream in streams))


_stopping: set[asyncio.Future[None]] = set()


def history_item(event: Event) -> Item:
    """Return an event of the history as an item of a stream."""
    return Item("history", shapes.event_of(event).model_dump_json().encode(), event.seq, event.step)


_json = msgspec.json.Encoder().encode
