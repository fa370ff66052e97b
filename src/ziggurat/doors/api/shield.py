"""The shield: what holds for every answer and every request, before any route is looked for.

A plain ASGI layer, because Starlette's own base class for middleware would buffer streams. It refuses hosts that are not ours, bodies
that are compressed or too large, and puts the security headers on every answer.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ziggurat.doors.api.gate import Gate
from ziggurat.doors.api.problems import Refused, problem
from ziggurat.settings import ServerSettings

_COMMON = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
#: For answers of the API, which no browser is to render.
_API_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
#: For the dashboard: its own files, no inline script or style, and no other server.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_UPLOAD = re.compile(r"/api/v1/workflows/[^/]+/files/?")


class Shield:
    """Wraps the app; see the module."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, gate: Gate) -> None:
        self._app, self._settings, self._gate = app, settings, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # There are no websockets here.
        sending = _with_headers(scope, send)
        headers = Headers(scope=scope)
        path = scope["path"]
        try:
            if path not in ("/healthz", "/readyz"):  # Probes of a cluster call the pod by its address.
                self._gate.check_host(headers)
            limit = self._settings.upload_limit if _UPLOAD.fullmatch(path) else self._settings.body_limit
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > limit:
                raise Refused(
                    413, "PayloadTooLarge", f"The body may have {limit:,} bytes; see [server] body_limit and upload_limit."
                )
            if headers.get("content-encoding", "identity").lower() != "identity":
                # A few bytes can unpack to any number of them.
                raise Refused(415, "UnsupportedMediaType", "Compressed bodies are not taken; send it as it is.")
        except Refused as refused:
            answer = problem(refused.status, refused.kind, str(refused), {"connection": "close"})
            await answer(scope, receive, sending)
            return
        await self._app(scope, _counted(receive, limit), sending)


def _counted(receive: Receive, limit: int) -> Receive:
    """Return `receive` that ends a body which is longer than it said, or said nothing."""
    taken = 0

    async def counting() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413)
        return message

    return counting


def _with_headers(scope: Scope, send: Send) -> Send:
    api = scope["path"].startswith("/api/")

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _COMMON.items():
                headers[name] = value
            headers["content-security-policy"] = _API_POLICY if api else _PAGE_POLICY
            if api:
                headers.setdefault("cache-control", "no-store")
            if scope["scheme"] == "https":
                headers["strict-transport-security"] = "max-age=31536000"
        await send(message)

    return sending
