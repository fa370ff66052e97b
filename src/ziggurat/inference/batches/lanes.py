"""Calls that may wait, from where a program makes them: put into a batch, waited for without a worker, and made at once in time.

    answer() ─▶ on the shelf already? ─▶ answered: take it · made at once: None
                        │ no                     │ neither: the next step of its batch, if it is due
                        └─▶ put it there ────────┴─▶ Wait: in a run the attempt ends, and is made again then; elsewhere it waits here

Nobody stays to watch: whoever comes back for a call does what is due for its batch (`shipping.py`). A call's line is named by the step,
the request and how often it was asked, so that every attempt finds it again, whichever worker makes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from ziggurat.clock import Clock
from ziggurat.errors import Deferred, LayerUnreachable
from ziggurat.inference import wire
from ziggurat.inference.answers import Answers, digest_of
from ziggurat.inference.batches import rules
from ziggurat.inference.batches.buying import Buyer
from ziggurat.inference.batches.interface import Batch, BatchApi, BatchOptions, Line, Shelf
from ziggurat.inference.batches.keeping import Keeping
from ziggurat.inference.batches.shipping import Seal, Shipping
from ziggurat.inference.identity import new_id
from ziggurat.inference.ledger import current_attribution
from ziggurat.inference.parts import materialised
from ziggurat.inference.routes import Route
from ziggurat.inference.shaping import shape
from ziggurat.program.context import AttemptContext, current_attempt
from ziggurat.program.llm import call_model
from ziggurat.records import CallRecord, Completion, Prompt, Usage
from ziggurat.telemetry.catalogue import BATCH_CALLS
from ziggurat.units import human_seconds

#: Seconds until a shelf that cannot be reached is asked again.
_SHELF_LATER = 30.0
#: Marks prices of batches in the ledger.
BATCH_PRICE = "batch"


#: Returns the route that a call would take first, and the switch that made it so; None if there is none.
Pick = Callable[[Prompt], Awaitable[tuple[Route, int] | None]]


class Wait(Struct, frozen=True):
    """A call is not answered yet: look again after so many seconds. `why` says what it waits for."""

    seconds: float
    why: str


class Lanes:
    """The batch lanes of a router.

    Args:
        shelf: where lines and batches are kept; it reaches as far as the queue does.
        apis: the batches of the endpoints that have them, by name.
        seal: seals requests and answers.
        options: when to do what.
        clock: the time.
        buyer: holds what calls will cost against budgets, and records what they did.
        pick: chooses the route.
    """

    def __init__(
        self, shelf: Shelf, apis: dict[str, BatchApi], seal: Seal, options: BatchOptions, clock: Clock, buyer: Buyer, pick: Pick
    ) -> None:
        self.apis, self.options = apis, options
        self._shelf, self._seal, self._clock, self._buyer = shelf, seal, clock, buyer
        self._pick = pick
        self._keeping = Keeping(shelf, clock)
        self._shipping = Shipping(self._keeping, apis, seal, options, clock, self._bill_dropped)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- a call ------------------------------------------------------------------------------------------------------

    def way(self, prompt: Prompt, answers: Answers | None) -> Callable[[], Awaitable[Completion | None]] | None:
        """Return what puts a call that may wait into a batch and returns its answer from there; None if it may not wait here."""
        attempt = current_attempt()
        if attempt is None or not attempt.info.run:
            return partial(self._answer_here, prompt, new_id())
        journal = answers is not None and answers.journal and not attempt.unkept
        if attempt.info.task != call_model.name and not journal:
            # The attempt is made again from its beginning, and what it bought by then would be bought again.
            return None
        digest = digest_of(prompt)
        key = f"{attempt.info.idempotency_key}:{digest}:{attempt.asked(f'line:{digest}')}"
        return partial(self._answer_in_run, prompt, key, attempt)

    async def _answer_here(self, prompt: Prompt, key: str) -> Completion | None:
        """Return the answer of a call, waiting for it here; None if it is to be made at once."""
        try:
            while isinstance(found := await self._visit(prompt, key, current_attempt()), Wait):
                await self._buyer.pause(found.seconds)
        except asyncio.CancelledError:
            self.drop_soon(key)
            raise
        return found

    async def _answer_in_run(self, prompt: Prompt, key: str, attempt: AttemptContext) -> Completion | None:
        """Return the answer of a call of a run; None if it is to be made at once. Raises Deferred."""
        place = (asyncio.get_running_loop(), asyncio.Event())
        attempt.placing.append(place)
        try:
            # Calls side by side each note that they are about to be placed.
            await asyncio.sleep(0)
            found = await self._visit(prompt, key, attempt)
        finally:
            place[1].set()
        if not isinstance(found, Wait):
            return found
        # All of them are to be in the batch before the attempt ends for the first.
        for loop, placed in attempt.placing:
            if loop is place[0]:
                await placed.wait()
        raise Deferred(found.why, seconds=found.seconds)

    async def _visit(self, prompt: Prompt, key: str, attempt: AttemptContext | None) -> Completion | Wait | None:
        """Do what is due for a call, and return its answer, what it waits for, or None if it is to be made at once."""
        due = prompt.due or 0.0
        try:
            base = attempt.info.attempt - attempt.info.deferred if attempt is not None else 1
            found = await self._keeping.line(key)
            if found is not None and found[0].state == "done" and found[0].taken not in (0, base):
                # An attempt that failed has used this answer; the next may need another.
                await self._keeping.forget_line(*found)
                found = None
            if found is None:
                placed = await self._place(prompt, key)
                if placed is None or isinstance(placed, Wait):
                    return placed
                found = placed
            return await self._look(prompt, *found, base, attempt)
        except LayerUnreachable as error:
            # Whether the call is in a batch is not known now. It is not bought a second time before it has to be.
            if self._clock.time() >= due - self.options.margin / 3:
                return None
            return Wait(_SHELF_LATER, str(error))

    async def _place(self, prompt: Prompt, key: str) -> tuple[Line, int] | Wait | None:
        """Put a call on the shelf, if there are batches for it and time enough; or let it wait for cheaper hours."""
        now = self._clock.time()
        due = prompt.due or 0.0
        picked = await self._pick(prompt)
        if picked is None:
            return None
        route, switch = picked
        if route.lane.endpoint.name not in self.apis or due - now < self.options.least:
            return self._off_peak(route, now, due)
        await route.prepare()
        shaped, _ = shape(prompt, route.capabilities)
        estimate = await self._buyer.hold(route, shaped)
        if estimate is None:
            return None
        request = wire.request_body(await materialised(shaped), route.upstream, stream=False)
        body = self._seal.seal_inline(request, key)
        line = Line(
            key=key, id=new_id(), endpoint=route.lane.endpoint.name, upstream=route.upstream, model=prompt.model, state="waiting",
            placed_at=now, due=due, body=body, tariff=route.tariff, estimate=estimate, capabilities=route.capabilities,
            by=current_attribution(), switch=switch,
        )  # fmt: skip
        await self._keeping.own(key.partition(":")[0], key)
        if await self._keeping.put_line(line, 0):
            BATCH_CALLS.labels(line.endpoint, "placed").inc()
            return line, 1
        await self._buyer.correct(line, 0.0)
        return await self._keeping.line(key)

    def _off_peak(self, route: Route, now: float, due: float) -> Wait | None:
        """Let a call wait for its endpoint's cheaper hours, if they begin in time. Nothing is on the shelf for it: the hours are known."""
        hours = route.lane.endpoint.config.off_peak
        wait = hours.wait(now) if hours is not None else 0.0
        if hours is None or not wait or now + wait > due - self.options.margin:
            return None
        begins = f"{hours.begin // 60:02}:{hours.begin % 60:02} {hours.zone}"
        return Wait(wait, f"the off-peak hours of {route.lane.endpoint.name}, from {begins}")

    async def _look(
        self, prompt: Prompt, line: Line, version: int, base: int, attempt: AttemptContext | None
    ) -> Completion | Wait | None:
        """Do what is due for a line. Looks at it anew after each change, for others change it too."""
        for _ in range(10):
            now = self._clock.time()
            batch: Batch | None = None
            first = now
            if line.state == "done":
                return await self._take(prompt, line, version, base, attempt)
            if line.state == "online":
                return None
            if line.state == "waiting":
                if now >= rules.leaves_at(line, self.options):
                    if await self._keeping.put_line(replace(line, state="online"), version):
                        await self._buyer.correct(line, 0.0)
                        BATCH_CALLS.labels(line.endpoint, "late").inc()
                        return None
                else:
                    await self._shipping.send(line.endpoint, line.upstream, line.line)
            else:
                await self._attend(line, now)
            found = await self._keeping.line(line.key)
            if found is None:
                return None  # It was dropped: whoever asks now asks at once.
            if found[1] != version:
                line, version = found
                continue
            if line.state == "sent":
                seen = await self._keeping.batch(line.batch)
                batch = seen[0] if seen is not None else None
                if (batch is None or batch.state == "ended" or now >= rules.gone_at(line, self.options)) and (
                    await self._leave(line, version, attempt)
                ):
                    return None
            else:
                _, first = await self._keeping.count(line.line)
            busy = batch is not None and await self._keeping.claimed(batch.id)
            seconds = rules.wait_of(line, batch, first or now, self.options, self._clock.time(), busy=busy)
            return Wait(seconds, _why(line, batch, now))
        return Wait(1.0, f"its batch at {line.endpoint}")

    async def _attend(self, line: Line, now: float) -> None:
        """Do the next step of a line's batch, if it is time."""
        found = await self._keeping.batch(line.batch)
        if found is None:
            return
        batch = found[0]
        if now >= rules.leaves_at(line, self.options) and batch.state != "cancelling":
            await self._shipping.withdraw(batch.id)
        elif batch.look_at <= now:
            await self._shipping.advance(batch.id)
            await self._shipping.sweep()

    async def _leave(self, line: Line, version: int, attempt: AttemptContext | None) -> bool:
        """Give up the batch of a call whose time is over. The provider may still answer it there, and bill it: that is written down."""
        found = await self._keeping.batch(line.batch)
        batch = found[0] if found is not None else None
        # Whoever has it under way may be about to buy it.
        bought = batch is None or batch.state != "ended"
        if not await self._keeping.put_line(replace(line, state="online", batch=""), version):
            return False
        BATCH_CALLS.labels(line.endpoint, "left").inc()
        if not bought:
            await self._buyer.correct(line, 0.0)
            return True
        self._buyer.recorded(self._record(line, None), line, attempt)
        return True

    async def _take(
        self, prompt: Prompt, line: Line, version: int, base: int, attempt: AttemptContext | None
    ) -> Completion | Wait | None:
        """Return an answer that is on the shelf, with its bill: under one id, however often it is taken."""
        answer = self._shipping.answer_of(line)
        _, unshaping = shape(prompt, line.capabilities)
        record = self._record(line, answer)
        if not line.taken:
            if await self._keeping.put_line(replace(line, taken=base), version):
                await self._buyer.correct(line, record.usage.cost_usd)
            else:
                found = await self._keeping.line(line.key)
                if found is None or found[0].taken not in (0, base):
                    return Wait(1.0, f"its batch at {line.endpoint}")
        self._buyer.recorded(record, line, attempt)
        if unshaping is not None:
            answer = unshaping.completion(answer)
        return replace(
            answer, usage=record.usage, model=prompt.model, endpoint=line.endpoint, upstream=line.upstream, call=record
        )

    def _record(self, line: Line, answer: Completion | None) -> CallRecord:
        """Return the bill of a line: its answer's, or that of one that may have been answered."""
        if answer is None:
            usage = Usage()
        elif answer.usage.calls:
            usage = line.tariff.bill(answer.usage, line.placed_at, batch=True)
        else:
            usage = Usage(calls=1, cost_usd=line.estimate)  # The provider did not say.
        return CallRecord(
            id=line.id,
            model=line.model,
            endpoint=line.endpoint,
            upstream=line.upstream,
            usage=usage,
            price_version=f"{line.tariff.version} {BATCH_PRICE}",
            started_at=line.placed_at,
            # No latency: it held no place at the endpoint meanwhile, and pools are sized by that.
            switch=line.switch,
            status="ok" if answer is not None else "unanswered",
            held_usd=0.0 if answer is not None else line.estimate,
        )

    # -- what nobody waits for any more ------------------------------------------------------------------------------

    def drop_soon(self, owner: str) -> None:
        """Give up the calls of a step that nobody waits for any more. Called on an event loop; returns at once."""
        task = asyncio.get_running_loop().create_task(self.drop(owner), name="ziggurat-drop")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drop(self, owner: str) -> None:
        """Give up the calls of a step: those that were not sent are not bought, and a batch that nobody waits for is cancelled."""
        try:
            for key in await self._keeping.owned(owner):
                await self._drop(key)
        except LayerUnreachable:
            return  # They are bought for nobody, and billed; a run that is cancelled does not wait for a shelf.

    async def _drop(self, key: str) -> None:
        while (found := await self._keeping.line(key)) is not None:
            line, version = found
            if line.state == "online":
                return
            if line.state == "waiting":
                if await self._keeping.forget_line(line, version):
                    await self._buyer.correct(line, 0.0)
                    BATCH_CALLS.labels(line.endpoint, "dropped").inc()
                    return
            elif line.state == "done":
                if line.taken:
                    return
                if await self._keeping.forget_line(line, version):
                    self._bill_dropped(line, self._shipping.answer_of(line))
                    return
            elif line.dropped or await self._keeping.put_line(replace(line, dropped=True), version):
                BATCH_CALLS.labels(line.endpoint, "dropped").inc()
                members = await self._keeping.lines(f"batch:{line.batch}", self.options.lines)
                if all(member.dropped for member, _ in members):
                    await self._shipping.withdraw(line.batch)
                return

    def _bill_dropped(self, line: Line, answer: Completion) -> None:
        # No step is left to record it, so it is a row of the ledger's own.
        nobody = replace(line, by=replace(line.by, step=0))
        self._buyer.recorded(self._record(line, answer), nobody, None)

    async def close(self) -> None:
        """Let go of the shelf. What was sent is found there by whoever comes next."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._shelf.close)


def _why(line: Line, batch: Batch | None, now: float) -> str:
    """Say what a call waits for."""
    until = f"within {human_seconds(max(0.0, line.due - now))}"
    if batch is None:
        return f"a batch of {line.endpoint}:{line.upstream} that fills, answered {until}"
    name = batch.remote or "that is being sent"
    return f"the batch {name} of {line.endpoint}:{line.upstream}, answered {until}"
