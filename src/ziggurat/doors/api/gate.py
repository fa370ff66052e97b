"""The gate: who may pass, asked before a request's body is read.

Every route declares who may call it: a role, and whether it shows the whole system rather than one namespace. `Guarded` is the class of
all routes and refuses to be built without that, so a route that nobody thought about cannot exist.

    Host header      one of ours, or a page that rebinds its DNS name to this machine could call us
    credentials      Bearer key, login cookie, or nobody's on loopback
    Origin           for verbs: the page that asks must be ours, whatever cookie it brings
    X-CSRF-Token     for verbs of a login
    role, namespace  of the route
    audit            for verbs: on the disk before anything is done
"""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from ziggurat.clock import Clock
from ziggurat.doors.api.audit import AuditLog
from ziggurat.doors.api.keys import EVERY, ROLES, Keyring, Principal
from ziggurat.doors.api.problems import Refused, problem, status_of
from ziggurat.settings import ServerSettings
from ziggurat.telemetry import events

COOKIE = "ziggurat_session"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: Failed logins that one address may make at once, and seconds until it may make another.
LOGIN_BURST, LOGIN_EVERY = 5, 12.0
_LOOPBACK = Principal(name="loopback", role="admin", namespace=EVERY, via="loopback")
#: What proxies add: a request that carries one did not begin on this machine.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def guarded(role: str, *, system: bool = False) -> dict[str, Any]:
    """Return what a route declares: `openapi_extra=guarded("operator")`. "anyone" needs no credentials.

    `system` is for what shows more than one namespace: only callers of all namespaces may see it.
    """
    return {"x-role": role, "x-system": system}


class Gate:
    """Decides who passes.

    Args:
        settings: of the server.
        open_here: True if the server is bound to loopback only.
    """

    def __init__(self, settings: ServerSettings, keyring: Keyring, audit: AuditLog, clock: Clock, *, open_here: bool) -> None:
        self._settings = settings
        self._keyring = keyring
        self.audit = audit
        self._open_here = open_here
        self._hosts = {host.lower() for host in settings.hosts}
        self._origins = {origin.rstrip("/").lower() for origin in settings.origins}
        self.logins = Throttle(clock, LOGIN_BURST, LOGIN_EVERY)
        #: Of refused verbs so many are written down for one address: whoever has no key shall not fill the disk.
        self.refusals = Throttle(clock, 20, 1.0)

    def check_host(self, headers: Headers) -> None:
        """Refuse a Host that is not ours. Off loopback and without `[server] hosts`, any name may be ours."""
        host = _hostname(headers.get("host", ""))
        if host in self._hosts or (is_loopback(host) if self._open_here or self._hosts else True):
            return
        raise Refused(
            421, "UnknownHost", f"This server does not answer for the host {host[:100]!r}; add it to [server] hosts if it should."
        )

    async def identify(self, request: Request) -> Principal | None:
        """Return who calls, or None for nobody we know. Credentials that are no good are refused, even where none are needed."""
        if header := request.headers.get("authorization"):
            scheme, _, text = header.partition(" ")
            who = await self._keyring.of_key(text.strip()) if scheme.lower() == "bearer" else None
            if who is None:
                raise Refused(
                    401, "Unauthorized", "The API key is unknown, revoked or expired; make one with `ziggurat keys create`."
                )
            return who
        if (cookie := request.cookies.get(COOKIE)) and (who := self._keyring.of_cookie(cookie)) is not None:
            return who
        return _LOOPBACK if self._is_open(request.headers) else None

    def _is_open(self, headers: Headers) -> bool:
        """Say whether callers need no credentials: bound to loopback, called by a loopback name, and not through a proxy."""
        return (
            self._open_here
            and self._settings.auth == "auto"
            and not self._hosts
            and is_loopback(_hostname(headers.get("host", "")))
            and not any(name in headers for name in _FORWARDED)
        )

    def check_origin(self, request: Request) -> None:
        """Refuse a verb that another site's page asks for. Callers that are no browsers send neither header."""
        headers = request.headers
        origin = headers.get("origin", "").lower()
        if origin and origin in self._origins:
            return
        if origin:
            host = headers.get("host", "").lower()
            ours = origin in (f"http://{host}", f"https://{host}")
        else:
            ours = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        if not ours:
            raise Refused(403, "CrossSite", "Another site's page asked for this; add it to [server] origins if it may.")

    async def admit(self, request: Request, role: str, *, system: bool) -> Principal | None:
        """Return who calls a route. Raises Refused."""
        who = await self.identify(request)
        if request.method not in SAFE:
            self.check_origin(request)
            if (
                who is not None
                and who.via == "session"
                and role != "anyone"
                and not _same(request.headers.get("x-csrf-token"), who.csrf)
            ):
                raise Refused(403, "CsrfTokenMissing", "A verb of a login needs the X-CSRF-Token that GET /session names.")
        if role == "anyone":
            return who
        if who is None:
            raise Refused(401, "Unauthorized", "This needs an API key: send Authorization: Bearer zk_…, or log in.")
        if not who.may(role):
            raise Refused(403, "Forbidden", f"This needs the role {role}, and {who.name!r} has the role {who.role}.")
        if system and who.namespace != EVERY:
            raise Refused(
                403, "Forbidden", f"This shows the whole system, and {who.name!r} belongs to the namespace {who.namespace!r}."
            )
        return who


