"""The lock that makes one process the owner of a state file, and names it to all others."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from ziggurat.errors import StateLocked, StateUnusable

#: Seconds to wait for processes that only ask who the owner is.
_PATIENCE = 5.0


class Owner(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process that owns a state file."""

    pid: int
    host: str
    since: float
    command: str
    #: Path of the Unix socket on which the owner takes commands; empty while it takes none.
    socket: str = ""


class StateLock:
    """An flock on `<state file>.lock`. The kernel frees it when the process ends, however it ends."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.path = state.with_name(state.name + ".lock")
        self._file: int | None = None
        self._owner: Owner | None = None

    def acquire(self, now: float) -> None:
        """Become the owner. Raises StateLocked naming the process that is, or StateUnusable."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateUnusable(
                f"The folder of the state file {self.state} cannot be written ({error.strerror}). "
                "Check [orchestrator] path and the folder's permissions."
            ) from error
        give_up = time.monotonic() + _PATIENCE
        while not _take(file, fcntl.LOCK_EX):
            # A process that asks who owns the file holds a shared lock for an instant, which is longer on a busy machine. Who shares it
            # with us is no owner.
            if not _take(file, fcntl.LOCK_SH) or time.monotonic() > give_up:
                os.close(file)
                raise StateLocked(_locked_text(self.state, read_owner(self.state))) from None
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(0.02)
        self._file = file
        self._owner = Owner(
            os.getpid(), socket.gethostname(), now, " ".join(Path(a).name if a == sys.argv[0] else a for a in sys.argv)
        )
        self._write(self._owner)

    def announce(self, socket_path: str) -> None:
        """Tell others on which Unix socket the owner takes commands."""
        if self._owner is not None:
            self._owner = msgspec.structs.replace(self._owner, socket=socket_path)
            self._write(self._owner)

    def release(self) -> None:
        """Stop being the owner."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None

    def _write(self, owner: Owner) -> None:
        assert self._file is not None
        data = msgspec.json.encode(owner)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, data, 0)


def read_owner(state: Path) -> Owner | None:
    """Return who owns a state file now, or None if no process does."""
    path = state.with_name(state.name + ".lock")
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _parse(os.pread(file, 65536, 0))
    finally:
        os.close(file)
    return None


def _take(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _parse(data: bytes) -> Owner:
    try:
        return msgspec.json.decode(data, type=Owner)
    except msgspec.MsgspecError:
        # The owner is between taking the lock and writing its name.
        return Owner(0, "", 0.0, "")


def _locked_text(state: Path, owner: Any) -> str:
    if owner is None or not owner.pid:
        return (
            f"The state file {state} is in use by another process. End that process, or use it: commands reach it by themselves."
        )
    return (
        f"The state file {state} is in use by process {owner.pid} on {owner.host} ({owner.command}). "
        "End that process, or choose another [orchestrator] path."
    )
