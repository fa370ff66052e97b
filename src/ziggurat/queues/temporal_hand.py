"""The side of a Temporal worker that lives in a thread of its own: it polls task queues, sends heartbeats, and reports outcomes.

A task that computes on the worker's event loop lets nothing else run there; Temporal would miss its heartbeats and give the attempt to
someone else. So the SDK's workers run on a loop in this thread, and each activity is only a place where an attempt waits for its end:

    Temporal ─▶ activity here ─ offer ─▶ the worker's loop: receive, run, settle ─▶ activity ends here ─▶ Temporal

Where runs are driven in the same process, their worker is here, too, and one with that of the queue "default": only to such a worker
does Temporal hand a run's next task in its answer to the run, without a poll, a task queue and a commit between (`host`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import Worker

from ziggurat.records import Delivery, ErrorInfo, Message, Outcome, encode, outcome_of
from ziggurat.telemetry import events

T = TypeVar("T")

#: The type of the failure by which an attempt goes back to its task queue.
RETURNED = "ziggurat.Returned"
#: Seconds that a delivery may lie here without anyone asking for work before it goes back, for another worker.
PATIENCE = 1.0


class Beat(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a heartbeat leaves at the server for the next delivery of the attempt."""

    #: The program's details, as JSON text.
    details: str | None = None
    #: Deliveries that were handed back and do not count.
    returned: int = 0


