"""What the routes work on: one system, its control file, and the live streams; and how a route gets hold of them."""

from __future__ import annotations

from typing import cast

from fastapi import Request

from ziggurat import records
from ziggurat.assembly import Standing, System, links
from ziggurat.assembly.modules import AppRegistry
from ziggurat.clock import Clock, SystemClock
from ziggurat.doors.api import shapes
from ziggurat.doors.api.audit import AuditLog
from ziggurat.doors.api.bulk import Bulk
from ziggurat.doors.api.control_file import ControlFile
from ziggurat.doors.api.keys import EVERY, Keyring, Principal
from ziggurat.doors.api.streams import Streams
from ziggurat.doors.api.webhooks import Webhooks
from ziggurat.errors import UnknownName
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.queues.interface import Queue
from ziggurat.settings import Settings
from ziggurat.telemetry import events


class Hub:
    """One system as its API sees it. Raises StateUnusable if the control file cannot be opened."""

    def __init__(self, system: System, clock: Clock | None = None) -> None:
        assert system.orchestrator is not None
        self.system = system
        self.settings: Settings = system.settings
        self.clock = clock or SystemClock()
        self.file = ControlFile(self.settings.resolve(self.settings.server.path))
        self.keyring = Keyring(self.file, self.clock)
        self.audit = AuditLog(self.file, self.clock)
        self.standing = Standing(self.settings, system.models, self.clock)
        self.streams = Streams(system.orchestrator)
        self.bulk = Bulk(self.file, system.orchestrator, self.clock)
        self.webhooks = Webhooks(self.settings.server.webhooks, self.file, system.orchestrator, self.clock)

    @property
    def orchestrator(self) -> Orchestrator:
        assert self.system.orchestrator is not None
        return self.system.orchestrator

    @property
    def queue(self) -> Queue:
        return self.system.queue

    @property
    def registry(self) -> AppRegistry:
        return self.system.registry

    def shown(self, run: records.Run) -> shapes.Run:
        """Return a run as the API shows it, with the pages elsewhere that show it too."""
        return shapes.run_of(run, links(self.settings, run.id))

    def start(self) -> None:
        """Begin what goes on without being asked: bulk orders and webhooks, those of before first."""
        self.bulk.start()
        self.webhooks.start()

    async def close(self) -> None:
        """End the streams, stop what goes on, and close the control file."""
        await self.streams.close()
        await self.webhooks.close()
        await self.bulk.close()
        self.standing.close()
        self.file.close()

    def note_unready(self, error: Exception) -> None:
        """Log why the server is not ready."""
        events.NOT_READY(error=error)


def hub_of(request: Request) -> Hub:
    """Return the hub of the app that serves a request."""
    return cast(Hub, request.app.state.hub)


def caller_of(request: Request) -> Principal:
    """Return who calls; the gate has let them pass."""
    return cast(Principal, request.state.principal)


def namespace_of(request: Request, wanted: str | None) -> str:
    """Return the namespace that a new thing belongs to: the one wanted, the caller's own, or the settings'. Raises UnknownName."""
    who = caller_of(request)
    if wanted:
        if not who.sees(wanted):
            raise UnknownName(f"There is no namespace {wanted!r} for {who.name!r}; leave it out.")
        return wanted
    return hub_of(request).settings.app.namespace if who.namespace == EVERY else who.namespace


def namespace_filter(request: Request, wanted: str) -> str:
    """Return the namespace to look in, "" for all. Raises UnknownName if the caller may not."""
    who = caller_of(request)
    if wanted and not who.sees(wanted):
        raise UnknownName(f"There is no namespace {wanted!r} for {who.name!r}; leave it out.")
    return wanted or ("" if who.namespace == EVERY else who.namespace)


async def seen_run(request: Request, id: str) -> records.Run:
    """Return a run that the caller may see. Raises UnknownName, alike for a run that is not there and one of another tenant."""
    try:
        run = await hub_of(request).orchestrator.get(id)
    except UnknownName:
        run = None
    if run is None or not caller_of(request).sees(run.namespace):
        raise UnknownName(f"There is no run {id!r}; GET /api/v1/runs lists those that there are.")
    return run
