"""`HttpOrchestrator`: the verbs of an orchestrator, asked for over HTTP.

What is safe to ask for twice is asked for again while the server restarts, for PATIENCE seconds; a stream that is cut off is taken up
behind its last event.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Any, TypeVar

import aiohttp
import msgspec
from msgspec import Raw
from msgspec.structs import replace
from yarl import URL

from ziggurat.errors import AccessDenied, LayerUnreachable
from ziggurat.orchestrator.control import Failure
from ziggurat.orchestrator.http import wire
from ziggurat.orchestrator.http.schedules import HttpSchedules
from ziggurat.orchestrator.interface import Capabilities, Orchestrator
from ziggurat.orchestrator.remote import exception_of
from ziggurat.records import STOPPED, DeadLetter, Depth, Event, Presence, Run, RunEvent, RunFilter, StartRequest, StepView

T = TypeVar("T")

#: Seconds for which a server that does not answer is asked again, where that is safe.
PATIENCE = 15.0
#: The same for a watcher, who has nothing better to do.
WATCHING = 180.0
#: Seconds that an answer may take to begin, and that a stream may be silent: the server speaks every 15.
ANSWER, SILENCE = 60.0, 45.0
#: Runs of one page of a list, and dead letters asked for at most.
PAGE, LETTERS_MAX = 1000, 10_000


class ServerGone(LayerUnreachable):
    """The server does not answer."""


class HttpOrchestrator(Orchestrator):
    """The orchestrator behind an HTTP API.

    Args:
        url: the server's address, such as "http://host:8400".
        key: an API key, or empty.
        namespace: the tenant of new runs; the key's own, or the server's, when empty.
    """

    capabilities = Capabilities()

    def __init__(self, url: str, key: str = "", namespace: str = "") -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._namespace = namespace
        self._session: aiohttp.ClientSession | None = None
        self.schedules = HttpSchedules(self._ask, namespace)

    def __repr__(self) -> str:
        return f"<HttpOrchestrator {self.url}>"

    async def open(self) -> None:
        """Check that the server is there and lets us in. Raises LayerUnreachable, AccessDenied."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=ANSWER)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        try:
            await self._ask("GET", "/session", dict[str, Any])
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # -- asking -------------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, type_: type[T] | None, *, body: bytes | None = None, query: Any = None, again: bool = True
    ) -> T:
        """Ask, and decode the answer. With `again`, ask again while the server does not answer."""
        give_up = asyncio.get_running_loop().time() + PATIENCE
        pause = 0.05
        while True:
            try:
                return await self._ask_once(method, path, type_, body, query)
            except ServerGone:
                # The first look must not keep a person waiting for a server that was never there.
                if not again or path == "/session" or asyncio.get_running_loop().time() + pause > give_up:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _ask_once(self, method: str, path: str, type_: type[T] | None, body: bytes | None, query: Any) -> T:
        headers = {"content-type": "application/json"} if body is not None else {}
        async with (
            self._reaching(),
            self._open().request(method, self._place(path), data=body, params=query, headers=headers) as response,
        ):
            data = await response.read()
            if response.status >= 400:
                raise self._failure(response.status, data)
            try:
                # What has no body says nothing but that it is done.
                return msgspec.json.decode(data or b"null", type=type_)
            except msgspec.MsgspecError as error:
                raise LayerUnreachable(
                    f"{self.url} answered with something that is not its API ({error}); check the address, and that both sides run "
                    "the same version of Ziggurat."
                ) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise LayerUnreachable("The connection to the server is closed.")
        return self._session

    def _place(self, path: str) -> URL:
        return URL(f"{self.url}/api/v1{path}", encoded=True)

    @contextlib.asynccontextmanager
    async def _reaching(self) -> AsyncIterator[None]:
        try:
            yield
        except (aiohttp.InvalidURL, ValueError) as error:
            raise LayerUnreachable(f"The address {self.url!r} cannot be used; write one such as http://host:8400.") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            cause = getattr(getattr(error, "os_error", None), "strerror", "") or type(error).__name__
            raise ServerGone(
                f"The server {self.url} does not answer ({cause}); check the address, and that `ziggurat serve` runs there."
            ) from error

    def _failure(self, status: int, data: bytes) -> Exception:
        try:
            body = msgspec.json.decode(data, type=wire.WireProblem).error
        except msgspec.MsgspecError:
            return LayerUnreachable(f"{self.url} answered {status} with something that is not its API; check the address.")
        if status in (401, 403, 421):
            return AccessDenied(f"{self.url} refuses: {body.message}")
        if status == 503 and body.type == "NotReady":
            return ServerGone(body.message)
        return exception_of(Failure(body.type, body.message), f"The server {self.url}")

    # -- verbs --------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> Run:
        body = wire.body_of(
            workflow=request.workflow,
            input=request.payload,
            id=request.id,
            namespace=self._namespace or None,
            tags=request.tags,
            priority=request.priority,
            budget=request.budget_usd,
        )
        return (await self._ask("POST", "/runs", wire.WireRun, body=body)).record()

    async def signal(self, run: str, name: str, payload: Raw, *, signal_id: str = "") -> None:
        body = wire.body_of(name=name, value=payload, signal_id=signal_id)
        await self._verb(run, "signal", body, again=bool(signal_id))

    async def cancel(self, run: str, reason: str = "") -> None:
        await self._verb(run, "cancel", wire.body_of(reason=reason))

    async def pause(self, run: str, reason: str = "") -> None:
        await self._verb(run, "pause", wire.body_of(reason=reason))

    async def resume(self, run: str, *, budget_usd: float | None = None) -> None:
        await self._verb(run, "resume", wire.body_of(budget=budget_usd), again=False)

    async def retry(self, run: str) -> Run:
        return await self._verb(run, "retry", b"{}", again=False)

    async def fork(self, run: str, step: int, *, payload: Raw | None = None, id: str = "") -> Run:
        return await self._verb(run, "fork", wire.body_of(step=step, input=payload, id=id), again=bool(id))

    async def _verb(self, run: str, verb: str, body: bytes, *, again: bool = True) -> Run:
        found = await self._ask("POST", wire.run_path(run, f"/{verb}"), wire.WireRun, body=body, again=again)
        return found.record()

    # -- looking ------------------------------------------------------------------------------------------------

    async def get(self, run: str) -> Run:
        return (await self._ask("GET", wire.run_path(run), wire.WireRun)).record()

    async def list(self, where: RunFilter) -> list[Run]:
        found: list[Run] = []
        after = where.after
        while len(found) < where.limit:
            query = [*wire.query_of(where), ("limit", str(min(PAGE, where.limit - len(found))))]
            page = await self._ask("GET", "/runs", wire.WirePage, query=[*query, ("after", after)] if after else query)
            found += [run.record() for run in page.runs]
            if page.next is None:
                break
            after = page.next
        return found

    async def count(self, where: RunFilter) -> dict[str, int]:
        return (await self._ask("GET", "/runs/counts", wire.WireCounts, query=wire.query_of(where))).counts

    async def history(self, run: str, *, after: int = 0, limit: int = 1000) -> builtins.list[Event]:
        query = {"after": str(after), "limit": str(min(limit, 5000))}
        page = await self._ask("GET", wire.run_path(run, "/history"), wire.WireEvents, query=query)
        return [event.record() for event in page.events]

    async def steps(self, run: str) -> builtins.list[StepView]:
        found = await self._ask("GET", wire.run_path(run, "/steps"), wire.WireSteps)
        return [step.record() for step in found.steps]

    async def wait(self, run: str, timeout: float | None = None) -> Run:
        async with asyncio.timeout(timeout):
            found = await self.get(run)
            while found.status not in STOPPED:
                async with contextlib.aclosing(self.watch(run, after=found.events)) as events:
                    async for _ in events:
                        pass
                found = await self.get(run)
        return found

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        last = ""
        give_up = asyncio.get_running_loop().time() + WATCHING
        while True:
            try:
                async with contextlib.aclosing(self._stream(run, after, last)) as events:
                    async for id, kind, data in events:
                        last = id
                        give_up = asyncio.get_running_loop().time() + WATCHING
                        if kind == "end":
                            return
                        if (told := wire.happening(run, kind, data)) is not None:
                            yield told
                            if told.kind == "status" and told.status in STOPPED:
                                return
            except ServerGone:
                if asyncio.get_running_loop().time() > give_up:
                    raise
            except _NothingMore:
                return
            # Cut off: the server restarts, or a proxy between us gave up.
            await asyncio.sleep(0.2)

    async def _stream(self, run: str, after: int, last: str) -> AsyncGenerator[tuple[str, str, bytes], None]:
        """Yield (id, kind, data) of a run's stream until it closes."""
        headers = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)
        place = self._place(wire.run_path(run, f"/events?after={after}"))
        async with self._reaching(), self._open().get(place, headers=headers, timeout=timeout) as response:
            if response.status == 204:
                raise _NothingMore
            if response.status >= 400:
                raise self._failure(response.status, await response.read())
            id = kind = ""
            data: builtins.list[bytes] = []
            async for line in _lines(response.content):
                name, _, value = line.partition(b": ")
                if not line:
                    if kind:
                        yield id, kind, b"\n".join(data)
                    kind, data = "", []
                elif name == b"id":
                    id = value.decode()
                elif name == b"event":
                    kind = value.decode()
                elif name == b"data":
                    data.append(value)

    # -- dead letters, and what surrounds runs --------------------------------------------------------------------

    async def dead_letters(self, limit: int = 100) -> builtins.list[DeadLetter]:
        query = {"limit": str(min(limit, LETTERS_MAX))}
        found = await self._ask("GET", "/deadletters", wire.WireLetters, query=query)
        return [letter.record() for letter in found.dead_letters]

    async def redrive(self, ids: Collection[str]) -> int:
        return await self._letters("redrive", ids)

    async def discard(self, ids: Collection[str]) -> int:
        return await self._letters("discard", ids)

    async def _letters(self, verb: str, ids: Collection[str]) -> int:
        if not ids:
            return 0
        body = wire.body_of(ids=[*ids])
        return (await self._ask("POST", f"/deadletters/{verb}", wire.WireCount, body=body, again=False)).count

    async def purge(self, where: RunFilter) -> int:
        """Order the runs deleted, and wait until they are."""
        found = await self.list(replace(where, limit=100_000))
        ids = [run.id for run in found if run.ended_at is not None]
        if not ids:
            return 0
        body = wire.body_of(verb="purge", ids=ids, id=f"purge-{secrets.token_hex(8)}")
        order = await self._ask("POST", "/bulk", wire.WireBulk, body=body)
        while order.ended_at is None:
            await asyncio.sleep(0.1)
            order = await self._ask("GET", f"/bulk/{order.id}", wire.WireBulk)
        return order.done

    async def depth(self) -> dict[str, Depth]:
        """Return what each queue of the system holds."""
        return (await self._ask("GET", "/queues", wire.WireQueues)).record()

    async def workers(self) -> builtins.list[Presence]:
        """Return the workers of the system, by name."""
        return [worker.record() for worker in (await self._ask("GET", "/workers", wire.WireWorkers)).workers]


class _NothingMore(Exception):
    """The stream has been seen to its end."""


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines without their ends, however long they are: a result is one line."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