class Receipt:
    """One delivery of one attempt: the activity that waits for its end. All but `tell` belongs to the thread's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, beat: Beat) -> None:
        self._loop = loop
        self.wake = asyncio.Event()
        self.beat = beat
        self.beaten = False
        self.outcome: Outcome | None = None
        #: Seconds until the next delivery, whether this one counts, and why, once it is handed back.
        self.back: tuple[float, bool, str] | None = None
        #: True once the server no longer wants this delivery's outcome. Read from any thread.
        self.lost = False
        #: True once someone took it from the buffer. Set by the worker's loop.
        self.taken = False

    def tell(self, change: Callable[[Receipt], None]) -> None:
        """Change the receipt from another thread."""

        def apply() -> None:
            change(self)
            self.wake.set()

        with contextlib.suppress(RuntimeError):  # The thread has ended; the server finds out by itself.
            self._loop.call_soon_threadsafe(apply)


class Hosted(Struct, frozen=True):
    """A worker that drives runs and runs tasks, and the future of its end, which any thread may wait for."""

    worker: Worker
    ended: Future[None]


class HasHand(Protocol):
    """A queue that is fed by Temporal."""

    def reach(self) -> Hand:
        """Return its hand, made if need be."""

    @property
    def hungry(self) -> bool:
        """Whether someone here wants work now. Read from any thread."""


class Hand:
    """The thread, and the SDK's workers on its loop: one for each task queue.

    Args:
        client: a connection to the server.
        lease: how long the server waits for a heartbeat, in seconds.
        max_deliveries: after so many deliveries without an outcome an attempt is a dead letter.
        offer: takes a delivery; called in this thread.
        cancelled: is told the id of an attempt whose outcome nobody wants any more; called in this thread.
    """

    def __init__(
        self,
        client: Client,
        lease: float,
        max_deliveries: int,
        offer: Callable[[Delivery], None],
        cancelled: Callable[[str], None],
    ) -> None:
        self._client, self._lease, self._max_deliveries = client, lease, max_deliveries
        self._offer, self._cancelled = offer, cancelled
        self._loop = asyncio.new_event_loop()
        self._workers: dict[Worker, asyncio.Task[None]] = {}
        self._served: set[str] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ziggurat-temporal", daemon=True)
        self._thread.start()

    def serve(self, task_queues: Sequence[str], slots: int) -> None:
        """Poll these task queues too, with so many attempts at a time on each. Called from the worker's loop."""
        new = [queue for queue in task_queues if queue not in self._served]
        self._served.update(new)
        if new:
            self._loop.call_soon_threadsafe(self._begin, new, slots)

    async def host(self, client: Client, task_queue: str, slots: int, **more: Any) -> Hosted:
        """Serve a task queue with a worker that drives runs as well; `more` is what the SDK wants to know of them. From any loop."""
        self._served.add(task_queue)
        return await self._call(self._host(client, task_queue, slots, more))

    async def _call(self, call: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

    async def close(self) -> None:
        """End the workers. Deliveries that have no outcome go back."""
        if self._closing:
            return
        self._closing = True
        await self._call(self._end(list(self._workers)))
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, 5.0)

    # -- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _begin(self, task_queues: Sequence[str], slots: int) -> None:
        for queue in task_queues:
            self._start(self._worker(self._client, queue, slots)).add_done_callback(self._worker_ended)

    def _worker(self, client: Client, queue: str, slots: int, **more: Any) -> Worker:
        throttle = timedelta(seconds=min(3.0, self._lease / 3))
        return Worker(
            client,
            task_queue=queue,
            activities=[self._activity()],
            max_concurrent_activities=slots,
            max_heartbeat_throttle_interval=throttle,
            default_heartbeat_throttle_interval=throttle,
            **more,
        )

    def _start(self, worker: Worker) -> asyncio.Task[None]:
        task = self._workers[worker] = self._loop.create_task(worker.run())
        return task

    async def _host(self, client: Client, task_queue: str, slots: int, more: dict[str, Any]) -> Hosted:
        worker = self._worker(client, task_queue, slots, **more)
        ended: Future[None] = Future()

        def tell(task: asyncio.Task[None]) -> None:
            if task.cancelled() or (error := task.exception()) is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        self._start(worker).add_done_callback(tell)
        return Hosted(worker, ended)

    async def dismiss(self, hosted: Hosted) -> None:
        """End a worker that was hosted here, unless all have ended. From any loop."""
        if not self._closing:
            await self._call(self._end([hosted.worker]))

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            events.TASK_QUEUE_LEFT(error=error)

    async def _end(self, workers: Sequence[Worker]) -> None:
        ending = [(worker, task) for worker in workers if (task := self._workers.pop(worker, None)) is not None]
        await asyncio.gather(*(worker.shutdown() for worker, _ in ending), return_exceptions=True)
        await asyncio.gather(*(task for _, task in ending), return_exceptions=True)

    def _activity(self) -> Any:
        @activity.defn(dynamic=True)
        async def attempt(args: Sequence[RawValue]) -> RawValue:
            return await self._attend(args)

        return attempt

    async def _attend(self, args: Sequence[RawValue]) -> RawValue:
        """Wait beside an attempt until it has ended, with heartbeats."""
        info = activity.info()
        message = msgspec.json.decode(args[0].payload.data, type=Message)
        left = msgspec.convert(info.heartbeat_details[0], Beat) if info.heartbeat_details else Beat()
        counted = info.attempt - 1 - left.returned
        if counted >= self._max_deliveries:
            raise dead(message, f"{counted} deliveries of it ended without an outcome; its workers may have died of it.")
        receipt = Receipt(asyncio.get_running_loop(), left)
        details = Raw(left.details.encode()) if left.details is not None else None
        delivery = Delivery(message=message, worker="", epoch=info.attempt, leased_until=0.0, heartbeat=details, receipt=receipt)
        self._offer(delivery)
        untaken = PATIENCE
        while receipt.outcome is None and receipt.back is None:
            try:
                async with asyncio.timeout(untaken if not receipt.taken else None):
                    await receipt.wake.wait()
                receipt.wake.clear()
            except TimeoutError:
                if not receipt.taken:
                    receipt.taken = receipt.lost = True
                    receipt.back = (0.0, False, "")
            except asyncio.CancelledError:
                self._heed_cancel(message, receipt)
            if receipt.beaten:
                receipt.beaten = False
                _heartbeat(receipt.beat)
        return self._come_to(message, receipt, counted)

    def _heed_cancel(self, message: Message, receipt: Receipt) -> None:
        details = activity.cancellation_details()
        if details is not None and details.worker_shutdown and not details.cancel_requested:
            receipt.back = (0.0, False, "")
            receipt.lost = True
            return
        if details is None or not details.cancel_requested:
            receipt.lost = True
        self._cancelled(message.id)

    def _come_to(self, message: Message, receipt: Receipt, counted: int) -> RawValue:
        if receipt.back is None:
            outcome = receipt.outcome
            assert outcome is not None
            if outcome.status == "completed":
                return _value(outcome)
            raise failure_of(outcome)
        delay, counts, reason = receipt.back
        if counts and counted + 1 >= self._max_deliveries:
            raise dead(message, reason)
        if not counts:
            _heartbeat(Beat(details=receipt.beat.details, returned=receipt.beat.returned + 1))
        raise ApplicationError(
            reason or "The worker hands the attempt back.",
            type=RETURNED,
            next_retry_delay=timedelta(seconds=max(delay, 0.001)),
            category=ApplicationErrorCategory.BENIGN,
        )


def _heartbeat(beat: Beat) -> None:
    activity.heartbeat(_value(beat))


def _value(record: Struct) -> RawValue:
    return RawValue(Payload(metadata={"encoding": b"json/plain"}, data=encode(record)))


def failure_of(outcome: Outcome) -> ApplicationError:
    """Return a failed outcome as an activity's failure, with the outcome as its detail. Another attempt is the run's decision."""
    error = outcome.error or ErrorInfo(type="Exception", message=f"The attempt ended as {outcome.status}.")
    # Benign to the SDK, which would log every failure with a traceback of its own; what matters is logged where it is decided.
    return ApplicationError(
        error.message,
        _value(outcome),
        type=error.type,
        non_retryable=True,
        category=ApplicationErrorCategory.BENIGN,
    )


def dead(message: Message, reason: str) -> ApplicationError:
    """Return the failure of a message that is given up."""
    info = ErrorInfo(type="ziggurat.errors.DeadLettered", message=reason, retryable=False)
    return failure_of(outcome_of(message, "dead", error=info))
