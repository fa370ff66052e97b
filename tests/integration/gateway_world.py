"""A gateway over real HTTP on loopback, in front of an upstream that does as it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from ziggurat.doors.gateway import Gateway, open_gateway
from ziggurat.inference.ledger import CostRow, costs
from ziggurat.inference.router import Router
from ziggurat.settings import Settings
from ziggurat.testing.models import FaultyUpstream

HELLO = [{"role": "user", "content": "hello"}]


class World:
    """A gateway, its upstream, and a client without any manners of its own."""

    def __init__(
        self, gateway: Gateway, models: Router, upstream: FaultyUpstream, http: aiohttp.ClientSession, folder: Path
    ) -> None:
        self.gateway, self.models, self.upstream, self.http, self.folder = gateway, models, upstream, http, folder

    @property
    def url(self) -> str:
        return self.gateway.base_url

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """Return the status, the JSON and the headers of an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + path, data=data, headers=headers) as response:
            return response.status, json.loads(await response.read()), response.headers

    async def chat(self, model: str = "m", messages: Any = HELLO, **more: Any) -> tuple[int, Any, Any]:
        return await self.post("/chat/completions", {"model": model, "messages": messages, **more})

    async def events(self, **more: Any) -> list[Any]:
        """Return the events of a streamed chat completion, "[DONE]" included."""
        body = {"model": "m", "messages": HELLO, "stream": True, **more}
        async with self.http.post(self.url + "/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            lines = (await response.read()).decode().split("\n\n")
        found = [line.removeprefix("data: ") for line in lines if line]
        return [line if line == "[DONE]" else json.loads(line) for line in found]

    def bill(self, *by: str) -> list[CostRow]:
        """Return what the ledger says."""
        return costs([self.folder / "ledger.db"], by)


@asynccontextmanager
async def world(
    folder: Path,
    upstream: FaultyUpstream | None = None,
    *,
    endpoint: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **gateway: Any,
) -> AsyncIterator[World]:
    """Open a gateway whose alias "m" is served by the upstream, at a dollar for a million tokens.

    Args:
        endpoint: more of [inference.endpoints.up].
        model: more of [inference.models.m].
        gateway: more of [gateway].
    """
    upstream = upstream or FaultyUpstream()
    async with upstream:
        prices = {"*": {"input": 1.0, "output": 1.0}}
        up = {"base_url": upstream.base_url, "prices": prices, **(endpoint or {})}
        settings = Settings.model_validate(
            {
                "inference": {
                    "endpoints": {"up": up, "scripted": {"kind": "scripted"}},
                    "models": {"m": {"routes": ["up:mock"], **(model or {})}, "s": {"routes": ["scripted:scripted"]}},
                    "ledger": str(folder / "ledger.db"),
                },
                "gateway": {"port": 0, "path": str(folder / "gateway.db"), **gateway},
            }
        )
        async with open_gateway(settings) as (running, models), aiohttp.ClientSession() as http:
            yield World(running, models, upstream, http, folder)
