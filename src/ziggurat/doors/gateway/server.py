"""The gateway's server: from a connection to a route, and from SIGTERM to the last answer.

Built on aiohttp's low-level server: the choice and its figures are in docs/decisions. What it bounds: the time that a client may take
to send a request or to read a piece of an answer, the size of a body, the requests under way. A client that hangs up cancels its model
call, which closes the upstream call.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from ziggurat.doors.gateway import callers
from ziggurat.doors.gateway.callers import ANYBODY, Caller
from ziggurat.doors.gateway.chat import chat
from ziggurat.doors.gateway.completions import completions
from ziggurat.doors.gateway.embeddings import embeddings
from ziggurat.doors.gateway.exchange import Bounds, Exchange
from ziggurat.doors.gateway.refusals import Refusal, internal, refusal_of
from ziggurat.doors.gateway.responses import responses
from ziggurat.errors import ConfigurationError, LayerUnreachable, ZigguratError
from ziggurat.inference.identity import new_id
from ziggurat.inference.interface import is_loopback
from ziggurat.inference.ledger import attributing, day_of
from ziggurat.inference.limits import caller as limits
from ziggurat.inference.router import Router
from ziggurat.inference.routes import RouteView
from ziggurat.settings.gateway import GatewaySettings
from ziggurat.telemetry import CONTENT_TYPE, events, metrics_text, tracing
from ziggurat.telemetry.catalogue import GATEWAY_IN_FLIGHT, GATEWAY_REQUESTS, GATEWAY_SECONDS
from ziggurat.telemetry.ids import TRACEPARENT

#: Seconds between two looks for clients that do not read, and for how long an idle connection is kept. The latter is also the time that a
#: client has for the head of its first request. Longer than the 60 s after which common proxies drop idle connections.
_SWEEP_SECONDS, _KEEP_ALIVE = 1.0, 75.0
#: What a drained or full gateway asks its clients to wait.
_RETRY_SECONDS = 1.0

Handler = Callable[[Exchange, Router], Awaitable[web.StreamResponse]]


class Gateway:
    """An OpenAI-compatible server over one router.

    Args:
        models: the inference layer; the caller closes it.
        settings: the section [gateway].
        keys: returns the callers as they stand, by the hash of their key; None lets everybody on this machine in.
        spent: what keys were known to have spent when the gateway began, by name and UTC day; the limit store knows what came since.
        every_second: is called once a second while the gateway listens, in a thread.
    """

    def __init__(
        self,
        models: Router,
        settings: GatewaySettings,
        *,
        keys: Callable[[], Mapping[str, Caller] | None] = lambda: None,
        spent: Mapping[tuple[str, str], float] | None = None,
        every_second: Callable[[], None] = lambda: None,
    ) -> None:
        self._spent = spent or {}
        self._spenders: dict[Caller, limits.Caller] = {}
        self._today = ""
        self._models, self._settings, self._keys, self._every_second = models, settings, keys, every_second
        self._bounds = Bounds(settings.body_limit, settings.read_timeout, settings.keep_alive)
        self._exchanges: set[Exchange] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._server: web.Server | None = None
        self._listening: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.draining = False
        self.port = settings.port
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/chat/completions"): chat,
            ("POST", "/v1/completions"): completions,
            ("POST", "/v1/responses"): responses,
            ("POST", "/v1/embeddings"): embeddings,
            ("GET", "/v1/models"): self._list_models,
        }
        self._paths = {path for _, path in self._routes}
        self._open: dict[str, Callable[[Exchange], Awaitable[web.StreamResponse]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
        }
        self._watching = GATEWAY_IN_FLIGHT.watch(lambda: {(): float(len(self._exchanges))})

    @property
    def base_url(self) -> str:
        """The URL that an OpenAI client takes as its base_url."""
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"http://{host}:{self.port}/v1"

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._exchanges)

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises ConfigurationError if that would let strangers in, LayerUnreachable if the port cannot be had."""
        host, port = self._settings.host, self._settings.port
        if not is_loopback(host) and not self._keys():
            raise ConfigurationError(
                f"The gateway would listen on {host} without any key, so that everybody there could spend your money. Make one with "
                "`ziggurat gateway keys create NAME`, or set gateway.host to 127.0.0.1."
            )
        limit = self._settings.body_limit

        def request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
            return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit)

        loop = asyncio.get_running_loop()
        # In the turn of the loop after the one that writes the answer: before the loop can read the same client's next request.
        self._models.afterwards = loop.call_soon
        self._server = web.Server(
            self._handle, request_factory=request, handler_cancellation=True, access_log=None, keepalive_timeout=_KEEP_ALIVE
        )
        try:
            self._listening = await loop.create_server(self._server, host, port, backlog=1024)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise LayerUnreachable(
                f"The gateway cannot listen on {host}:{port}: {why}. Name another address with gateway.host and gateway.port."
            ) from error
        self.port = self._listening.sockets[0].getsockname()[1]
        self._sweeper = loop.create_task(self._sweep())

    async def drain(self, grace: float | None = None) -> bool:
        """Answer new requests with 503, let those under way end within `grace` seconds; says whether all did."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.grace if grace is None else grace):
                await self._idle.wait()
        return not self._exchanges

    async def close(self) -> None:
        """Stop listening, and cut what is still under way."""
        self.draining = True
        self._watching()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._listening is not None:
            self._listening.close()
        if self._server is not None:
            await self._server.shutdown(0.1)

    async def _sweep(self) -> None:
        """Cut clients that have not read a piece of their answer for too long: they hold an upstream call that costs money."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            await asyncio.to_thread(self._every_second)
            late = loop.time() - self._settings.read_timeout
            for exchange in list(self._exchanges):
                if exchange.writing_since is not None and exchange.writing_since < late:
                    exchange.abort()

    # -- one request -------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        x = Exchange(request, self._bounds, new_id())
        path = request.path
        look = self._open.get(path)
        if look is not None:
            return await look(x)
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._exchanges.add(x)
        self._idle.clear()
        status = "gone"
        try:
            response = await self._respond(x, path)
            status = str(x.failed.status if x.failed is not None else response.status)
            return response
        except ConnectionError:
            # The client hung up; what is returned goes nowhere.
            return x.response or x.answer(b"")
        finally:
            self._exchanges.discard(x)
            if not self._exchanges:
                self._idle.set()
            known = path if path in self._paths else "other"
            GATEWAY_REQUESTS.labels(known, status).inc()
            GATEWAY_SECONDS.labels(known).observe(loop.time() - began)

    async def _respond(self, x: Exchange, path: str) -> web.StreamResponse:
        """Return the answer, or the error as an answer."""
        try:
            return await self._answer(x, path)
        except Refusal as refusal:
            return self._refuse(x, refusal)
        except ZigguratError as error:
            return self._refuse(x, refusal_of(error))
        except ConnectionError:
            raise
        except Exception:
            events.GATEWAY_FAILED(trace_of=True, request=x.id)
            return self._refuse(x, internal(x.id))

    async def _answer(self, x: Exchange, path: str) -> web.StreamResponse:
        if self.draining:
            raise self._unavailable("The gateway is shutting down; send the request again, to another replica.", "draining")
        if len(self._exchanges) > self._settings.max_in_flight:
            raise self._unavailable("The gateway has as many requests under way as it takes; send this one again.", "overloaded")
        request = x.request
        handler = self._routes.get((request.method, path))
        if handler is None:
            raise self._lost(request.method, path)
        known = self._keys()
        if known is not None:
            x.caller = callers.find(known, request.headers.get("Authorization", ""))
        else:
            _require_local(request)
            x.caller = ANYBODY
        x.attribute()
        x.spends, x.aliases = self._spender(x.caller), self._models.aliases
        # The calls are put to the account of whoever makes the request, under their limits and budgets.
        with attributing(x.by), limits.calling(x.spends):
            if tracing.current is None:
                return await handler(x, self._models)
            # A call of a traced program is part of its trace.
            with tracing.within(request.headers.get(TRACEPARENT)):
                return await handler(x, self._models)

    def _spender(self, caller: Caller) -> limits.Caller:
        """Return what a caller may use and spend today."""
        today = day_of(time.time())
        if today != self._today or len(self._spenders) > 10_000:
            self._today = today
            self._spenders.clear()
        known = self._spenders.get(caller)
        if known is None:
            known = self._spenders[caller] = caller.spends_as(self._settings.patience, self._spent, today)
        return known

    def _refuse(self, x: Exchange, refusal: Refusal) -> web.StreamResponse:
        x.failed = refusal
        if x.response is not None:
            return x.response  # It began as a stream; the error went out as an event, or the connection is cut.
        response = x.refuse(refusal)
        if self.draining:
            response.force_close()
        return response

    def _unavailable(self, text: str, code: str) -> Refusal:
        return Refusal(503, text, type="overloaded_error", code=code, retry_after=_RETRY_SECONDS, again=True)

    def _lost(self, method: str, path: str) -> Refusal:
        if path in self._paths:
            return Refusal(405, f"{path} does not take {method}.", code="method_not_allowed", again=False)
        doors = ", ".join(sorted(self._paths))
        return Refusal(404, f"There is no {path} here; there are: {doors}.", code="unknown_url", again=False)

    # -- what needs no model -----------------------------------------------------------------------------------------

    async def _list_models(self, x: Exchange, models: Router) -> web.StreamResponse:
        allowed = x.caller.models if x.caller is not None else frozenset()
        listed = [
            {"id": alias, "object": "model", "created": 0, "owned_by": "ziggurat", "ziggurat": _served(models.routes(alias))}
            for alias in models.aliases()
            if not allowed or alias in allowed
        ]
        return x.answer(msgspec.json.encode({"object": "list", "data": listed}))

    async def _healthz(self, x: Exchange) -> web.StreamResponse:
        return x.answer(b'{"ok":true}')

    async def _metrics(self, x: Exchange) -> web.StreamResponse:
        page = await asyncio.to_thread(metrics_text)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE, "Server": "ziggurat"})

    async def _readyz(self, x: Exchange) -> web.StreamResponse:
        reasons = ["The gateway is draining."] if self.draining else []
        body = {"ok": not reasons, "in_flight": self.in_flight, "reasons": reasons}
        return x.answer(msgspec.json.encode(body), 503 if reasons else 200)


