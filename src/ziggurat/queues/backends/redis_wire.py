"""What crosses the wire between a Redis queue and its scripts: arguments out of records, and records out of answers.

An answer with messages is one JSON text that the script has put together from the messages as they were sent, so a whole batch is
decoded in one go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Raw, Struct

from ziggurat.queues.deadletters import dead_outcome, lease_ran_out
from ziggurat.records import DeadLetter, Delivery, Lane, MaybeRaw, Message, Outcome, Presence, Progress
from ziggurat.telemetry import events

T = TypeVar("T")

#: Payloads of an answer above this many bytes are copied out of it, so that one long task does not keep a whole batch in memory.
SHARED_BYTES = 64 * 1024


# -- out -------------------------------------------------------------------------------------------------------------


class Lines:
    """Names of lines; see `redis_lua/common.lua`. The names of lanes are kept, there are few."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, str] = {}

    def of(self, message: Message) -> str:
        """Return the line on which a message waits."""
        lane = self._lanes.get(message.lane)
        if lane is None:
            if len(self._lanes) > 10_000:
                self._lanes.clear()
            it = message.lane
            lane = self._lanes[it] = "/".join(
                quote(str(part), safe="") for part in (it.queue, it.priority, it.namespace, it.region)
            )
        concurrency, rate = message.concurrency, message.rate
        if concurrency is None and rate is None:
            return lane
        limits: list[Any] = [concurrency.key, concurrency.limit] if concurrency else ["", ""]
        limits += [rate.key, rate.per_second, max(1, rate.burst)] if rate else ["", "", ""]
        return "/".join([lane, *(quote(str(part), safe="") for part in limits)])


class Batch:
    """Messages on the way to the script `send`."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}
        self._fields: list[Any] = []
        self.count = self.size = 0

    def add(self, id_: str, line: str, body: bytes) -> None:
        number = self._lines.setdefault(line, len(self._lines) + 1)
        self._fields += (id_, number, body)
        self.count += 1
        self.size += len(body)

    def arguments(self) -> list[Any]:
        return [len(self._lines), *self._lines, *self._fields]

    def places(self) -> Iterator[tuple[str, str]]:
        """Give each message's id and line."""
        lines = list(self._lines)
        for at in range(0, len(self._fields), 3):
            yield self._fields[at], lines[self._fields[at + 1] - 1]


def without_bodies(batches: Sequence[Batch]) -> list[Any]:
    """Return the arguments that let `send` weigh several batches together."""
    together = Batch()
    for batch in batches:
        for id_, line in batch.places():
            together.add(id_, line, b"")
    return together.arguments()


def consumer(worker: str) -> str:
    """Return a worker's name in the consumer group. Those of the queue itself start with a colon."""
    return ":" + worker if worker.startswith(":") else worker


def lease(delivery: Delivery) -> tuple[Any, ...]:
    """Return what a script needs to check that a delivery still holds its message."""
    return delivery.message.id, consumer(delivery.worker), delivery.epoch, delivery.receipt or ""


def parts(items: Collection[T], size: int) -> Iterator[list[T]]:
    """Give a collection in parts of up to `size`."""
    everything = list(items)
    for start in range(0, len(everything), size):
        yield everything[start : start + size]


def batches(rows: Sequence[tuple[Any, ...]], most: int, bytes_most: int) -> Iterator[list[tuple[Any, ...]]]:
    """Give rows in parts of up to `most` rows and about `bytes_most` bytes."""
    part: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        if part and (len(part) >= most or size >= bytes_most):
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row[-1]) if isinstance(row[-1], bytes) else 0
    if part:
        yield part


def write_progress(progress: Sequence[Progress]) -> bytes:
    return msgspec.json.encode(progress)


# -- back ------------------------------------------------------------------------------------------------------------


class _Leased(Struct, gc=False):
    """A delivery in the answer of `receive`: receipt, epoch, message, heartbeat details, deliveries that count."""

    r: str
    n: int
    m: Message
    h: MaybeRaw = None
    s: int = 1


class _LeasedRaw(Struct, gc=False):
    r: str
    n: int
    m: Raw
    h: MaybeRaw = None
    s: int = 1


class _Answer(Struct, gc=False):
    t: float
    d: list[_Leased]


class _AnswerRaw(Struct, gc=False):
    t: float
    d: list[_LeasedRaw]


class _Outcome(Struct, gc=False):
    """An outcome, or a message that died: reason, deliveries, worker, when in ms, heartbeat details."""

    o: Outcome | None = None
    m: Message | None = None
    r: str = ""
    d: int = 0
    w: str = ""
    t: float = 0.0
    h: MaybeRaw = None


class _Dead(Struct, gc=False):
    """A dead letter: entry, message id, message, reason, deliveries, worker, when in ms."""

    e: str
    i: str
    m: Raw
    r: str
    d: int
    w: str
    t: float


class _DeadOutcome(Struct, gc=False):
    m: Raw
    r: str = ""
    d: int = 0
    w: str = ""
    t: float = 0.0
    h: MaybeRaw = None


class _Named(Struct, gc=False):
    """What any version of a message has."""

    id: str
    task: str = ""
    run: str = ""
    generation: int = 0
    step: int = 0
    attempt: int = 1
    version: int = 0


