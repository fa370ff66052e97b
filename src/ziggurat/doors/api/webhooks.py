"""Webhooks: receivers are told of runs that end, and of those that stand still, signed, once that is durable, until they have heard it.

    runs that ended ──(a look each second, from a mark on)──▶ deliveries, rows of the control file ──▶ POST, again and again
    runs that are parked, or wait for a signal ──(`standstills.py`)──▶

The end of a run is in the state file; the mark says up to which moment ends have been turned into deliveries. A look goes back OVERLAP
seconds before the mark, because an end is noted a moment before it is committed, and a delivery's id is made of the webhook, the run and
its end, so that an end which is seen twice is one delivery. So a server that dies at any instant forgets none, and tells none twice that
it knows was heard; a receiver that answered while the server died hears it again, under the same `webhook-id`.

Messages are as Standard Webhooks has them (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp`, and `webhook-signature`,
"v1," and the base64 of HMAC-SHA256 over "{id}.{timestamp}.{body}". Tries that fail are repeated after RETRIES, then the message is given
up and kept for a person to send again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import random
import sqlite3
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ziggurat import __version__
from ziggurat.clock import Clock
from ziggurat.doors.api import shapes
from ziggurat.doors.api.control_file import ControlFile
from ziggurat.doors.api.standstills import Found, Standstills
from ziggurat.errors import ConfigurationError, LayerUnreachable, UnknownName
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.records import ENDED, Run, RunFilter
from ziggurat.settings import WebhookSettings
from ziggurat.telemetry import events

#: Seconds before each new try, as the specification proposes: about three days in all.
RETRIES = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
#: Seconds that a receiver may take to answer.
TIMEOUT = 15.0
#: Messages sent side by side.
AT_ONCE = 8
LOOK_EVERY, OVERLAP = 1.0, 10.0
#: Seconds that delivered messages are remembered; longer than anything makes the mark go back.
KEPT = 7 * 86_400.0
#: Seconds between two notes of the mark while nothing ends.
_MARK_EVERY = 30.0
_DELIVER = "INSERT OR IGNORE INTO deliveries (id, webhook, run, event, body, created_at, next_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
_FIELDS = "id, webhook, run, event, created_at, attempts, next_at, delivered_at, error"


class Delivery(Struct, frozen=True, kw_only=True):
    """A message to a receiver. `next_at` is None once it is delivered or given up."""

    id: str
    webhook: str
    run: str
    event: str
    created_at: float
    attempts: int
    next_at: float | None
    delivered_at: float | None
    error: str


class Webhooks:
    """The receivers of the settings, and the task that tells them. Raises ConfigurationError for a secret that is none."""

    def __init__(
        self, receivers: Mapping[str, WebhookSettings], file: ControlFile, orchestrator: Orchestrator, clock: Clock
    ) -> None:
        self._receivers = dict(receivers)
        self._secrets = {name: read_secret(name, receiver.secret.resolve()) for name, receiver in receivers.items()}
        self._file, self._orchestrator, self._clock = file, orchestrator, clock
        wanted = {event for receiver in receivers.values() for event in receiver.events}
        self._standstills = Standstills(file, orchestrator, wanted)
        self._working: asyncio.Task[None] | None = None
        self._marked_at = 0.0

    def start(self) -> None:
        """Begin to tell the receivers."""
        if self._receivers:
            self._working = asyncio.create_task(self._work(), name="ziggurat-webhooks")

    async def close(self) -> None:
        """Stop; what is not delivered is, after the next start."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    async def _work(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
            while True:
                try:
                    await self.look()
                    await self.deliver(session)
                except LayerUnreachable as error:
                    events.WEBHOOKS_WAIT(error=error)
                except Exception:
                    events.WEBHOOKS_FAILED(trace_of=True)
                await asyncio.sleep(LOOK_EVERY)

    # -- from ends to deliveries --------------------------------------------------------------------------------

    async def look(self) -> int:
        """Turn ends of runs since the last look, and runs that stand still since, into deliveries; returns how many."""
        return await self._look_at_ends() + await self._look_at_standstills()

    async def _look_at_standstills(self) -> int:
        now, made = self._clock.time(), 0
        for event, found in await self._standstills.look(now):
            if not self._standstills.changes(event, found):
                continue
            rows = [
                self._row(name, one.run, now, f"run.{event}", f"{event}\0{one.key}")
                for one in found.new
                for name in self._receivers
                if self._wants(name, one.run, event)
            ]

            def write(
                db: sqlite3.Connection, event: str = event, found: Found = found, rows: list[tuple[Any, ...]] = rows
            ) -> int:
                before = db.total_changes
                db.executemany(_DELIVER, rows)
                added = db.total_changes - before
                self._standstills.write(db, event, found)
                return added

            made += await self._file.write(write)
            self._standstills.written(event, found)
        return made

    async def _look_at_ends(self) -> int:
        now = self._clock.time()
        rows = self._file.rows("SELECT value FROM marks WHERE name = 'webhooks'")
        # Whoever configures a webhook wants to hear of what ends from now on, not of all that ever did.
        mark = float(rows[0][0]) if rows else now
        found: list[tuple[Any, ...]] = []
        page = RunFilter(status=tuple(sorted(ENDED)), ended_since=mark - OVERLAP, limit=500)
        while runs := await self._orchestrator.list(page):
            for run in runs:
                key = f"{run.epoch}\0{run.ended_at!r}"
                named = [name for name in self._receivers if self._wants(name, run, run.status)]
                found += [self._row(name, run, now, f"run.{run.status}", key) for name in named]
            if len(runs) < page.limit:
                break
            page = replace(page, after=runs[-1].id)
        if not found and rows and now - self._marked_at < _MARK_EVERY:
            return 0

        def write(db: sqlite3.Connection) -> int:
            before = db.total_changes
            db.executemany(_DELIVER, found)
            made = db.total_changes - before
            db.execute("DELETE FROM deliveries WHERE next_at IS NULL AND created_at < ?", (now - KEPT,))
            db.execute("INSERT OR REPLACE INTO marks VALUES ('webhooks', ?)", (repr(now),))
            return made

        made = await self._file.write(write)
        self._marked_at = now
        return made

    def _wants(self, name: str, run: Run, event: str) -> bool:
        receiver = self._receivers[name]
        return (
            event in receiver.events
            and (not receiver.workflows or run.workflow in receiver.workflows)
            and receiver.namespace in ("", run.namespace)
        )

    def _row(self, name: str, run: Run, now: float, event: str, key: str) -> tuple[Any, ...]:
        """Return a delivery; `key` says which end, or which standstill, of the run it is: the same one is one delivery."""
        named = f"{name}\0{run.id}\0{key}"
        id = f"msg_{hashlib.sha256(named.encode()).hexdigest()[:32]}"
        data = shapes.summary_of(run).model_dump(mode="json")
        at = shapes.moment(run.ended_at if run.ended_at is not None else now)
        body = msgspec.json.encode({"type": event, "timestamp": at, "data": data})
        return id, name, run.id, event, body, now, now

    # -- from deliveries to receivers ---------------------------------------------------------------------------

    async def deliver(self, session: aiohttp.ClientSession) -> int:
        """Send what is due; returns how many messages were delivered."""
        now = self._clock.time()
        due = self._file.rows(
            "SELECT id, webhook, body, attempts FROM deliveries WHERE next_at <= ? ORDER BY next_at LIMIT ?", (now, AT_ONCE)
        )
        if not due:
            return 0
        came = await asyncio.gather(*(self._send(session, *row) for row in due))
        await self._file.write(
            lambda db: (
                db.executemany(
                    "UPDATE deliveries SET attempts = attempts + 1, next_at = ?, delivered_at = ?, error = ? WHERE id = ?", came
                ).rowcount
            )
        )
        return sum(delivered is not None for _, delivered, _, _ in came)

    async def _send(
        self, session: aiohttp.ClientSession, id: str, name: str, body: bytes, attempts: int
    ) -> tuple[float | None, float | None, str, str]:
        """Try once; returns (next try, delivered at, error, id)."""
        receiver = self._receivers.get(name)
        if receiver is None:
            return None, None, f"There is no webhook {name!r} any more.", id
        stamp = str(int(self._clock.time()))
        headers = {
            "content-type": "application/json",
            "user-agent": f"ziggurat/{__version__}",
            "webhook-id": id,
            "webhook-timestamp": stamp,
            "webhook-signature": sign(self._secrets[name], id, stamp, body),
        }
        wait = 0.0
        try:
            async with session.post(receiver.url, data=body, headers=headers, allow_redirects=False) as response:
                if 200 <= response.status < 300:
                    return None, self._clock.time(), "", id
                error = f"The receiver answered {response.status}."
                told = response.headers.get("retry-after", "")
                wait = min(float(told), RETRIES[-1]) if told.isdigit() else 0.0
                if response.status == 410:  # It is gone for good, and says so.
                    return None, None, error, id
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            error = f"The receiver could not be reached: {type(problem).__name__}."
        if attempts >= len(RETRIES):
            events.WEBHOOK_GIVEN_UP(webhook=name, message=id, error=error)
            return None, None, error, id
        pause = max(RETRIES[attempts] * random.uniform(0.9, 1.1), wait)
        return self._clock.time() + pause, None, error, id

    # -- for people ---------------------------------------------------------------------------------------------

    def names(self) -> dict[str, WebhookSettings]:
        """Return the receivers, by name."""
        return dict(self._receivers)

    def newest(self, limit: int) -> list[Delivery]:
        """Return deliveries, newest first."""
        rows = self._file.rows(f"SELECT {_FIELDS} FROM deliveries ORDER BY created_at DESC, id LIMIT ?", (limit,))
        return [Delivery(**dict(zip(_FIELDS.split(", "), row, strict=True))) for row in rows]

    async def again(self, id: str) -> None:
        """Send a message again, whatever became of it. Raises UnknownName."""
        now = self._clock.time()
        changed = await self._file.write(
            lambda db: (
                db.execute(
                    "UPDATE deliveries SET attempts = 0, next_at = ?, delivered_at = NULL, error = '' WHERE id = ?", (now, id)
                ).rowcount
            )
        )
        if not changed:
            raise UnknownName(f"There is no webhook message {id!r}.")


def read_secret(name: str, text: str) -> bytes:
    """Return the bytes of a signing secret. Raises ConfigurationError."""
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True) if text.startswith("whsec_") else b""
    except binascii.Error:
        secret = b""
    if not 24 <= len(secret) <= 64:
        raise ConfigurationError(
            f'The secret of [server.webhooks.{name}] must be "whsec_" and 24 to 64 random bytes in base64; make one with '
            "`openssl rand -base64 32`."
        )
    return secret


def sign(secret: bytes, id: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a message, as Standard Webhooks 1.0 has it."""
    signed = hmac.new(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"
