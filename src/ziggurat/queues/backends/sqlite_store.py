"""Every verb of the queue as one transaction on its SQLite file. Synchronous, for one thread.

A verb first does what is due (`_tidy`): leases that ran out and delays that ended. So no process needs to be the one that watches, and
a zombie is fenced even when nobody else has looked since its lease ended.

Times are wall-clock seconds, the only ones that processes share over a restart of the machine. A step of the wall clock shortens or
lengthens the leases that run, which costs a redelivery or a later one.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from ziggurat.clock import Clock
from ziggurat.queues.backends.sqlite_file import SqliteFile
from ziggurat.queues.contest import Candidate, Contest, Turns
from ziggurat.queues.deadletters import dead_outcome, lease_ran_out, salvaged, unreadable
from ziggurat.queues.interface import QueueOptions
from ziggurat.queues.refusals import lane_full
from ziggurat.queues.scheduling import Bucket, full_at, refilled, seconds_until_token
from ziggurat.records import DeadLetter, Delivery, Depth, Lane, Message, Outcome, Progress, Rate, encode

READY, DELAYED, LEASED = range(3)
NEVER = float("inf")
#: Progress that nobody fetched is kept up to this many records.
PROGRESS_KEPT = 10_000

ADD_LINE = """
INSERT INTO lines (queue, namespace, region, priority, concurrency_key, rate_key) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET ready = ready RETURNING id"""
LANE_HOLDS = """
SELECT coalesce(sum(ready + delayed + leased), 0) FROM lines WHERE queue = ? AND namespace = ? AND region = ? AND priority = ?"""
MOVE = "UPDATE lines SET ready = ready + ?, delayed = delayed + ?, leased = leased + ? WHERE id = ?"
# Lines of limit keys name users or documents and would pile up; those of lanes are few and tell which queues there are.
DROP_LINE = "DELETE FROM lines WHERE id = ? AND ready + delayed + leased = 0 AND (concurrency_key <> '' OR rate_key <> '')"
CANDIDATES = """
SELECT id, queue, namespace, priority, (SELECT since FROM messages WHERE line = lines.id AND state = 0 ORDER BY since, seq LIMIT 1)
FROM lines WHERE queue IN (SELECT value FROM json_each(?)) AND region IN ('', ?) AND ready > 0"""
ANY_READY = "SELECT 1 FROM lines WHERE queue IN (SELECT value FROM json_each(?)) AND region IN ('', ?) AND ready > 0 LIMIT 1"
HEADS = (
    "SELECT seq, since, epoch, deliveries, heartbeat, body FROM messages WHERE line = ? AND state = 0 ORDER BY since, seq LIMIT ?"
)
LEASE = "UPDATE messages SET state = 2, due = ?, epoch = epoch + 1, deliveries = deliveries + 1, worker = ? WHERE seq = ?"
#: What a delivery must match to own its message.
OWNED = "id = ? AND seq = ? AND epoch = ? AND worker = ? AND state = 2"
SEND = """
INSERT INTO messages (id, line, state, since, due, epoch, body) SELECT ?, ?, ?, ?, ?, 0, ?
WHERE NOT EXISTS (SELECT 1 FROM outcomes WHERE id = ?) ON CONFLICT DO NOTHING"""
PUT_OUTCOME = "INSERT OR REPLACE INTO outcomes (id, status, due, body) VALUES (?, ?, 0, ?)"
PUT_DEAD = (
    "INSERT OR REPLACE INTO dead (id, queue, epoch, heartbeat, reason, deliveries, died_at, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
RUNNING = "SELECT coalesce(sum(leased), 0) FROM lines WHERE concurrency_key = ? AND concurrency_key <> ''"
NEXT_DUE = """
SELECT min(coalesce((SELECT min(due) FROM messages WHERE state > 0 AND due > ?), 9e999),
           coalesce((SELECT min(due) FROM outcomes WHERE due > ?), 9e999))"""
MISSING = """
SELECT value FROM json_each(?)
WHERE NOT EXISTS (SELECT 1 FROM messages WHERE id = value) AND NOT EXISTS (SELECT 1 FROM outcomes WHERE id = value)"""

_decode_message = msgspec.json.Decoder(Message).decode
_decode_outcome = msgspec.json.Decoder(Outcome).decode
_decode_progress = msgspec.json.Decoder(Progress).decode


class _Row(NamedTuple):
    """A leased message as its table has it."""

    seq: int
    id: str
    line: int
    epoch: int
    deliveries: int
    worker: str
    cancelled: int
    heartbeat: bytes | None
    body: bytes


ROW = "SELECT " + ", ".join(_Row._fields) + " FROM messages WHERE "


class SqliteStore:
    """The verbs. Each may raise sqlite3.Error, which `SqliteFile.attempt` waits out or says in a sentence."""

    def __init__(self, path: Path, options: QueueOptions, clock: Clock) -> None:
        self.file = SqliteFile(path)
        self.options = options
        self._clock = clock
        #: How many messages the running transaction moves into each state of a line.
        self._moves: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._prune_at = 0.0

    def version(self) -> int:
        """Return a number that changes when another connection has written."""
        return int(self.file.db.execute("PRAGMA data_version").fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, float]]:
        """A transaction in which nothing is due any more; with the time."""
        self._moves.clear()
        with self.file.writing() as db:
            now = self._clock.time()
            self._tidy(db, now)
            yield db, now
            self._flush(db)

    def _reading(self) -> tuple[sqlite3.Connection, float]:
        """The connection, once nothing is due any more, and the time."""
        db, now = self.file.db, self._clock.time()
        if db.execute("SELECT 1 FROM messages WHERE state > 0 AND due <= ? LIMIT 1", (now,)).fetchone():
            with self._writing():
                pass
        return db, now

    def _move(self, line: int, source: int | None, target: int | None, number: int = 1) -> None:
        """Count messages from one state to another; None is outside."""
        moves = self._moves[line]
        if source is not None:
            moves[source] -= number
        if target is not None:
            moves[target] += number

    def _flush(self, db: sqlite3.Connection) -> None:
        for line, moves in self._moves.items():
            db.execute(MOVE, (*moves, line))
            if sum(moves) < 0:
                db.execute(DROP_LINE, (line,))
        self._moves.clear()

    # -- what is due ---------------------------------------------------------------------------------------------

    def _tidy(self, db: sqlite3.Connection, now: float) -> None:
        for seq, line, state in db.execute(
            "SELECT seq, line, state FROM messages WHERE state > 0 AND due <= ?", (now,)
        ).fetchall():
            if state == DELAYED:
                db.execute("UPDATE messages SET state = 0, since = due WHERE seq = ?", (seq,))
                self._move(line, DELAYED, READY)
            else:
                row = _Row(*db.execute(ROW + "seq = ?", (seq,)).fetchone())
                self._return(db, row, now, row.deliveries)
        if now >= self._prune_at:
            self._prune_at = now + self.options.lease
            db.execute("DELETE FROM buckets WHERE full_at <= ?", (now,))
        self._flush(db)

    def next_due(self) -> float:
        """Return when something will be due next, by the clock's time."""
        now = self._clock.time()
        return float(self.file.db.execute(NEXT_DUE, (now, now)).fetchone()[0])

    def _return(
        self, db: sqlite3.Connection, row: _Row, now: float, deliveries: int, delay: float = 0.0, reason: str = ""
    ) -> None:
        """A delivery came to nothing: the message is ready again or later, or dead if that was its last, or gone if it was cancelled."""
        if row.cancelled or deliveries >= self.options.max_deliveries:
            db.execute("DELETE FROM messages WHERE seq = ?", (row.seq,))
            self._move(row.line, LEASED, None)
            if not row.cancelled:
                self._bury(db, row, now, deliveries, reason or lease_ran_out(deliveries, row.worker))
        else:
            state = DELAYED if delay > 0 else READY
            update = "UPDATE messages SET state = ?, due = ?, deliveries = ?, worker = '' WHERE seq = ?"
            db.execute(update, (state, now + delay, deliveries, row.seq))
            self._move(row.line, LEASED, state)

    def _bury(self, db: sqlite3.Connection, row: _Row, now: float, deliveries: int, reason: str) -> None:
        (queue,) = db.execute("SELECT queue FROM lines WHERE id = ?", (row.line,)).fetchone()
        db.execute(PUT_DEAD, (row.id, queue, row.epoch, row.heartbeat, reason, deliveries, now, row.body))
        message = _message(row.body, row.id)
        outcome = dead_outcome(message, reason, worker=row.worker, heartbeat=_details(row.heartbeat), at=now)
        db.execute(PUT_OUTCOME, (row.id, "dead", encode(outcome)))

    # -- the orchestrator's side ---------------------------------------------------------------------------------

    def send(self, messages: Sequence[Message], bodies: Sequence[bytes], delay: float) -> None:
        with self._writing() as (db, now):
            lines: dict[tuple[Any, ...], int] = {}
            lanes: Counter[Lane] = Counter()
            state, due = (DELAYED, now + delay) if delay > 0 else (READY, 0.0)
            any_dead = db.execute("SELECT 1 FROM dead LIMIT 1").fetchone()
            for message, body in zip(messages, bodies, strict=True):
                key = _line_key(message)
                line = lines.get(key) or lines.setdefault(key, _add_line(db, key))
                if db.execute(SEND, (message.id, line, state, now, due, body, message.id)).rowcount == 1:
                    lanes[message.lane] += 1
                    self._move(line, None, state)
                    if any_dead:  # Sent anew, it is no longer given up.
                        db.execute("DELETE FROM dead WHERE id = ?", (message.id,))
            for lane, more in lanes.items():
                (held,) = db.execute(LANE_HOLDS, (lane.queue, lane.namespace, lane.region, lane.priority)).fetchone()
                if held + more > self.options.capacity:
                    raise lane_full(lane, self.options.capacity)  # Which undoes the transaction: nothing of the batch was taken.

    def outcomes(self, limit: int) -> list[Outcome]:
        db, now = self._reading()
        if not db.execute("SELECT 1 FROM outcomes WHERE due <= ? LIMIT 1", (now,)).fetchone():
            return []
        with self._writing() as (db, now):
            rows = db.execute("SELECT seq, body FROM outcomes WHERE due <= ? ORDER BY due, seq LIMIT ?", (now, limit)).fetchall()
            again = now + self.options.lease
            db.executemany("UPDATE outcomes SET due = ? WHERE seq = ?", [(again, seq) for seq, _ in rows])
        return [_decode_outcome(body) for _, body in rows]

    def offer(self, outcomes: Sequence[Outcome]) -> None:
        """Offer outcomes again at once: whoever fetched them went away."""
        with self._writing() as (db, _):
            db.executemany("UPDATE outcomes SET due = 0 WHERE id = ?", [(outcome.message,) for outcome in outcomes])

    def acknowledge(self, outcomes: Sequence[Outcome]) -> None:
        with self._writing() as (db, _):
            # After a redrive the same id has a second outcome, which the acknowledgement of the first must not remove.
            db.executemany("DELETE FROM outcomes WHERE id = ? AND status = ?", [(it.message, it.status) for it in outcomes])

    def cancel(self, ids: Collection[str]) -> None:
        with self._writing() as (db, _):
            for id_ in ids:
                row = db.execute("SELECT seq, line, state FROM messages WHERE id = ?", (id_,)).fetchone()
                if row is None:
                    continue
                seq, line, state = row
                if state == LEASED:
                    db.execute("UPDATE messages SET cancelled = 1 WHERE seq = ? AND cancelled = 0", (seq,))
                else:
                    db.execute("DELETE FROM messages WHERE seq = ?", (seq,))
                    self._move(line, state, None)

    def missing(self, ids: Collection[str]) -> set[str]:
        db, _ = self._reading()
        return {id_ for (id_,) in db.execute(MISSING, (json.dumps(list(ids)),))}

    def progress(self, limit: int) -> list[Progress]:
        if not self.file.db.execute("SELECT 1 FROM progress LIMIT 1").fetchone():
            return []
        with self.file.writing() as db:
            rows = db.execute("SELECT seq, body FROM progress ORDER BY seq LIMIT ?", (limit,)).fetchall()
            if rows:
                db.execute("DELETE FROM progress WHERE seq <= ?", (rows[-1][0],))
        return [_decode_progress(body) for _, body in rows]

    # -- the worker's side ---------------------------------------------------------------------------------------

    def receive(self, turns: Turns, limit: int, worker: str, region: str) -> tuple[list[Delivery], float]:
        """Lease messages by policy. Returns them, and when a rate that holds others back allows the next start."""
        queues = json.dumps(turns.queues)
        db, _ = self._reading()
        if limit < 1 or not db.execute(ANY_READY, (queues, region)).fetchone():
            return [], NEVER
        with self._writing() as (db, now):
            contest = Contest((Candidate(*row) for row in db.execute(CANDIDATES, (queues, region)).fetchall()), turns)
            limits = _Limits(db, now)
            taken: list[Delivery] = []
            until = now + self.options.lease
            while len(taken) < limit and (it := contest.next(now)) is not None:
                it.rows = it.rows or db.execute(HEADS, (it.line, limit - len(taken))).fetchall()[::-1]
                seq, _, epoch, ended, heartbeat, body = it.rows[-1]
                message = _readable(body)
                if suspect := ended >= self.options.trusted:
                    if taken:
                        break
                    limit = 1  # It is delivered alone.
                if message is None:
                    self._set_aside(db, seq, now)
                elif limits.claim(message):
                    db.execute(LEASE, (until, worker, seq))
                    self._move(it.line, READY, LEASED)
                    details = _details(heartbeat) or message.heartbeat
                    taken.append(
                        Delivery(
                            message=message,
                            worker=worker,
                            epoch=epoch + 1,
                            leased_until=until,
                            held_until=self.file.began_at + self.options.lease,
                            heartbeat=details,
                            suspect=suspect,
                            receipt=seq,
                        )
                    )
                else:
                    contest.dropped(it)
                    continue
                it.rows.pop()
                if not it.rows and len(taken) < limit:
                    it.rows = db.execute(HEADS, (it.line, limit - len(taken))).fetchall()[::-1]
                contest.served(it, it.rows[-1][1] if it.rows else None)
            limits.save()
        return taken, limits.rate_due

    def _set_aside(self, db: sqlite3.Connection, seq: int, now: float) -> None:
        """A message that this version cannot read waits a lease for a process that can; that counts as a delivery."""
        db.execute(LEASE, (now, "", seq))
        row = _Row(*db.execute(ROW + "seq = ?", (seq,)).fetchone())
        self._move(row.line, READY, LEASED)
        self._return(db, row, now, row.deliveries, delay=self.options.lease, reason=unreadable(row.body))

    def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes]) -> set[str]:
        lost: set[str] = set()
        with self._writing() as (db, now):
            until = now + self.options.lease
            update = f"UPDATE messages SET due = ?, heartbeat = coalesce(?, heartbeat) WHERE {OWNED}"
            for delivery in deliveries:
                id_ = delivery.message.id
                if db.execute(update, (until, details.get(id_), *_proof(delivery))).rowcount != 1:
                    lost.add(id_)
        return lost

    def settle(self, settled: Sequence[tuple[Delivery, Outcome]], bodies: Sequence[bytes]) -> set[str]:
        fenced: set[str] = set()
        with self._writing() as (db, _):
            for (delivery, outcome), body in zip(settled, bodies, strict=True):
                row = db.execute(f"DELETE FROM messages WHERE {OWNED} RETURNING line", _proof(delivery)).fetchone()
                if row is None:
                    fenced.add(delivery.message.id)
                    continue
                self._move(row[0], LEASED, None)
                db.execute(PUT_OUTCOME, (delivery.message.id, outcome.status, body))
        return fenced

    def release(self, deliveries: Sequence[Delivery], delay: float, reason: str) -> set[str]:
        fenced: set[str] = set()
        with self._writing() as (db, now):
            for delivery in deliveries:
                found = db.execute(ROW + OWNED, _proof(delivery)).fetchone()
                if found is None:
                    fenced.add(delivery.message.id)
                    continue
                row = _Row(*found)
                self._return(db, row, now, row.deliveries - (not reason), delay, reason)
                if delivery.message.rate is not None:
                    _give_back(db, delivery.message.rate, now)
        return fenced

    def cancellations(self, worker: str) -> list[str]:
        if not self.file.db.execute("SELECT 1 FROM messages WHERE worker = ? AND cancelled = 1 LIMIT 1", (worker,)).fetchone():
            return []
        with self._writing() as (db, _):
            update = "UPDATE messages SET cancelled = 2 WHERE worker = ? AND cancelled = 1 RETURNING id"
            return [id_ for (id_,) in db.execute(update, (worker,)).fetchall()]

    def untell(self, ids: Sequence[str]) -> None:
        """Tell cancellations again: whoever fetched them went away."""
        with self._writing() as (db, _):
            db.executemany("UPDATE messages SET cancelled = 1 WHERE id = ? AND cancelled = 2", [(id_,) for id_ in ids])

    def publish(self, bodies: Sequence[bytes]) -> None:
        with self.file.writing() as db:
            db.executemany("INSERT INTO progress (body) VALUES (?)", [(body,) for body in bodies])
            db.execute("DELETE FROM progress WHERE seq <= (SELECT max(seq) FROM progress) - ?", (PROGRESS_KEPT,))

    # -- everyone's ----------------------------------------------------------------------------------------------

    def depth(self, queues: Iterable[str] | None) -> dict[str, Depth]:
        db, now = self._reading()
        found: dict[str, Depth] = {} if queues is None else {queue: Depth() for queue in queues}
        oldest = "(SELECT since FROM messages WHERE line = lines.id AND state = 0 ORDER BY since, seq LIMIT 1)"
        for queue, ready, leased, delayed, since in db.execute(f"SELECT queue, ready, leased, delayed, {oldest} FROM lines"):
            if queues is None or queue in found:
                age = max(0.0, now - since) if since is not None else 0.0
                found[queue] = found.get(queue, Depth()) + Depth(ready, leased, delayed, 0, age)
        for queue, dead in db.execute("SELECT queue, count(*) FROM dead GROUP BY queue"):
            if queues is None or queue in found:
                found[queue] = found.get(queue, Depth()) + Depth(dead=dead)
        return found

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        db, _ = self._reading()
        select = "SELECT id, body, reason, deliveries, died_at FROM dead ORDER BY seq DESC LIMIT ?"
        return [
            DeadLetter(id=id_, message=_message(body, id_), reason=reason, deliveries=deliveries, died_at=died_at)
            for id_, body, reason, deliveries, died_at in db.execute(select, (limit,))
        ]

    def redrive(self, ids: Collection[str]) -> int:
        redriven = 0
        with self._writing() as (db, now):
            for id_ in ids:
                row = db.execute("DELETE FROM dead WHERE id = ? RETURNING epoch, heartbeat, body", (id_,)).fetchone()
                if row is None:
                    continue
                epoch, heartbeat, body = row
                # If nobody recorded yet that it died, it did not.
                db.execute("DELETE FROM outcomes WHERE id = ? AND status = 'dead'", (id_,))
                line = _add_line(db, _line_key(_message(body, id_)))
                insert = (
                    "INSERT INTO messages (id, line, state, since, due, epoch, heartbeat, body) VALUES (?, ?, 0, ?, 0, ?, ?, ?)"
                )
                db.execute(insert, (id_, line, now, epoch, heartbeat, body))
                self._move(line, None, READY)
                redriven += 1
        return redriven

    def discard(self, ids: Collection[str]) -> int:
        with self._writing() as (db, _):
            return sum(db.execute("DELETE FROM dead WHERE id = ?", (id_,)).rowcount for id_ in ids)

    def stored(self) -> int:
        """Return how many rows there are; those of lanes, which are few and stay, do not count."""
        db, _ = self._reading()
        tables = ("messages", "outcomes", "dead", "progress", "buckets", "presences")
        keyed = "SELECT count(*) FROM lines WHERE concurrency_key <> '' OR rate_key <> ''"
        counts = [f"SELECT count(*) FROM {table}" for table in tables]
        return sum(db.execute(count).fetchone()[0] for count in [keyed, *counts])


class _Limits:
    """What concurrency keys and rates allow in one transaction, read when first asked for and written at its end."""

    def __init__(self, db: sqlite3.Connection, now: float) -> None:
        self._db, self._now = db, now
        self._running: dict[str, int] = {}
        self._tokens: dict[str, tuple[Rate, float]] = {}
        self.rate_due = NEVER

    def claim(self, message: Message) -> bool:
        """Occupy what the message's limits ask for, or nothing."""
        concurrency, rate = message.concurrency, message.rate
        running = 0
        if concurrency is not None:
            running = self._running_of(concurrency.key)
            if running >= concurrency.limit:
                return False
        if rate is not None:
            tokens = self._tokens_of(rate)
            wait = seconds_until_token(tokens, rate)
            if wait > 0:
                self.rate_due = min(self.rate_due, self._now + wait)
                return False
            self._tokens[rate.key] = (rate, tokens - 1.0)
        if concurrency is not None:
            self._running[concurrency.key] = running + 1
        return True

    def _running_of(self, key: str) -> int:
        if key not in self._running:
            self._running[key] = self._db.execute(RUNNING, (key,)).fetchone()[0]
        return self._running[key]

    def _tokens_of(self, rate: Rate) -> float:
        if rate.key in self._tokens:
            return self._tokens[rate.key][1]
        return _tokens(self._db, rate, self._now)

    def save(self) -> None:
        for rate, tokens in self._tokens.values():
            _keep_tokens(self._db, rate, tokens, self._now)


