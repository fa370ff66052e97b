"""The app: all routes behind the gate and the shield, and the OpenAPI document of them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from ziggurat import __version__
from ziggurat.doors.api import (
    administration,
    allowances,
    health,
    inbox,
    looks,
    orders,
    runs,
    schedules,
    scraping,
    sessions,
    switching,
    uploads,
)
from ziggurat.doors.api.gate import COOKIE, Gate
from ziggurat.doors.api.hub import Hub
from ziggurat.doors.api.problems import RESPONSES, handle_errors
from ziggurat.doors.api.shapes import Problem
from ziggurat.doors.api.shield import Shield
from ziggurat.doors.dashboard import add_dashboard

PREFIX = "/api/v1"
_ROUTERS = (
    runs.router, orders.router, uploads.router, looks.router, allowances.router, inbox.router, schedules.router, switching.router,
    sessions.router, administration.router,
)  # fmt: skip


def build_app(hub: Hub, *, open_here: bool) -> FastAPI:
    """Return the app of a system.

    Args:
        open_here: True if it is served on loopback only, where callers may need no credentials.
    """
    settings = hub.settings.server
    app = FastAPI(
        title="Ziggurat",
        version=__version__,
        summary="Monitor and control AI agent workflows.",
        openapi_url=f"{PREFIX}/openapi.json",
        # Their pages load scripts from elsewhere, which the content policy forbids.
        docs_url=None,
        redoc_url=None,
        responses=RESPONSES,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.hub = hub
    app.state.gate = gate = Gate(settings, hub.keyring, hub.audit, hub.clock, open_here=open_here)
    api = APIRouter(prefix=PREFIX)
    for router in _ROUTERS:
        api.include_router(router)
    app.include_router(api)
    app.include_router(health.router)
    app.include_router(scraping.router)
    handle_errors(app)
    add_dashboard(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_middleware(Shield, settings=settings, gate=gate)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            # With a key only: a cookie is never sent to us from another site.
            allow_headers=["authorization", "content-type", "last-event-id"],
        )
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, openapi_version="3.1.0", routes=app.routes
        )
        components = document.setdefault("components", {})
        shape = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components["schemas"].update({**shape.pop("$defs"), "Problem": shape})
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "An API key, made with `ziggurat keys create`."},
            "login": {
                "type": "apiKey",
                "in": "cookie",
                "name": COOKIE,
                "description": "POST /session; verbs need X-CSRF-Token too.",
            },
        }
        for path in document["paths"].values():
            for operation in path.values():
                if operation.get("x-role") != "anyone":
                    operation["security"] = [{"key": []}, {"login": []}]
        app.openapi_schema = document
    return app.openapi_schema
