"""API keys and logins: who may call, told by what they hold.

A key is "zk_", an id, and 32 random bytes. The file holds its SHA-256 only: of a secret that is random throughout, a fast hash gives
nothing away, and a slow one would cost every request. A login trades a key for a cookie, which ends when the key does.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
from typing import Literal, get_args

from msgspec import Struct

from ziggurat.clock import Clock
from ziggurat.doors.api.control_file import ControlFile
from ziggurat.errors import Conflict, InvalidData, UnknownName

Role = Literal["viewer", "operator", "admin"]
#: From the least to the most that one may do.
ROLES: tuple[str, ...] = get_args(Role)
#: The namespace of a caller that sees all of them.
EVERY = "*"

_KEY = re.compile(r"zk_([a-z0-9]{10})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
_COLUMNS = "id, name, role, namespace, created_at, expires_at, revoked_at, used_at"
#: Seconds between two notes of a key's last use.
_NOTE_EVERY = 60.0


class Key(Struct, frozen=True, kw_only=True):
    """An API key, without the secret."""

    id: str
    name: str
    role: str
    namespace: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    used_at: float | None = None


class Principal(Struct, frozen=True, kw_only=True):
    """Who calls."""

    #: The key's name, or "loopback".
    name: str
    role: str
    namespace: str
    #: "key", "session", or "loopback": anyone on this machine.
    via: str
    key: str = ""
    #: What verbs of a login must bring along, so that another site's page cannot ask for them.
    csrf: str = ""
    expires_at: float | None = None

    def may(self, role: str) -> bool:
        """Say whether this caller has a role, or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def sees(self, namespace: str) -> bool:
        """Say whether what belongs to a namespace is shown to this caller."""
        return self.namespace in (EVERY, namespace)


class Keyring:
    """The keys and logins of a control file."""

    def __init__(self, file: ControlFile, clock: Clock) -> None:
        self._file = file
        self._clock = clock

    def has_keys(self) -> bool:
        """Say whether there is a key that is not revoked."""
        return bool(self._file.rows("SELECT 1 FROM keys WHERE revoked_at IS NULL LIMIT 1"))

    def every_key(self) -> list[Key]:
        """Return all keys, revoked ones too, newest first."""
        rows = self._file.rows(f"SELECT {_COLUMNS} FROM keys ORDER BY created_at DESC, id")
        return [Key(**dict(zip(_COLUMNS.split(", "), row, strict=True))) for row in rows]

    def create(self, name: str, role: str, namespace: str = EVERY, lifetime: float | None = None) -> tuple[Key, str]:
        """Make a key, and return it with its text, which is shown this once. Raises Conflict if the name is taken, InvalidData."""
        if role not in ROLES:
            raise InvalidData(f"There is no role {role!r}; the roles are: {', '.join(ROLES)}.")
        if not _NAME.fullmatch(name) or not _NAME.fullmatch(namespace):
            raise InvalidData("The name of a key and its namespace must be 1 to 100 characters on one line.")
        now = self._clock.time()
        id = "".join(secrets.choice("abcdefghjkmnpqrstvwxyz0123456789") for _ in range(10))
        text = f"zk_{id}_{secrets.token_urlsafe(32)}"
        expires = now + lifetime if lifetime is not None else None
        row = (id, name, role, namespace, _hash(text), now, expires)

        def insert(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO keys (id, name, role, namespace, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)", row
            )

        try:
            self._file.write_now(insert)
        except sqlite3.IntegrityError as error:
            raise Conflict(f"There is a key {name!r} already; revoke it first, or choose another name.") from error
        return Key(id=id, name=name, role=role, namespace=namespace, created_at=now, expires_at=expires), text

    def revoke(self, name: str, namespace: str = EVERY) -> Key:
        """Revoke a key by its name or id, and end its logins. Raises UnknownName."""
        found = [key for key in self.every_key() if name in (key.id, key.name) and key.revoked_at is None]
        if not found or namespace not in (EVERY, found[0].namespace):
            raise UnknownName(f"There is no key {name!r} that is not revoked; `ziggurat keys` lists those that there are.")

        def change(db: sqlite3.Connection) -> None:
            db.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (self._clock.time(), found[0].id))
            db.execute("DELETE FROM sessions WHERE key = ?", (found[0].id,))

        self._file.write_now(change)
        return found[0]

    async def of_key(self, text: str) -> Principal | None:
        """Return who holds a key, or None if it is none, revoked or expired."""
        match = _KEY.fullmatch(text)
        if match is None:
            return None
        wanted = "SELECT hash, name, role, namespace, expires_at, revoked_at, used_at FROM keys WHERE id = ?"
        rows = self._file.rows(wanted, (match[1],))
        if not rows or not hmac.compare_digest(rows[0][0], _hash(text)):
            return None
        _, name, role, namespace, expires, revoked, used = rows[0]
        now = self._clock.time()
        if revoked is not None or (expires is not None and expires <= now):
            return None
        if used is None or now - used > _NOTE_EVERY:
            id = match[1]
            await self._file.write(lambda db: db.execute("UPDATE keys SET used_at = ? WHERE id = ?", (now, id)).rowcount)
        return Principal(name=name, role=role, namespace=namespace, via="key", key=match[1], expires_at=expires)

    # -- logins -------------------------------------------------------------------------------------------------

    async def log_in(self, text: str, lifetime: float) -> tuple[Principal, str] | None:
        """Trade a key for a login: who it is, and the cookie. None if the key is no good."""
        who = await self.of_key(text)
        if who is None:
            return None
        now = self._clock.time()
        cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(24)
        expires = min(now + lifetime, who.expires_at if who.expires_at is not None else now + lifetime)

        def insert(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM sessions WHERE expires_at <= ?", (now,))
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (_hash(cookie), who.key, csrf, now, expires))

        await self._file.write(insert)
        return Principal(
            name=who.name, role=who.role, namespace=who.namespace, via="session", key=who.key, csrf=csrf, expires_at=expires
        ), cookie

    def of_cookie(self, cookie: str) -> Principal | None:
        """Return whose login a cookie is, or None if it has ended."""
        rows = self._file.rows(
            "SELECT k.id, k.name, k.role, k.namespace, s.csrf, s.expires_at FROM sessions s JOIN keys k ON k.id = s.key"
            " WHERE s.hash = ? AND s.expires_at > ? AND k.revoked_at IS NULL",
            (_hash(cookie), self._clock.time()),
        )
        if not rows:
            return None
        id, name, role, namespace, csrf, expires = rows[0]
        return Principal(name=name, role=role, namespace=namespace, via="session", key=id, csrf=csrf, expires_at=expires)

    async def log_out(self, cookie: str) -> None:
        """End a login."""
        await self._file.write(lambda db: db.execute("DELETE FROM sessions WHERE hash = ?", (_hash(cookie),)).rowcount)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
