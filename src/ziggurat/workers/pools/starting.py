"""How a worker process is started, and what its pool holds of it: a way to wait for it and to signal it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import IO

#: The file descriptor of stderr.
STDERR = 2


class Started(ABC):
    """A process that was started."""

    pid: int

    @abstractmethod
    async def wait(self) -> int:
        """Return its exit code once it has ended; the negative signal number if a signal ended it."""

    @abstractmethod
    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""


class Starter(ABC):
    """Starts worker processes."""

    @abstractmethod
    async def start(self, arguments: Sequence[str], status: int, output: IO[bytes] | None) -> Started:
        """Start a worker in a session of its own. Raises OSError if that is impossible.

        Args:
            arguments: what tells this worker from others that the same starter makes.
            status: the file descriptor that it writes its status to; the process gets one of its own.
            output: where it prints; None for this process's stderr.
        """

    async def close(self) -> None:
        """Let go of what helps to start; processes that were started live on."""
        return


class CommandStarter(Starter):
    """Starts a command, a whole new interpreter each time.

    Args:
        command: the command; a worker's arguments and `--status-fd N` are appended.
        environ: its environment.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command, self._environ = tuple(command), dict(environ)

    async def start(self, arguments: Sequence[str], status: int, output: IO[bytes] | None) -> Started:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments,
            "--status-fd",
            str(status),
            stdin=asyncio.subprocess.DEVNULL,
            # stdout is where this process answers, and only this process.
            stdout=output or STDERR,
            stderr=output,
            pass_fds=(status,),
            start_new_session=True,
            env=self._environ,
        )
        return _Command(process)


class _Command(Started):
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
