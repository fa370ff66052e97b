"""How a client reaches the system: it hosts it, talks to the process that does, or reads the file that no process owns."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from msgspec import Struct

from ziggurat.assembly.artifacts import build_library, build_payloads, open_library
from ziggurat.assembly.backends import build_queue
from ziggurat.assembly.modules import AppRegistry, make_importable
from ziggurat.assembly.schedules import schedule_of
from ziggurat.assembly.secrets import plain
from ziggurat.assembly.served import ServedRegistry, ServedWorkflow
from ziggurat.assembly.system import System
from ziggurat.clock import SystemClock
from ziggurat.errors import StateLocked
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.orchestrator.remote import OwnerGone, RemoteOrchestrator
from ziggurat.orchestrator.sealing import SealedOrchestrator
from ziggurat.program.registry import load_workflow
from ziggurat.queues.interface import Queue
from ziggurat.records import Depth, Presence, RunFilter, Schedule
from ziggurat.settings import ScheduleSettings, Settings

#: "host" runs the system here unless another process does; "control" changes runs without driving them; "observe" only reads.
Mode = Literal["host", "control", "observe"]

#: Seconds to wait for a process that has the lock and does not listen yet: it is starting, or ending.
_OWNER_PATIENCE = 15.0


class Attachment:
    """How a client reaches the system: it hosts it, talks to the process that does, or reads the file that no process owns."""

    def __init__(
        self,
        settings: Settings,
        orchestrator: Orchestrator,
        *,
        system: System | None = None,
        registry: AppRegistry | None = None,
        served: bool = False,
    ) -> None:
        self._settings = settings
        self.orchestrator = orchestrator
        self.system = system
        #: True if the system is reached over its HTTP API, so that it may be on another machine.
        self.served = served
        self._registry = system.registry if system is not None else registry
        # A hosted system opens its own.
        self._close_library = open_library(partial(build_library, settings)) if system is None else None

    @property
    def hosted(self) -> bool:
        """True if this process owns the system, so that no other drives its runs. A Temporal server has no owner."""
        return self.system is not None and self._settings.orchestrator.backend != "temporal"

    @property
    def remote(self) -> bool:
        """True if another process runs the system."""
        return self.served or isinstance(self.orchestrator, RemoteOrchestrator)

    @property
    def registry(self) -> AppRegistry:
        """What this process knows of tasks and workflows; the app's modules are imported at the first use."""
        if self._registry is None:
            make_importable(self._settings.folder)
            self._registry = AppRegistry(self._settings.app.modules)
        return self._registry

    def load_workflow(self, reference: str) -> Any:
        """Return the workflow that "module:workflow", "file.py:workflow" or a name means. Raises ConfigurationError.

        Over HTTP, only its name counts: the server has the program, and checks the input.
        """
        if self.served:
            return ServedWorkflow(reference.rpartition(":")[2])
        found = load_workflow(reference, self.registry)
        self.know(found)
        return found

    def know(self, workflow: Any) -> None:
        """Prefer this workflow for its name, and serve the queues of the tasks that came with it."""
        self.registry.add(workflow)
        if self.system is not None:
            self.system.serve_named_queues()

    def schedule_of(self, name: str, wanted: ScheduleSettings) -> Schedule:
        """Return the schedule that a person describes. Raises ConfigurationError, InvalidData."""
        if self.served:
            wanted = wanted.model_copy(update={"workflow": wanted.workflow.rpartition(":")[2]})
            return schedule_of(name, wanted, self._settings, ServedRegistry(()), origin="hand")
        return schedule_of(name, wanted, self._settings, self.registry, origin="hand")

    async def close(self, grace: float = 2.0) -> None:
        """Let go. A hosted system gets `grace` seconds for attempts under way, which were paid for."""
        if self._close_library is not None:
            self._close_library()
            self._close_library = None
        if self.system is not None:
            await self.system.close(grace)
        else:
            await self.orchestrator.close()

    async def depth(self) -> dict[str, Depth]:
        """Return what each queue holds, by name."""
        if self.remote:
            depths: dict[str, Depth] = await cast(Any, self.orchestrator).depth()
            return depths
        async with self._queue() as queue:
            return await queue.depth()

    async def workers(self) -> list[Presence]:
        """Return the workers that show themselves on the queue, by name."""
        if self.remote:
            workers: list[Presence] = await cast(Any, self.orchestrator).workers()
            return workers
        async with self._queue() as queue:
            return await queue.workers()

    @contextlib.asynccontextmanager
    async def _queue(self) -> AsyncIterator[Queue]:
        """The hosted system's queue, or one opened for the moment."""
        if self.system is not None:
            yield self.system.queue
            return
        queue = build_queue(self._settings, SystemClock())
        await queue.open()
        try:
            yield queue
        finally:
            await queue.close()