_answer = msgspec.json.Decoder(_Answer)
_answer_raw = msgspec.json.Decoder(_AnswerRaw)
_message = msgspec.json.Decoder(Message)
_named = msgspec.json.Decoder(_Named)
_outcomes = msgspec.json.Decoder(list[_Outcome])
_outcome = msgspec.json.Decoder(_Outcome)
_raws = msgspec.json.Decoder(list[Raw])
_dead = msgspec.json.Decoder(list[_Dead])
_progress = msgspec.json.Decoder(list[Progress])


def read_deliveries(
    answer: bytes, worker: str, until: tuple[float, float], trusted: int
) -> tuple[float, list[Delivery], list[tuple[Delivery, str]]]:
    """Return the ms until something is due, the deliveries, and those that cannot be read, each with the reason.

    `until` is the end of the leases by the wall clock and by the monotonic one, `trusted` the deliveries after which one is a suspect.
    """
    unreadable: list[tuple[Delivery, str]] = []
    leased: list[_Leased]
    try:
        decoded = _answer.decode(answer)
        due, leased = decoded.t, decoded.d
    except msgspec.ValidationError:
        raw = _answer_raw.decode(answer)
        due, leased = raw.t, []
        for it in raw.d:
            try:
                leased.append(_Leased(it.r, it.n, _message.decode(it.m), it.h, it.s))
            except msgspec.ValidationError as error:
                message, reason = _stand_in(it.m, error)
                unreadable.append((_delivery(_Leased(it.r, it.n, message), worker, until, trusted), reason))
    if len(answer) > SHARED_BYTES:
        leased = [_Leased(it.r, it.n, _own(it.m), it.h.copy() if it.h is not None else None, it.s) for it in leased]
    return due, [_delivery(it, worker, until, trusted) for it in leased], unreadable


def _delivery(it: _Leased, worker: str, until: tuple[float, float], trusted: int) -> Delivery:
    return Delivery(
        message=it.m,
        worker=worker,
        epoch=it.n,
        leased_until=until[0],
        held_until=until[1],
        heartbeat=it.h if it.h is not None else it.m.heartbeat,
        suspect=it.s > trusted,
        receipt=it.r,
    )


def _own(message: Message) -> Message:
    heartbeat = message.heartbeat
    return msgspec.structs.replace(
        message, payload=message.payload.copy(), heartbeat=heartbeat.copy() if heartbeat is not None else None
    )


def _stand_in(body: Raw, error: Exception) -> tuple[Message, str]:
    """Return a message in the place of one that this version cannot read, and why it cannot."""
    named = _named.decode(body)
    reason = f"It is of version {named.version}, which this worker cannot read: {error}."
    message = Message(
        id=named.id,
        task=named.task or "?",
        payload=body.copy(),
        run=named.run,
        generation=named.generation,
        step=named.step,
        attempt=named.attempt,
        version=named.version,
    )
    return message, reason


def read_outcomes(answer: bytes) -> list[Outcome]:
    """Return outcomes. Those that this version cannot read are left out, for a newer reader."""
    try:
        found = _outcomes.decode(answer)
    except msgspec.ValidationError:
        found = []
        for raw in _raws.decode(answer):
            try:
                found.append(_read_outcome(raw))
            except msgspec.ValidationError as error:
                events.OUTCOME_UNREADABLE(error=error)
    outcomes = []
    for it in found:
        if it.o is not None:
            outcomes.append(it.o)
        elif it.m is not None:
            reason = it.r or lease_ran_out(it.d, it.w)
            outcomes.append(dead_outcome(it.m, reason, worker=it.w, heartbeat=it.h, at=it.t / 1000))
    return outcomes


def _read_outcome(raw: Raw) -> _Outcome:
    try:
        return _outcome.decode(raw)
    except msgspec.ValidationError as error:
        # Of a dead message that we cannot read we can still say that it died.
        it = msgspec.json.decode(raw, type=_DeadOutcome)
        return _Outcome(None, _stand_in(it.m, error)[0], it.r, it.d, it.w, it.t, it.h)


_decode_presence = msgspec.json.Decoder(Presence).decode


def read_presences(answer: Sequence[tuple[int, bytes]]) -> list[Presence]:
    """Return what workers show of themselves, by worker; what another version wrote in another way is left out."""
    found: list[Presence] = []
    for seen_ms, body in answer:
        try:
            found.append(msgspec.structs.replace(_decode_presence(body), seen_at=seen_ms / 1000))
        except msgspec.MsgspecError:
            events.PRESENCE_UNREADABLE()
    return sorted(found, key=lambda presence: presence.worker)


def read_dead_letters(answer: bytes) -> list[DeadLetter]:
    """Return dead letters of all queues, newest first."""
    found = _dead.decode(answer)
    found.sort(key=lambda it: tuple(int(part) for part in it.e.split("-")), reverse=True)
    letters = []
    for it in found:
        try:
            message = _message.decode(it.m)
        except msgspec.ValidationError as error:
            message, _ = _stand_in(it.m, error)
        reason = it.r or lease_ran_out(it.d, it.w)
        letters.append(DeadLetter(id=it.i, message=message, reason=reason, deliveries=it.d, died_at=it.t / 1000))
    return letters


def read_progress(batch: bytes) -> list[Progress]:
    return _progress.decode(batch)
