"""Between the engine and the queue: gathers what is to be sent, cancelled and acknowledged, and hands it over in batches.

One coroutine does the handing over, so the order is kept and a slow or dead queue never blocks the engine: messages wait here until
the queue takes them, and history is the truth in the meantime.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.clock import Clock
from ziggurat.errors import LayerUnreachable, Overloaded, PayloadTooLarge
from ziggurat.orchestrator.embedded.carrying import Carrier
from ziggurat.orchestrator.embedded.outbox import Outbox
from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.orchestrator.tracing import carried
from ziggurat.program.failures import describe
from ziggurat.queues.interface import Queue
from ziggurat.records import PRIORITY_NORMAL, Allowance, Concurrency, Lane, Message, Outcome, Rate, Run, message_id, outcome_of
from ziggurat.telemetry import events
from ziggurat.telemetry.catalogue import DISPATCH_SECONDS, IN_FLIGHT, OUTBOX, OUTCOMES, QUEUE_SENT, RESENT

#: Messages in one send.
_BATCH = 512
#: Seconds between tries while the queue cannot be used.
_RETRY = 0.5
#: Seconds between two complaints about full lanes.
_TELL_AGAIN = 60.0


class Dispatcher:
    """The engine's hand on the queue.

    Args:
        queue: the queue.
        clock: the time.
        take: called with each batch of outcomes.
        resend: called with the runs whose messages the queue has lost.
        write: hands a write to the writer.
        payloads: the seam through which arguments and results pass.
    """

    def __init__(
        self,
        queue: Queue,
        clock: Clock,
        take: Callable[[list[Outcome]], None],
        resend: Callable[[dict[str, str]], None],
        write: Callable[[Write], None],
        payloads: Payloads = INLINE,
        *,
        sweep: float,
        sweep_age: float,
    ) -> None:
        self.queue, self.clock = queue, clock
        self._carrier = Carrier(payloads, write, self._post, take)
        self._resend = resend
        self._sweep, self._sweep_age = sweep, sweep_age
        self._outbox = Outbox()
        #: What the lane that refused last said, and when that was told.
        self._full: Overloaded | None = None
        self._told_full = float("-inf")
        self._cancels: set[str] = set()
        self._acks: list[Outcome] = []
        #: Messages that are out, by id: (run, when sent).
        self.in_flight: dict[str, tuple[str, float]] = {}
        #: Returns the budgets that the model calls of a run draw on.
        self.allowances: Callable[[Run], tuple[Allowance, ...]] = lambda run: ()
        #: Is told of a step that waited for a model's answer and is wanted no more, by its idempotency key.
        self.dropped: Callable[[str], None] = lambda step: None
        self._wake: asyncio.Event = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._unwatch: list[Callable[[], None]] = []

    def start(self) -> None:
        """Begin to hand over and to take in."""
        self._unwatch = [
            OUTBOX.watch(lambda: {(): float(len(self._outbox))}),
            IN_FLIGHT.watch(lambda: {(): float(len(self.in_flight))}),
        ]
        self._tasks = [
            asyncio.create_task(self._hand_over(), name="ziggurat-dispatch"),
            asyncio.create_task(self._take_in(), name="ziggurat-outcomes"),
            asyncio.create_task(self._sweep_lost(), name="ziggurat-sweep"),
        ]

    async def stop(self) -> None:
        """Hand over what is gathered, as far as the queue takes it now, and stop."""
        self._closing = True
        self._wake.set()
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._carrier.stop()
        for stop in self._unwatch:
            stop()

    def send(self, run: Run, step: Step) -> None:
        """Send the next attempt of a step, unless it is out already: an evicted run asks again for what it asked for before."""
        message = self.message(run, step, step.payload)
        step.dispatched, step.retry_at, step.sent_at, step.started_at = True, None, message.sent_at, None
        if message.id in self.in_flight:
            return
        self.in_flight[message.id] = (run.id, message.sent_at)
        sealed = self._carrier.sealed(message, step.requested)
        if sealed is not None:
            self._outbox.put(sealed)
            self._wake.set()

    def _post(self, message: Message) -> None:
        """Send a message whose arguments are stored, unless it was taken back meanwhile."""
        if message.id in self.in_flight:
            self._outbox.put(message)
            self._wake.set()

    def cancel(self, run: Run, step: Step) -> None:
        """Take back what was sent for a step."""
        id_ = message_id(run.id, run.epoch, step.number, step.attempt)
        self.in_flight.pop(id_, None)
        self._cancels.add(id_)
        self._wake.set()

    def tell_dropped(self, run: Run, step: Step) -> None:
        """Tell of a step that is wanted no more, if it waited for a model's answer."""
        if step.waiting.count:
            self.dropped(f"{run.id}~{run.epoch}.{step.number}")

    def ack(self, outcome: Outcome) -> None:
        """Let the queue forget an outcome that is recorded, or that nobody waits for."""
        self.in_flight.pop(outcome.message, None)
        # After a restart a message may still wait here to be sent again while its outcome arrives from the queue. Sent after the
        # outcome is forgotten, it would be new to the queue, and a recorded step would run again.
        self._outbox.drop(outcome.message)
        self._acks.append(outcome)
        self._wake.set()

    def message(self, run: Run, step: Step, payload: bytes) -> Message:
        """Return the message that carries the next attempt of a step, with these arguments."""
        return attempt_message(run, step, payload, self.clock.time(), self.allowances(run))

    async def _hand_over(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while self._outbox or self._cancels or self._acks:
                    if not await self._hand_over_once():
                        await self._wait_for_room()
                        break
            except LayerUnreachable as error:
                if self._closing:
                    return
                events.SEND_REFUSED(error=error)
                await asyncio.sleep(_RETRY)
                self._wake.set()
            except Exception:
                events.SEND_FAILED(trace_of=True)
                await asyncio.sleep(_RETRY)
                self._wake.set()
            if self._closing and (self._full or not (self._outbox or self._cancels or self._acks)):
                return

    async def _hand_over_once(self) -> bool:
        """Hand over what the queue takes now. Returns False if it is messages on full lanes that are left, and only those."""
        # What is handed over stays here until the queue has it: a failure leaves it for the next try.
        cancels = set(self._cancels)
        if cancels:
            for id_ in cancels:
                self._outbox.drop(id_)
            await self.queue.cancel(cancels)
            self._cancels -= cancels
        progress, self._full = bool(cancels), None
        for messages in self._outbox.batches(_BATCH):
            progress |= await self._send(messages)
        acks = self._acks[:_BATCH]
        if acks:
            await self.queue.ack_outcomes(acks)
            del self._acks[: len(acks)]
        return progress or bool(acks) or not self._full

    async def _send(self, messages: list[Message]) -> bool:
        """Send messages; returns whether anything was taken. One that the queue cannot carry fails its step and holds up no other."""
        try:
            await self.queue.send(messages)
        except Overloaded as error:
            self._full = error
            before = len(messages)
            self._outbox.refused(messages)
            return before > 1  # A smaller batch, or another lane, may still be taken.
        except PayloadTooLarge as error:
            if len(messages) > 1:
                return any([await self._send([message]) for message in messages])
            self._outbox.drop(messages[0].id)
            refused = replace(describe(error), retryable=False)
            self._carrier.take([outcome_of(messages[0], "failed", error=refused)])
            return True
        self._outbox.taken(messages, _BATCH)
        self._sent(messages)
        return True

    async def _wait_for_room(self) -> None:
        """Wait until something happened that may have made room on a full lane: an outcome came, or some time went by."""
        if self._closing:
            return
        now = self.clock.monotonic()
        if self._full is not None and now - self._told_full >= _TELL_AGAIN:
            self._told_full = now
            events.SEND_REFUSED(error=self._full)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETRY):
                await self._wake.wait()
        self._wake.set()

    def _sent(self, messages: list[Message]) -> None:
        """Count messages that the queue took."""
        DISPATCH_SECONDS.observe(max(0.0, self.clock.time() - messages[0].sent_at))
        for queue, number in Counter(message.lane.queue for message in messages).items():
            QUEUE_SENT.labels(queue).inc(number)

    async def _take_in(self) -> None:
        while True:
            try:
                outcomes = await self.queue.outcomes(_BATCH, 5.0)
            except LayerUnreachable as error:
                events.NO_OUTCOMES(error=error)
                await asyncio.sleep(_RETRY)
                continue
            if outcomes:
                for status, number in Counter(outcome.status for outcome in outcomes).items():
                    OUTCOMES.labels(status).inc(number)
                self._carrier.take(outcomes)
                if self._full is not None:
                    self._wake.set()

    async def _sweep_lost(self) -> None:
        """Ask the queue for messages that have been out for long: it may lose everything, and its loss is made good here."""
        while True:
            await asyncio.sleep(self._sweep)
            horizon = self.clock.time() - self._sweep_age
            waiting = self._outbox.ids() | self._carrier.storing
            old = [id_ for id_, (_, sent) in self.in_flight.items() if sent <= horizon and id_ not in waiting]
            try:
                for at in range(0, len(old), _BATCH):
                    part = old[at : at + _BATCH]
                    missing = await self.queue.missing(part)
                    lost = {id_: self.in_flight[id_][0] for id_ in missing if id_ in self.in_flight}
                    if lost:
                        events.MESSAGES_LOST(messages=len(lost))
                        RESENT.inc(len(lost))
                        self._resend(lost)
            except LayerUnreachable as error:
                events.SWEEP_FAILED(error=error)