def _tokens(db: sqlite3.Connection, rate: Rate, now: float) -> float:
    row = db.execute("SELECT tokens, at FROM buckets WHERE key = ?", (rate.key,)).fetchone()
    return refilled(Bucket(*row) if row else None, rate, now)


def _keep_tokens(db: sqlite3.Connection, rate: Rate, tokens: float, now: float) -> None:
    row = (rate.key, tokens, now, full_at(tokens, rate, now))
    db.execute("INSERT OR REPLACE INTO buckets (key, tokens, at, full_at) VALUES (?, ?, ?, ?)", row)


def _give_back(db: sqlite3.Connection, rate: Rate, now: float) -> None:
    """Return the token of an attempt that never started."""
    _keep_tokens(db, rate, min(float(max(1, rate.burst)), _tokens(db, rate, now) + 1.0), now)


def _line_key(message: Message) -> tuple[Any, ...]:
    lane, concurrency, rate = message.lane, message.concurrency, message.rate
    limits = (concurrency.key if concurrency else "", rate.key if rate else "")
    return (lane.queue, lane.namespace, lane.region, lane.priority, *limits)


def _add_line(db: sqlite3.Connection, key: tuple[Any, ...]) -> int:
    return int(db.execute(ADD_LINE, key).fetchone()[0])


def _proof(delivery: Delivery) -> tuple[Any, ...]:
    return (delivery.message.id, delivery.receipt, delivery.epoch, delivery.worker)


def _readable(body: bytes) -> Message | None:
    try:
        return _decode_message(body)
    except msgspec.MsgspecError:
        return None


def _message(body: bytes, id_: str) -> Message:
    return _readable(body) or salvaged(body, id_)


def _details(heartbeat: bytes | None) -> Raw | None:
    return Raw(heartbeat) if heartbeat is not None else None