async def attach(settings: Settings, mode: Mode, registry: AppRegistry | None = None, api_key: str | None = None) -> Attachment:
    """Reach the system that the settings describe: with `[client] url` over HTTP, else here.

    Raises StateLocked, LayerUnreachable, ConfigurationError.
    """
    if settings.client.url:
        key = api_key if api_key is not None else plain(settings.client.api_key)
        own = settings.app.namespace if "namespace" in settings.app.model_fields_set else ""
        # Half of a command's start, and most need none of it.
        from ziggurat.orchestrator.http.client import HttpOrchestrator

        over_http = HttpOrchestrator(settings.client.url, key, own)
        await over_http.open()
        return Attachment(settings, over_http, registry=registry, served=True)
    if settings.orchestrator.backend != "embedded":
        system = System(settings, drive=mode == "host", registry=registry)
        await system.__aenter__()
        return _hosted(settings, system)
    from ziggurat.orchestrator.embedded.lock import read_owner
    from ziggurat.orchestrator.embedded.observer import Observer

    state = settings.state_path
    give_up = asyncio.get_running_loop().time() + _OWNER_PATIENCE
    while True:
        owner = read_owner(state)
        try:
            if owner is not None and owner.socket:
                remote = RemoteOrchestrator(Path(owner.socket), f"Process {owner.pid} ({owner.command}), which runs the system,")
                await remote.open()
                return Attachment(settings, remote, registry=registry)
            if mode == "observe":
                observer = SealedOrchestrator(Observer(state), build_payloads(settings))
                await observer.open()
                return Attachment(settings, observer, registry=registry)
            system = System(settings, drive=mode == "host", registry=registry)
            await system.__aenter__()
            return _hosted(settings, system)
        except (OwnerGone, StateLocked):
            # The owner is about to listen, or about to be gone; either way the next look decides.
            if asyncio.get_running_loop().time() > give_up:
                raise
            await asyncio.sleep(0.05)


def _hosted(settings: Settings, system: System) -> Attachment:
    assert system.orchestrator is not None
    return Attachment(settings, system.orchestrator, system=system)


class StateSeen(Struct, frozen=True):
    """What a look at a state file showed."""

    #: How many runs there are, by status.
    runs: dict[str, int]
    #: Who owns it, in words.
    owner: str
    #: Free space of its disk, in bytes.
    free_bytes: int


def look_at_state(settings: Settings) -> StateSeen:
    """Look at the state file of the embedded engine without changing it. Raises StateUnusable."""
    from ziggurat.orchestrator.embedded.lock import read_owner
    from ziggurat.orchestrator.embedded.store import Reader, free_bytes, unusable

    path = settings.state_path
    folder = next(parent for parent in path.parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unusable(path, PermissionError("Permission denied"))
    owner = read_owner(path)
    runs: dict[str, int] = {}
    if path.exists() and path.stat().st_size:
        reader = Reader(path)
        try:
            runs = reader.count(RunFilter())
        finally:
            reader.close()
    said = f"owned by process {owner.pid} ({owner.command})" if owner is not None else "no process runs it now"
    return StateSeen(runs, said, free_bytes(folder / path.name))
