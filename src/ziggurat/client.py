"""What doors and users call: start runs, watch them, act on them.

    async with Client.connect("ziggurat.toml") as client:
        handle = await client.start(analyze, document, id="doc-7")
        report = await handle.result()

One process owns a state file. The client that comes first hosts the system in its own process: orchestrator, queue, workers. One that
comes later talks to the owner through its control socket, and takes over when the owner ends before the client has its answer. Programs
cannot tell the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw

from ziggurat.assembly import Attachment, Mode, attach
from ziggurat.codec import Codec
from ziggurat.errors import InvalidData, RunCancelled, RunFailed, RunParked
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.orchestrator.remote import OwnerGone
from ziggurat.program.definitions import Workflow
from ziggurat.records import (
    PRIORITY_NORMAL,
    STOPPED,
    DeadLetter,
    Depth,
    Event,
    Presence,
    Run,
    RunEvent,
    RunFilter,
    RunStatus,
    StartRequest,
    StepView,
)
from ziggurat.settings import Settings, load_settings, local_settings
from ziggurat.telemetry import tracing
from ziggurat.units import Money, dollars

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: How often a client looks for the next owner after it lost one, before it gives up.
_TAKEOVERS_MAX = 5


class Client:
    """A connection to a system: `async with Client.connect() as client`.

    Args:
        settings: of the system.
        mode: "host" runs the system here if no other process does; "control" changes runs without driving them; "observe" only reads.
    """

    def __init__(self, settings: Settings, *, mode: Mode = "host") -> None:
        self.settings = settings
        self._mode = mode
        self._attachment: Attachment | None = None
        self._attaching = asyncio.Lock()

    @classmethod
    def connect(cls, path: Path | str | None = None, *, environ: Mapping[str, str] | None = None) -> Client:
        """Return a client of the system that a settings file describes; ./ziggurat.toml, or the defaults, when none is named.

        Raises SettingsError.
        """
        return cls(load_settings(path, environ))

    @classmethod
    def local(cls, path: Path | str = ".ziggurat/state.db") -> Client:
        """Return a client of the embedded system on this state file, with the defaults for everything else."""
        return cls(local_settings(path))

    async def __aenter__(self) -> Client:
        """Attach to the system. Raises LayerUnreachable, ConfigurationError."""
        self._attachment = await attach(self.settings, self._mode)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._attachment is not None:
            await self._attachment.close()
            self._attachment = None

    @property
    def attachment(self) -> Attachment:
        """How this client reaches the system; for doors that look deeper than runs."""
        if self._attachment is None:
            raise RuntimeError("The client is not open; use it in `async with Client.connect() as client:`.")
        return self._attachment

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
        definition = self._definition(workflow)
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
        definition = self._definition(workflow)
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
        run = await self._call(lambda orchestrator: orchestrator.start(request))
        return Handle(self, run.id, definition)

    def _definition(self, workflow: Workflow[..., Any] | str) -> Workflow[..., Any]:
        if isinstance(workflow, str):
            return cast(Workflow[..., Any], self.attachment.load_workflow(workflow))
        if not isinstance(workflow, Workflow):
            raise InvalidData(f"{workflow!r} is not a workflow; put @workflow on the async function.")
        self.attachment.know(workflow)
        return workflow

    # -- runs that there are --------------------------------------------------------------------------------------

    def handle(self, id: str, workflow: Workflow[..., R] | None = None) -> Handle[R]:
        """Return the handle of a run; nothing is asked yet. With its workflow, the handle's results are typed."""
        return Handle(self, id, workflow)

    async def get(self, id: str) -> Run:
        """Return a run. Raises UnknownName."""
        return await self._call(lambda orchestrator: orchestrator.get(id))

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
        return await self._call(lambda orchestrator: orchestrator.list(where))

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
        return await self._call(lambda orchestrator: orchestrator.purge(where))

    # -- dead letters ---------------------------------------------------------------------------------------------

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return messages that their queue gave up and whose steps therefore failed, newest first."""
        return await self._call(lambda orchestrator: orchestrator.dead_letters(limit))

    async def redrive(self, ids: Collection[str]) -> int:
        """Give dead letters another chance: their runs are taken up from those steps. Returns how many runs."""
        return await self._call(lambda orchestrator: orchestrator.redrive(ids), again=False)

    async def discard(self, ids: Collection[str]) -> int:
        """Forget dead letters; returns how many. Their runs stay failed."""
        return await self._call(lambda orchestrator: orchestrator.discard(ids), again=False)

    # -- the queue and who works on it ----------------------------------------------------------------------------

    async def queues(self) -> dict[str, Depth]:
        """Return what each queue holds now, by name."""
        return await self._look(lambda attachment: attachment.depth())

    async def workers(self) -> list[Presence]:
        """Return the workers that show themselves on the queue, by name; nobody where the broker cannot tell."""
        return await self._look(lambda attachment: attachment.workers())

    # -- reaching the owner ---------------------------------------------------------------------------------------

    async def _call(self, verb: Callable[[Orchestrator], Awaitable[T]], *, again: bool = True) -> T:
        """Carry out a verb. When the owner ends meanwhile, find or become the next one, and repeat the verb if that is safe."""
        return await self._look(lambda attachment: verb(attachment.orchestrator), again=again)

    async def _look(self, verb: Callable[[Attachment], Awaitable[T]], *, again: bool = True) -> T:
        for attempt in range(_TAKEOVERS_MAX):
            attachment = self.attachment
            try:
                return await verb(attachment)
            except OwnerGone:
                if not again or attempt == _TAKEOVERS_MAX - 1:
                    raise
                await self._attach_again(attachment)
        raise AssertionError("unreachable")

    async def _attach_again(self, lost: Attachment) -> None:
        async with self._attaching:
            if self._attachment is lost:
                await lost.close()
                self._attachment = await attach(self.settings, self._mode, registry=lost.registry)


class Handle(Generic[R]):
    """One run: its id, its result, and the verbs on it. Every method raises UnknownName if there is no such run."""

    def __init__(self, client: Client, id: str, workflow: Workflow[..., R] | None = None) -> None:
        self._client = client
        #: The run's id.
        self.id = id
        self._workflow = workflow

    def __repr__(self) -> str:
        return f"<Handle of {self.id}>"

    async def result(self, timeout: float | None = None) -> R:
        """Wait until the run has ended and return its result.

        Args:
            timeout: seconds to wait at most; TimeoutError after that, and the run goes on.

        Raises RunFailed, RunCancelled or RunParked, each with the recorded error.
        """
        run = await self.wait(timeout)
        if run.status != "completed":
            raise ended_error(run)
        data = run.result if run.result is not None else Raw(b"null")
        if self._workflow is not None:
            return cast(R, self._workflow.result.decode(data))
        return cast(R, msgspec.json.decode(data))

    async def wait(self, timeout: float | None = None) -> Run:
        """Wait until the run has ended or is parked, and return its record, whatever it came to."""
        run = await self._client._call(lambda orchestrator: orchestrator.wait(self.id, timeout))
        if run.status == "completed" and run.result is None:
            run = await self.info()
        return run

    async def info(self) -> Run:
        """Return the run's record."""
        return await self._client.get(self.id)

    async def status(self) -> RunStatus:
        """Return the run's status."""
        return (await self.info()).status

    async def state(self) -> Any:
        """Return what the program last said of itself with `state(...)`, or None."""
        data = (await self.info()).state
        return None if data is None else msgspec.json.decode(data)

    async def signal(self, name: str, value: Any = None) -> None:
        """Send a signal, durably, once. Raises Conflict if the run has ended, InvalidData if the value is no JSON."""
        payload = Raw(_any_codec.encode(value))
        signal_id = uuid.uuid4().hex
        await self._client._call(lambda orchestrator: orchestrator.signal(self.id, name, payload, signal_id=signal_id))

    async def cancel(self, reason: str = "") -> None:
        """Ask the run to stop; its workflow sees CancelledError and may clean up."""
        await self._client._call(lambda orchestrator: orchestrator.cancel(self.id, reason))

    async def pause(self, reason: str = "") -> None:
        """Let running attempts finish, and hold everything else until `resume`."""
        await self._client._call(lambda orchestrator: orchestrator.pause(self.id, reason))

    async def resume(self, *, budget: Money | None = None) -> None:
        """Let a paused or parked run go on. Raises Conflict if it is neither.

        Args:
            budget: what the run may spend on models in all from now on, such as "$2"; "+$1" raises its limit by that much.
        """
        limit: float | None = None
        if budget is not None:
            text = str(budget).strip()
            limit = dollars(text.removeprefix("+"), what=f"budget of {self.id}")
            if text.startswith("+"):
                limit += (await self.info()).budget_usd or 0.0
        await self._client._call(lambda orchestrator: orchestrator.resume(self.id, budget_usd=limit), again=False)

    async def retry(self) -> Handle[R]:
        """Take a failed run up again from the step that failed. Raises Conflict if it has not failed."""
        await self._client._call(lambda orchestrator: orchestrator.retry(self.id), again=False)
        return self

    async def fork(self, step: int = 1, *, input: Any = None, id: str = "") -> Handle[R]:
        """Start a new run that shares every recorded step before `step`, and return its handle.

        Args:
            step: the first step to run anew; 1 for none shared.
            input: other arguments, as a JSON object keyed by parameter; the run's own when None.
            id: names the new run; made up if empty.
        """
        payload: Raw | None = None
        if input is not None:
            workflow = self._workflow or self._client._definition((await self.info()).workflow)
            payload = Raw(workflow.arguments.encode_input(input))
        forked = await self._client._call(
            lambda orchestrator: orchestrator.fork(self.id, step, payload=payload, id=id), again=bool(id)
        )
        return Handle(self._client, forked.id, self._workflow)

    async def steps(self) -> list[StepView]:
        """Return the run's steps, those under way included, by number."""
        return await self._client._call(lambda orchestrator: orchestrator.steps(self.id))

    async def history(self) -> list[Event]:
        """Return the run's whole history."""
        events: list[Event] = []
        while True:
            after = events[-1].seq if events else 0
            page = await self._client._call(lambda orchestrator, after=after: orchestrator.history(self.id, after=after))  # type: ignore[misc]
            if not page:
                return events
            events += page

    async def events(self, *, after: int = 0) -> AsyncIterator[RunEvent]:
        """Yield what happens to the run, its history past `after` first, until it has ended or is parked.

        Progress may be lost when the owner changes; events of the history come once each, in order.
        """
        for attempt in range(_TAKEOVERS_MAX):
            attachment = self._client.attachment
            try:
                watching = attachment.orchestrator.watch(self.id, after=after)
                async with contextlib.aclosing(watching) as events:
                    async for event in events:
                        if event.kind == "history":
                            after = event.offset
                        yield event
                        if event.kind == "status" and event.status in STOPPED:
                            return
                return
            except OwnerGone:
                if attempt == _TAKEOVERS_MAX - 1:
                    raise
                await self._client._attach_again(attachment)


