"""The control socket: the owner of a state file serves its orchestrator to other processes of the same user.

    RemoteOrchestrator ──(Unix socket, JSON lines)──▶ ControlServer ──▶ the owner's Orchestrator and Queue

Only one process may own a state file. Whoever comes second finds the socket's path in the lock file beside it and talks to the owner,
through the same interface. The socket belongs to the user alone (0600, in a folder of 0700), so whoever may speak on it may also read and
write the state file; nothing is authenticated twice.

On the wire, each line is one JSON object. The server greets with `Greeting`. A client sends `Request`s, each with an id of its own
choosing; the server answers each with `Reply`s of that id: one, or for a stream any number with `more` set and a last one without. The
request "stop" ends another request early. When the connection ends, so does everything that it asked for, and nothing that was recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from ziggurat.errors import LayerUnreachable, UnknownName
from ziggurat.orchestrator.interface import Capabilities, Orchestrator
from ziggurat.queues.interface import Queue
from ziggurat.records import ErrorInfo, Event, MaybeRaw, Run, RunEvent, RunFilter, Schedule, StartRequest

T = TypeVar("T")

#: Both sides must speak the same version; a mixed pair says so at once.
PROTOCOL = 1
#: Bytes of one line. A payload is far smaller; a page of history is cut to HISTORY_BYTES.
LINE_LIMIT = 512 * 1024 * 1024
HISTORY_BYTES = 8 * 1024 * 1024


class Greeting(Struct, frozen=True):
    """The server's first line."""

    protocol: int
    pid: int
    capabilities: Capabilities


