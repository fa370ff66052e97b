"""Where this process shows its metrics, for whoever tells others: a worker's record on the queue.

One place a process, because that is what has metrics; a process may run several workers.
"""

from __future__ import annotations

import socket

#: As host:port, for others to reach; empty while nothing is served.
_address = ""
_LOOPBACK = ("127.", "localhost", "::1")
_ANY = ("", "0.0.0.0", "::")


def set_served(host: str, port: int) -> None:
    """Remember that this process answers GET /metrics there; port 0 for nowhere."""
    global _address
    _address = "" if not port else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def served() -> str:
    """Return where this process shows its metrics, as host:port; empty for nowhere."""
    return _address


def reachable_host(host: str) -> str:
    """Return how others reach what listens on `host`: its own name for all addresses of this machine."""
    if host not in _ANY:
        return host
    try:
        # In a pod, its IP; a name would be known inside it only.
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return socket.gethostname()


def is_local(address: str) -> bool:
    """Say whether an address, as host:port, is reached from the same machine only."""
    return address.strip("[").startswith(_LOOPBACK)
