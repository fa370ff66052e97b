"""The virtual keys that there are: those of ziggurat.toml, and those of the file that `ziggurat gateway keys` writes.

    keys    one row a key, by name: the hash of the key, what it may do, when it was made and revoked

The file is read again when it has changed, looked at once a second, so a revoked key stops working within about a second in every
gateway that uses the file. A name in ziggurat.toml wins over one in the file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from ziggurat.doors.gateway.callers import Caller, hash_of, new_key
from ziggurat.errors import Conflict, SettingsError, StateUnusable, UnknownName
from ziggurat.settings.gateway import GatewayKeySettings
from ziggurat.telemetry import events

SCHEMA_VERSION = 1
_TABLE = """
    CREATE TABLE keys (
        name TEXT PRIMARY KEY,
        hash TEXT NOT NULL UNIQUE,
        caller TEXT NOT NULL,
        created_at REAL NOT NULL,
        revoked_at REAL
    ) WITHOUT ROWID
"""
_BUSY_SECONDS = 10.0


class StoredKey(Struct, frozen=True, kw_only=True):
    """A key as people look at it."""

    caller: Caller
    #: "ziggurat.toml", or "file".
    source: str
    created_at: float | None = None
    revoked_at: float | None = None


def create_key(path: Path, caller: Caller, now: float) -> str:
    """Make a key for a caller, keep its hash, and return it: it cannot be shown again. A revoked name may be used anew.

    Raises Conflict if a key of that name is in use, StateUnusable.
    """
    key = new_key()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path, write=True) as connection:
        found = connection.execute("SELECT revoked_at FROM keys WHERE name = ?", (caller.name,)).fetchone()
        if found is not None and found[0] is None:
            raise Conflict(f"There is a key {caller.name!r} already; revoke it, or choose another name.")
        connection.execute(
            "INSERT OR REPLACE INTO keys (name, hash, caller, created_at, revoked_at) VALUES (?, ?, ?, ?, NULL)",
            (caller.name, hash_of(key), msgspec.json.encode(caller).decode(), now),
        )
    return key


def revoke_key(path: Path, name: str, now: float) -> None:
    """Make a key useless, for good. Raises UnknownName, StateUnusable."""
    changed = 0
    if path.exists():
        with _opened(path, write=True) as connection:
            sql = "UPDATE keys SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL"
            changed = connection.execute(sql, (now, name)).rowcount
    if not changed:
        raise UnknownName(f"There is no key {name!r} in use in {path}; `ziggurat gateway keys list` shows them.")


def stored_keys(path: Path) -> list[StoredKey]:
    """Return the keys of the file, revoked ones included, by name. Raises StateUnusable."""
    if not path.exists():
        return []
    with _opened(path, write=False) as connection:
        rows = connection.execute("SELECT caller, created_at, revoked_at FROM keys ORDER BY name").fetchall()
    return [
        StoredKey(caller=msgspec.json.decode(caller, type=Caller), source="file", created_at=created, revoked_at=revoked)
        for caller, created, revoked in rows
    ]


def written_keys(keys: Mapping[str, GatewayKeySettings]) -> dict[str, Caller]:
    """Return the callers of ziggurat.toml by the hash of their keys. Raises SettingsError."""
    found: dict[str, Caller] = {}
    for name, wanted in keys.items():
        if bool(wanted.hash) == (wanted.key is not None):
            raise SettingsError(f'gateway.keys.{name} needs either key = "env:NAME" or hash = "sha256:…", and one of them only.')
        hashed = wanted.hash or hash_of(wanted.key.resolve() if wanted.key is not None else "")
        if hashed in found:
            raise SettingsError(f"gateway.keys.{name} and gateway.keys.{found[hashed].name} are the same key; give each its own.")
        found[hashed] = caller_of(name, wanted)
    return found


def caller_of(name: str, wanted: GatewayKeySettings) -> Caller:
    """Return a key of the settings without its secret."""
    return Caller(
        name=name,
        models=frozenset(wanted.models),
        budget=wanted.budget,
        period=wanted.period,
        requests_per_minute=wanted.requests_per_minute,
        tokens_per_minute=wanted.tokens_per_minute,
        priority=wanted.priority,
        namespace=wanted.namespace,
    )


class Keyring:
    """The callers as they stand, by the hash of their keys. Raises SettingsError, StateUnusable when made."""

    def __init__(self, path: Path, written: Mapping[str, GatewayKeySettings]) -> None:
        self._path = path
        self._written = written_keys(written)
        self._callers: dict[str, Caller] = {}
        self._any = False
        self._seen: object = None
        self._said = False
        self._read(self._state())

    def __call__(self) -> Mapping[str, Caller] | None:
        """Return the callers by the hash of their keys; None if no key was ever made.

        A key that was made and revoked still closes the door: taking the last one back must not let everybody in.
        """
        return self._callers if self._any else None

    def refresh(self) -> None:
        """Read the file again if it has changed. One that cannot be read leaves the keys as they were, and is said once."""
        state = self._state()
        if state == self._seen:
            return
        try:
            self._read(state)
            self._said = False
        except StateUnusable as error:
            if not self._said:
                self._said = True
                events.KEYS_NOT_READ(error=error)

    def _read(self, state: object) -> None:
        taken = {caller.name for caller in self._written.values()}
        found: dict[str, Caller] = {}
        if self._path.exists():
            with _opened(self._path, write=False) as connection:
                for hashed, text, revoked in connection.execute("SELECT hash, caller, revoked_at FROM keys"):
                    self._any = True
                    caller = msgspec.json.decode(text, type=Caller)
                    if revoked is None and caller.name not in taken:
                        found[hashed] = caller
        self._callers = found | self._written
        self._any = self._any or bool(self._written)
        self._seen = state

    def _state(self) -> object:
        """Return what changes whenever the file does. Its journal counts: a commit may be there alone for a while."""
        states: list[object] = []
        for path in (self._path, self._path.with_name(self._path.name + "-wal")):
            try:
                seen = os.stat(path)
                states.append((seen.st_mtime_ns, seen.st_size, seen.st_ino))
            except OSError:
                states.append(None)
        return states


@contextlib.contextmanager
def _opened(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    """Open the file for one transaction. Raises StateUnusable."""
    try:
        uri = f"{path.absolute().as_uri()}{'' if write else '?mode=ro'}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
        try:
            if write:
                os.chmod(path, 0o600)
                connection.execute("BEGIN IMMEDIATE")
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StateUnusable(
                    f"The keys in {path} were written by a newer Ziggurat. Upgrade with: pip install -U ziggurat-agents"
                )
            if write and version == 0:
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            yield connection
            if write:
                connection.execute("COMMIT")
        finally:
            connection.close()
    except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
        raise StateUnusable(
            f"The keys in {path} cannot be used ({error}). Check the file and its folder's permissions."
        ) from error
