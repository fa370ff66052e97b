"""/healthz, /readyz and /metrics, for probes and Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from ziggurat import records
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import hub_of
from ziggurat.doors.api.problems import Refused
from ziggurat.doors.api.shapes import Answer
from ziggurat.errors import ZigguratError
from ziggurat.telemetry import CONTENT_TYPE, metrics_text

router = APIRouter(route_class=Guarded, tags=["health"])


class Standing(Answer):
    status: str


@router.get("/healthz", openapi_extra=guarded("anyone"))
async def healthz(request: Request) -> Standing:
    """Answer while the server lives: 200. That it answers is all that it says."""
    return Standing(status="ok")


@router.get("/readyz", openapi_extra=guarded("anyone"))
async def readyz(request: Request) -> Standing:
    """Answer 200 while the server can read its runs and its control file, else 503."""
    hub = hub_of(request)
    try:
        await hub.orchestrator.list(records.RunFilter(limit=1))
        hub.keyring.has_keys()
    except ZigguratError as error:
        # Anyone may ask, so that what is wrong stays in the log.
        hub.note_unready(error)
        raise Refused(503, "NotReady", "A layer cannot be used now; the server's log says which.", 5.0) from error
    return Standing(status="ok")


@router.get(
    "/metrics",
    openapi_extra=guarded("viewer", system=True),
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text format."}},
)
async def metrics(request: Request) -> Response:
    """Return this process's metrics in the Prometheus text format."""
    return Response(await asyncio.to_thread(metrics_text), headers={"content-type": CONTENT_TYPE})
