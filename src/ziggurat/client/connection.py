"""How a client reaches its system, and goes on when the process that runs it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar, cast

from ziggurat.assembly import Attachment, Mode, ServedWorkflow, attach
from ziggurat.errors import InvalidData
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.orchestrator.remote import OwnerGone
from ziggurat.program.definitions import Workflow
from ziggurat.records import Run
from ziggurat.settings import Settings

T = TypeVar("T")

#: How often a client looks for the next owner after it lost one, before it gives up.
TAKEOVERS_MAX = 5


class Connection:
    """A connection to a system that finds the next owner by itself."""

    def __init__(self, settings: Settings, *, mode: Mode = "host", api_key: str | None = None) -> None:
        self.settings = settings
        self._api_key = api_key
        self._mode = mode
        self._attachment: Attachment | None = None
        self._attaching = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Attach to the system. Raises LayerUnreachable, ConfigurationError."""
        self._attachment = await attach(self.settings, self._mode, api_key=self._api_key)
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

    def definition(self, workflow: Workflow[..., Any] | str) -> Workflow[..., Any]:
        """Return the workflow that a program or a person names, known to the system from now on. Raises InvalidData, UnknownName."""
        if isinstance(workflow, str):
            return cast(Workflow[..., Any], self.attachment.load_workflow(workflow))
        given: Any = workflow
        if isinstance(given, ServedWorkflow):
            return cast(Workflow[..., Any], given)
        if not isinstance(workflow, Workflow):
            raise InvalidData(f"{workflow!r} is not a workflow; put @workflow on the async function.")
        self.attachment.know(workflow)
        return workflow

    async def get(self, id: str) -> Run:
        """Return a run. Raises UnknownName."""
        return await self.call(lambda orchestrator: orchestrator.get(id))

    async def call(self, verb: Callable[[Orchestrator], Awaitable[T]], *, again: bool = True) -> T:
        """Carry out a verb. When the owner ends meanwhile, find or become the next one, and repeat the verb if that is safe."""
        return await self.look(lambda attachment: verb(attachment.orchestrator), again=again)

    async def look(self, verb: Callable[[Attachment], Awaitable[T]], *, again: bool = True) -> T:
        """As `call`, for what is reached beside the orchestrator."""
        for attempt in range(TAKEOVERS_MAX):
            attachment = self.attachment
            try:
                return await verb(attachment)
            except OwnerGone:
                if not again or attempt == TAKEOVERS_MAX - 1:
                    raise
                await self.attach_again(attachment)
        raise AssertionError("unreachable")

    async def attach_again(self, lost: Attachment) -> None:
        """Find or become the next owner after `lost`, unless somebody did already."""
        async with self._attaching:
            if self._attachment is lost:
                await lost.close()
                self._attachment = await attach(self.settings, self._mode, registry=lost.registry, api_key=self._api_key)
