"""An orchestrator in another process: the client's side of the control socket.

`ziggurat.orchestrator.control` holds the other side, and what both say to each other.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from ziggurat import errors
from ziggurat.errors import LayerUnreachable, ZigguratError
from ziggurat.orchestrator.control import LINE_LIMIT, PROTOCOL, Arguments, Failure, Greeting, Reply, Request, wire_line
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.orchestrator.schedules import Schedules
from ziggurat.records import DeadLetter, Depth, Event, Presence, Run, RunEvent, RunFilter, Schedule, StartRequest, StepView

_RESULTS: dict[str, Any] = {
    "start": Run,
    "retry": Run,
    "fork": Run,
    "get": Run,
    "wait": Run,
    "list": list[Run],
    "count": dict[str, int],
    "history": list[Event],
    "steps": list[StepView],
    "watch": RunEvent,
    "purge": int,
    "depth": dict[str, Depth],
    "workers": list[Presence],
    "dead_letters": list[DeadLetter],
    "redrive": int,
    "discard": int,
    "schedules.put": Schedule,
    "schedules.list": list[Schedule],
    "schedules.trigger": Run,
    "schedules.backfill": int,
}
_decode_reply = msgspec.json.Decoder(Reply).decode
_decoders = {verb: msgspec.json.Decoder(type_).decode for verb, type_ in _RESULTS.items()}


class OwnerGone(LayerUnreachable):
    """The process that owned the state file has ended or does not answer. What was recorded is safe, and another may become the owner."""


def exception_of(failure: Failure, owner: str) -> Exception:
    """Return the exception that a verb raised in the owner, as an instance of its own class."""
    cls = getattr(errors, failure.type, None)
    if failure.type == "TimeoutError":
        return TimeoutError(failure.message)
    if not (isinstance(cls, type) and issubclass(cls, ZigguratError)):
        return ZigguratError(f"{owner} met an unexpected {failure.type}: {failure.message}.")
    error: Any = cls.__new__(cls, failure.message)
    error.args = (failure.message,)
    error.run_id, error.error, error.extra = failure.run_id, failure.error, failure.extra
    return error  # type: ignore[no-any-return]


class RemoteOrchestrator(Orchestrator):
    """The orchestrator of the process that listens on `path`.

    Every verb raises OwnerGone once that process has ended; the caller then looks for the next owner, or becomes it.
    `owner` names the process in errors.
    """

    def __init__(self, path: Path, owner: str = "The owner of the state file") -> None:
        self._path = path
        self._owner = owner
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[Reply | None]] = {}
        self.schedules = RemoteSchedules(self._ask)

    async def open(self) -> None:
        """Connect. Raises OwnerGone if nobody listens, LayerUnreachable if the owner speaks another version."""
        try:
            async with asyncio.timeout(10):
                reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=LINE_LIMIT)
                line = await reader.readline()
            greeting = msgspec.json.decode(line, type=Greeting)
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            await self.close()
            raise OwnerGone(f"{self._owner} does not answer on its control socket; end it and try again.") from error
        if greeting.protocol != PROTOCOL:
            await self.close()
            raise LayerUnreachable(f"{self._owner} runs another version of Ziggurat; stop it, or use the version that it runs.")
        self.capabilities = greeting.capabilities
        self._reading = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        """Disconnect. What was asked for and not answered is given up; runs go on."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                reply = _decode_reply(line)
                if waiting := self._replies.get(reply.id):
                    waiting.put_nowait(reply)
        except (OSError, ValueError, msgspec.MsgspecError):
            pass
        finally:
            self._reading = None
            for waiting in self._replies.values():
                waiting.put_nowait(None)

    def _gone(self) -> OwnerGone:
        return OwnerGone(
            f"{self._owner} has ended; nothing that was recorded is lost, and the next command goes on with its runs."
        )

    async def _replies_to(self, verb: str, arguments: Arguments) -> AsyncGenerator[Any, None]:
        """Send a request and yield the values of its replies."""
        if self._reading is None or self._writer is None:
            raise self._gone()
        id = next(self._ids)
        waiting = self._replies[id] = asyncio.Queue()
        done = False
        try:
            self._writer.write(wire_line(Request(id, verb, arguments)))
            with contextlib.suppress(ConnectionError):  # The reader sees the end too, and says it once.
                await self._writer.drain()
            while not done:
                reply = await waiting.get()
                done = reply is None or not reply.more
                if reply is None:
                    raise self._gone()
                if reply.failure is not None:
                    raise exception_of(reply.failure, self._owner)
                if reply.value is not None:
                    yield _decoders[verb](reply.value) if verb in _decoders else None
        finally:
            del self._replies[id]
            if not done and self._reading is not None:
                self._writer.write(wire_line(Request(next(self._ids), "stop", Arguments(other=id))))

    async def _ask(self, verb: str, arguments: Arguments) -> Any:
        async with contextlib.aclosing(self._replies_to(verb, arguments)) as replies:
            async for value in replies:
                return value
        return None

    async def start(self, request: StartRequest) -> Run:
        run: Run = await self._ask("start", Arguments(request=request, folder=str(Path.cwd())))
        return run

    async def signal(self, run: str, name: str, payload: Raw, *, signal_id: str = "") -> None:
        await self._ask("signal", Arguments(run=run, name=name, payload=payload, signal_id=signal_id))

    async def cancel(self, run: str, reason: str = "") -> None:
        await self._ask("cancel", Arguments(run=run, reason=reason))

    async def pause(self, run: str, reason: str = "") -> None:
        await self._ask("pause", Arguments(run=run, reason=reason))

    async def resume(self, run: str, *, budget_usd: float | None = None) -> None:
        await self._ask("resume", Arguments(run=run, budget_usd=budget_usd))

    async def retry(self, run: str) -> Run:
        retried: Run = await self._ask("retry", Arguments(run=run))
        return retried

    async def fork(self, run: str, step: int, *, payload: Raw | None = None, id: str = "") -> Run:
        forked: Run = await self._ask("fork", Arguments(run=run, step=step, payload=payload, id=id))
        return forked

    async def get(self, run: str) -> Run:
        found: Run = await self._ask("get", Arguments(run=run))
        return found

    async def list(self, where: RunFilter) -> list[Run]:
        runs: list[Run] = await self._ask("list", Arguments(where=where))
        return runs

    async def count(self, where: RunFilter) -> dict[str, int]:
        counts: dict[str, int] = await self._ask("count", Arguments(where=where))
        return counts

    async def history(self, run: str, *, after: int = 0, limit: int = 1000) -> builtins.list[Event]:
        events: builtins.list[Event] = []
        while len(events) < limit:
            page = await self._ask("history", Arguments(run=run, after=after, limit=limit - len(events)))
            if not page:
                break
            events += page
            after = page[-1].seq
        return events

    async def steps(self, run: str) -> builtins.list[StepView]:
        views: builtins.list[StepView] = await self._ask("steps", Arguments(run=run))
        return views

    async def wait(self, run: str, timeout: float | None = None) -> Run:
        ended: Run = await self._ask("wait", Arguments(run=run, timeout=timeout))
        return ended

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        async with contextlib.aclosing(self._replies_to("watch", Arguments(run=run, after=after))) as events:
            async for event in events:
                yield event

    async def purge(self, where: RunFilter) -> int:
        purged: int = await self._ask("purge", Arguments(where=where))
        return purged

    async def dead_letters(self, limit: int = 100) -> builtins.list[DeadLetter]:
        letters: builtins.list[DeadLetter] = await self._ask("dead_letters", Arguments(limit=limit))
        return letters

    async def redrive(self, ids: Collection[str]) -> int:
        count: int = await self._ask("redrive", Arguments(ids=[*ids]))
        return count

    async def discard(self, ids: Collection[str]) -> int:
        count: int = await self._ask("discard", Arguments(ids=[*ids]))
        return count

    async def depth(self) -> dict[str, Depth]:
        """Return what each queue of the owner holds."""
        depths: dict[str, Depth] = await self._ask("depth", Arguments())
        return depths

    async def workers(self) -> builtins.list[Presence]:
        """Return the workers that show themselves on the owner's queue."""
        workers: builtins.list[Presence] = await self._ask("workers", Arguments())
        return workers


class RemoteSchedules(Schedules):
    """The schedules of that process. `ask` sends a verb with its arguments and returns the answer."""

    def __init__(self, ask: Callable[[str, Arguments], Awaitable[Any]]) -> None:
        self._ask = ask

    async def put(self, schedule: Schedule) -> Schedule:
        kept: Schedule = await self._ask("schedules.put", Arguments(schedule=schedule, folder=str(Path.cwd())))
        return kept

    async def list(self) -> builtins.list[Schedule]:
        schedules: builtins.list[Schedule] = await self._ask("schedules.list", Arguments())
        return schedules

    async def remove(self, name: str) -> None:
        await self._ask("schedules.remove", Arguments(name=name))

    async def pause(self, name: str, reason: str = "") -> None:
        await self._ask("schedules.pause", Arguments(name=name, reason=reason))

    async def resume(self, name: str) -> None:
        await self._ask("schedules.resume", Arguments(name=name))

    async def trigger(self, name: str) -> Run:
        run: Run = await self._ask("schedules.trigger", Arguments(name=name))
        return run

    async def backfill(self, name: str, since: float, until: float) -> int:
        count: int = await self._ask("schedules.backfill", Arguments(name=name, since=since, until=until))
        return count
