"""Between the gates and budgets of a process and the store that processes share: one thread that asks, in batches.

Whatever gathers while a question is under way goes into the next one, so a busy process asks about as often as a quiet one. A store in
this process is asked at once, in the caller's thread, and there is no thread.

When the store is down, calls go on with a safe share: each limit divided by the holders that were last alive, kept in memory here. That
is said once. What was spent meanwhile is told to the store when it is back, and what was reserved there before is settled then.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from ziggurat.clock import Clock, SystemClock
from ziggurat.inference.limits.book import MemoryBook, carry_out
from ziggurat.inference.limits.interface import (
    BEAT,
    Answer,
    Beat,
    Hold,
    Leave,
    LimitStore,
    Load,
    Purse,
    Request,
    Settle,
    StoreDown,
    Take,
    Taken,
)
from ziggurat.telemetry import events

Done = Callable[[list[Answer]], None]

#: Seconds until a store that is down is tried again, at first and at most.
RETRY_FIRST, RETRY_MOST = 1.0, 10.0
#: Requests of one question.
BATCH_MAX = 200
#: Settlements kept for a store that is down.
LATER_MAX = 100_000


class Keeper:
    """A process's way to its limit store. Safe to use from any thread.

    Args:
        store: what is shared.
        clock: for tests.
    """

    def __init__(self, store: LimitStore, clock: Clock | None = None) -> None:
        self.store = store
        self.remote = store.remote
        self._clock = clock or SystemClock()
        #: Names this process to the others.
        self.holder = secrets.token_hex(8)
        #: Holders last known to be alive.
        self.holders = 1
        #: Called every BEAT seconds while the thread runs: gates give back what they no longer need.
        self.tidy: list[Callable[[], None]] = []
        #: Called as often: what gates have, for people who look.
        self.loads: list[Callable[[], Load | None]] = []
        self._queue: deque[tuple[Sequence[Request], Done]] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._asked = False
        self._down_until = 0.0
        self._retry = RETRY_FIRST
        self._fallback: MemoryBook | None = None
        self._later: deque[Settle] = deque(maxlen=LATER_MAX)
        self._owed: dict[str, float] = {}

    @property
    def down(self) -> bool:
        """True while the store cannot be used and a safe share is used instead."""
        return self._fallback is not None

    def ask(self, requests: Sequence[Request], done: Done) -> None:
        """Have requests carried out, each as a whole, and call `done` with the answers: at once, or in the keeper's thread."""
        if not self.remote:
            self._asked = True
            done(self.store.run(self.holder, requests))
            return
        with self._wake:
            self._queue.append((requests, done))
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name="ziggurat-limits", daemon=True)
                self._thread.start()
            self._wake.notify()

    def tell(self, *requests: Request) -> None:
        """Have requests carried out whose answers nobody waits for."""
        self.ask(requests, _ignore)

    def close(self) -> None:
        """Say that this process ends, and let go of the store. A later question begins anew."""
        with self._wake:
            thread, self._closing = self._thread, True
            self._wake.notify()
        if thread is not None:
            thread.join()
        elif not self.remote and self._asked:
            self.store.run(self.holder, [Leave()])
        self.store.close()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        beat_at = self._clock.monotonic() + BEAT
        while True:
            with self._wake:
                if not self._queue and not self._closing:
                    self._wake.wait(BEAT / 2)
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_MAX))]
                if not batch and self._closing:
                    self._thread = None
                    break
            if self._clock.monotonic() >= beat_at:
                beat_at = self._clock.monotonic() + BEAT
                for look in list(self.tidy):
                    look()
                batch.append(((Beat(loads=tuple(load for tell in list(self.loads) if (load := tell()) is not None)),), _ignore))
            if batch:
                self._ask(batch)
        if self._fallback is None:
            try:
                self.store.run(self.holder, [Leave()])
            except StoreDown:
                events.LIMITS_NOT_TOLD()

    def _ask(self, batch: list[tuple[Sequence[Request], Done]]) -> None:
        requests = [request for part, _ in batch for request in part]
        answers = self._answers(requests)
        for answer in answers:
            if isinstance(answer, Taken) and self._fallback is None:
                self.holders = answer.holders
        at = 0
        for part, done in batch:
            try:
                done(answers[at : at + len(part)])
            except Exception:
                events.LIMITS_ANSWER_UNUSABLE(trace_of=True)
            at += len(part)

    def _answers(self, requests: list[Request]) -> list[Answer]:
        if self._fallback is not None and self._clock.monotonic() < self._down_until:
            return self._safe(requests)
        try:
            if self._fallback is None:
                return self.store.run(self.holder, requests)
            owed = [r for key, cost in self._owed.items() for r in _told(key, cost)]
            answers = self.store.run(self.holder, [*owed, *self._later, *requests])[len(owed) + len(self._later) :]
        except StoreDown as error:
            if self._fallback is None:
                self._fallback, self._retry = MemoryBook(), RETRY_FIRST
                share = f"1/{self.holders} of each limit, as {self.holders} processes were alive last"
                events.LIMITS_ALONE(error=error, share=share if self.holders > 1 else "its limits alone")
            else:
                self._retry = min(RETRY_MOST, 2 * self._retry)
            self._down_until = self._clock.monotonic() + self._retry
            return self._safe(requests)
        events.LIMITS_SHARED()
        self._fallback = None
        self._owed.clear()
        self._later.clear()
        return answers

    # -- without the store -------------------------------------------------------------------------------------------

    def _safe(self, requests: list[Request]) -> list[Answer]:
        book, now = self._fallback, self._clock.time()
        assert book is not None
        answers: list[Answer] = []
        for request in requests:
            if isinstance(request, Settle):
                hold = book.get(f"hold:{request.id}")
                if hold is None:
                    self._later.append(request)
                else:
                    for key, _ in hold.amounts:
                        self._owed[key] = self._owed.get(key, 0.0) + request.cost
            answers.append(carry_out(book, self.holder, safe_share(request, self.holders), now))
        return answers


def safe_share(request: Request, holders: int) -> Request:
    """Return a request against a share of each limit."""
    if holders <= 1:
        return request
    if isinstance(request, Take):
        flows = tuple(replace(f, rate=f.rate / holders, burst=f.burst / holders, want=0.0) for f in request.flows)
        slots = tuple(replace(s, limit=max(1, s.limit // holders), want=s.need) for s in request.slots)
        return replace(request, flows=flows, slots=slots)
    if isinstance(request, Hold):
        purses = tuple(
            replace(p, limit=p.spent + max(0.0, p.limit - p.spent) / holders, soft=p.spent + max(0.0, p.soft - p.spent) / holders)
            for p in request.purses
        )
        return replace(request, purses=purses)
    return request


def _told(key: str, cost: float) -> list[Request]:
    """Return the requests that add to what is spent in a purse."""
    id_ = secrets.token_hex(16)
    purse = Purse(key=key, limit=float("1e300"), soft=float("1e300"))
    return [Hold(id=id_, purses=(purse,), most=0.0, likely=0.0), Settle(id=id_, cost=cost)]


def _ignore(answers: Any) -> None:
    pass
