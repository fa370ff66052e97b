"""Errors as answers: {"error": {"type", "message"}} with the status that fits, never a traceback."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ziggurat import errors

#: The first class that an error is an instance of decides.
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (errors.PayloadTooLarge, 413),
    (errors.UnknownName, 404),
    (errors.Conflict, 409),
    (errors.InvalidData, 422),
    (errors.MissingExtra, 501),
    (errors.ConfigurationError, 400),
    (errors.LayerUnreachable, 503),
    (errors.Overloaded, 503),
    (errors.RunEnded, 409),
    (TimeoutError, 504),
)
_TITLES = {
    400: ("BadRequest", "The request cannot be read."),
    404: ("UnknownPath", "There is nothing at this path; /api/v1/openapi.json lists what there is."),
    405: ("MethodNotAllowed", "This path does not take that method; /api/v1/openapi.json lists what it takes."),
    413: ("PayloadTooLarge", "The body is larger than the server takes; see [server] body_limit and upload_limit."),
    415: ("UnsupportedMediaType", "The body must be JSON, uncompressed, with Content-Type: application/json."),
}
_TEXTS = {
    400: "The request cannot be read.",
    401: "There are no credentials, or they are no good.",
    403: "The caller may not do this.",
    404: "There is no such thing, or it belongs to another tenant.",
    405: "The path does not take that method.",
    409: "The verb does not apply as things stand.",
    413: "The body is too large.",
    415: "The body is of another type, or compressed.",
    421: "The server does not answer for that host.",
    422: "A value does not fit.",
    429: "Too often; Retry-After says when again.",
    503: "A layer cannot be used now.",
}
#: For the OpenAPI document: how every route may fail.
_SHAPE = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
RESPONSES: dict[int | str, dict[str, Any]] = {code: {"content": _SHAPE, "description": text} for code, text in _TEXTS.items()}


class Refused(Exception):
    """A request that the gate turns away."""

    def __init__(self, status: int, kind: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after


def status_of(error: Exception) -> tuple[int, str]:
    """Return the status and the sentence of an error."""
    if isinstance(error, Refused):
        return error.status, str(error)
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        return 422, _misfit(error)
    for cls, status in _STATUSES:
        if isinstance(error, cls):
            return status, " ".join(str(error).split())
    return 500, ""


def problem(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as an answer."""
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)


def handle_errors(app: FastAPI) -> None:
    """Let an app answer errors in this shape."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        status, text = status_of(error)
        headers = {"retry-after": "1"} if status == 503 else None
        return problem(status, type(error).__name__, text, headers)

    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
        if error.retry_after is not None:
            headers["retry-after"] = str(max(1, round(error.retry_after)))
        return problem(error.status, error.kind, str(error), headers)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind, text = _TITLES.get(error.status_code, ("HttpError", str(error.detail)))
        headers = {"allow": ", ".join(_methods(request))} if error.status_code == 405 else dict(error.headers or {})
        return problem(error.status_code, kind, text, headers)

    async def misfit(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return problem(422, "InvalidData", _misfit(error))

    app.add_exception_handler(errors.ZigguratError, ours)
    app.add_exception_handler(TimeoutError, ours)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, misfit)


def _methods(request: Request) -> list[str]:
    """Return the methods that the path of a request takes: a path may have a route for each."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _misfit(error: RequestValidationError) -> str:
    """Return the first misfit as one sentence, and how many more there are."""
    found = error.errors()
    first = found[0]
    place = ".".join(str(part) for part in first["loc"])
    more = f" ({len(found) - 1} more after it.)" if len(found) > 1 else ""
    said = str(first.get("ctx", {}).get("error") or first["msg"]).rstrip(".")
    return f"{place} does not fit: {said[:1].lower() if said[1:2].islower() else said[:1]}{said[1:]}.{more}"