def _served(routes: list[RouteView]) -> list[dict[str, Any]]:
    """Return how a model is served: no addresses, which are nobody's business behind a gateway."""
    return [
        {
            "route": f"{route.endpoint}:{route.upstream}",
            "health": "well" if route.breaker == "closed" else "ill" if route.breaker == "open" else "trying",
            "region": route.region or None,
            "quality": route.quality or None,
            "context": route.context or None,
            "replicas": len(route.replicas) or 1,
            "replicas_well": sum(replica.health != "ill" for replica in route.replicas)
            if route.replicas
            else int(route.breaker != "open"),
        }
        for route in routes
    ]


def _require_local(request: web.BaseRequest) -> None:
    """Raise Refusal unless a request without a key comes from a program on this machine.

    A page of any website may make a browser send a request to loopback, under its own name (DNS rebinding) or ours; it then names its
    origin, or another host.
    """
    origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
    name = urlsplit(f"//{host}").hostname or ""
    foreign = origin is not None and not is_loopback(urlsplit(origin).hostname or "")
    if foreign or not (is_loopback(name) or _is_own_address(request, name)):
        text = "Without keys, the gateway answers programs on its own machine only; call it as 127.0.0.1 or localhost."
        raise Refusal(403, text, type="permission_error", code="not_local", again=False)


def _is_own_address(request: web.BaseRequest, name: str) -> bool:
    """Say whether a host is the very address that the request came in on."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(request.transport.get_extra_info("sockname")[0])  # type: ignore[union-attr]
    except (ValueError, TypeError):
        return False
