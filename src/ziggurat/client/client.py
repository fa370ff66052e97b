"""The client: what programs and doors call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from msgspec import UNSET

from ziggurat.client.connection import Connection
from ziggurat.client.handle import Handle
from ziggurat.client.starting import start_request
from ziggurat.program.definitions import Workflow
from ziggurat.records import DeadLetter, Depth, Presence, Run, RunFilter, RunStatus, Schedule
from ziggurat.settings import ScheduleSettings, load_settings, local_settings
from ziggurat.units import Money

R = TypeVar("R")


class Client(Connection):
    """A connection to a system: `async with Client.connect() as client`.

    Args:
        settings: of the system.
        mode: "host" runs the system here if no other process does; "control" changes runs without driving them; "observe" only reads.
        api_key: for a system that `[client] url` names; that of `[client] api_key` by default.
    """

    @classmethod
    def connect(
        cls, path: Path | str | None = None, *, api_key: str | None = None, environ: Mapping[str, str] | None = None
    ) -> Client:
        """Return a client of the system that a settings file describes; ./ziggurat.toml, or the defaults, when none is named.

        The address of a server in the place of a path, such as "http://host:8400", means the system that it runs; workflows are then
        started by their names, and their input is checked there. `api_key` is what it may want. Raises SettingsError.
        """
        if isinstance(path, str) and path.startswith(("http://", "https://")):
            settings = load_settings(None, environ)
            client = settings.client.model_copy(update={"url": path.rstrip("/")})
            return cls(settings.model_copy(update={"client": client}), api_key=api_key)
        return cls(load_settings(path, environ), api_key=api_key)

    @classmethod
    def local(cls, path: Path | str = ".ziggurat/state.db") -> Client:
        """Return a client of the embedded system on this state file, with the defaults for everything else."""
        return cls(local_settings(path))

    # -- starting -------------------------------------------------------------------------------------------------

    async def start(
        self,
        workflow: Workflow[..., R] | str,
        *args: Any,
        id: str = "",
        tags: Mapping[str, str] | None = None,
        priority: int | None = None,
        budget: Money | None = None,
        **kwargs: Any,
    ) -> Handle[R]:
        """Start a run, durably, and return its handle. An id that exists already starts nothing: the handle is of that run.

        Args:
            workflow: the workflow, or a reference to one: "module:workflow", or the name of one in [app] modules.
            args, kwargs: the workflow's arguments. One whose name is an option of this method must be given by position.
            id: names the run; made up if empty.
            tags: labels to search by, added to the workflow's own.
            priority: 1 (served most often) to 5, for the tasks of the run.
            budget: what the run and its children may spend on models, such as "$0.05".

        Raises InvalidData if the arguments do not fit, UnknownName, Conflict if the id belongs to a run of another workflow.
        """
        definition = self.definition(workflow)
        payload = definition.arguments.encode(args, kwargs)
        return await self._start(definition, payload, id, tags, priority, budget)

    async def start_with(
        self,
        workflow: Workflow[..., R] | str,
        input: Any = UNSET,
        *,
        id: str = "",
        tags: Mapping[str, str] | None = None,
        priority: int | None = None,
        budget: Money | None = None,
    ) -> Handle[R]:
        """Start a run with input as a person gives it: a JSON object keyed by parameter, or one model's own fields.

        Without input, a run of that id that exists is returned as it is; a new one starts with no arguments.
        Otherwise as `start`.
        """
        definition = self.definition(workflow)
        payload = b"{}" if input is UNSET else definition.arguments.encode_input(input)
        return await self._start(definition, payload, id, tags, priority, budget)

    async def run(self, workflow: Workflow[..., R] | str, *args: Any, **kwargs: Any) -> R:
        """Start a run, wait for it, and return its result. Takes what `start` takes; raises what it and `Handle.result` raise."""
        handle: Handle[R] = await self.start(workflow, *args, **kwargs)
        return await handle.result()

    async def _start(
        self,
        definition: Workflow[..., R],
        payload: bytes,
        id: str,
        tags: Mapping[str, str] | None,
        priority: int | None,
        budget: Money | None,
    ) -> Handle[R]:
        request = start_request(
            definition, payload, namespace=self.settings.app.namespace, id=id, tags=tags, priority=priority, budget=budget
        )
        run = await self.call(lambda orchestrator: orchestrator.start(request))
        return Handle(self, run.id, definition)

    # -- runs that there are --------------------------------------------------------------------------------------

    def handle(self, id: str, workflow: Workflow[..., R] | None = None) -> Handle[R]:
        """Return the handle of a run; nothing is asked yet. With its workflow, the handle's results are typed."""
        return Handle(self, id, workflow)

    async def runs(
        self,
        *,
        status: RunStatus | tuple[RunStatus, ...] = (),
        workflow: str = "",
        since: datetime | float | None = None,
        until: datetime | float | None = None,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        search: str = "",
        limit: int = 100,
    ) -> list[Run]:
        """Return runs without payloads and results, newest first.

        Args:
            status: one or more statuses; all by default.
            workflow: a workflow's name.
            since, until: when they were made: a datetime, or seconds since the epoch.
            tags: labels that they carry.
            parent: the id of the run that started them; "" for runs that none started.
            search: text that the id contains.
            limit: how many at most.
        """
        where = RunFilter(
            status=(status,) if isinstance(status, str) else tuple(status),
            workflow=workflow,
            since=_epoch(since),
            until=_epoch(until),
            tags=dict(tags or {}),
            parent=parent,
            search=search,
            limit=limit,
        )
        return await self.call(lambda orchestrator: orchestrator.list(where))

    async def purge(
        self,
        *,
        status: RunStatus | tuple[RunStatus, ...] = (),
        workflow: str = "",
        ended_before: datetime | float | None = None,
        tags: Mapping[str, str] | None = None,
        search: str = "",
    ) -> int:
        """Delete ended runs that match, with their histories; returns how many. `ended_before`: a datetime, or seconds since the epoch."""
        where = RunFilter(
            status=(status,) if isinstance(status, str) else tuple(status),
            workflow=workflow,
            ended_before=_epoch(ended_before),
            tags=dict(tags or {}),
            search=search,
        )
        return await self.call(lambda orchestrator: orchestrator.purge(where))

    # -- dead letters ---------------------------------------------------------------------------------------------

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return messages that their queue gave up and whose steps therefore failed, newest first."""
        return await self.call(lambda orchestrator: orchestrator.dead_letters(limit))

    async def redrive(self, ids: Collection[str]) -> int:
        """Give dead letters another chance: their runs are taken up from those steps. Returns how many runs."""
        return await self.call(lambda orchestrator: orchestrator.redrive(ids), again=False)

    async def discard(self, ids: Collection[str]) -> int:
        """Forget dead letters; returns how many. Their runs stay failed."""
        return await self.call(lambda orchestrator: orchestrator.discard(ids), again=False)

    # -- the queue and who works on it ----------------------------------------------------------------------------

    async def queues(self) -> dict[str, Depth]:
        """Return what each queue holds now, by name."""
        return await self.look(lambda attachment: attachment.depth())

    async def workers(self) -> list[Presence]:
        """Return the workers that show themselves on the queue, by name; nobody where the broker cannot tell."""
        return await self.look(lambda attachment: attachment.workers())

    # -- schedules ------------------------------------------------------------------------------------------------

    async def schedules(self) -> list[Schedule]:
        """Return all schedules by name, each with its next moment."""
        return await self.call(lambda orchestrator: orchestrator.schedules.list())

    async def schedule(self, name: str, wanted: ScheduleSettings) -> Schedule:
        """Make a schedule, or change the one of that name. Runs start wherever `ziggurat serve` or `up` stays.

        Raises ConfigurationError for a time that means nothing, UnknownName for the workflow, InvalidData if the input does not fit.
        """
        schedule = self.attachment.schedule_of(name, wanted)
        return await self.call(lambda orchestrator: orchestrator.schedules.put(schedule))

    async def unschedule(self, name: str) -> None:
        """Forget a schedule; its runs go on. Raises UnknownName."""
        await self.call(lambda orchestrator: orchestrator.schedules.remove(name), again=False)

    async def pause_schedule(self, name: str, reason: str = "") -> None:
        """Start nothing until `resume_schedule`. Raises UnknownName."""
        await self.call(lambda orchestrator: orchestrator.schedules.pause(name, reason))

    async def resume_schedule(self, name: str) -> None:
        """Go on from now: moments that passed meanwhile are not made up. Raises UnknownName."""
        await self.call(lambda orchestrator: orchestrator.schedules.resume(name))

    async def trigger(self, name: str) -> Handle[Any]:
        """Start a run of a schedule now, whatever else is running, and return its handle. Raises UnknownName."""
        run = await self.call(lambda orchestrator: orchestrator.schedules.trigger(name), again=False)
        return Handle(self, run.id)

    async def backfill(self, name: str, since: datetime | float, until: datetime | float) -> int:
        """Start a run for each moment of [since, until) that has none yet; returns how many moments. Raises UnknownName, InvalidData."""
        start, end = _epoch(since), _epoch(until)
        return await self.call(lambda orchestrator: orchestrator.schedules.backfill(name, start or 0.0, end or 0.0))


def _epoch(moment: datetime | float | None) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment
