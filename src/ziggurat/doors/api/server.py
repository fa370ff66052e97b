"""The server: an app on a socket, for as long as its system runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from ziggurat.assembly import System
from ziggurat.doors.api.app import build_app
from ziggurat.doors.api.gate import is_loopback
from ziggurat.doors.api.hub import Hub
from ziggurat.errors import LayerUnreachable
from ziggurat.settings import ServerSettings
from ziggurat.telemetry import events

#: Seconds that open requests get when the server ends; streams are told to resume elsewhere before.
_LAST_WORDS = 5


class ApiServer:
    """The HTTP API of a system that is open: `async with serving(system) as server`."""

    def __init__(self, system: System, host: str | None = None, port: int | None = None) -> None:
        settings = system.settings.server
        self._explicit = port is not None or "port" in settings.model_fields_set
        self.host = host or settings.host
        self.port = settings.port if port is None else port
        self._system = system
        self._socket: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where to call."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def open(self) -> None:
        """Listen. Raises LayerUnreachable if the address cannot be had."""
        self._socket = _listen(self.host, self.port, explicit=self._explicit)
        self.port = self._socket.getsockname()[1]
        self.hub = Hub(self._system)
        open_here = is_loopback(self.host)
        if not open_here and not self.hub.keyring.has_keys():
            events.NO_API_KEY(url=self.url)
        config = uvicorn.Config(
            build_app(self.hub, open_here=open_here),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_LAST_WORDS,
            h11_max_incomplete_event_size=64 * 1024,
            ws="none",
        )
        self.hub.start()
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="ziggurat-api")
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise LayerUnreachable(f"The HTTP API could not be started on {self.url}.")
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End the streams, let open requests finish, and stop listening."""
        await self.hub.streams.close()
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)
        await self.hub.close()


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(system: System, host: str | None = None, port: int | None = None) -> AsyncIterator[ApiServer]:
    """Serve the API of an open system."""
    server = ApiServer(system, host, port)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


def _listen(host: str, port: int, *, explicit: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wanted in (port,) if explicit else (port, 0):
        # With its protocol named: asyncio sends small pieces at once (TCP_NODELAY) only on sockets that say that they are TCP, and
        # without that every answer, a head and a body, waits 40 ms for the acknowledgement of its head.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, wanted))
            listening.listen(2048)
            listening.setblocking(False)
            return listening
        except OSError as error:
            listening.close()
            failure = error
    raise LayerUnreachable(
        f"The HTTP API cannot listen on {host}:{port}: {failure.strerror or failure}. "
        "Choose another address with [server] host and port, or with --port."
    ) from failure


def default_port() -> int:
    """Return the port that is used where none is set."""
    return ServerSettings().port
