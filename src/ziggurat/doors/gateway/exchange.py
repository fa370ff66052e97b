"""One request at the gateway: its body, its caller, its account, and the ways to answer it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import web
from msgspec.structs import replace

from ziggurat.doors.gateway.refusals import Refusal
from ziggurat.inference.ledger import NOBODY, Attribution
from ziggurat.inference.limits.caller import ANYONE
from ziggurat.records import CallRecord, Prompt

if TYPE_CHECKING:
    from ziggurat.doors.gateway.callers import Caller

_JSON = "application/json"
#: The longest value of an attribution header.
NAME_LENGTH_MAX = 200


class Bounds:
    """What the gateway bounds of every request."""

    __slots__ = ("body_limit", "keep_alive", "read_timeout")

    def __init__(self, body_limit: int, read_timeout: float, keep_alive: float) -> None:
        self.body_limit, self.read_timeout, self.keep_alive = body_limit, read_timeout, keep_alive


class Exchange:
    """A request and its answer."""

    def __init__(self, request: web.BaseRequest, bounds: Bounds, id_: str) -> None:
        self.request, self._bounds = request, bounds
        self.id = id_
        self.created = int(time.time())
        self.caller: Caller | None = None
        #: Returns the aliases that there are.
        self.aliases: Callable[[], list[str]] = list
        #: On whose behalf the request is made.
        self.by = NOBODY
        #: What the caller may use and spend.
        self.spends = ANYONE
        #: The alias that was asked for, for metrics.
        self.model = ""
        self.response: web.StreamResponse | None = None
        #: The error that it was answered with, if it was.
        self.failed: Refusal | None = None
        #: When the write that is under way began, by the loop's clock; None if none is.
        self.writing_since: float | None = None

    # -- in ----------------------------------------------------------------------------------------------------------

    async def body(self) -> bytes:
        """Return the whole body. Raises Refusal if it is too large or too slow."""
        request, limit = self.request, self._bounds.body_limit
        if (request.content_length or 0) > limit:
            raise self._too_large()
        try:
            if request.content.is_eof():
                return await request.read()
            async with asyncio.timeout(self._bounds.read_timeout):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise self._too_large() from None
        except TimeoutError:
            text = f"The request body did not arrive within {self._bounds.read_timeout:g} s."
            raise Refusal(408, text, code="request_timeout", again=False) from None
        except web.RequestPayloadError as error:
            raise Refusal(400, f"The request body cannot be read: {error}.", code="invalid_body") from None

    def _too_large(self) -> Refusal:
        text = f"The request body is larger than {self._bounds.body_limit:,} bytes; send less, or raise gateway.body_limit."
        return Refusal(413, text, code="request_too_large")

    def attribute(self) -> None:
        """Take in on whose behalf the request is made, from its key and headers. Raises Refusal for a value that is no name."""
        key, namespace = (self.caller.name, self.caller.namespace) if self.caller is not None else ("", "")
        self.by = Attribution(
            namespace=namespace or self._named("X-Ziggurat-Tenant") or "default",
            workflow=self._named("X-Ziggurat-Workflow"),
            run=self._named("X-Ziggurat-Run"),
            key=key,
        )

    def admit(self, model: str) -> None:
        """Take in which alias is asked for. Raises Refusal if the caller may not call it."""
        self.model = model
        caller = self.caller
        if caller is not None and caller.name:
            caller.allow(model)
            if ":" in model and not caller.models and model not in self.aliases():
                # The router takes "endpoint:upstream" too. That is for whoever runs it: an alias may hold prices and corrections.
                known = ", ".join(sorted(self.aliases()))
                text = f"There is no model {model!r} for keys; the aliases are: {known}."
                raise Refusal(404, text, code="model_not_found", param="model", again=False)

    def demanding(self, prompt: Prompt) -> Prompt:
        """Return a prompt with the region and the quality that the request's headers demand. Raises Refusal."""
        headers = self.request.headers
        if "X-Ziggurat-Region" not in headers and "X-Ziggurat-Quality" not in headers:
            return prompt
        quality = headers.get("X-Ziggurat-Quality", "0")
        if quality not in ("0", "1", "2", "3", "4", "5"):
            text = f"The header X-Ziggurat-Quality is {quality[:20]!r}, and must be a whole number from 1 to 5."
            raise Refusal(400, text, param="X-Ziggurat-Quality")
        return replace(prompt, region=self._named("X-Ziggurat-Region"), quality=int(quality))

    def _named(self, header: str) -> str:
        value = self.request.headers.get(header, "")
        if value and (len(value) > NAME_LENGTH_MAX or not value.isprintable()):
            text = f"The header {header} must be printable text of at most {NAME_LENGTH_MAX} characters."
            raise Refusal(400, text, param=header)
        return value

    # -- out ---------------------------------------------------------------------------------------------------------

    def answer(self, body: bytes, status: int = 200, more: dict[str, str] | None = None) -> web.Response:
        """Return a whole answer in JSON."""
        headers = {"Content-Type": _JSON, "x-request-id": self.id, "Server": "ziggurat"}
        if more:
            headers |= more
        return web.Response(body=body, status=status, headers=headers)

    def served(self, body: bytes, call: CallRecord | None) -> web.Response:
        """Return a model's whole answer; the headers say what it cost and which route served it."""
        if call is None:
            return self.answer(body)
        route = f"{call.endpoint}:{call.upstream}"
        return self.answer(body, more={"x-ziggurat-route": route, "x-ziggurat-cost-usd": f"{call.usage.cost_usd:.8f}"})

    def refuse(self, refusal: Refusal) -> web.Response:
        """Return an error as the answer."""
        return self.answer(refusal.body(), refusal.status, refusal.headers())

    @property
    def keep_alive(self) -> float:
        """Seconds that the client of a stream waits for its first piece before it gets a comment."""
        return self._bounds.keep_alive

    async def begin(self) -> None:
        """Begin a stream of events, unless it has begun; from here on errors are events."""
        if self.response is not None:
            return
        headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            # Proxies that buffer would hold the tokens back.
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
            "x-request-id": self.id,
            "Server": "ziggurat",
        }
        response = web.StreamResponse(headers=headers)
        await response.prepare(self.request)
        self.response = response

    async def write(self, events: bytes) -> None:
        """Send events. Waits for a client that reads slowly; the sweeper ends the connection of one that does not read."""
        assert self.response is not None
        self.writing_since = asyncio.get_running_loop().time()
        await self.response.write(events)
        self.writing_since = None

    async def end(self) -> web.StreamResponse:
        """End the stream and return the answer."""
        assert self.response is not None
        await self.response.write_eof()
        return self.response

    def abort(self) -> None:
        """Cut the connection."""
        if self.request.transport is not None:
            self.request.transport.abort()