class Guarded(APIRoute):
    """A route behind the gate. Raises RuntimeError if it does not say who may call it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()
        declared = self.openapi_extra or {}
        role, system, action = declared.get("x-role", ""), bool(declared.get("x-system")), self.name
        if role not in (*ROLES, "anyone"):
            raise RuntimeError(f"The route {self.path} must say who may call it: openapi_extra=guarded(role).")

        async def handle(request: Request) -> Response:
            gate: Gate = request.app.state.gate
            try:
                who = await _identified(gate, request, role, system)
                request.state.principal = who
                if request.method in SAFE:
                    return await inner(request)
                return await _audited(gate, request, action, who, inner)
            except Exception as error:
                if status_of(error)[0] != 500:
                    raise
                events.REQUEST_FAILED(trace_of=error, method=request.method, path=request.url.path)
                text = "The server met an unexpected error, which its log holds. Nothing that was recorded is lost."
                return problem(500, "InternalError", text)

        return handle


async def _identified(gate: Gate, request: Request, role: str, system: bool) -> Principal | None:
    try:
        return await gate.admit(request, role, system=system)
    except Refused as refused:
        address = address_of(request)
        if request.method not in SAFE and not gate.refusals.wait(address):
            gate.refusals.spend(address)
            entry = await gate.audit.begin(None, "refused", f"{request.method} {request.url.path}", address)
            await gate.audit.end(entry, refused.status, str(refused))
        raise


async def _audited(
    gate: Gate, request: Request, action: str, who: Principal | None, inner: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Response:
    entry = await gate.audit.begin(who, action, request.url.path, address_of(request))
    status, detail = 500, ""
    try:
        response = await inner(request)
        status = response.status_code
        return response
    except Exception as error:
        status, detail = status_of(error)
        raise
    finally:
        await gate.audit.end(entry, status, detail)


class Throttle:
    """A bucket of tokens for each address: `burst` at once, then one every `every` seconds. Remembers 10,000 addresses."""

    def __init__(self, clock: Clock, burst: int, every: float) -> None:
        self._clock, self._burst, self._every = clock, burst, every
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Return the seconds until this address may try again; 0 for now."""
        tokens = self._tokens(address)
        return 0.0 if tokens >= 1 else (1 - tokens) * self._every

    def spend(self, address: str) -> None:
        """Take a token of this address."""
        self._buckets[address] = (self._tokens(address) - 1, self._clock.monotonic())
        self._buckets.move_to_end(address)
        if len(self._buckets) > 10_000:
            self._buckets.popitem(last=False)

    def _tokens(self, address: str) -> float:
        tokens, at = self._buckets.get(address, (float(self._burst), self._clock.monotonic()))
        return min(float(self._burst), tokens + (self._clock.monotonic() - at) / self._every)


def _same(given: str | None, secret: str) -> bool:
    return hmac.compare_digest((given or "").encode(), secret.encode())


def is_loopback(host: str) -> bool:
    """Say whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(request: Request) -> str:
    """Return the address that a request came from."""
    return request.client.host if request.client is not None else ""


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return host
