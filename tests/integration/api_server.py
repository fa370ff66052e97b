"""A system with its HTTP API on a free loopback port, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from ziggurat.assembly import System
from ziggurat.assembly.modules import AppRegistry
from ziggurat.doors.api.server import ApiServer, serving
from ziggurat.settings import Settings

#: Seconds after which a test has hung.
PATIENCE = 90.0


class Answer:
    """A status, headers, and a body."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The type of the Problem that it must be."""
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"type", "message"}, self.json
        return str(self.json["error"]["type"])


class Caller:
    """Calls an API as one principal."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        self.server, self.session, self.headers = server, session, headers

    def with_key(self, key: str) -> Caller:
        return Caller(self.server, self.session, {"authorization": f"Bearer {key}"})

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """Ask for a path below /api/v1, or for another that begins with two slashes."""
        url = self.server.url + (path[1:] if path.startswith("//") else f"/api/v1{path}")
        headers = {**self.headers, **options.pop("headers", {})}
        if body is not None:
            options["json"] = body
        async with asyncio.timeout(PATIENCE):
            async with self.session.request(method, url, headers=headers, **options) as response:
                return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.ask("POST", path, body, **options)

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Ask for what must succeed, and return its JSON."""
        answer = await self.ask(method, path, body, **options)
        assert answer.status in (200, 201, 202), (answer.status, answer.body)
        return answer.json

    async def until(self, run: str, status: str) -> dict[str, Any]:
        """Wait until a run has a status, and return it."""
        async with asyncio.timeout(PATIENCE):
            while (found := await self.ok("GET", f"/runs/{run}"))["status"] != status:
                assert found["ended_at"] is None, f"it is {found['status']} for good: {found['error']}"
                await asyncio.sleep(0.01)
        return dict(found)

    def key(self, name: str, role: str, namespace: str = "*") -> Caller:
        """Make a key, and return who calls with it."""
        return self.with_key(self.server.hub.keyring.create(name, role, namespace)[1])


@asynccontextmanager
async def api(folder: Path, *definitions: Any, host: str | None = None, **server: Any) -> AsyncIterator[Caller]:
    """Open a system in a folder that knows these workflows, and serve its API; `server` are settings of [server]."""
    more = server.pop("more", {})
    settings = Settings.model_validate(
        {
            **more,
            "orchestrator": {"path": str(folder / "state.db"), **more.get("orchestrator", {})},
            "server": {"path": str(folder / "control.db"), "port": 0, **server},
            "workers": {"default": {}},
        }
    )
    registry = AppRegistry(())
    for definition in definitions:
        registry.add(definition)
    async with System(settings, registry=registry) as system, serving(system, host) as served:
        async with aiohttp.ClientSession() as session:
            yield Caller(served, session, {})


class Happening:
    """One server-sent event."""

    def __init__(self, id: str, event: str, data: Any) -> None:
        self.id, self.event, self.data = id, event, data

    def __repr__(self) -> str:
        return f"<{self.event} {self.id} {self.data}>"


async def stream(caller: Caller, run: str, last: str = "", after: int = 0) -> AsyncIterator[Happening]:
    """Yield the events of a run's stream until it closes."""
    headers = {**caller.headers, **({"last-event-id": last} if last else {})}
    url = f"{caller.server.url}/api/v1/runs/{run}/events?after={after}"
    async with caller.session.get(url, headers=headers) as response:
        if response.status == 204:
            return
        assert response.status == 200, await response.read()
        assert response.content_type == "text/event-stream"
        id = event = data = ""
        async for line in response.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "id":
                id = value
            elif name == "event":
                event = value
            elif name == "data":
                data = value
            elif not name and event:
                yield Happening(id, event, json.loads(data))
                event = ""
