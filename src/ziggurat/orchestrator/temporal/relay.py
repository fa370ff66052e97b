"""Tasks on a queue of ours: from Temporal to the queue, and what they came to back to Temporal. Workers need no Temporal.

    run ─▶ dispatch activity ─send─▶ queue ─▶ worker ─▶ outcome ─▶ relay ─complete by id─▶ run
                   │                                                │
                   └── completes later ── heartbeats by the relay ──┘

The rules of this path:

1. The dispatch activity sends one message, whose id names the attempt; an id that the queue holds already is left as it is. Then it says
   that it will complete later.
2. Workers never talk to Temporal. The relay takes outcomes from the queue, completes the activity by its id, and acknowledges the outcome
   only then. An activity that is no longer there makes the outcome void, which is acknowledged, too.
3. Only the relay sends heartbeats: for what it can still see on the queue, waiting or being worked on.
4. One owner of each kind of retry: the queue delivers again what a dead worker held, the run orders another attempt after a failure, and
   Temporal runs the dispatch again when the heartbeats end.
5. A cancellation reaches the relay as the answer to a heartbeat, and goes on to the queue.
6. Payloads over the limit travel by reference.
7. The queue is losable: what it has lost gets no heartbeat, its dispatch fails, and Temporal runs that again.
8. Waiting for people is a signal's business and never a message's.

Several orchestrator processes may share a queue: any of them may bring back an outcome, and each looks after what it has dispatched.
When one dies, its heartbeats end and the dispatch runs again elsewhere, where it finds the message on the queue and goes on looking.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import AsyncActivityCancelledError, AsyncActivityHandle, Client, WorkflowExecutionStatus
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.errors import LayerUnreachable, Overloaded, PayloadTooLarge
from ziggurat.orchestrator.temporal.commands import activity_id
from ziggurat.orchestrator.temporal.sending import Sending
from ziggurat.program.failures import describe
from ziggurat.queues.interface import Queue
from ziggurat.queues.temporal_hand import failure_of
from ziggurat.queues.temporal_link import UNREACHABLE
from ziggurat.records import Message, Outcome, encode, outcome_of
from ziggurat.telemetry import events

#: Outcomes taken at a time, and the seconds between two tries at a queue or a server that does not answer.
_BATCH, _RETRY = 256, 1.0
#: Batches of outcomes that are handed to the server side by side.
_BATCHES = 8


class Out(Struct):
    """An attempt that this process has put on the queue."""

    message: str
    run: str
    execution: str
    activity: str
    #: Monotonic time at which the queue had it; infinity while it is on the way there.
    since: float = float("inf")


class Relay:
    """Puts attempts on a queue of ours and brings their outcomes back.

    Args:
        client: the Temporal server.
        queue: an open queue.
        period: seconds between two looks after what is on the queue.
    """

    def __init__(self, client: Client, queue: Queue, period: float) -> None:
        self._client, self._queue, self._period = client, queue, period
        self._sending = Sending(queue)
        self._out: dict[str, Out] = {}
        self._tasks: list[asyncio.Task[None]] = []
        #: Batches of outcomes on their way to the server.
        self._batches: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to bring outcomes back."""
        self._tasks = [asyncio.create_task(loop) for loop in (self._bring_back(), self._look_after())]

    async def stop(self) -> None:
        """Stop. What is on the queue stays there."""
        tasks = [*self._tasks, *self._batches]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- there ----------------------------------------------------------------------------------------------------

    def activity(self) -> Any:
        """Return the activity that dispatches."""

        @activity.defn(dynamic=True)
        async def dispatch(args: Sequence[RawValue]) -> RawValue:
            return await self._dispatch(msgspec.json.decode(args[0].payload.data, type=Message))

        return dispatch

    async def _dispatch(self, message: Message) -> RawValue:
        info = activity.info()
        # Noted before it is sent: its outcome may be back before the call is.
        out = Out(message.id, info.workflow_id or message.run, info.workflow_run_id or "", info.activity_id)
        self._out[message.id] = out
        try:
            await self._sending.send(message)
        except BaseException as error:
            self._out.pop(message.id, None)
            raise self._as_failure(message, error) from error
        out.since = time.monotonic()
        activity.raise_complete_async()

    @staticmethod
    def _as_failure(message: Message, error: BaseException) -> BaseException:
        if isinstance(error, PayloadTooLarge):
            told = msgspec.structs.replace(describe(error), retryable=False)
            return failure_of(outcome_of(message, "failed", error=told))
        if isinstance(error, (LayerUnreachable, Overloaded)):
            return ApplicationError(str(error), type=type(error).__name__)
        return error

    # -- and back -------------------------------------------------------------------------------------------------

    async def _bring_back(self) -> None:
        """Take outcomes from the queue. Each batch goes to the server in a task of its own, so that the next need not wait for it."""
        while True:
            try:
                if outcomes := await self._queue.outcomes(_BATCH, 5.0):
                    batch = asyncio.create_task(self._hand_in(outcomes))
                    self._batches.add(batch)
                    batch.add_done_callback(self._batches.discard)
                while len(self._batches) >= _BATCHES:
                    await asyncio.wait(self._batches, return_when=asyncio.FIRST_COMPLETED)
            except LayerUnreachable as error:
                events.NO_OUTCOMES(error=error)
                await asyncio.sleep(_RETRY)
            except Exception:
                events.RELAY_FAILED(trace_of=True)
                await asyncio.sleep(_RETRY)

    async def _hand_in(self, outcomes: list[Outcome]) -> None:
        """Complete the activities of a batch and acknowledge it. What fails here is taken from the queue again."""
        try:
            done = await asyncio.gather(*(self._complete(outcome) for outcome in outcomes))
            settled = [outcome for outcome, is_done in zip(outcomes, done, strict=True) if is_done]
            await self._queue.ack_outcomes(settled)
            if len(settled) < len(outcomes):
                await asyncio.sleep(_RETRY)
        except LayerUnreachable as error:
            events.NO_OUTCOMES(error=error)
            await asyncio.sleep(_RETRY)
        except Exception:
            events.RELAY_FAILED(trace_of=True)
            await asyncio.sleep(_RETRY)

    async def _complete(self, outcome: Outcome) -> bool:
        """Complete an activity with an outcome; returns False if the server must be asked again."""
        out = self._out.get(outcome.message)
        handle = self._handle(out or Out(outcome.message, outcome.run, "", activity_id(outcome.message, outcome.task)))
        try:
            if outcome.status == "completed":
                await handle.complete(RawValue(Payload(metadata={"encoding": b"json/plain"}, data=encode(outcome))))
            else:
                await handle.fail(failure_of(outcome))
        except RPCError as error:
            if error.status in UNREACHABLE:
                events.TEMPORAL_BUSY(message=outcome.message, error=error)
                return False
            if error.status != RPCStatusCode.NOT_FOUND:
                events.TEMPORAL_REFUSES(what="outcome", message=outcome.message, error=error)
        self._out.pop(outcome.message, None)
        return True

    def _handle(self, out: Out) -> AsyncActivityHandle:
        return self._client.get_async_activity_handle(workflow_id=out.run, run_id=out.execution or None, activity_id=out.activity)

    # -- looking after --------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            try:
                await self._look()
            except LayerUnreachable as error:
                events.SWEEP_FAILED(error=error)
            except Exception:
                events.UPKEEP_BROKE(trace_of=True)

    async def _look(self) -> None:
        # The dispatch itself was a sign of life, so what is younger than a turn needs none.
        since = time.monotonic() - self._period
        out = [out for out in self._out.values() if out.since <= since]
        for at in range(0, len(out), _BATCH):
            part = out[at : at + _BATCH]
            missing = await self._queue.missing([o.message for o in part])
            await asyncio.gather(*(self._beat(o, o.message in missing) for o in part))

    async def _beat(self, out: Out, lost: bool) -> None:
        if out.message not in self._out:
            return  # It has come back meanwhile.
        handle = self._handle(out)
        try:
            if lost:
                events.MESSAGES_LOST(messages=1)
                self._out.pop(out.message, None)
                await handle.fail(ApplicationError("The queue has lost the message.", type="ziggurat.Lost"))
            else:
                await handle.heartbeat()
        except AsyncActivityCancelledError:
            self._out.pop(out.message, None)
            await self._queue.cancel([out.message])
            try:
                await handle.report_cancellation()
            except RPCError:
                pass  # Its run has ended meanwhile.
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                if out.message in self._out:  # Else it has come back on the way.
                    await self._let_go(out)
            elif error.status not in UNREACHABLE:
                events.TEMPORAL_REFUSES(what="heartbeat", message=out.message, error=error)

    async def _let_go(self, out: Out) -> None:
        """Forget an attempt that Temporal does not know as running: its run has ended, or it is between two dispatches."""
        try:
            found = await self._client.get_workflow_handle(out.run, run_id=out.execution or None).describe()
            # An ended run still lists what it had under way.
            pending = found.status == WorkflowExecutionStatus.RUNNING and any(
                a.activity_id == out.activity for a in found.raw_description.pending_activities
            )
        except RPCError as error:
            pending = error.status != RPCStatusCode.NOT_FOUND
        if not pending:
            self._out.pop(out.message, None)
            await self._queue.cancel([out.message])
