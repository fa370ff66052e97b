"""The worker: takes messages from a queue, runs their tasks, settles what they came to.

    receive ─▶ held ─▶ executor ─▶ finished ─settle─▶ gone
                 │                    returned ─release─▶ back on the queue
                 └─ leases renewed until settled

A worker is stateless: everything it holds is leased, so when it dies its messages return by themselves. It takes no more than it has free
slots for. `stop` drains it: nothing new is taken, unstarted work goes back at once, running attempts have the grace period, and what
is left then goes back too, with no attempt burned.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import ConfigurationError, QueueUnavailable
from ziggurat.program.failures import describe
from ziggurat.program.registry import Registry
from ziggurat.queues.interface import Queue
from ziggurat.records import Delivery, ErrorInfo, Outcome
from ziggurat.telemetry import events
from ziggurat.workers.alone import APART, Isolation
from ziggurat.workers.attempt import Attempt, without_payload
from ziggurat.workers.ceiling import keep_checking, over_ceiling
from ziggurat.workers.children import Bootstrap
from ziggurat.workers.counting import Counts, show, show_no_longer
from ziggurat.workers.executor import make_executor
from ziggurat.workers.leases import LeaseKeeper, LeaseThread
from ziggurat.workers.options import Tally, WorkerOptions
from ziggurat.workers.outage import Outage
from ziggurat.workers.presence import Showing
from ziggurat.workers.progress import Publisher
from ziggurat.workers.usage import together, used_by
from ziggurat.workers.waiting import wait_for

T = TypeVar("T")

#: Cancellations of messages that have not arrived here yet, remembered at most.
EARLY_CANCELS = 1_000


class Worker:
    """Runs tasks from a queue that is open already.

    Args:
        queue: where work comes from and outcomes go.
        registry: the tasks that this worker knows.
        lease_keeper: makes a second connection to the queue, for the thread that renews leases; None renews them on the event loop,
            which is right for a queue in the same process.
        bootstrap: how child processes for process=True tasks make themselves ready; by default they import the registry's modules.
        payloads: the seam through which arguments and results pass; everything stays inline where there is none.
    """

    def __init__(
        self,
        queue: Queue,
        registry: Registry,
        *,
        options: WorkerOptions | None = None,
        clock: Clock | None = None,
        lease_keeper: Callable[[], Queue] | None = None,
        bootstrap: Bootstrap | None = None,
        payloads: Payloads = INLINE,
    ) -> None:
        self.options = options or WorkerOptions()
        #: What it receives from; a host may widen it, and the next call of the queue heeds that.
        self.queues: tuple[str, ...] = self.options.queues
        self.name = self.options.name or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:4]}"
        self.tally = Tally()
        self._counts = Counts()
        self._queue = queue
        self._clock = clock or SystemClock()
        self._progress = Publisher(queue)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._executor = make_executor(
            registry, self.name, self.options, self._clock, self._progress.show, bootstrap=bootstrap,
            largest_result=queue.capabilities.largest_message, payloads=payloads,
        )  # fmt: skip
        #: Everything leased to this worker that is not settled yet, by message id.
        self._held: dict[str, Attempt] = {}
        self._finished: list[tuple[Attempt, Outcome]] = []
        #: What goes back to the queue: the delivery, after how many seconds, and why.
        self._returned: list[tuple[Delivery, float, str]] = []
        self._work_done = asyncio.Event()
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._early_cancels: dict[str, None] = {}
        self._isolation = Isolation(self._held, self._pause)
        self._outage = Outage(self.name)
        self._showing = Showing(self, queue, self._clock)
        keeper = LeaseKeeper(lambda: list(self._held.values()), self._leases_lost, self._clock, 2 * self.options.cleanup)
        self._lease_thread = LeaseThread(keeper, lease_keeper) if lease_keeper is not None else None
        self.keeper = keeper
        self._grace = self.options.grace
        #: Monotonic time of the last successful call that asked the queue for work; liveness is its age.
        self.polled_at = self._heard_at = self._clock.monotonic()
        #: True when the worker drained because of its memory, and wants a fresh process.
        self.recycle = False

    # -- what others ask -----------------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Attempts that run or wait to be settled."""
        return len(self._held)

    @property
    def abandoned(self) -> int:
        """Attempts whose code runs on although they were given up."""
        return len(self._executor.abandoned)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def tasks(self) -> list[str]:
        """Return the task of each attempt under way."""
        return [attempt.message.task for attempt in self._held.values()]

    def trouble(self) -> str:
        """Return why the worker takes no work although it could, as a sentence, or "" if it is well."""
        if self.abandoned > self.options.abandoned_limit:
            return f"{self.abandoned} attempts that ran out of time cannot be ended; restart the worker to be rid of them."
        return self._outage.sentence

    def stop(self, grace: float | None = None) -> None:
        """Begin to drain; `run` returns when it is done. Calling again with a shorter grace hurries it. Call it on the worker's loop."""
        if grace is not None:
            self._grace = grace
        self._stopping.set()
        self._settled.set()

    async def renew_leases(self) -> None:
        """Renew all leases now. The worker does so by itself in time; this is for tests, and for hosts about to be frozen."""
        await self.keeper.renew(self._queue)

    # -- one delivery --------------------------------------------------------------------------------------------

    async def handle(self, delivery: Delivery) -> Outcome:
        """Run one attempt and return its outcome, for queues that push. A cancellation stops the attempt.

        Raises ConfigurationError if this worker cannot run the message but another might: an unknown task, a newer version.
        """
        ended: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        attempt = self._executor.start(delivery, lambda _, outcome: None if ended.done() else ended.set_result(outcome))
        self._begun(delivery)
        try:
            outcome = await ended
        except asyncio.CancelledError:
            self._executor.stop(attempt, "drain", "The worker is ending.")
            raise
        finally:
            await self._progress.flush()
        assert outcome is not None  # Only "lost" and "drain" have none, and nobody can ask for those here.
        self._count(delivery, outcome)
        return outcome

    def poll_age(self) -> float:
        """Return the seconds since the last successful poll; 0 once it drains, for then it polls no more."""
        return 0.0 if self.stopping else self._clock.monotonic() - self.polled_at

    async def close(self) -> None:
        """Publish the last progress and end child processes and threads. `run` does so itself; a host of `handle` must."""
        show_no_longer(self)
        await self._progress.flush()
        await self._executor.close()

    # -- the loops -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`. Cancelling it drains without grace. The queue stays open."""
        self._loop = asyncio.get_running_loop()
        self.polled_at = self._clock.monotonic()
        show(self)
        loops = [self._settle_loop(), self._cancel_loop(), self._progress.run(), self._showing.run(self._stopping)]
        if self.options.memory_ceiling:
            loops.append(keep_checking(self.check_memory))
        if self._lease_thread is None:
            loops.append(self.keeper.run(self._queue))
        else:
            self._lease_thread.start()
        tasks = [self._loop.create_task(loop) for loop in loops]
        try:
            await self._receive_until_stopped(tasks)
            await self._drain(self._grace)
        except asyncio.CancelledError:
            self.stop(0.0)
            await self._drain(0.0)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self._lease_thread is not None:
                self._lease_thread.stop()
                await asyncio.to_thread(self._lease_thread.join, 5.0)
            await self._showing.end()
            await self.close()

    async def _receive_until_stopped(self, others: Sequence[asyncio.Task[None]]) -> None:
        """Take work until `stop`, or until a loop ends, which is a bug: better to die of it than to live on deaf."""
        loop = asyncio.get_running_loop()
        receiving, stopping = loop.create_task(self._receive_loop()), loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait((receiving, stopping, *others), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not self._queue.capabilities.shared:
                receiving.cancel()  # In one process, a call that waits has taken nothing.
            elif not receiving.done():
                # A server may be leasing to us at this moment; hear it out and hand it back.
                await asyncio.wait((receiving,), timeout=self.options.poll + 5.0)
                receiving.cancel()
            await asyncio.wait((receiving,))
        for task in (receiving, *others):
            if task.done() and not task.cancelled():
                task.result()

    async def _receive_loop(self) -> None:
        options = self.options
        while not self._stopping.is_set():
            free = options.concurrency - len(self._held)
            if free <= 0 or self.abandoned > options.abandoned_limit:
                await self._pause(options.poll)
                continue
            received = await self._call(
                "receive",
                lambda free=free: self._queue.receive(  # type: ignore[misc]
                    self.queues, free, worker=self.name, wait=options.poll, region=options.region
                ),
                insist=True,
            )
            self.polled_at = self._clock.monotonic()
            for delivery in received:
                self._take(delivery)
            await self._isolation.run(self._stopping)

    async def _pause(self, seconds: float) -> None:
        """Wait until something that is held has ended, at most so long, without asking for work."""
        self._settled.clear()
        await wait_for(self._settled, seconds)
        # That it hears cancellations shows that it is alive.
        self.polled_at = max(self.polled_at, self._heard_at)

    def _take(self, delivery: Delivery) -> None:
        message = delivery.message
        if self._stopping.is_set() or len(self._executor.abandoned) > self.options.abandoned_limit:
            self._give_back(delivery)
            return
        held = self._held.get(message.id)
        if held is not None and held.stop_reason != "lost":
            # Our own lease ran out and the message came back to us: go on under the new lease instead of starting twice.
            held.delivery, held.held_until = delivery, delivery.held_until
            return
        if delivery.suspect and self._isolation.refuses(delivery):
            self._give_back(delivery, APART)
            return
        try:
            attempt = self._executor.start(delivery, self._ended)
        except ConfigurationError as error:
            # Counted, so that a message which nobody can run ends among the dead letters with this reason.
            delay = min(60.0, self.options.refusal_delay * 3.0 ** min(delivery.epoch - 1, 10))
            events.MESSAGE_RETURNED(message=message.id, seconds=delay, error=error, task=message.task, run=message.run)
            self._give_back(delivery, delay, str(error))
            return
        self._held[message.id] = attempt
        self._begun(delivery)
        if delivery.suspect:
            self._isolation.attempt = attempt
        if self._early_cancels and message.id in self._early_cancels:
            del self._early_cancels[message.id]
            self._cancel(attempt)

    def _give_back(self, delivery: Delivery, delay: float = 0.0, reason: str = "") -> None:
        self._returned.append((delivery, delay, reason))
        self._work_done.set()

    def _ended(self, attempt: Attempt, outcome: Outcome | None) -> None:
        """Note what an attempt came to. Called by the executor."""
        if outcome is not None:
            self._finished.append((attempt, outcome))
        elif attempt.stop_reason == "drain":
            self._returned.append((attempt.delivery, 0.0, ""))
        else:
            self._let_go(attempt)
        self._work_done.set()

    def _let_go(self, attempt: Attempt) -> None:
        if self._held.get(attempt.message.id) is attempt:
            del self._held[attempt.message.id]
        self._settled.set()

    # -- settling ------------------------------------------------------------------------------------------------

    async def _settle_loop(self) -> None:
        while True:
            await self._work_done.wait()
            self._work_done.clear()
            if self._progress and self._finished:
                await self._progress.flush()  # What an attempt said comes before what it came to.
            if self._finished:
                finished, self._finished = self._finished, []
                await self._settle(finished)
            if self._returned:
                returned = self._returned[:]  # Kept there until they are back on the queue: a drain waits for that.
                await self._release(returned)
                del self._returned[: len(returned)]

    async def _settle(self, finished: Sequence[tuple[Attempt, Outcome]]) -> None:
        """Settle outcomes, retrying until the queue takes or fences them."""
        settled = [(attempt.delivery, outcome) for attempt, outcome in finished]
        tries = 0

        def settle() -> Awaitable[set[str]]:
            nonlocal tries
            tries += 1
            return self._queue.settle(settled)

        try:
            fenced = await self._call("settle", settle)
        except Exception as error:
            await self._settle_singly(finished, error)
            return
        again = False
        for (attempt, outcome), (delivery, _) in zip(finished, settled, strict=True):
            if fenced and delivery.message.id in fenced:
                if attempt.delivery is not delivery:  # The message came back to us in between: settle under the new lease.
                    self._finished.append((attempt, outcome))
                    again = True
                    continue
                if tries == 1:
                    self._fenced(attempt)
                # At a later try the first may have been done, with its answer lost, and is no reason to alarm anyone.
            self._count(delivery, outcome)
            self._let_go(attempt)
        if again:
            self._work_done.set()

    async def _settle_singly(self, finished: Sequence[tuple[Attempt, Outcome]], error: Exception) -> None:
        """The queue refuses the batch for a reason that will not pass. Find the outcome that it is about, and say so in its place."""
        if len(finished) > 1:
            for one in finished:
                await self._settle([one])
            return
        ((attempt, outcome),) = finished
        if outcome.result is None and outcome.heartbeat is None:
            events.OUTCOME_GIVEN_UP(
                trace_of=error, message=attempt.message.id, task=attempt.message.task, run=attempt.message.run
            )
            self._let_go(attempt)
            return
        events.OUTCOME_REFUSED(message=attempt.message.id, error=error, task=attempt.message.task, run=attempt.message.run)
        attempt.details = None
        info = describe(error)
        refused = ErrorInfo(type=info.type, message=f"The queue refused the outcome: {info.message}", retryable=False)
        await self._settle([(attempt, without_payload(outcome, refused))])

    async def _release(self, returned: Sequence[tuple[Delivery, float, str]]) -> None:
        groups: dict[tuple[float, str], list[Delivery]] = {}
        for delivery, delay, reason in returned:
            groups.setdefault((delay, reason), []).append(delivery)
        for (delay, reason), deliveries in groups.items():
            try:
                await self._call("release", lambda d=deliveries, s=delay, r=reason: self._queue.release(d, delay=s, reason=r))  # type: ignore[misc]
            except Exception:
                events.RELEASE_FAILED(trace_of=True, messages=len(deliveries))
            self.tally.released += len(deliveries)
            self._counts.released(len(deliveries))
            for delivery in deliveries:
                attempt = self._held.get(delivery.message.id)
                if attempt is not None and attempt.delivery is delivery:
                    self._let_go(attempt)
        self._settled.set()

    def _begun(self, delivery: Delivery) -> None:
        self.tally.started += 1
        self._counts.begun(delivery)

    def _count(self, delivery: Delivery, outcome: Outcome) -> None:
        self._counts.ended(delivery, outcome)
        tally = self.tally
        setattr(tally, outcome.status, getattr(tally, outcome.status) + 1)
        queue = delivery.message.lane.queue
        tally.ended_in[queue] = tally.ended_in.get(queue, 0) + 1
        if outcome.started_at:
            tally.seconds += outcome.ended_at - outcome.started_at
        if outcome.calls:
            tally.used = together((tally.used, used_by(outcome.calls)))

    # -- leases and cancellations --------------------------------------------------------------------------------

    def _leases_lost(self, deliveries: list[Delivery]) -> None:
        """Called from the thread that renews leases."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_lost, deliveries)

    def _stop_lost(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            attempt = self._held.get(delivery.message.id)
            # Whoever renews may find it lost again before this loop has had its turn: it is lost once.
            if attempt is not None and attempt.delivery is delivery and not attempt.done and attempt.stop_reason != "lost":
                self._fenced(attempt)
                self._executor.stop(attempt, "lost", "The lease of this attempt went to another worker.")

    def _fenced(self, attempt: Attempt) -> None:
        self.tally.lost += 1
        self._counts.fenced(attempt.delivery)
        message = attempt.message
        events.LEASE_LOST(message=message.id, task=message.task, run=message.run, step=message.step, worker=self.name)
        if attempt.calls:
            attempt.show_calls(attempt.calls)

    async def _cancel_loop(self) -> None:
        while True:
            cancelled = await self._call(
                "cancellations", lambda: self._queue.cancellations(self.name, self.options.poll), insist=True
            )
            self._heard_at = self._clock.monotonic()
            for id_ in cancelled:
                attempt = self._held.get(id_)
                if attempt is not None:
                    self._cancel(attempt)
                    continue
                # The word may travel faster than the message.
                self._early_cancels[id_] = None
                if len(self._early_cancels) > EARLY_CANCELS:
                    del self._early_cancels[next(iter(self._early_cancels))]

    def _cancel(self, attempt: Attempt) -> None:
        self._executor.stop(attempt, "cancel", f"The task {attempt.message.task!r} was cancelled.")

    # -- ends ----------------------------------------------------------------------------------------------------

    async def _drain(self, grace: float) -> None:
        """Hand back what has not started, wait for what has, stop what takes too long, and settle it all."""
        for attempt in list(self._executor.running):
            if not attempt.started_at:
                self._executor.stop(attempt, "drain", "The worker is ending.")
        await self._until_idle(lambda: min(grace, self._grace))
        for attempt in list(self._executor.running):
            self._executor.stop(attempt, "drain", "The worker is ending, and the grace period is over.")
        await self._until_idle(lambda: self.options.cleanup + 1.0 + self._queue.options.lease)
        if self._held or self._returned:
            events.UNSETTLED(worker=self.name, messages=len(self._held))

    async def _until_idle(self, limit: Callable[[], float]) -> None:
        """Wait until nothing is held or waits to be handed back, at most `limit()` seconds; the limit may shrink meanwhile."""
        began = self._clock.monotonic()
        while self._held or self._finished or self._returned:
            left = began + limit() - self._clock.monotonic()
            if left <= 0:
                return
            self._settled.clear()
            await wait_for(self._settled, min(left, 0.1))

    def check_memory(self) -> None:
        """Drain if the process uses more memory than the ceiling."""
        if not self.recycle and over_ceiling(self.name, self.options.memory_ceiling):
            self.recycle = True
            self.stop()

    async def _call(self, name: str, verb: Callable[[], Awaitable[T]], *, insist: bool = False) -> T:
        """Call the queue, and while it is unavailable again and again; the outage is logged once. To insist is to treat every error so."""
        while True:
            try:
                answer = await verb()
            except Exception as error:
                if insist or isinstance(error, QueueUnavailable):
                    await self._outage.failed(name, error)
                    continue
                self._outage.worked(name)
                raise
            self._outage.worked(name)
            return answer