def start_request(
    definition: Workflow[..., Any],
    payload: bytes,
    *,
    namespace: str,
    id: str = "",
    tags: Mapping[str, str] | None = None,
    priority: int | None = None,
    budget: Money | None = None,
) -> StartRequest:
    """Return the wish to start a run of a workflow, with the workflow's own options where none are given.

    An id is made up if none is given: one of our own choosing makes a start that was cut off safe to repeat.
    """
    options = definition.options_.changed(
        definition.what, tags={**definition.options_.tags, **(tags or {})}, **({"priority": priority} if priority else {})
    )
    return StartRequest(
        workflow=definition.name,
        payload=Raw(payload),
        id=id or f"{definition.name}-{_random_id()}",
        namespace=namespace,
        entry=definition.entry,
        tags=options.tags,
        priority=options.priority or PRIORITY_NORMAL,
        budget_usd=dollars(budget, what=f"budget of {definition.what}") if budget is not None else options.budget,
        trace=tracing.caller(),
    )


def ended_error(run: Run) -> RunFailed | RunCancelled | RunParked:
    """Return the exception for a run that ended without a result, or is parked."""
    error = run.error
    said = f"{error.type}: {error.message}" if error is not None else run.reason or "no reason was given"
    said = said.rstrip(".")
    if run.status == "parked":
        return RunParked(f"The run {run.id} is parked: {said}. Mend the cause, then resume it.", run_id=run.id, error=error)
    if run.status == "cancelled":
        return RunCancelled(
            f"The run {run.id} was cancelled{f': {run.reason}' if run.reason else ''}.", run_id=run.id, error=error
        )
    return RunFailed(f"The run {run.id} failed: {said}.", run_id=run.id, error=error)


_any_codec: Codec[Any] = Codec(Any, "The signal's value")


def _random_id() -> str:
    """Return 60 bits of chance in letters and digits that are not mistaken for each other."""
    number = secrets.randbits(60)
    return "".join("0123456789abcdefghjkmnpqrstvwxyz"[number >> shift & 31] for shift in range(0, 60, 5))


def _epoch(moment: datetime | float | None) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment
