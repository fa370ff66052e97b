"""From settings to a Temporal server: where it is, how it is used, and a development server of our own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from ziggurat.assembly.devserver import web_ui
from ziggurat.assembly.secrets import plain
from ziggurat.errors import MissingExtra
from ziggurat.settings import Settings, WorkerSettings


def temporal_link(settings: Settings) -> Any:
    """Return where the Temporal server is (`LinkOptions`). Raises SettingsError if a secret's variable is not set."""
    from ziggurat.queues.temporal_link import LinkOptions

    wanted = settings.orchestrator.temporal
    files = {
        name: settings.resolve(path) if path else None
        for name, path in (
            ("server_ca", wanted.server_ca),
            ("client_certificate", wanted.client_certificate),
            ("client_key", wanted.client_key),
        )
    }
    return LinkOptions(
        address=plain(settings.orchestrator.url),
        namespace=wanted.namespace,
        task_queue=wanted.task_queue,
        tls=wanted.tls,
        server_name=wanted.server_name,
        api_key=plain(wanted.api_key),
        **files,
    )


def temporal_options(settings: Settings, pools: Collection[WorkerSettings] = (), *, stay: bool) -> Any:
    """Return how the orchestrator on Temporal behaves (`TemporalOptions`) in a process that runs these pools itself.

    One that is to `stay` cleans up behind runs.
    """
    from ziggurat.orchestrator.temporal.options import TemporalOptions

    orchestrator, wanted = settings.orchestrator, settings.orchestrator.temporal
    defaults = TemporalOptions()
    return TemporalOptions(
        max_resident_runs=orchestrator.max_resident_runs,
        history_limit=min(orchestrator.history_limit, defaults.history_limit),
        lease=settings.queue.lease,
        native=settings.queue.backend == "temporal",
        cleans=stay,
        retention=orchestrator.retention,
        artifact_grace=settings.artifacts.grace,
        # Three looks in a lease, so that one that is late loses nothing.
        relay=min(defaults.relay, settings.queue.lease / 4),
        eager=max((pool.concurrency for pool in pools if {"*", "default"} & set(pool.queues)), default=0) if wanted.eager else 0,
    )


async def look_at_temporal(settings: Settings) -> str:
    """Return what a look at the Temporal server showed, as a sentence without its end. Raises LayerUnreachable, MissingExtra."""
    try:
        from ziggurat.orchestrator.temporal.namespace import make_searchable
        from ziggurat.queues.temporal_link import connect
    except ModuleNotFoundError as error:
        raise MissingExtra('The orchestrator backend "temporal"', "temporal") from error
    link = temporal_link(settings)
    searchable = await make_searchable(await connect(link), link)
    said = f"namespace {link.namespace}, task queues {link.task_queue}-…"
    return said if searchable else f"{said}; without our search attributes, so lists by tag and tenant are slow"


def links(settings: Settings, run: str) -> dict[str, str]:
    """Return pages elsewhere that show a run, by what they are: "temporal", where Temporal keeps it and its Web UI is known."""
    web = web_ui(settings)
    if not web:
        return {}
    # As the Web UI itself makes its addresses; one without an execution leads to the newest.
    namespace = quote(settings.orchestrator.temporal.namespace, safe="")
    return {"temporal": f"{web}/namespaces/{namespace}/workflows/{quote(run, safe='')}"}
