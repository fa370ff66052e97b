"""Plain JSON outside, sealed payloads inside: what stands between the callers of an orchestrator and whoever keeps its state.

Callers give and get plain JSON. Behind this door inputs and signals are sealed for their run: large ones are at the artifact store, and
with a key in use all of them are encrypted. See `ziggurat.artifacts.payloads` for the rules; every backend stands behind the same door.

What cannot be opened, because its key is missing here, is shown as it is recorded, so that a run can be looked at and acted on; only the
result of a completed run, which somebody waits for, raises.
"""

from __future__ import annotations

import builtins
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import Payloads, artifact_keys, is_sealed
from ziggurat.errors import InvalidData, ZigguratError
from ziggurat.orchestrator.interface import Capabilities, Orchestrator
from ziggurat.orchestrator.recording import Recording
from ziggurat.records import DeadLetter, Event, Run, RunEvent, RunFilter, StartRequest, StepView


class SealedOrchestrator(Orchestrator):
    """An orchestrator behind the seam. Attributes of its own, such as a lock, are those of `inner`."""

    def __init__(self, inner: Orchestrator, payloads: Payloads) -> None:
        self.inner = inner
        self.payloads = payloads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What the backend can do."""
        return self.inner.capabilities

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    # -- payloads in -------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> Run:
        # An id now, because the payload is sealed for it.
        run = request.id or f"{request.workflow}-{secrets.token_hex(8)}"
        payload = await self._sealed(request.payload, run)
        return await self._opened(await self.inner.start(replace(request, id=run, payload=payload)))

    async def signal(self, run: str, name: str, payload: Raw, *, signal_id: str = "") -> None:
        await self.inner.signal(run, name, await self._sealed(payload, run), signal_id=signal_id)

    async def fork(self, run: str, step: int, *, payload: Raw | None = None, id: str = "") -> Run:
        if payload is not None:
            id = id or f"{(await self.inner.get(run)).workflow}-{secrets.token_hex(8)}"
            payload = await self._sealed(payload, id)
        return await self._opened(await self.inner.fork(run, step, payload=payload, id=id))

    async def _sealed(self, payload: Raw, run: str) -> Raw:
        """Seal a payload from outside. Raises InvalidData if it refers to an artifact that is not there, rather than let a run find out."""
        data = bytes(payload)
        library = self.payloads.library
        for key in artifact_keys(data) if library is not None else ():
            assert library is not None
            if await library.in_thread(library.store.size, key) is None:
                raise InvalidData(
                    f"The artifact {key} is not in {library.store.url}: it was deleted, or saved to another store. Save it again."
                )
        return Raw(await self.payloads.seal(data, run))

    # -- payloads out ------------------------------------------------------------------------------------------------

    async def get(self, run: str) -> Run:
        return await self._opened(await self.inner.get(run))

    async def wait(self, run: str, timeout: float | None = None) -> Run:
        return await self._opened(await self.inner.wait(run, timeout))

    async def retry(self, run: str) -> Run:
        return await self._opened(await self.inner.retry(run))

    async def list(self, where: RunFilter) -> list[Run]:
        return [self._outlined(run) if run.state is not None else run for run in await self.inner.list(where)]

    async def history(self, run: str, *, after: int = 0, limit: int = 1000) -> builtins.list[Event]:
        return [self._shown(event, run) for event in await self.inner.history(run, after=after, limit=limit)]

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        async with contextlib.aclosing(self.inner.watch(run, after=after)) as happenings:
            async for happening in happenings:
                event = happening.event
                yield happening if event is None else replace(happening, event=self._shown(event, run))

    async def record(self, run: str) -> Recording:
        return await self.inner.record(run)

    async def dead_letters(self, limit: int = 100) -> builtins.list[DeadLetter]:
        return [self._letter(letter) for letter in await self.inner.dead_letters(limit)]

    async def _opened(self, run: Run) -> Run:
        shown = self._outlined(run)
        if run.result is None or not is_sealed(run.result):
            return shown
        return replace(shown, result=Raw(await self.payloads.open(run.result, run.id)))

    def _outlined(self, run: Run) -> Run:
        sealed = is_sealed(run.payload) or (run.state is not None and is_sealed(run.state))
        if not sealed:
            return run
        return replace(run, payload=self._outline(run.payload, run.id), state=self._outline(run.state, run.id))

    def _shown(self, event: Event, run: str) -> Event:
        if event.result is None and event.input is None:
            return event
        return replace(event, result=self._outline(event.result, run), input=self._outline(event.input, run))

    def _letter(self, letter: DeadLetter) -> DeadLetter:
        message = letter.message
        return replace(letter, message=replace(message, payload=self._outline(message.payload, message.run)))

    def _outline(self, data: Any, run: str) -> Any:
        """Return a payload for people; a stored one is named by its key, because histories are listed whole."""
        if data is None or not is_sealed(data):
            return data
        try:
            return Raw(self.payloads.outline(data, run))
        except ZigguratError:
            return data

    # -- everything else ---------------------------------------------------------------------------------------------

    async def cancel(self, run: str, reason: str = "") -> None:
        await self.inner.cancel(run, reason)

    async def pause(self, run: str, reason: str = "") -> None:
        await self.inner.pause(run, reason)

    async def resume(self, run: str, *, budget_usd: float | None = None) -> None:
        await self.inner.resume(run, budget_usd=budget_usd)

    async def count(self, where: RunFilter) -> dict[str, int]:
        return await self.inner.count(where)

    async def steps(self, run: str) -> builtins.list[StepView]:
        return await self.inner.steps(run)

    async def redrive(self, ids: Collection[str]) -> int:
        return await self.inner.redrive(ids)

    async def discard(self, ids: Collection[str]) -> int:
        return await self.inner.discard(ids)

    def when_dropped(self, call: Callable[[str], None]) -> None:
        self.inner.when_dropped(call)

    async def purge(self, where: RunFilter) -> int:
        return await self.inner.purge(where)
