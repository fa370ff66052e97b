"""One request to a worker's health port, and its answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

#: Seconds in which a caller must have asked and taken the answer.
PATIENCE = 10.0

#: Returns status, content type and body of a path's answer, or None if there is nothing.
Look = Callable[[str], tuple[int, str, bytes] | None]


class Probe(BaseHTTPRequestHandler):
    """Answers GET and HEAD while it is made. HTTP/1.0: a connection is for one request, so that none is held for nothing."""

    timeout = PATIENCE
    server_version, sys_version = "ziggurat", ""

    def __init__(self, connection: socket.socket, address: Any, look: Look) -> None:
        self._look = look
        # The server is not asked for anything by what is used here.
        super().__init__(connection, address, None)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._reply(with_body=True)

    def do_HEAD(self) -> None:
        self._reply(with_body=False)

    def _reply(self, *, with_body: bool) -> None:
        status, kind, body = self._look(self.path.partition("?")[0]) or (
            404,
            "text/plain",
            b"There are /healthz, /readyz, /metrics.\n",
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a probe comes every few seconds."""
