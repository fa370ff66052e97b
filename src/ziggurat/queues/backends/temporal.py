"""Temporal's own task queues as a queue: what the Temporal orchestrator schedules, workers receive here.

Temporal does the sending and the keeping; this is the workers' side of a `Queue`, so that a worker is the same program whatever it is
fed by. A message is an activity, its delivery an attempt of Temporal's, its lease the heartbeat timeout, its outcome the activity's
result or failure. Task queues are named after ours: "ziggurat-cpu" for the queue "cpu", "ziggurat-cpu@eu" for its region "eu", and
"ziggurat", as that of the runs, for the queue "default".
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.service import RPCError

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import Conflict, QueueUnavailable
from ziggurat.queues.interface import Capabilities, Queue, QueueOptions
from ziggurat.queues.temporal_hand import Beat, Hand, Receipt
from ziggurat.queues.temporal_link import LinkOptions, connect, task_queue_of
from ziggurat.records import DeadLetter, Delivery, Depth, Message, Outcome, Progress

#: Longest time in seconds between two looks of a worker at its leases, and so until a cancellation reaches a task that is running.
RENEWAL = 9.0
#: Seconds for which a worker that has just been given work counts as one that wants more. It asks again at once, unless it is full or
#: drains; then Temporal is to find another.
APPETITE = 0.1


class TemporalQueue(Queue):
    """The workers' side of Temporal's task queues.

    Args:
        link: where the server is.
        options: the policy; `lease` is the heartbeat timeout that the orchestrator gives to attempts, and must be the same there.
        clock: the time.
    """

    capabilities = Capabilities(
        durable=True,
        shared=True,
        weighted_priorities=False,
        limits=False,
        exact_depth=False,
        # Temporal refuses payloads over 2 MB; larger ones travel as artifacts.
        largest_message=2_000_000,
    )

    def __init__(self, link: LinkOptions, options: QueueOptions | None = None, *, clock: Clock | None = None) -> None:
        wanted = options or QueueOptions()
        self._link, self._lease = link, wanted.lease
        self.options = replace(wanted, lease=min(wanted.lease, RENEWAL))
        self._clock = clock or SystemClock()
        self._client: Client | None = None
        self._hand: Hand | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._buffer: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._cancelled: deque[str] = deque()
        self._cancel_came = asyncio.Event()
        #: What this process serves, and what it was told may hold work, as (queue, region): Temporal cannot list its task queues.
        self._served: set[tuple[str, str]] = set()
        self._expected: Callable[[], Iterable[tuple[str, str]]] = tuple
        #: Monotonic time until which somebody counts as one who asks for work.
        self._asked_until = 0.0
        self._progress: deque[Progress] = deque(maxlen=10_000)
        self._progress_came = asyncio.Event()

    async def open(self) -> None:
        if self._client is None:
            self._client = await connect(self._link)
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        hand, self._hand = self._hand, None
        if hand is not None:
            await hand.close()
        self._client = None

    # -- the worker's side ----------------------------------------------------------------------------------------

    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        self._serve(queues, limit, region)
        self._asked_until = time.monotonic() + wait
        if not self._buffer:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._arrived.wait()
            except TimeoutError:
                return []
            finally:
                self._asked_until = time.monotonic() + APPETITE
        received: list[Delivery] = []
        while self._buffer and len(received) < limit:
            delivery = self._buffer.popleft()
            receipt: Receipt = delivery.receipt
            if not receipt.lost:
                receipt.taken = True
                receipt.tell(_nothing)
                received.append(replace(delivery, worker=worker, leased_until=self._clock.time() + self._lease))
        return received

    def _serve(self, queues: Sequence[str], slots: int, region: str) -> None:
        hand = self.reach()
        places = dict.fromkeys(("", region))
        self._served.update((queue, place) for queue in queues for place in places)
        hand.serve([task_queue_of(self._link.task_queue, queue, place) for queue in queues for place in places], slots)

    def reach(self) -> Hand:
        """Return the thread that polls here, begun if need be. Raises QueueUnavailable. Call it on the loop that receives."""
        if self._client is None or self._loop is None:
            raise QueueUnavailable("The queue on Temporal is not open.")
        if self._hand is None:
            loop = self._loop

            def offer(delivery: Delivery) -> None:
                _call_in(loop, self._take, delivery)

            def cancelled(id_: str) -> None:
                _call_in(loop, self._take_cancel, id_)

            self._hand = Hand(self._client, self._lease, self.options.max_deliveries, offer, cancelled)
        return self._hand

    @property
    def hungry(self) -> bool:
        """Whether a worker here asks for work and finds none. Read from any thread."""
        return not self._buffer and time.monotonic() < self._asked_until

    def _take(self, delivery: Delivery) -> None:
        self._buffer.append(delivery)
        self._arrived.set()

    def _take_cancel(self, id_: str) -> None:
        self._cancelled.append(id_)
        self._cancel_came.set()

    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        # Only the receipts are told, so this may be another queue object in another thread than the one that received.
        lost: set[str] = set()
        for delivery in deliveries:
            receipt: Receipt = delivery.receipt
            if receipt.lost:
                lost.add(delivery.message.id)
                continue
            receipt.tell(_beating((details or {}).get(delivery.message.id)))
        return lost

    async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        fenced: set[str] = set()
        for delivery, outcome in settled:
            receipt: Receipt = delivery.receipt
            if receipt.lost:
                fenced.add(delivery.message.id)
            receipt.tell(_ending(outcome))
        return fenced

    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        for delivery in deliveries:
            receipt: Receipt = delivery.receipt
            receipt.tell(_returning(delay, reason))
        return {delivery.message.id for delivery in deliveries if delivery.receipt.lost}

    async def cancellations(self, worker: str, wait: float) -> list[str]:
        if not self._cancelled:
            self._cancel_came.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._cancel_came.wait()
            except TimeoutError:
                return []
        found = list(self._cancelled)
        self._cancelled.clear()
        return found

    async def publish(self, progress: Sequence[Progress]) -> None:
        self._progress.extend(progress)
        self._progress_came.set()

    # -- the orchestrator's side, which Temporal is ---------------------------------------------------------------

    async def progress(self, limit: int, wait: float) -> list[Progress]:
        """Return what workers in this process published: Temporal has no way for it to reach others."""
        if not self._progress:
            self._progress_came.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._progress_came.wait()
            except TimeoutError:
                return []
        found: list[Progress] = []
        while self._progress and len(found) < limit:
            found.append(self._progress.popleft())
        return found

    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        raise Conflict('Temporal\'s task queues are filled by runs on Temporal only; set orchestrator.backend to "temporal".')

    async def outcomes(self, limit: int, wait: float) -> list[Outcome]:
        await asyncio.sleep(wait)
        return []

    async def ack_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        return None

    async def cancel(self, ids: Collection[str]) -> None:
        return None

    async def missing(self, ids: Collection[str]) -> set[str]:
        return set()

    # -- everyone's -----------------------------------------------------------------------------------------------

    def expect(self, lanes: Callable[[], Iterable[tuple[str, str]]]) -> None:
        self._expected = lanes

    async def depth(self, queues: Iterable[str] | None = None) -> dict[str, Depth]:
        lanes = {*self._served, *self._expected()}
        if queues is not None:
            wanted = set(queues)
            lanes = {(queue, region) for queue, region in lanes if queue in wanted} | {(queue, "") for queue in wanted}
        ordered = sorted(lanes)
        found = await asyncio.gather(*(self._depth(*lane) for lane in ordered))
        depths: dict[str, Depth] = {}
        for (queue, _), depth in zip(ordered, found, strict=True):
            depths[queue] = depths.get(queue, Depth()) + depth
        return depths

    async def _depth(self, queue: str, region: str) -> Depth:
        if self._client is None:
            raise QueueUnavailable("The queue on Temporal is not open.")
        request = DescribeTaskQueueRequest(
            namespace=self._link.namespace,
            task_queue=TaskQueue(name=task_queue_of(self._link.task_queue, queue, region)),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            report_stats=True,
        )
        try:
            answer = await self._client.workflow_service.describe_task_queue(request)
        except RPCError as error:
            raise QueueUnavailable(
                f"The Temporal server did not say how deep the queue {queue!r} is: {error.message}."
            ) from error
        stats = answer.stats
        return Depth(ready=stats.approximate_backlog_count, oldest_age=stats.approximate_backlog_age.ToMilliseconds() / 1000)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return nothing: Temporal keeps a message that was given up as its run's failure, where the orchestrator finds it."""
        return []

    async def redrive(self, ids: Collection[str]) -> int:
        return 0

    async def discard(self, ids: Collection[str]) -> int:
        return 0


def _call_in(loop: asyncio.AbstractEventLoop, function: Any, *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        pass  # The worker's loop has ended; nobody takes the delivery, and it goes back after a moment.


def _nothing(receipt: Receipt) -> None:
    """Wake the activity, which waits otherwise from now on."""


def _beating(details: bytes | None) -> Any:
    def change(receipt: Receipt) -> None:
        if details is not None:
            receipt.beat = Beat(details=details.decode(), returned=receipt.beat.returned)
        receipt.beaten = True

    return change


def _ending(outcome: Outcome) -> Any:
    def change(receipt: Receipt) -> None:
        receipt.outcome = receipt.outcome or outcome

    return change


def _returning(delay: float, reason: str) -> Any:
    def change(receipt: Receipt) -> None:
        if receipt.outcome is None:
            receipt.back = (delay, bool(reason), reason)

    return change
