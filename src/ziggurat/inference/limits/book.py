"""The arithmetic of limits over any place that keeps small records by key: `limits.lua` does the same inside Redis.

    holders            when each holder was last heard of
    flow:KEY           a bucket: its level when it was last looked at. It may be in debt
    slots:KEY          how many slots each holder has, when others were refused, and when each priority last asked
    purse:KEY          dollars spent and reserved
    hold:ID            a reservation: its holder, purses and amounts
    cool:GATE          until when nobody may start
    load:HOLDER        what a holder has at its endpoints, as it last told

A bucket is GCRA in other words: its level rises by `rate` a second up to `burst`, a draw lowers it, and a draw may go ahead while the
level stays above what its priority must leave. A draw larger than the burst goes ahead from a full bucket and leaves a debt. A little
debt is granted in advance, with the delay after which it is none (LOOKAHEAD).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from ziggurat.inference.limits.interface import (
    BEAT,
    KEPT,
    LEASE,
    LOOKAHEAD,
    REMEMBERED,
    RESERVE,
    Answer,
    Beat,
    Cool,
    Flow,
    Give,
    Held,
    Hold,
    Leave,
    Levels,
    Load,
    Request,
    Settle,
    Slots,
    Take,
    Taken,
    Wanted,
    leaves,
    used_lately,
)

#: Floats are compared with a little room: a level that is a rounding error short is not short.
EPSILON = 1e-9
#: Purses that a dictionary keeps; the longest unused go first. Their runs' histories know what they spent.
PURSES_MAX = 50_000
#: Seconds after which slots are asked for again: nobody knows when a call ends.
SLOT_WAIT = 0.05


class Holders(Struct):
    """When each holder was last heard of."""

    seen: dict[str, float]


class FlowState(Struct):
    level: float
    at: float
    #: A minute of the clock, what was used in it, and what in the one before it.
    minute: int = 0
    used: float = 0.0
    before: float = 0.0


class SlotState(Struct):
    held: dict[str, int]
    #: When a holder was last refused, and when each priority last asked.
    refused_at: float = 0.0
    asked_at: dict[int, float] = {}


class PurseState(Struct):
    spent: float
    reserved: float
    at: float


class HoldState(Struct):
    holder: str
    #: (purse, amount)
    amounts: list[tuple[str, float]]


class CoolState(Struct):
    until: float


class LoadState(Struct):
    loads: list[Load]


KINDS: dict[str, Any] = {
    "holders": Holders,
    "flow": FlowState,
    "slots": SlotState,
    "purse": PurseState,
    "hold": HoldState,
    "cool": CoolState,
    "load": LoadState,
}


class Book(ABC):
    """Records by key. A key's kind is what stands before its first colon; see KINDS."""

    @abstractmethod
    def get(self, key: str) -> Any:
        """Return a record, or None. It may be changed, and counts as changed only by `put`."""

    @abstractmethod
    def put(self, key: str, state: Any) -> None:
        """Keep a record."""

    @abstractmethod
    def drop(self, key: str) -> None:
        """Forget a record, if there is one."""

    @abstractmethod
    def keys(self, prefix: str) -> Iterable[str]:
        """Return the keys that begin so, as they are now."""