_lanes: dict[tuple[str, str, str, int], Lane] = {}


def attempt_message(run: Run, step: Step, payload: bytes, now: float, budgets: tuple[Allowance, ...]) -> Message:
    """Return the message that carries the next attempt of a step, with these arguments, sent at `now`."""
    options, concurrency, rate = step.options, step.options.concurrency, step.options.rate
    return Message(
        id=message_id(run.id, run.epoch, step.number, step.attempt),
        task=step.name,
        payload=Raw(payload),
        run=run.id,
        generation=run.epoch,
        step=step.number,
        attempt=step.attempt,
        deferred=step.waiting.count,
        workflow=run.workflow,
        lane=_lane(run.namespace, options.queue, options.region, options.priority or run.priority),
        sent_at=now,
        timeout=options.timeout,
        heartbeat_timeout=options.heartbeat,
        deadline=step.requested_at + options.deadline if options.deadline is not None else None,
        heartbeat=step.heartbeat,
        concurrency=Concurrency(step.bound["concurrency"], concurrency.limit) if concurrency is not None else None,
        rate=Rate(step.bound["rate"], rate[0], rate[1]) if rate is not None else None,
        budgets=budgets,
        trace=carried(run, step.number),
    )


def _lane(namespace: str, queue: str, region: str, priority: int) -> Lane:
    key = (namespace, queue, region, priority or PRIORITY_NORMAL)
    lane = _lanes.get(key)
    if lane is None:
        lane = _lanes[key] = Lane(*key)
    return lane
