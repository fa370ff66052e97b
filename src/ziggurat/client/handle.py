"""One run, as its user holds it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import Raw

from ziggurat.client.connection import TAKEOVERS_MAX, Connection
from ziggurat.codec import Codec
from ziggurat.errors import RunCancelled, RunFailed, RunParked
from ziggurat.orchestrator.remote import OwnerGone
from ziggurat.program.definitions import Workflow
from ziggurat.records import STOPPED, Event, Run, RunEvent, RunStatus, StepView
from ziggurat.units import Money, dollars

R = TypeVar("R")

_any_codec: Codec[Any] = Codec(Any, "The signal's value")


class Handle(Generic[R]):
    """One run: its id, its result, and the verbs on it. Every method raises UnknownName if there is no such run."""

    def __init__(self, client: Connection, id: str, workflow: Workflow[..., R] | None = None) -> None:
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
        run = await self._client.call(lambda orchestrator: orchestrator.wait(self.id, timeout))
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
        await self._client.call(lambda orchestrator: orchestrator.signal(self.id, name, payload, signal_id=signal_id))

    async def cancel(self, reason: str = "") -> None:
        """Ask the run to stop; its workflow sees CancelledError and may clean up."""
        await self._client.call(lambda orchestrator: orchestrator.cancel(self.id, reason))

    async def pause(self, reason: str = "") -> None:
        """Let running attempts finish, and hold everything else until `resume`."""
        await self._client.call(lambda orchestrator: orchestrator.pause(self.id, reason))

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
        await self._client.call(lambda orchestrator: orchestrator.resume(self.id, budget_usd=limit), again=False)

    async def retry(self) -> Handle[R]:
        """Take a failed run up again from the step that failed. Raises Conflict if it has not failed."""
        await self._client.call(lambda orchestrator: orchestrator.retry(self.id), again=False)
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
            workflow = self._workflow or self._client.definition((await self.info()).workflow)
            payload = Raw(workflow.arguments.encode_input(input))
        forked = await self._client.call(
            lambda orchestrator: orchestrator.fork(self.id, step, payload=payload, id=id), again=bool(id)
        )
        return Handle(self._client, forked.id, self._workflow)

    async def steps(self) -> list[StepView]:
        """Return the run's steps, those under way included, by number."""
        return await self._client.call(lambda orchestrator: orchestrator.steps(self.id))

    async def history(self) -> list[Event]:
        """Return the run's whole history."""
        events: list[Event] = []
        while True:
            after = events[-1].seq if events else 0
            page = await self._client.call(lambda orchestrator, after=after: orchestrator.history(self.id, after=after))  # type: ignore[misc]
            if not page:
                return events
            events += page

    async def events(self, *, after: int = 0) -> AsyncIterator[RunEvent]:
        """Yield what happens to the run, its history past `after` first, until it has ended or is parked.

        Progress may be lost when the owner changes; events of the history come once each, in order.
        """
        for attempt in range(TAKEOVERS_MAX):
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
                if attempt == TAKEOVERS_MAX - 1:
                    raise
                await self._client.attach_again(attachment)


def ended_error(run: Run) -> RunFailed | RunCancelled | RunParked:
    """Return the exception for a run that ended without a result, or is parked."""
    error = run.error
    said = f"{error.type}: {error.message}" if error is not None else run.reason or "no reason was given"
    said = said.rstrip(".")
    if run.status == "parked" and error is not None:
        return RunParked(f"The run {run.id} is parked: {run.reason}", run_id=run.id, error=error)
    if run.status == "parked":
        return RunParked(f"The run {run.id} is parked: {said}. Mend the cause, then resume it.", run_id=run.id, error=error)
    if run.status == "cancelled":
        return RunCancelled(
            f"The run {run.id} was cancelled{f': {run.reason}' if run.reason else ''}.", run_id=run.id, error=error
        )
    return RunFailed(f"The run {run.id} failed: {said}.", run_id=run.id, error=error)
