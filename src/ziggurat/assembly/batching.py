"""From settings to the batch lanes of a router."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ziggurat.artifacts import Payloads
from ziggurat.assembly.backends import load_backend
from ziggurat.assembly.secrets import plain
from ziggurat.errors import SettingsError
from ziggurat.inference.batches.interface import BatchApi, BatchOptions, Shelf
from ziggurat.inference.interface import Endpoint
from ziggurat.inference.router import Router
from ziggurat.settings import Settings

SHELVES: Mapping[str, str] = {
    "sqlite": "ziggurat.inference.backends.shelf_sqlite:SqliteShelf",
    "redis": "ziggurat.inference.backends.shelf_redis:RedisShelf",
}
#: By the kind of the endpoint.
BATCHES: Mapping[str, str] = {"openai": "ziggurat.inference.backends.openai_batches:create"}


def open_lanes(router: Router, settings: Settings, payloads: Payloads) -> None:
    """Let calls that may wait go into batches, at the endpoints that are to have them. Raises SettingsError, MissingExtra."""
    wanted = settings.inference.batches
    if wanted.margin > wanted.least:
        raise SettingsError(
            f"inference.batches.margin ({wanted.margin:g} s) is over inference.batches.least ({wanted.least:g} s), so a call would leave "
            "its batch before it is in one; lower margin, or raise least."
        )
    apis: dict[str, BatchApi] = {}
    for name, endpoint in settings.inference.endpoints.items():
        if endpoint.batch:
            api = _api(name, endpoint.kind, router.endpoints[name])
            if api is not None:
                apis[name] = api
    if apis or any(endpoint.off_peak for endpoint in settings.inference.endpoints.values()):
        options = BatchOptions(**wanted.model_dump(exclude={"path"}))
        router.open_lanes(_shelf(settings), apis, payloads, options)


def _api(name: str, kind: str, endpoint: Endpoint) -> BatchApi | None:
    if kind not in BATCHES:
        raise SettingsError(
            f'inference.endpoints.{name}.batch is for endpoints of the kind "openai", and this one is "{kind}"; drop it.'
        )
    return cast("BatchApi | None", load_backend("batches", kind, BATCHES)(endpoint))


def _shelf(settings: Settings) -> Shelf:
    queue = settings.queue
    if queue.backend == "redis":
        return cast(Shelf, load_backend("batches", "redis", SHELVES)(plain(queue.url), "queue.url"))
    return cast(Shelf, load_backend("batches", "sqlite", SHELVES)(settings.resolve(settings.inference.batches.path)))
