"""Worker processes in milliseconds: one process imports everything once, and forks a worker from itself whenever one is wanted.

    pool ──(socket: request + descriptors)──▶ nursery ──fork──▶ worker ──(pipe: status)──▶ pool
         ◀──────────(pid, then exit code)────────┘

A new interpreter needs more than half a second of processor time before its first task, so eight workers on two cores would be up after
two seconds and more; forked, they are up within a few hundredths each, and share the memory of what was imported. The nursery is a bare
process with one thread and no event loop, because a fork copies only the thread that calls it: a lock that another thread held would
stay locked for ever. For the same reason it imports Ziggurat and not the application, whose modules may start threads; those are imported
in each worker. If the nursery dies, its workers live on, for they hear the pool by their own pipe, and the next start makes another.

Linux only: elsewhere system libraries do not survive a fork, and pools start whole interpreters.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NoReturn

import msgspec
from msgspec import Struct

from ziggurat.workers.pools.starting import STDERR, Started, Starter

#: Seconds for a nursery to answer: it imports first, on a machine that may be busy.
PATIENCE = 60.0
#: Bytes of a request or an answer at most; both are one packet.
PACKET = 65536
#: What stands for the exit code of a worker whose nursery died before it could tell.
UNKNOWN_END = -int(signal.SIGHUP)


def supported() -> bool:
    """Say whether this system can do it."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


class Request(Struct, frozen=True):
    """A worker to start. The descriptors that come along: where it writes its status, and where it prints if that is elsewhere."""

    id: int
    arguments: list[str]
    prints: bool


class Answer(Struct, frozen=True, kw_only=True):
    """A worker was started (`id`), or has ended (`code`)."""

    pid: int
    id: int = 0
    code: int | None = None
    #: Why it could not be started.
    error: str = ""


_request, _answer = msgspec.json.Decoder(Request), msgspec.json.Decoder(Answer)


# -- the pool's side ------------------------------------------------------------------------------------------------


class NurseryStarter(Starter):
    """Starts workers by asking a nursery, which is started when the first worker is, or by `prepare`.

    Args:
        command: what starts the nursery; the number of its socket's descriptor is appended.
        environ: its environment, and that of its workers.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command, self._environ = tuple(command), dict(environ)
        self._socket: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._count = 0
        self._asked: dict[int, asyncio.Future[_Forked]] = {}
        self._children: dict[int, _Forked] = {}

    async def prepare(self) -> None:
        """Start the nursery if there is none. Raises OSError."""
        async with self._starting:
            if self._listening is not None and not self._listening.done():
                return
            await self.close()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=STDERR,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=self._environ,
                )
            except OSError:
                ours.close()
                raise
            finally:
                theirs.close()
            ours.setblocking(False)
            self._socket = ours
            self._listening = asyncio.get_running_loop().create_task(self._listen(ours), name="ziggurat-nursery")

    async def start(self, arguments: Sequence[str], status: int, output: IO[bytes] | None) -> Started:
        try:
            return await self._start(arguments, status, output)
        except ConnectionError:
            return await self._start(arguments, status, output)  # It died since it was last heard of; another one.

    async def _start(self, arguments: Sequence[str], status: int, output: IO[bytes] | None) -> Started:
        await self.prepare()
        used, listening = self._socket, self._listening
        assert used is not None
        assert listening is not None
        loop = asyncio.get_running_loop()
        self._count += 1
        number = self._count
        started: asyncio.Future[_Forked] = loop.create_future()
        self._asked[number] = started
        request = Request(number, list(arguments), output is not None)
        descriptors = [status, *([output.fileno()] if output is not None else [])]
        try:
            socket.send_fds(used, [msgspec.json.encode(request)], descriptors)
            async with asyncio.timeout(PATIENCE):
                # Not its number: one that ends at once is forgotten by the time this goes on.
                return await started
        except ConnectionError:
            # Its end may not have been heard here yet; without this the next start would ask the same one.
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            raise
        except TimeoutError:
            raise OSError(f"the process that forks workers did not answer within {PATIENCE:.0f} s") from None
        finally:
            self._asked.pop(number, None)

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        if self._process is not None:
            # It ends when its socket does.
            await self._process.wait()
            self._process = None

    async def _listen(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(ours, PACKET):
                self._hear(_answer.decode(data))
        except OSError:
            pass
        finally:
            ours.close()
            for started in self._asked.values():
                if not started.done():
                    started.set_exception(ConnectionError("the process that forks workers has ended"))
            for child in self._children.values():
                child.orphaned()

    def _hear(self, answer: Answer) -> None:
        if answer.code is not None:
            child = self._children.pop(answer.pid, None)
            if child is not None:
                child.ended(answer.code)
            return
        started = self._asked.get(answer.id)
        if answer.error:
            if started is not None and not started.done():
                started.set_exception(OSError(answer.error))
            return
        self._children[answer.pid] = child = _Forked(answer.pid)
        if started is None or started.done():
            child.send_signal(signal.SIGTERM)  # Whoever wanted it has given up.
        else:
            started.set_result(child)


class _Forked(Started):
    """A worker that a nursery forked: the child of another process, held by a descriptor that no other process can come to bear."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    def send_signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def ended(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def orphaned(self) -> None:
        """Nobody will say how it ended; the descriptor says when."""
        if self._pidfd < 0:
            self.ended(UNKNOWN_END)
            return
        loop = asyncio.get_running_loop()

        def over() -> None:
            loop.remove_reader(self._pidfd)
            self.ended(UNKNOWN_END)

        loop.add_reader(self._pidfd, over)


# -- the nursery's side ---------------------------------------------------------------------------------------------


def tend(descriptor: int, work: Callable[[list[str], int], int]) -> None:
    """Fork workers until nobody asks any more.

    Args:
        descriptor: our end of the pool's socket.
        work: called in each forked process, as (arguments, status descriptor); what it returns is the exit code.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # What is there now stays; the collector need not copy its pages into every worker by looking at them.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as pool:
        watched: list[Any] = [pool, reading]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if reading in ready:
                os.read(reading, 4096)
                _report_ended(pool)
            if pool in ready:
                data, descriptors, _, _ = socket.recv_fds(pool, PACKET, 2)
                if not data:
                    return
                _fork(pool, _request.decode(data), list(descriptors), work, (reading, writing))


def _fork(
    pool: socket.socket, request: Request, descriptors: list[int], work: Callable[[list[str], int], int], own: tuple[int, int]
) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        _send(pool, Answer(pid=0, id=request.id, error=str(error)))
        pid = -1
    if pid == 0:
        _become_worker(pool, request, descriptors, work, own)
    for descriptor in descriptors:
        os.close(descriptor)
    if pid > 0:
        _send(pool, Answer(pid=pid, id=request.id))


def _become_worker(
    pool: socket.socket, request: Request, descriptors: list[int], work: Callable[[list[str], int], int], own: tuple[int, int]
) -> NoReturn:
    code: Any = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        pool.close()
        for descriptor in own:
            os.close(descriptor)
        if request.prints:
            output = descriptors.pop()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
        code = work(request.arguments, descriptors[0])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        # Not sys.exit: it would unwind through the nursery's own frames, and wait for threads whose attempts were given up.
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _report_ended(pool: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _send(pool, Answer(pid=pid, code=os.waitstatus_to_exitcode(status)))


def _send(pool: socket.socket, answer: Answer) -> None:
    with contextlib.suppress(OSError):  # The pool is gone; the next look at its socket says so.
        pool.send(msgspec.json.encode(answer))