class MemoryBook(Book):
    """Records in a dictionary, handed out as they are."""

    def __init__(self) -> None:
        self._records: dict[str, Any] = {}
        self._purses = 0

    def get(self, key: str) -> Any:
        return self._records.get(key)

    def put(self, key: str, state: Any) -> None:
        if key not in self._records and key.startswith("purse:"):
            self._purses += 1
            if self._purses > PURSES_MAX:
                self._forget_old()
        self._records[key] = state

    def drop(self, key: str) -> None:
        if self._records.pop(key, None) is not None and key.startswith("purse:"):
            self._purses -= 1

    def keys(self, prefix: str) -> Iterable[str]:
        return [key for key in self._records if key.startswith(prefix)]

    def _forget_old(self) -> None:
        idle = [key for key in self.keys("purse:") if not self._records[key].reserved]
        for key in sorted(idle, key=lambda k: float(self._records[k].at))[: PURSES_MAX // 10]:
            self.drop(key)


def carry_out(book: Book, holder: str, request: Request, now: float) -> Answer:
    """Carry out one request. The caller makes it atomic."""
    holders = _alive(book, holder, now)
    match request:
        case Take():
            return _take(book, holder, request, holders, now)
        case Give():
            _give(book, holder, request, now)
        case Cool():
            known = book.get(f"cool:{request.gate}")
            until = max(now + request.seconds, known.until if known is not None else 0.0)
            book.put(f"cool:{request.gate}", CoolState(until))
        case Hold():
            return _hold(book, holder, request, now)
        case Settle():
            _settle(book, request, now)
        case Leave():
            _bury(book, holder, now, charge=False)
        case Beat():
            if request.loads:
                book.put(f"load:{holder}", LoadState(list(request.loads)))
            elif book.get(f"load:{holder}") is not None:
                book.drop(f"load:{holder}")
    return None


def look_at(book: Book, wanted: Wanted, now: float) -> Levels:
    """Return how things stand."""
    flows: dict[str, tuple[float, float]] = {}
    for key, (rate, burst) in wanted.flows.items():
        flow = book.get(f"flow:{key}")
        if flow is not None:
            level = min(burst, flow.level + max(0.0, now - flow.at) * rate)
            flows[key] = (level, used_lately(flow.minute, flow.used, flow.before, now))
    seen = (book.get("holders") or Holders({})).seen
    alive = {name for name, at in seen.items() if now - at <= LEASE}
    slots = {key: state for key in wanted.slots if (state := book.get(f"slots:{key}")) is not None}
    purses = {key: state for key in wanted.purses if (state := book.get(f"purse:{key}")) is not None}
    cools = {gate: state.until - now for gate in wanted.gates if (state := book.get(f"cool:{gate}")) is not None}
    loads = {name: state.loads for name in alive if (state := book.get(f"load:{name}")) is not None}
    return Levels(
        flows=flows,
        slots={key: sum(n for name, n in state.held.items() if name in alive) for key, state in slots.items()},
        purses={key: (state.spent, state.reserved) for key, state in purses.items()},
        cooling={gate: left for gate, left in cools.items() if left > 0},
        loads=loads,
    )


def _alive(book: Book, holder: str, now: float) -> dict[str, float]:
    """Note that the holder is alive, bury those that are not, and return who is."""
    state = book.get("holders") or Holders({})
    seen = state.seen
    if now - seen.get(holder, -LEASE) < BEAT / 2:
        return seen
    seen[holder] = now
    dead = [name for name, at in seen.items() if now - at > LEASE]
    for name in dead:
        del seen[name]
    book.put("holders", state)
    for name in dead:
        _bury(book, name, now, charge=True)
    if dead:
        for key in list(book.keys("purse:")):
            if now - book.get(key).at > KEPT:
                book.drop(key)
    return seen


def _bury(book: Book, holder: str, now: float, *, charge: bool) -> None:
    """Free what a holder had. With `charge` its reservations count as spent: the calls may have been billed."""
    state = book.get("holders")
    if state is not None and state.seen.pop(holder, None) is not None:
        book.put("holders", state)
    if book.get(f"load:{holder}") is not None:
        book.drop(f"load:{holder}")
    for key in list(book.keys("slots:")):
        slots = book.get(key)
        if slots.held.pop(holder, None) is not None:
            book.put(key, slots)
    for key in list(book.keys("hold:")):
        hold = book.get(key)
        if hold.holder == holder:
            for purse, amount in hold.amounts:
                _move(book, purse, -amount, amount if charge else 0.0, now)
            book.drop(key)


# -- flows and slots -------------------------------------------------------------------------------------------------


def _take(book: Book, holder: str, take: Take, holders: dict[str, float], now: float) -> Taken:
    alive = max(1, len(holders))
    cool = book.get(f"cool:{take.gate}")
    if cool is not None:
        if cool.until > now + EPSILON:
            return Taken(granted=False, wait=cool.until - now, holders=alive)
        book.drop(f"cool:{take.gate}")
    flows = [_flow(book, flow, now) for flow in take.flows]
    states = [_slots(book, slots, take, holders, now) for slots in take.slots] if take.slots else []
    left_above = leaves(take.priority)
    delay, short = 0.0, ""
    wait = 0.0
    for flow, (_, level) in zip(take.flows, flows, strict=True):
        due = _due(flow, level, left_above)
        if due > delay:
            delay = due
            if due > LOOKAHEAD and due > wait:
                wait, short = due, flow.key
    contended = False
    for slots, (state, free) in zip(take.slots, states, strict=True):
        contended = contended or now - state.refused_at < REMEMBERED
        if free < slots.need:
            state.refused_at = now
            book.put(f"slots:{slots.key}", state)
            if wait < SLOT_WAIT:
                wait, short = SLOT_WAIT, slots.key
    if short:
        return Taken(
            granted=False, wait=max(wait - LOOKAHEAD / 2, SLOT_WAIT / 5), short=short, holders=alive, contended=contended
        )
    taken: list[float] = []
    for flow, (known, level) in zip(take.flows, flows, strict=True):
        amount = flow.need
        if flow.want > amount:
            spare = (level - amount - left_above * flow.burst) / alive
            if spare > 0:
                amount += min(flow.want - amount, spare)
        _put_flow(book, flow.key, known, level - amount, amount, now)
        taken.append(amount)
    got: list[int] = []
    for slots, (state, free) in zip(take.slots, states, strict=True):
        extra = 0 if contended else min(slots.want - slots.need, (free - slots.need) // alive)
        count = slots.need + max(0, extra)
        state.held[holder] = state.held.get(holder, 0) + count
        book.put(f"slots:{slots.key}", state)
        got.append(count)
    return Taken(granted=True, flows=tuple(taken), slots=tuple(got), delay=delay, holders=alive, contended=contended)


def _put_flow(book: Book, key: str, state: FlowState | None, level: float, used: float, now: float) -> None:
    """Keep a bucket's level, and count what was used in this minute of the clock. `state` is what is kept of it so far."""
    minute = int(now // 60)
    if state is None:
        book.put(f"flow:{key}", FlowState(level, now, minute, used))
        return
    if state.minute != minute:
        state.before = state.used if minute == state.minute + 1 else 0.0
        state.minute, state.used = minute, 0.0
    state.level, state.at = level, now
    state.used += used
    book.put(f"flow:{key}", state)


def _due(flow: Flow, level: float, left_above: float) -> float:
    """Return the seconds until a draw may start: at once while the level stays above the share of the burst that the priority leaves.

    Comparisons rather than min and max: this and `_flow` are done for each limit of each call.
    """
    need, burst = flow.need, flow.burst
    # What is above the floor: a draw that is larger than the burst needs all of it, and has no floor to stay above.
    missing = (need + min(left_above * burst, burst - need) if need < burst else burst) - level
    return missing / flow.rate if missing > EPSILON * burst else 0.0


def _flow(book: Book, flow: Flow, now: float) -> tuple[FlowState | None, float]:
    """Return what is kept of a bucket, and its level now. A new one is full."""
    state: FlowState | None = book.get(f"flow:{flow.key}")
    level = flow.burst
    if state is not None:
        refilled = state.level + (now - state.at) * flow.rate if now > state.at else state.level
        if refilled < level:
            level = refilled
    return state, level if flow.left is None else min(level, flow.left)


def _slots(book: Book, slots: Slots, take: Take, holders: dict[str, float], now: float) -> tuple[SlotState, int]:
    """Return the state of slots and how many are free for this draw."""
    state = book.get(f"slots:{slots.key}") or SlotState({})
    for name in [name for name in state.held if name not in holders]:
        del state.held[name]
    level = max(1, int(take.priority))
    state.asked_at[level] = now
    free = slots.limit - sum(state.held.values())
    higher = any(now - at < REMEMBERED for asked, at in state.asked_at.items() if asked < level)
    # A slot kept free for nobody is a slot lost, unlike a bucket's level: only while a higher priority is about.
    return state, free - (max(1, int(RESERVE * slots.limit)) if higher and slots.limit > 1 else 0)


def _give(book: Book, holder: str, give: Give, now: float) -> None:
    for key, rate, burst, amount in give.flows:
        state = book.get(f"flow:{key}")
        level = burst if state is None else state.level + max(0.0, now - state.at) * rate
        _put_flow(book, key, state, min(burst, level + amount), -amount, now)
    for key, count in give.slots:
        slots = book.get(f"slots:{key}")
        if slots is not None:
            left = slots.held.get(holder, 0) - count
            if left > 0:
                slots.held[holder] = left
            else:
                slots.held.pop(holder, None)
            book.put(f"slots:{key}", slots)


# -- purses ----------------------------------------------------------------------------------------------------------


def _hold(book: Book, holder: str, hold: Hold, now: float) -> Held:
    if book.get(f"hold:{hold.id}") is not None:
        return Held(answer="granted")
    states: list[PurseState] = []
    amount = hold.most
    verdict, at_key, said = "granted", "", 0.0
    for purse in hold.purses:
        state = book.get(f"purse:{purse.key}") or PurseState(0.0, 0.0, now)
        state.spent, state.at = max(state.spent, purse.spent), now
        states.append(state)
        answer = judge(state.spent, state.reserved, purse.limit, hold)
        if answer == "granted" and not hold.past_soft and state.spent + state.reserved + hold.likely > purse.soft + EPSILON:
            answer = "soft"
        if answer != verdict and SEVERITY.index(answer) > SEVERITY.index(verdict):
            verdict, at_key, said = answer, purse.key, state.spent
    for purse, state in zip(hold.purses, states, strict=True):
        if verdict == "granted":
            state.reserved += amount
        book.put(f"purse:{purse.key}", state)
    if verdict == "granted":
        book.put(f"hold:{hold.id}", HoldState(holder, [(purse.key, amount) for purse in hold.purses]))
    return Held(answer=verdict, key=at_key, spent=said)


#: From the mildest to the gravest.
SEVERITY = ("granted", "soft", "wait", "hard")


def judge(spent: float, reserved: float, limit: float, hold: Hold) -> str:
    """Say whether a reservation fits into a purse."""
    room = limit - spent + EPSILON
    if reserved + hold.most <= room:
        return "granted"
    if hold.likely > room:
        return "hard"
    return "wait" if reserved > EPSILON else "granted"


def _settle(book: Book, settle: Settle, now: float) -> None:
    hold = book.get(f"hold:{settle.id}")
    if hold is not None:
        for purse, amount in hold.amounts:
            _move(book, purse, -amount, settle.cost, now)
        book.drop(f"hold:{settle.id}")


def _move(book: Book, key: str, reserved: float, spent: float, now: float) -> None:
    state = book.get(f"purse:{key}") or PurseState(0.0, 0.0, now)
    state.reserved = max(0.0, state.reserved + reserved)
    state.spent += spent
    state.at = now
    book.put(f"purse:{key}", state)
