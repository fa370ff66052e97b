"""One call on its way through its routes: what it has tried, how long it may still take, and what an error means for it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from ziggurat.clock import Clock
from ziggurat.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ContextTooLong,
    EndpointUnreachable,
    InferenceError,
    ModelNotFound,
    RateLimited,
    RequestRejected,
)
from ziggurat.inference.capabilities import weakened
from ziggurat.inference.interface import Endpoint, ModelConfig
from ziggurat.inference.needs import NOTHING, Needs, misfit, overlong, unmet
from ziggurat.inference.policies import USUAL_PACE, best_first, by_slack, cheapest_first, preferred_first
from ziggurat.inference.retrying import RetryOptions, backoff
from ziggurat.inference.routes import Route, Standing, choose
from ziggurat.inference.telling import Told
from ziggurat.inference.tokens import TokenEstimator
from ziggurat.program.context import current_attempt
from ziggurat.records import Prompt
from ziggurat.telemetry.catalogue import FALLBACKS, MODEL_RETRIES
from ziggurat.units import human_seconds

#: Look again at least this often while a breaker or a cool-down is waited for: another call's success ends it early.
LOOK_AGAIN = 0.5


class Call:
    """The state of one call. Used by one coroutine."""

    def __init__(
        self,
        prompt: Prompt,
        routes: list[Route],
        options: RetryOptions,
        clock: Clock,
        rng: random.Random,
        pause: Callable[[float], Awaitable[None]],
        told: Told | None = None,
        config: ModelConfig | None = None,
        needs: Needs = NOTHING,
    ) -> None:
        self.prompt = prompt
        #: What the alias meant when the call began.
        self.config = config
        #: What every route that is asked must satisfy.
        self.needs = needs
        #: Tells of the call as a span; None while nothing traces.
        self.told = told
        self._options, self._clock, self._rng, self.pause = options, clock, rng, pause
        self.standings = [Standing(route) for route in routes]
        #: The replicas that were asked.
        self._places: set[str] = set()
        self._total = prompt.timeout if prompt.timeout is not None else options.total
        attempt = current_attempt()
        if attempt is not None and attempt.info.deadline is not None:
            self._total = min(self._total, attempt.info.deadline - clock.time())
        self._deadline = clock.monotonic() + self._total
        #: True once an attempt of the call was hedged.
        self.hedged = False
        #: True if no cheaper model is left to ask.
        self.downgraded = False
        self._rule_out()

    async def rank(self, tokens: TokenEstimator) -> None:
        """Order the routes by the alias's policy and regions. Looks prices up the first time, beside the loop."""
        config, standings = self.config, self.standings
        if config is None or config.weights or len(standings) < 2:
            return
        if config.policy in ("price", "quality", "slack"):
            for standing in standings:
                await standing.route.prepare()
            at = self._clock.time()
            costs = [standing.route.cost(at) for standing in standings]
            if config.policy == "price":
                standings = cheapest_first(standings, costs)
            elif config.policy == "quality":
                standings = best_first(standings, [standing.route.quality for standing in standings], costs)
            else:
                standings = by_slack(standings, costs, [self._expected(s.route, tokens) for s in standings], self._slack())
        if config.prefer_regions:
            standings = preferred_first(standings, [standing.route.region for standing in standings], config.prefer_regions)
        self.standings = standings

    def _slack(self) -> float:
        """Return the seconds until the answer is wanted: the deadline of the call if it has one, else its time limit."""
        return self.left() if self.prompt.due is None else max(0.0, self.prompt.due - self._clock.time())

    def _expected(self, route: Route, tokens: TokenEstimator) -> float:
        """Return the seconds that an answer of a route is expected to take."""
        outputs = tokens.likely(self.prompt, route.upstream) - tokens.prompt(self.prompt, route.upstream)
        return outputs * (route.pace.seconds if route.pace.seconds is not None else USUAL_PACE)

    def _rule_out(self) -> None:
        """Leave out the routes that cannot serve the prompt."""
        prompt = self.prompt
        for standing in self.standings:
            route = standing.route
            kind: type[InferenceError] = RequestRejected
            why = misfit(prompt, route.capabilities)
            if not why and self.needs is not NOTHING:
                why = unmet(self.needs, route.region, route.quality)
            if not why and (why := overlong(prompt, route.context)):
                kind = ContextTooLong
            if why:
                standing.error = kind(f"it was not asked, since {why}.", endpoint=route.lane.endpoint.name, model=prompt.model)
                standing.out = True

    def left(self) -> float:
        """Return the seconds that the call may still take, at least 0."""
        return max(0.0, self._deadline - self._clock.monotonic())

    def place(self, route: Route) -> Endpoint:
        """Return where the next attempt at a route is made: at its endpoint, or at a replica that the call was not at yet."""
        place = route.lane.endpoint.place(self.prompt, route.upstream, self._places)
        if place.replica:
            self._places.add(place.replica)
        return place

    def second(self, standing: Standing, now: float) -> Standing:
        """Return where to send the call a second time: another replica, the next route that is ready, or else the same place."""
        if standing.route.lane.endpoint.choices(self._places):
            return standing
        return next((s for s in self.standings if s is not standing and not s.out and s.wait(now) <= 0), standing)

    async def next(self) -> Standing:
        """Wait until a route is ready, and return it. Raises the call's last error when none is left, or none in time."""
        while True:
            now = self._clock.monotonic()
            standing, wait = choose(self.standings, now)
            if standing is None:
                raise self._final()
            if wait <= 0:
                if not standing.attempts and not standing.limited:
                    standing.route.lane.budget.call(now)
                if standing.asked:
                    MODEL_RETRIES.labels(self.prompt.model).inc()
                elif any(other.asked for other in self.standings):
                    FALLBACKS.labels(self.prompt.model).inc()
                standing.asked = True
                standing.asked_with = standing.route.capabilities
                return standing
            if standing.route.breaker.wait(now) > self._options.patience:
                raise self._broken(standing, wait)
            if wait >= self._deadline - now:
                raise self.out_of_time(wait)
            own = standing.not_before - now >= wait
            await self.pause(wait if own or wait < LOOK_AGAIN else self._rng.uniform(LOOK_AGAIN, min(wait, 2 * LOOK_AGAIN)))

    def judge(self, standing: Standing, error: InferenceError | ConfigurationError) -> None:
        """Decide what an error of a route means: return to go on with `next`, or raise it as the call's end."""
        standing.error = error
        route, now = standing.route, self._clock.monotonic()
        if isinstance(error, ConfigurationError):
            standing.out = True  # An extra that is not installed: another route may need none.
        elif isinstance(error, RateLimited):
            route.lane.gate.limited(error.retry_after)
            standing.limited += 1
            standing.out = standing.limited >= self._options.limited_attempts
        elif isinstance(error, (AuthenticationFailed, ModelNotFound, ContextTooLong)):
            standing.out = True
        elif isinstance(error, RequestRejected):
            self._learn(standing, error)
        elif not error.retryable:
            if isinstance(error, EndpointUnreachable):
                standing.out = True
                return
            raise error
        else:
            standing.attempts += 1
            spare = route.lane.endpoint.choices(self._places)
            # An answer that did not come in time costs minutes; another route is asked before this one is asked again.
            slow = (
                not spare
                and isinstance(error, EndpointUnreachable)
                and error.sent
                and any(not s.out for s in self.standings if s is not standing)
            )
            spent = standing.attempts >= self._options.attempts
            # Calls that were at a replica when it was lost go to another at once, once each: that is no storm upon what is failing.
            moved = spare and standing.attempts == 1
            if slow or spent or not (moved or route.lane.budget.retry(now)):
                standing.out = True
            elif spare:
                standing.not_before = now
            else:
                standing.not_before = now + max(backoff(standing.attempts, self._options, self._rng), error.retry_after or 0.0)

    def downgrade(self, routes: list[Route]) -> None:
        """Go on over the routes of a cheaper model, since a budget is past its soft share; over the same if none of them will do."""
        self.downgraded = True
        before = self.standings
        self.standings = [Standing(route) for route in routes]
        self._rule_out()
        if all(standing.out for standing in self.standings):
            self.standings = before

    def out_of_time(self, wait: float | None = None) -> InferenceError:
        """Return the error of a call whose time is over, or would be before its next attempt."""
        why = f"the next attempt could start in {human_seconds(wait)} only" if wait is not None else "its time was over"
        text = f"The model {self.prompt.model!r} gave no answer within {human_seconds(self._total)}: {why}. {self._said()}"
        limited = any(isinstance(s.error, RateLimited) for s in self.standings)
        kind = RateLimited if wait is not None and limited else EndpointUnreachable
        return kind(text.rstrip(), model=self.prompt.model, retry_after=wait)

    def _learn(self, standing: Standing, error: RequestRejected) -> None:
        """Take the lesson of a refusal and ask again in a weaker way, or raise it if it teaches nothing."""
        route = standing.route
        if route.capabilities == standing.asked_with:  # Else another call learned the lesson meanwhile.
            weaker = weakened(route.capabilities, error)
            if weaker is None:
                raise error
            route.capabilities = weaker
        # What was learned may be that it cannot serve this prompt at all.
        standing.out = bool(misfit(self.prompt, route.capabilities))

    def _broken(self, standing: Standing, wait: float) -> InferenceError:
        text = (
            f"The model {self.prompt.model!r} is not called at present: {standing.route.name} failed several times in a row and is "
            f"tried again in {human_seconds(wait)}. {self._said()}"
        )
        return EndpointUnreachable(
            text.rstrip(), endpoint=standing.route.lane.endpoint.name, model=self.prompt.model, retry_after=wait
        )

    def _final(self) -> InferenceError | ConfigurationError:
        """Return the error of a call that has no route left: of the kind that leaves most hope, telling what each route said."""
        errors = [s.error for s in self.standings if isinstance(s.error, InferenceError)]
        wrong = [s.error for s in self.standings if isinstance(s.error, ConfigurationError)]
        if wrong and not errors:
            return wrong[0]
        if not errors:
            return ModelNotFound(f"The model {self.prompt.model!r} has no routes.", model=self.prompt.model)
        waits = [e.retry_after for e in errors if e.retry_after is not None]
        chosen = next((e for e in errors if e.retryable), errors[-1])
        only = self.standings[0]
        tried = only.attempts + only.limited
        if len(self.standings) == 1 and only.asked:
            text = str(chosen) + (f" (Tried {tried} times.)" if tried > 1 else "")
        else:
            text = f"No route of the model {self.prompt.model!r} answered. {self._said()}"
        final = type(chosen)(text, endpoint=chosen.endpoint, model=self.prompt.model, retry_after=min(waits, default=None))
        final.retryable, final.sent = chosen.retryable, any(e.sent for e in errors)
        final.__cause__ = chosen
        return final

    def _said(self) -> str:
        return " ".join(f"{s.route.name}: {s.error}" for s in self.standings if s.error is not None)