class Arguments(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The arguments of every verb; each uses those that it needs."""

    run: str = ""
    name: str = ""
    payload: MaybeRaw = None
    signal_id: str = ""
    reason: str = ""
    budget_usd: float | None = None
    step: int = 0
    id: str = ""
    after: int = 0
    limit: int = 1000
    timeout: float | None = None
    where: RunFilter = RunFilter()
    request: StartRequest | None = None
    ids: list[str] = []
    schedule: Schedule | None = None
    since: float = 0.0
    until: float = 0.0
    #: The caller's folder: where the module of a workflow that the owner does not know may lie.
    folder: str = ""
    #: The request that "stop" ends.
    other: int = 0


class Request(Struct, frozen=True, omit_defaults=True):
    """A verb to carry out."""

    id: int
    verb: str
    arguments: Arguments = Arguments()


class Failure(Struct, frozen=True, omit_defaults=True):
    """An exception: the name of its class in `ziggurat.errors`, or of a builtin."""

    type: str
    message: str
    run_id: str = ""
    error: ErrorInfo | None = None
    extra: str = ""


class Reply(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An answer, or one item of a stream."""

    id: int
    value: MaybeRaw = None
    failure: Failure | None = None
    #: True for an item of a stream that goes on.
    more: bool = False


_decode_request = msgspec.json.Decoder(Request).decode


def wire_line(record: Struct) -> bytes:
    """Return a record as one line."""
    data = msgspec.json.encode(record)
    if b"\n" in data:  # A payload that someone else wrote with line breaks between its tokens.
        data = msgspec.json.format(data, indent=-1)
    return data + b"\n"


# -- the owner's side -----------------------------------------------------------------------------------------------


def socket_path(state: Path) -> Path:
    """Return where the owner of a state file listens: a short path, because the kernel takes 107 bytes at most.

    Raises LayerUnreachable if the folder belongs to someone else, who could then listen in our place.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"ziggurat-{os.getuid()}"
    if len(str(folder)) > 70 or not folder.parent.is_dir():
        folder = Path("/tmp") / folder.name
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise LayerUnreachable(
            f"The folder {folder} for control sockets belongs to another user; remove it or set XDG_RUNTIME_DIR."
        )
    folder.chmod(0o700)
    name = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:20]
    return folder / f"{name}.sock"


class ControlServer:
    """Serves an orchestrator and its queue to other processes of the same user.

    Args:
        orchestrator: what is served.
        queue: whose depth and workers are served.
        reach: called with (entry, folder) of a workflow that the owner does not know, before a second try: its module may be there.
    """

    def __init__(self, orchestrator: Orchestrator, queue: Queue, reach: Callable[[str, str], None] | None = None) -> None:
        self._orchestrator = orchestrator
        self._queue = queue
        self._reach = reach
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._verbs: dict[str, Callable[[Arguments], Awaitable[Any]]] = {
            "start": self._start,
            "signal": lambda a: orchestrator.signal(a.run, a.name, a.payload or Raw(b"null"), signal_id=a.signal_id),
            "cancel": lambda a: orchestrator.cancel(a.run, a.reason),
            "pause": lambda a: orchestrator.pause(a.run, a.reason),
            "resume": lambda a: orchestrator.resume(a.run, budget_usd=a.budget_usd),
            "retry": lambda a: orchestrator.retry(a.run),
            "fork": lambda a: orchestrator.fork(a.run, a.step, payload=a.payload, id=a.id),
            "get": lambda a: orchestrator.get(a.run),
            "list": lambda a: orchestrator.list(a.where),
            "count": lambda a: orchestrator.count(a.where),
            "history": self._history,
            "steps": lambda a: orchestrator.steps(a.run),
            "wait": lambda a: orchestrator.wait(a.run, a.timeout),
            "purge": lambda a: orchestrator.purge(a.where),
            "depth": lambda a: queue.depth(a.ids or None),
            "workers": lambda a: queue.workers(),
            "dead_letters": lambda a: orchestrator.dead_letters(a.limit),
            "redrive": lambda a: orchestrator.redrive(a.ids),
            "discard": lambda a: orchestrator.discard(a.ids),
            "schedules.put": self._put_schedule,
            "schedules.list": lambda a: orchestrator.schedules.list(),
            "schedules.remove": lambda a: orchestrator.schedules.remove(a.name),
            "schedules.pause": lambda a: orchestrator.schedules.pause(a.name, a.reason),
            "schedules.resume": lambda a: orchestrator.schedules.resume(a.name),
            "schedules.trigger": lambda a: orchestrator.schedules.trigger(a.name),
            "schedules.backfill": lambda a: orchestrator.schedules.backfill(a.name, a.since, a.until),
        }

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def open(self, path: Path) -> None:
        """Listen on `path`. What a dead owner left there is removed: the lock says that there is no other."""
        path.unlink(missing_ok=True)  # noqa: ASYNC240
        try:
            self._server = await asyncio.start_unix_server(self._accept, str(path), limit=LINE_LIMIT)
            path.chmod(0o600)  # noqa: ASYNC240
        except OSError as error:
            raise LayerUnreachable(f"The control socket {path} cannot be opened: {error.strerror or error}.") from error
        self._path = path

    async def close(self) -> None:
        """Stop listening and end all connections; their clients see the owner go."""
        if self._server is not None:
            self._server.close()
        for task in [*self._connections]:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        under_way: dict[int, asyncio.Task[None]] = {}
        try:
            writer.write(wire_line(Greeting(PROTOCOL, os.getpid(), self._orchestrator.capabilities)))
            while line := await reader.readline():
                request = _decode_request(line)
                if request.verb == "stop":
                    if other := under_way.get(request.arguments.other):
                        other.cancel()
                    continue
                answering = asyncio.create_task(self._answer(request, writer))
                under_way[request.id] = answering
                answering.add_done_callback(lambda _, id=request.id: under_way.pop(id, None))  # type: ignore[misc]
        except (ConnectionError, asyncio.CancelledError, msgspec.MsgspecError, ValueError, RecursionError):
            pass  # The client is gone, we are closing, or someone does not speak our language: the connection ends.
        finally:
            self._connections.discard(task)
            answers = [*under_way.values()]
            for answer in answers:
                answer.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        async def send(reply: Reply) -> None:
            writer.write(wire_line(reply))
            await writer.drain()  # A client that reads slowly slows its own streams only.

        try:
            if request.verb == "watch":
                async with contextlib.aclosing(self._events(request.arguments)) as events:
                    async for event in events:
                        await send(Reply(id=request.id, value=Raw(msgspec.json.encode(event)), more=True))
                await send(Reply(id=request.id))
                return
            verb = self._verbs.get(request.verb)
            if verb is None:
                raise UnknownName(f"The control socket knows no verb {request.verb!r}.")
            value = await verb(request.arguments)
            await send(Reply(id=request.id, value=Raw(msgspec.json.encode(value))))
        except ConnectionError:
            pass
        except Exception as error:
            with contextlib.suppress(ConnectionError):
                await send(Reply(id=request.id, failure=_failure(error)))

    async def _events(self, a: Arguments) -> AsyncGenerator[RunEvent, None]:
        async for event in self._orchestrator.watch(a.run, after=a.after):
            yield event

    async def _start(self, a: Arguments) -> Run:
        assert a.request is not None
        request = a.request
        return await self._reaching(request.entry, a.folder, lambda: self._orchestrator.start(request))

    async def _put_schedule(self, a: Arguments) -> Schedule:
        assert a.schedule is not None
        schedule = a.schedule
        return await self._reaching(schedule.entry, a.folder, lambda: self._orchestrator.schedules.put(schedule))

    async def _reaching(self, entry: str, folder: str, verb: Callable[[], Awaitable[T]]) -> T:
        """Carry out a verb that needs a workflow, and look in the caller's folder for one that is not known here."""
        try:
            return await verb()
        except UnknownName:
            if self._reach is None or not entry:
                raise
            self._reach(entry, folder)
            return await verb()

    async def _history(self, a: Arguments) -> list[Event]:
        """Return a page that is short enough for one line; the client asks on until a page is empty."""
        page: list[Event] = []
        size = 0
        for event in await self._orchestrator.history(a.run, after=a.after, limit=a.limit):
            size += len(event.result or b"") + len(event.input or b"")
            if page and size > HISTORY_BYTES:
                break
            page.append(event)
        return page


def _failure(error: Exception) -> Failure:
    info = getattr(error, "error", None)
    return Failure(
        type=type(error).__name__,
        message=str(error),
        run_id=getattr(error, "run_id", ""),
        error=info if isinstance(info, ErrorInfo) else None,
        extra=getattr(error, "extra", ""),
    )
