"""The router: from the alias that a program names to an answer, over routes that fail, and the one place that retries.

A call's life:

    prompt → routes of the alias → choose one that is ready → shape to its capabilities → wait at the endpoint's gate → one attempt
           → unshape, count, price, record → completion
           → or an error, judged: the caller's fault (raise) · the route's fault (next route) · a moment's fault (again, within the
             call's attempts, the endpoint's retry budget and the deadline) · a limit (cool down, all callers of the endpoint)

What holds: at most `RetryOptions.attempts` attempts at a route fail; retries of an endpoint stay under its budget; a stream is never
begun anew once a piece of it was delivered; every attempt that was or may have been billed is recorded, once, under an id of its own.
What does not: that an attempt which was sent and not answered was free. It is recorded as "unanswered".
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

from msgspec.structs import replace

from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import ConfigurationError, EndpointFailed, EndpointUnreachable, InferenceError
from ziggurat.inference import telling
from ziggurat.inference.admission import Admission, Entry
from ziggurat.inference.answers import Answers
from ziggurat.inference.batches.buying import Buyer
from ziggurat.inference.batches.interface import BatchApi, BatchOptions, Shelf
from ziggurat.inference.batches.lanes import Lanes
from ziggurat.inference.batches.shipping import Seal
from ziggurat.inference.calls import Call
from ziggurat.inference.hedging import Hedges
from ziggurat.inference.identity import new_id
from ziggurat.inference.interface import Endpoint, Limits, ModelConfig
from ziggurat.inference.limits.budgets import Baseline, BudgetOptions, Budgets, PastSoft
from ziggurat.inference.limits.interface import Load
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.inference.limits.process import ProcessStore
from ziggurat.inference.needs import Residency, needs_of, unmet
from ziggurat.inference.parts import kinds_in, materialised, refers
from ziggurat.inference.retrying import RetryOptions
from ziggurat.inference.routes import Route, Routes, RouteView
from ziggurat.inference.seen import Seen
from ziggurat.inference.shadowing import Shadows
from ziggurat.inference.shaping import shape
from ziggurat.inference.switches import Follower
from ziggurat.inference.tokens import TokenEstimator, raw_tokens, size_of
from ziggurat.program.context import current_attempt
from ziggurat.program.llm import ModelCaller
from ziggurat.records import CallRecord, ChatMessage, Chunk, Completion, EmbeddingPrompt, Embeddings, Prompt, Usage
from ziggurat.telemetry import tracing

#: Receives the record of every attempt, failed ones included, in whatever thread made the call; must be quick and must not raise.
Recorder = Callable[[CallRecord], None]

#: A whole answer of an endpoint, with the usage that it reports.
Answer = TypeVar("Answer", Completion, Embeddings)


class Router(ModelCaller):
    """The inference layer of a process. Safe to use from several event loops in several threads.

    Args:
        endpoints: by name.
        models: the aliases that programs may name; "endpoint:upstream" works without one.
        options: how stubborn to be.
        ledger: receives every attempt's record.
        keeper: the way to the limits that are shared; without it, they are this router's alone.
        tenants: limits of tenants over all endpoints, by namespace.
        budgets: what may be spent, beside what callers allow themselves.
        baseline: what is known to be spent of a day, for a limit store that has forgotten it.
        residency: the regions that the calls of tenants and workflows must stay in.
        clock: for tests.
        seed: for the jitter, in tests.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        models: Mapping[str, ModelConfig],
        *,
        options: RetryOptions | None = None,
        ledger: Recorder | None = None,
        keeper: Keeper | None = None,
        tenants: Mapping[str, Limits] | None = None,
        budgets: BudgetOptions | None = None,
        baseline: Baseline | None = None,
        residency: Residency | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
    ) -> None:
        self.options = options or RetryOptions()
        self.clock = clock or SystemClock()
        self._rng = random.Random(seed)
        self._ledger = ledger
        self.keeper = keeper or Keeper(ProcessStore(self.clock), self.clock)
        self._table = Routes(endpoints, models, self.clock, self.options, self._rng, self.keeper, tenants or {})
        self.tokens = TokenEstimator()
        self.budgets = Budgets(self.keeper, self.clock, budgets, baseline)
        self.admission = Admission(self.tokens, self.budgets, self.clock)
        self.residency = residency or Residency()
        self._shadows = Shadows(self._bought)
        self._hedges = Hedges(self.clock)
        #: Recalls answers that need not be bought twice, where there is a place for them.
        self.answers: Answers | None = None
        #: Puts calls that may wait into batches, where an endpoint has them.
        self.lanes: Lanes | None = None
        #: Follows the switches of aliases, where there are any to follow.
        self.follower: Follower | None = None
        #: Carries out what an answer need not wait for: at once, or, in a door that passes answers on, when the answer has left.
        self.afterwards: Callable[[Callable[[], None]], object] = _at_once
        telling.show(self)

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.time()

    async def complete(self, prompt: Prompt) -> Completion:
        waits = self.lanes.way(prompt, self.answers) if prompt.due is not None and self.lanes is not None else None
        place = self.answers.place(prompt) if self.answers is not None else None
        known = await self.answers.recall(place) if self.answers is not None and place is not None else None
        if known is None:
            known = await waits() if waits is not None else None
            if known is None:
                known = await self._bought(prompt)
            if self.answers is not None and place is not None:
                await self.answers.keep(place, known)
        return known

    async def _first(self, prompt: Prompt) -> tuple[Route, int] | None:
        """Return the route that a call would take first, and the switch that chose it."""
        call = self._call(prompt, None)
        await call.rank(self.tokens)
        first = next((standing.route for standing in call.standings if not standing.out), None)
        return (first, call.config.version if call.config is not None else 0) if first is not None else None

    def open_lanes(self, shelf: Shelf, apis: dict[str, BatchApi], seal: Seal, options: BatchOptions) -> None:
        """Let calls that may wait go into batches, at the endpoints that `apis` names."""
        buyer = Buyer(self.admission, self._ledger, self.pause)
        self.lanes = Lanes(shelf, apis, seal, options, self.clock, buyer, self._first)

    async def _bought(self, prompt: Prompt) -> Completion:
        call = self._call(prompt, telling.begin(prompt, self.clock))
        if call.config is not None and call.config.shadow:
            (shadow,) = self._table.of(call.config.shadow)
            if not unmet(call.needs, shadow.region, 5):
                self._shadows.cast(call.config.shadow, prompt)
        return await self._until_answered(call, lambda route: self._attempt(call, route))

    async def embed(self, prompt: EmbeddingPrompt) -> Embeddings:
        """Return the vectors of texts: limited, retried, priced and recorded like any call. Raises InferenceError."""
        # To the limits and the estimates, the inputs are the prompt, and there is no answer to speak of.
        said = [ChatMessage(role="user", content=text if isinstance(text, str) else " the" * len(text)) for text in prompt.inputs]
        asked = Prompt(messages=said, model=prompt.model, max_tokens=1, timeout=prompt.timeout)
        call = self._call(asked, telling.begin(asked, self.clock, "embeddings"))
        if (here := current_attempt()) is not None:
            here.unkept = True

        async def ask(endpoint: Endpoint, shaped: Prompt, upstream: str) -> Embeddings:
            return await endpoint.embed(replace(prompt, timeout=shaped.timeout), upstream)

        async def attempt(route: Route) -> Embeddings:
            answer, record = await self._ask(call, route, call.prompt, ask)
            name = route.lane.endpoint.name
            return replace(answer, usage=record.usage, model=prompt.model, endpoint=name, upstream=route.upstream, call=record)

        return await self._until_answered(call, attempt)

    async def _until_answered(self, call: Call, attempt: Callable[[Route], Awaitable[Answer]]) -> Answer:
        if call.told is None:
            return await self._answer(call, attempt)
        with call.told:
            answer = await self._answer(call, attempt)
            call.told.answered(answer)
            return answer

    async def _answer(self, call: Call, attempt: Callable[[Route], Awaitable[Answer]]) -> Answer:
        try:
            async with asyncio.timeout(call.left()):
                await call.rank(self.tokens)
                while True:
                    standing = await call.next()
                    await standing.route.prepare()
                    try:
                        if call.config is not None and call.config.hedge is not None:
                            return await self._hedges.answer(call, standing, attempt)
                        return await attempt(standing.route)
                    except PastSoft:
                        call.downgrade(self._table.of(self.budgets.options.downgrade))
                    except (InferenceError, ConfigurationError) as error:
                        call.judge(standing, error)
        except TimeoutError:
            raise call.out_of_time() from None

    def stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        place = self.answers.place(prompt) if self.answers is not None else None
        if self.answers is None or place is None:
            return self._bought_stream(prompt)
        return self.answers.through(place, lambda: self._bought_stream(prompt))

    def _bought_stream(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        return self._stream(prompt, None) if tracing.current is None else telling.told_stream(prompt, self.clock, self._stream)

    async def _stream(self, prompt: Prompt, told: telling.Told | None) -> AsyncGenerator[Chunk, None]:
        call = self._call(prompt, told)
        await call.rank(self.tokens)
        while True:
            standing = await call.next()
            await standing.route.prepare()
            delivered = False
            try:
                if call.config is not None and call.config.hedge is not None:
                    attempt = self._hedges.stream(call, standing, self._attempt_stream)
                else:
                    attempt = self._attempt_stream(call, standing.route)
                async with aclosing(attempt) as chunks:
                    async for chunk in chunks:
                        delivered = True
                        yield chunk
                return
            except PastSoft:
                call.downgrade(self._table.of(self.budgets.options.downgrade))
            except (InferenceError, ConfigurationError) as error:
                if delivered:
                    raise
                call.judge(standing, error)
            except TimeoutError:
                raise call.out_of_time() from None

    def config(self, model: str) -> ModelConfig | None:
        """Return what an alias means now; None for a route that is named directly."""
        return self._table.config(model)

    def set_models(self, models: Mapping[str, ModelConfig]) -> None:
        """Point the aliases anew, from the next call on. Raises UnknownName."""
        self._table.set_models(models)

    def aliases(self) -> list[str]:
        """Return the configured aliases."""
        return self._table.aliases()

    def routes(self, model: str) -> list[RouteView]:
        """Describe the routes of an alias as they stand. Raises ModelNotFound."""
        return self._table.views(model, self.clock.monotonic())

    def loads(self) -> list[Load]:
        """Return what this process has at the endpoints that it calls."""
        return [load for lane in self._table.lanes.values() if (load := lane.gate.load()) is not None]

    def standing(self) -> tuple[dict[str, tuple[int, int]], dict[tuple[str, str], str]]:
        """Return calls under way and waiting by endpoint, and the breaker's state by endpoint and upstream model."""
        return self._table.standing(self.clock.monotonic())

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoints, by name."""
        return self._table.endpoints

    async def check(self) -> dict[str, str | InferenceError]:
        """Ask every endpoint for its health: a sentence, or the error that it met."""

        async def ask(endpoint: Endpoint) -> str | InferenceError:
            try:
                return await endpoint.check()
            except InferenceError as error:
                return error

        answers = await asyncio.gather(*(ask(e) for e in self.endpoints.values()))
        return dict(zip(self.endpoints, answers, strict=True))

    async def close(self) -> None:
        """Close every endpoint, and let go of what is shared."""
        if self.follower is not None:
            await asyncio.to_thread(self.follower.close)
        if self.lanes is not None:
            await self.lanes.close()
        if self.answers is not None:
            self.answers.close()
        await self._shadows.close()
        for endpoint in self.endpoints.values():
            await endpoint.close()
        await asyncio.to_thread(self.keeper.close)

    def _call(self, prompt: Prompt, told: telling.Told | None) -> Call:
        routes, config = self._table.pick(prompt.model)
        needs = needs_of(prompt, config, self.residency)
        call = Call(prompt, routes, self.options, self.clock, self._rng, self.pause, told, config, needs)
        call.downgraded = self.budgets.options.downgrade in ("", prompt.model)
        return call

    # -- one attempt -------------------------------------------------------------------------------------------------

    async def _attempt(self, call: Call, route: Route) -> Completion:
        shaped, unshaping = shape(call.prompt, route.capabilities)
        answer, record = await self._ask(call, route, shaped, _complete)
        if unshaping is not None:
            answer = unshaping.completion(answer)
        name = route.lane.endpoint.name
        return replace(answer, usage=record.usage, model=call.prompt.model, endpoint=name, upstream=route.upstream, call=record)

    async def _ask(
        self, call: Call, route: Route, shaped: Prompt, ask: Callable[[Endpoint, Prompt, str], Awaitable[Answer]]
    ) -> tuple[Answer, CallRecord]:
        """Make one attempt at a whole answer, and record it."""
        clock = self.clock
        entry = await self.admission.enter(route, shaped, past_soft=call.downgraded)
        entry.place = call.place(route)
        route.breaker.begin(clock.monotonic())
        started_at, started = clock.time(), clock.monotonic()
        try:
            answer = await ask(entry.place, replace(shaped, timeout=call.left()), route.upstream)
            usage = self._counted(route, shaped, answer.usage, size_of(answer))
        except BaseException as error:
            self._failed(call, route, entry, shaped, error, started_at, started)
            raise
        record = self._record(call, route, entry, usage, started_at, clock.monotonic() - started, None, "ok")
        self._succeeded(route)
        return answer, record

    async def _attempt_stream(self, call: Call, route: Route) -> AsyncGenerator[Chunk, None]:
        clock = self.clock
        shaped, unshaping = shape(call.prompt, route.capabilities)
        async with asyncio.timeout(call.left()):
            entry = await self.admission.enter(route, shaped, past_soft=call.downgraded)
        entry.place = call.place(route)
        route.breaker.begin(clock.monotonic())
        started_at, started = clock.time(), clock.monotonic()
        seen = Seen()
        try:
            sent = await materialised(replace(shaped, timeout=call.left()))
            async with aclosing(entry.place.stream(sent, route.upstream)) as chunks:
                async for chunk in chunks:
                    if seen.first is None:
                        seen.first = clock.monotonic() - started
                    passed = seen.take(chunk)
                    if passed is not None and unshaping is not None:
                        passed = unshaping.chunk(passed)
                    if passed is not None and (passed.text or passed.reasoning or passed.tool_calls):
                        yield passed
            usage = self._counted(route, shaped, seen.usage, seen.size)
        except BaseException as error:
            if seen.first is None:
                self._failed(call, route, entry, shaped, error, started_at, started)
            else:
                # Whoever stopped the stream, what was written of it is billed.
                usage = self._counted(route, shaped, seen.usage, seen.size)
                status = type(error).__name__ if isinstance(error, InferenceError) else "stopped"
                self._record(call, route, entry, usage, started_at, clock.monotonic() - started, seen.first, status)
                self._verdict(route, error)
            raise
        record = self._record(call, route, entry, usage, started_at, clock.monotonic() - started, seen.first, "ok")
        self._succeeded(route)
        last = replace(seen.final, usage=record.usage, call=record)
        yield last if unshaping is None else unshaping.chunk(last)

    def _succeeded(self, route: Route) -> None:
        route.breaker.success()
        route.lane.gate.succeeded()
        said = route.lane.endpoint.reported(route.upstream)
        if said is not None:
            route.lane.gate.reported(route.upstream, said)

    def _counted(self, route: Route, shaped: Prompt, usage: Usage, size: int) -> Usage:
        """Return the usage, estimated from the answer's bytes and marked as such where the endpoint reports none."""
        if usage.calls:
            if kinds_in(shaped) <= {"text"}:  # What an image took says nothing of how a model cuts text.
                self.tokens.learn(raw_tokens(shaped), route.upstream, usage.input_tokens)
            self.tokens.answered(shaped, route.upstream, usage.output_tokens)
            return usage
        inputs, outputs = self.tokens.prompt(shaped, route.upstream), self.tokens.answer(size, route.upstream)
        return Usage(calls=1, input_tokens=inputs, output_tokens=outputs, estimated_tokens=inputs + outputs)

    def _failed(
        self, call: Call, route: Route, entry: Entry, shaped: Prompt, error: BaseException, started_at: float, started: float
    ) -> None:
        """Record an attempt that brought nothing, and tell the breaker."""
        latency = self.clock.monotonic() - started
        # Cancelled, or out of time: the request may have reached the provider.
        gone = isinstance(error, TimeoutError) or not isinstance(error, Exception)
        unanswered = gone or (isinstance(error, InferenceError) and error.sent)
        status = "unanswered" if unanswered else type(error).__name__
        if unanswered and entry.cost is None:
            entry.cost = self.admission.estimate(route, shaped)
        self._record(call, route, entry, Usage(), started_at, latency, None, status)
        self._verdict(route, error)

    def _verdict(self, route: Route, error: BaseException) -> None:
        if isinstance(error, (EndpointUnreachable, EndpointFailed)) and error.retryable:
            if route.lane.endpoint.spare():
                route.breaker.abandon()  # One replica's failure, which it counts itself, is not the endpoint's.
                return
            route.breaker.failure(self.clock.monotonic())
        elif isinstance(error, InferenceError):
            route.breaker.success()  # It answered: with a refusal or a limit, but it is alive.
        else:
            route.breaker.abandon()

    def _record(
        self,
        call: Call,
        route: Route,
        entry: Entry,
        usage: Usage,
        started_at: float,
        latency: float,
        first: float | None,
        status: str,
    ) -> CallRecord:
        """End an attempt: give back what it did not use, and record it in the ledger and, if it was or may have been billed, in the
        step's account.
        """
        tariff = route.tariff
        used = float(usage.input_tokens + usage.output_tokens) if usage.calls else None
        if status == EndpointUnreachable.__name__:
            used = 0.0  # It was never sent. Other failures count against a provider's limits.
        rent = self.admission.leave(route, entry, used)
        billed = tariff.bill(usage, started_at) if usage.calls else usage
        held = entry.cost.likely if status == "unanswered" and entry.cost is not None else 0.0
        if rent:
            billed = replace(billed, cost_usd=billed.cost_usd + rent)
        record = CallRecord(
            id=new_id(),
            model=call.prompt.model,
            endpoint=route.lane.endpoint.name,
            upstream=route.upstream,
            usage=billed,
            price_version=tariff.version_at(started_at),
            started_at=started_at,
            latency=latency,
            first_token=first,
            status=status,
            switch=call.config.version if call.config is not None else 0,
            held_usd=held,
            hedge=entry.hedge,
            replica=entry.place.replica if entry.place is not None else "",
        )
        if status == "ok":
            route.pace.answered(latency, usage.output_tokens)
        if usage.calls or status == "unanswered":
            attempt = current_attempt()
            if attempt is not None:
                attempt.record_call(record)

        def account() -> None:
            self.admission.settle(entry, billed.cost_usd + held)
            telling.called(record, call.told)
            if self._ledger is not None:
                self._ledger(record)

        # A call that is told of as a span must be told of before that span ends.
        put = self.afterwards if status == "ok" and call.told is None else _at_once
        put(account)
        return record

    async def pause(self, seconds: float) -> None:
        """Wait so long by the router's clock."""
        until = self.clock.monotonic() + seconds
        moved = asyncio.Event()
        stop = self.clock.watch(moved.set)
        try:
            while (left := until - self.clock.monotonic()) > 0:
                timer = asyncio.get_running_loop().call_later(left, moved.set)
                try:
                    await moved.wait()
                finally:
                    timer.cancel()
                moved.clear()
        finally:
            stop()


def _at_once(work: Callable[[], None]) -> None:
    work()


def _complete(endpoint: Endpoint, prompt: Prompt, upstream: str) -> Awaitable[Completion]:
    return _complete_with_files(endpoint, prompt, upstream) if refers(prompt) else endpoint.complete(prompt, upstream)


async def _complete_with_files(endpoint: Endpoint, prompt: Prompt, upstream: str) -> Completion:
    return await endpoint.complete(await materialised(prompt), upstream)
