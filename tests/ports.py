"""Ports that stay free until the test's server takes them."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

#: Below what Linux gives to outgoing connections (net.ipv4.ip_local_port_range begins at 32768) and above well-known servers: a port
#: that the kernel chose, by binding to 0, could be any connection's a moment later.
_FIRST, _LAST = 20_000, 31_000
#: Held open for the life of this process, so that no other process of the tests gets the same port.
_held: list[int] = []


def free_port(*beside: int) -> int:
    """Return a port of the loopback interface on which nobody listens, and which no other test gets while this process lives.

    The same is true of the ports `beside` it: those so much higher.
    """
    folder = Path(tempfile.gettempdir()) / f"ziggurat-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    # Whatever a test has made of `random`, this must not be alike in two processes.
    for port in random.SystemRandom().sample(range(_FIRST, _LAST), 1_000):
        claims = [claim for offset in (0, *beside) if (claim := _claim(folder, port + offset)) is not None]
        if len(claims) == 1 + len(beside):
            _held.extend(claims)
            return port
        for claim in claims:
            os.close(claim)
    raise RuntimeError("No port is free on the loopback interface.")


def listens(port: int) -> bool:
    """Say whether somebody listens on a port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _claim(folder: Path, port: int) -> int | None:
    """Take a port for this process; returns the descriptor that holds it, or None if it is another's."""
    claim = os.open(folder / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        os.close(claim)
        return None
    return claim
