"""From settings to a Temporal server: where it is, how it is used, and a development server of our own."""

from __future__ import annotations

from typing import Any

from ziggurat.assembly.secrets import plain
from ziggurat.settings import Settings


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


def temporal_options(settings: Settings) -> Any:
    """Return how the orchestrator on Temporal behaves (`TemporalOptions`)."""
    from ziggurat.orchestrator.temporal.options import TemporalOptions

    orchestrator = settings.orchestrator
    defaults = TemporalOptions()
    return TemporalOptions(
        max_resident_runs=orchestrator.max_resident_runs,
        history_limit=min(orchestrator.history_limit, defaults.history_limit),
        lease=settings.queue.lease,
        native=settings.queue.backend == "temporal",
        # Three looks in a lease, so that one that is late loses nothing.
        relay=min(defaults.relay, settings.queue.lease / 4),
    )
