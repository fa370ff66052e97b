"""What becomes of a batch, step by step. Whoever looks after a call of it does the next step; nobody has to stay.

    made ──upload──▶ uploaded ──(written down)──▶ creating ──create──▶ sent ──look, look, …──▶ ended: its answers are on the shelf
                                                     └── found at the provider ──▶ sent

A step is done under a claim that runs out, so that another process goes on where one was killed. What holds wherever that happens: no
second batch is created while the first may exist; an answer is on the shelf before the batch has ended; and a line that no answer came
for goes into another batch, if its time allows, or is made as any other call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import msgspec
from msgspec.structs import replace

from ziggurat.clock import Clock
from ziggurat.errors import EndpointFailed, EndpointUnreachable, InferenceError
from ziggurat.inference.batches import rules
from ziggurat.inference.batches.interface import UNTAKEN, Batch, BatchApi, BatchOptions, Line, Remote
from ziggurat.inference.batches.keeping import Claim, Keeping, Lost
from ziggurat.inference.identity import new_id
from ziggurat.records import Completion
from ziggurat.telemetry import events
from ziggurat.telemetry.catalogue import BATCH_CALLS, BATCHES

#: Seconds until a batch is looked at again whose provider did not answer.
_LATER = 60.0
#: Seconds past its time after which a batch is looked after by anybody: nobody waits for its calls any more.
FORSAKEN = 900.0
_encode = msgspec.json.Encoder().encode


class Seal(Protocol):
    """What `artifacts.Payloads` does, as far as it is needed here."""

    def seal_inline(self, data: bytes, run: str) -> bytes: ...
    def open_now(self, data: bytes, run: str) -> bytes: ...


class Shipping:
    """Sends batches, looks after them, and brings their answers in.

    Args:
        keeping: the shelf.
        apis: the batches of the endpoints that have them, by name.
        seal: opens requests and seals answers.
        options: when to do what.
        clock: the time.
        bill: takes a line that was answered and that nobody waits for any more, and its answer: it was paid for.
    """

    def __init__(
        self,
        keeping: Keeping,
        apis: Mapping[str, BatchApi],
        seal: Seal,
        options: BatchOptions,
        clock: Clock,
        bill: Callable[[Line, Completion], None],
    ) -> None:
        self.keeping, self.apis, self.options = keeping, apis, options
        self._seal, self._clock, self._bill = seal, clock, bill

    async def send(self, endpoint: str, upstream: str, line: str) -> None:
        """Send the calls that wait in a line, if they are to be sent."""
        count, first = await self.keeping.count(line)
        now = self._clock.time()
        if not rules.is_full(count, first, self.options, now):
            return
        batch = Batch(id=new_id(), endpoint=endpoint, upstream=upstream, state="made", made_at=now, look_at=now)
        async with self._claiming(line) as ours:
            if not ours:
                return
            await self.keeping.put_batch(batch, 0)
            size = taken = 0
            for waiting, at in await self.keeping.lines(line, self.options.lines):
                size += len(waiting.body)
                if taken and size > self.options.size:
                    break
                # Another process may have sent it meanwhile, or its call may have left.
                taken += await self.keeping.put_line(replace(waiting, state="sent", batch=batch.id), at)
        await self.advance(batch.id)

    async def advance(self, id: str) -> None:
        """Take the next steps of a batch, until it waits for its provider, unless somebody does."""
        async with self._claiming(id) as ours:
            found = await self.keeping.batch(id) if ours else None
            if found is not None and found[0].state != "ended":
                await self._under_way(*found)

    async def withdraw(self, id: str) -> None:
        """End a batch early: one of its calls is needed otherwise. What it has answered so far stays."""
        async with self._claiming(id) as ours:
            found = await self.keeping.batch(id) if ours else None
            if found is not None and found[0].state != "ended":
                await self._withdraw(*found)

    async def _withdraw(self, batch: Batch, version: int) -> None:
        try:
            if batch.state in ("made", "uploaded"):
                await self._end(batch, version, None, "withdrawn")
            elif batch.state == "creating":
                # It may exist: that is found out first.
                await self._under_way(batch, version)
            elif batch.state == "sent":
                await self.apis[batch.endpoint].cancel(batch.remote)
                batch = replace(batch, state="cancelling", look_at=self._clock.time() + rules.LOOK_CANCELLING)
                await self.keeping.put_batch(batch, version)
        except InferenceError as error:
            await self._put_off(batch, error, rules.LOOK_CANCELLING)
        except Lost:
            return

    @asynccontextmanager
    async def _claiming(self, what: str) -> AsyncIterator[bool]:
        """Keep other processes from something while the block runs, and a while longer if this one is killed; False if one is at it."""
        claim = await self.keeping.claim(what, self.options.claim)
        if claim is None:
            yield False
            return
        renewing = asyncio.get_running_loop().create_task(self._renew(claim), name="ziggurat-batch-claim")
        try:
            yield True
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self.keeping.release(claim)

    async def _renew(self, claim: Claim) -> None:
        # A claim that is lost all the same does no harm: every change is made to what was read, or not at all.
        while True:
            await asyncio.sleep(self.options.claim / 3)
            await self.keeping.renew(claim, self.options.claim)

    async def sweep(self) -> None:
        """Look after what was left behind, as by runs that ended meanwhile: batches, and answers that nobody takes."""
        late = self._clock.time() - FORSAKEN
        for batch in await self.keeping.batches():
            if batch.look_at < late and batch.endpoint in self.apis:
                await self.advance(batch.id)
        for line, version in await self.keeping.lines(UNTAKEN, 20):
            if line.due >= late:
                break
            if await self.keeping.put_line(replace(line, billed=True), version):
                self._bill(line, self.answer_of(line))

    def answer_of(self, line: Line) -> Completion:
        """Return what a line was answered."""
        return msgspec.json.decode(self._seal.open_now(line.answer, line.key), type=Completion)

    # -- steps -------------------------------------------------------------------------------------------------------

    async def _under_way(self, batch: Batch, version: int) -> None:
        try:
            while batch.state != "ended":
                before = batch.state
                batch, version = await self._step(batch, version)
                if batch.state == before or batch.state in ("sent", "cancelling"):
                    return
        except InferenceError as error:
            await self._put_off(batch, error, _LATER)
        except Lost:
            return

    async def _put_off(self, batch: Batch, error: InferenceError, wait: float) -> None:
        """Look after a batch later, since its provider did not do what it was asked."""
        self._complain(batch, error)
        # As it stands: the failed request may have come after a change.
        found = await self.keeping.batch(batch.id)
        if found is None or found[0].state == "ended":
            return
        look_at = self._clock.time() + max(wait, error.retry_after or 0.0)
        with suppress(Lost):
            await self.keeping.put_batch(replace(found[0], look_at=look_at), found[1])

    async def _step(self, batch: Batch, version: int) -> tuple[Batch, int]:
        api = self.apis[batch.endpoint]
        if batch.state == "made":
            return await self._upload(api, batch, version)
        if batch.state == "uploaded":
            return await self._create(api, batch, version)
        if batch.state == "creating":
            return await self._look_for(api, batch, version)
        now = self._clock.time()
        if batch.look_at > now:
            return batch, version
        remote = await api.look(batch.remote)
        if remote.ended:
            return await self._end(batch, version, remote, remote.status)
        if remote.status == "cancelling" and batch.state == "sent":
            batch = replace(batch, state="cancelling")  # By somebody else's hand.
        batch = replace(batch, looks=batch.looks + 1, look_at=rules.next_look(batch, self.options, now))
        return batch, await self.keeping.put_batch(batch, version)

    async def _upload(self, api: BatchApi, batch: Batch, version: int) -> tuple[Batch, int]:
        members = await self._members(batch)
        now = self._clock.time()
        wanted = [line for line, _ in members if not line.dropped]
        if not wanted or min(rules.leaves_at(line, self.options) for line in wanted) <= now:
            return await self._end(batch, version, None, "not sent")
        requests = await asyncio.to_thread(self._requests, api, wanted)
        try:
            file = await api.upload(f"ziggurat-{batch.id}.jsonl", requests)
        except InferenceError as error:
            if error.retryable:
                raise
            # Nothing was bought. The plain call meets what is wrong and says so, or works where batches do not.
            self._complain(batch, error)
            return await self._end(batch, version, None, "refused")
        batch = replace(batch, state="uploaded", file=file)
        return batch, await self.keeping.put_batch(batch, version)

    def _requests(self, api: BatchApi, lines: list[Line]) -> bytes:
        return b"\n".join(api.request(line.id, self._seal.open_now(line.body, line.key)) for line in lines) + b"\n"

    async def _create(self, api: BatchApi, batch: Batch, version: int) -> tuple[Batch, int]:
        now = self._clock.time()
        batch = replace(batch, state="creating", tried_at=now, tries=batch.tries + 1, look_at=now + self.options.claim)
        version = await self.keeping.put_batch(batch, version)
        try:
            remote = await api.create(batch.id, batch.file)
        except InferenceError as error:
            self._complain(batch, error)
            if isinstance(error, EndpointFailed) or error.sent:
                return batch, version  # It may have been made; it is looked for before it is tried again.
            if not error.retryable or batch.tries >= rules.CREATE_TRIES:
                return await self._end(batch, version, None, "refused")
            wait = max(_LATER, error.retry_after or 0.0)
            batch = replace(batch, state="uploaded", look_at=self._clock.time() + wait)
            return batch, await self.keeping.put_batch(batch, version)
        return await self._created(batch, version, remote)

    async def _look_for(self, api: BatchApi, batch: Batch, version: int) -> tuple[Batch, int]:
        """Find out what became of a request to create a batch that brought no answer."""
        remote = await api.find(batch.id, batch.file)
        now = self._clock.time()
        if remote is not None:
            return await self._created(batch, version, remote)
        if now - batch.tried_at < rules.UNCERTAIN:
            batch = replace(batch, look_at=batch.tried_at + rules.UNCERTAIN)
            return batch, await self.keeping.put_batch(batch, version)
        if batch.tries >= rules.CREATE_TRIES or await self._is_late(batch):
            return await self._end(batch, version, None, "refused")
        batch = replace(batch, state="uploaded", look_at=now)
        return batch, await self.keeping.put_batch(batch, version)

    async def _is_late(self, batch: Batch) -> bool:
        now = self._clock.time()
        return any(rules.leaves_at(line, self.options) <= now for line, _ in await self._members(batch) if not line.dropped)

    async def _created(self, batch: Batch, version: int, remote: Remote) -> tuple[Batch, int]:
        batch = replace(batch, state="sent", remote=remote.id, look_at=self._clock.time() + self.options.look)
        version = await self.keeping.put_batch(batch, version)
        members = await self._members(batch)
        events.BATCH_SENT(batch=remote.id, endpoint=batch.endpoint, model=batch.upstream, calls=len(members))
        return batch, version

    async def _end(self, batch: Batch, version: int, remote: Remote | None, why: str) -> tuple[Batch, int]:
        """Bring the answers in, let go of the lines without one, and end the batch: in this order, so that a crash repeats it."""
        api = self.apis[batch.endpoint]
        answers = await api.answers(remote) if remote is not None else {}
        again = why in ("cancelled", "withdrawn", "not sent") or (remote is not None and "token_limit" in remote.reason)
        answered = 0
        for line, at in await self._members(batch):
            answer = answers.get(line.id)
            if isinstance(answer, Completion):
                answered += 1
            await self._settle(line, at, answer, again=again)
        batch = replace(batch, state="ended")
        version = await self.keeping.put_batch(batch, version)
        BATCHES.labels(batch.endpoint, why).inc()
        if remote is not None:
            events.BATCH_ENDED(batch=remote.id, endpoint=batch.endpoint, how=why, answered=answered, reason=remote.reason or "-")
        await api.tidy(batch, remote)
        return batch, version

    async def _settle(self, line: Line, at: int, answer: Completion | InferenceError | None, *, again: bool) -> None:
        """Write down what a batch brought for a line. One that left the batch meanwhile has been given up, and is left alone."""
        if line.dropped:
            if isinstance(answer, Completion):
                self._bill(line, answer)
            await self.keeping.forget_line(line, at)
            return
        if isinstance(answer, Completion):
            sealed = self._seal.seal_inline(_encode(answer), line.key)
            settled, how = replace(line, state="done", body=b"", answer=sealed), "answered"
        elif (
            answer is None
            and again
            and rules.may_wait(tried := replace(line, tries=line.tries + 1), self.options, self._clock.time())
        ):
            settled, how = replace(tried, state="waiting", batch=""), "again"
        else:
            # An error may be the route's fault or the request's: the router finds out, and it has other routes.
            settled, how = replace(line, state="online", batch=""), "online"
        if await self.keeping.put_line(settled, at):
            BATCH_CALLS.labels(line.endpoint, how).inc()
        elif isinstance(answer, Completion):
            # It was dropped, or it left, between the two. Read it again: what was answered was paid for.
            found = await self.keeping.line(line.key)
            if found is not None and found[0].id == line.id and found[0].state == "sent":
                await self._settle(found[0], found[1], answer, again=again)

    async def _members(self, batch: Batch) -> list[tuple[Line, int]]:
        return await self.keeping.lines(f"batch:{batch.id}", self.options.lines + 100_000)

    def _complain(self, batch: Batch, error: InferenceError) -> None:
        unreachable = isinstance(error, EndpointUnreachable)
        events.BATCH_TROUBLE(batch=batch.remote or batch.id, endpoint=batch.endpoint, what=batch.state, error=error)
        BATCHES.labels(batch.endpoint, "unreachable" if unreachable else "trouble").inc()
