"""The dashboard: pages over the HTTP API, served by the same process.

Plain ES modules, one style sheet, no build step and nothing from elsewhere: the content policy allows only the server's own files, and
no inline script or style. All data reaches the page through the API, under the rights of whoever is logged in; the files themselves hold
none and are served to anyone. What a program made is put into the page as text, never as markup.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class _File:
    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.type = _TYPES[path.suffix]
        self.tag = f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'


def add_dashboard(app: FastAPI) -> None:
    """Serve the dashboard under / and its files under /static."""
    # Read once: no path that a caller names ever reaches the disk.
    files = {path.name: _File(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}

    async def page(request: Request) -> Response:
        return _answer(request, files["index.html"])

    async def static(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        return _answer(request, found) if found is not None else Response(status_code=404)

    app.router.routes.append(Route("/", page, name="dashboard", include_in_schema=False))
    app.router.routes.append(Route("/static/{name}", static, name="dashboard_file", include_in_schema=False))


def _answer(request: Request, file: _File) -> Response:
    # Asked for again each time, and answered with 304 while it is the same: an upgraded server never meets old files.
    headers = {"etag": file.tag, "cache-control": "no-cache"}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.type, headers=headers)
