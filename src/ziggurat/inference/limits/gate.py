"""The gate before an endpoint: calls wait here, by priority and tenant, rather than in the provider's queue or in a storm of 429s.

    enter ─▶ a share in hand covers it ─────────────────────────────▶ admitted ─▶ leave: the share gets the difference to what was used
          └▶ line (priority, tenant) ─▶ ask the store for all its keys ─▶ granted ─▶ admitted, at once or after a short delay
                                                        └▶ refused: its place in the line is blocked, others go on

The keys of a call are its endpoint, its model, its tenant and its caller's own, as far as they are limited. A process asks the store for
a little more than it needs when it has been busy, and gives back what it does not use; so most calls of a busy process ask nobody.

Where nothing is known, 429s teach: they halve the calls at a time, success widens them again (additive increase, multiplicative
decrease; Chiu and Jain, 1989). That window is each process's own: processes share an unknown limit as TCP flows share a link.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping
from functools import partial

from ziggurat.clock import Clock
from ziggurat.inference.interface import Limits, Reported
from ziggurat.inference.limits.book import EPSILON
from ziggurat.inference.limits.interface import Answer, Cool, Flow, Give, Load, Slots, Take, Taken
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.inference.limits.line import Line
from ziggurat.inference.limits.tickets import Demand, Rule, Share, SlotShare, Ticket
from ziggurat.inference.retrying import CoolDown

#: A learned window this wide limits nothing any more, and is forgotten.
LEARNED_MAX = 1024.0
#: Limits that a process tells of at most: gateways may know thousands of keys.
LOAD_MOST = 200
#: Wake at least this often, so that a lost wake-up costs seconds and not a call.
LOOK_AGAIN = 5.0
#: Ask the store again at least this often, as others may have given back what they did not use.
ASK_AGAIN = 1.0
#: Seconds after which a process that did not use what it has in hand no longer has it. A remote store gets it back (`Gate.tidy`).
LAPSE = 1.0


class Gate:
    """Admits calls to one endpoint. Safe to use from several event loops in several threads.

    Args:
        name: the endpoint's.
        limits: the endpoint's.
        keeper: the way to the store.
        models: limits of its models, by upstream name.
        tenants: limits of tenants over all endpoints, by namespace; "*" for each that is not named.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        clock: Clock,
        rng: random.Random,
        keeper: Keeper,
        *,
        models: Mapping[str, Limits] | None = None,
        tenants: Mapping[str, Limits] | None = None,
    ) -> None:
        self.name, self.limits = name, limits
        self._clock, self._rng, self._keeper = clock, rng, keeper
        self._models, self._tenants = dict(models or {}), dict(tenants or {})
        self._cool_down = CoolDown()
        self._learned: float | None = None
        self._shrunk_until = 0.0
        self._lock = threading.RLock()
        self._line: Line[Ticket] = Line()
        self._shares: dict[str, Share] = {}
        self._slots: dict[str, SlotShare] = {}
        self._left: dict[str, float] = {}
        self._rules_of: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._asking = False
        self._alarm_at = 0.0
        self._unwatch: Callable[[], None] = _nothing
        self.in_flight = 0
        if keeper.remote:
            keeper.tidy.append(self.tidy)
            keeper.loads.append(self.load)

    # -- what is seen of it ------------------------------------------------------------------------------------------

    @property
    def window(self) -> float | None:
        """Calls at a time that the gate lets through now; None if it does not limit them."""
        if self._learned is None:
            return self.limits.concurrency
        return self._learned if self.limits.concurrency is None else min(self._learned, self.limits.concurrency)

    @property
    def waiting(self) -> int:
        """Calls that wait here."""
        return len(self._line)

    def cooling(self) -> float:
        """Return the seconds that the endpoint is still to be left alone."""
        return self._cool_down.wait(self._clock.monotonic())

    def load(self) -> Load | None:
        """Return what this process has at the endpoint; None if it never called it."""
        with self._lock:
            if not (self._shares or self._slots or self.in_flight or self._line or self._learned is not None):
                return None
            return Load(
                endpoint=self.name,
                in_flight=self.in_flight,
                waiting=self._line.levels(),
                learned=self._learned,
                flows={key: (share.rate, share.burst) for key, share in list(self._shares.items())[:LOAD_MOST]},
                slots={key: slots.limit for key, slots in list(self._slots.items())[:LOAD_MOST]},
            )

    # -- coming and going --------------------------------------------------------------------------------------------

    async def enter(self, demand: Demand) -> Ticket:
        """Wait until a call may start. Every enter is followed by one `leave`; a cancelled one is not."""
        ticket = self.ticket(demand)
        if not ticket.begun:
            await self.wait(ticket)
        return ticket

    def ticket(self, demand: Demand) -> Ticket:
        """Return a call's ticket, begun if the call may start now; one that is not stands in the line and must be waited for at once."""
        now = self._clock.monotonic()
        ticket = Ticket(demand, self._rules(demand), now)
        with self._lock:
            refusal: tuple[Take, Taken] | None = None
            if not self._line and self._may_start(now):
                if self._draw(ticket, now):
                    self._admit(ticket, now)
                elif not self._keeper.remote and not self._asking:
                    refusal = self._take_at_once(ticket, now)
            ticket.begun = ticket.admitted and ticket.start_at <= now
            if not ticket.begun:
                ticket.loop = asyncio.get_running_loop()
            if not ticket.admitted:
                if not self._line:
                    self._unwatch = self._clock.watch(self._moved)
                self._line.add(ticket)
                if refusal is not None:
                    self._refused(ticket, *refusal, now)
        if not ticket.admitted:
            self._pump()
        return ticket

    async def wait(self, ticket: Ticket) -> None:
        """Wait until a ticket's call may start; a cancelled wait gives the ticket back."""
        assert ticket.loop is not None
        # One that is promised a moment stands in no line any more, and its moment comes by the clock as well.
        stop = self._clock.watch(lambda: self._ring(ticket))
        try:
            while not ticket.admitted or ticket.start_at > self._clock.monotonic():
                with self._lock:
                    ticket.future = ticket.loop.create_future()
                    left = ticket.start_at - self._clock.monotonic() if ticket.admitted else LOOK_AGAIN
                if left > 0:
                    await _rung(ticket.future, left)
                    if not ticket.admitted:
                        self._pump()
        except BaseException:
            with self._lock:
                entered = ticket.admitted
                self._line.remove(ticket)
                self._settle_line()
            if entered:
                self.leave(ticket, 0.0)
            else:
                self._pump()
            raise
        finally:
            stop()

    def leave(self, ticket: Ticket, used: float | None) -> None:
        """End a call: `used` are the tokens it took, None if that is unknown and the reservation stands."""
        give: list[tuple[str, float, float, float]] = []
        slots: list[tuple[str, int]] = []
        with self._lock:
            self.in_flight -= 1
            spare = 0.0 if used is None else ticket.demand.tokens - used
            for rule in ticket.rules:
                if spare and rule.limits.tokens_per_minute:
                    share = self._shares[f"{rule.key}:tokens"]
                    # Nobody gives back for a store in this process (`tidy`), so no more than is taken ahead stays here.
                    if self._keeper.remote or 0.0 <= share.in_hand + spare <= share.ahead:
                        share.in_hand += spare
                    else:
                        give.append((f"{rule.key}:tokens", share.rate, share.burst, spare))
                if rule.limits.concurrency:
                    key = f"{rule.key}:calls"
                    mine = self._slots[key]
                    mine.used -= 1
                    fair = max(1, mine.limit // self._keeper.holders)
                    if not (self._line and self._keeper.remote) or (mine.contended and mine.has > fair):
                        mine.has -= 1
                        slots.append((key, 1))
            if self._line and (spare > 0 or slots):
                self._line.unblock()
        if give or slots:
            self._keeper.tell(Give(flows=tuple(give), slots=tuple(slots)))
        if self._line:
            self._pump()

    def limited(self, retry_after: float | None) -> float:
        """Take in a 429 and return the seconds until calls may start again; others who share the limits learn of it too."""
        with self._lock:
            now = self._clock.monotonic()
            wait = self._cool_down.limited(now, retry_after, self._rng)
            if now >= self._shrunk_until:  # Once for a burst of 429s: they tell of one moment.
                self._learned = max(1.0, min(self.window or LEARNED_MAX, self.in_flight) / 2)
                self._shrunk_until = now + wait
        if self._keeper.remote:
            self._keeper.tell(Cool(gate=self.name, seconds=wait))
        return wait

    def succeeded(self) -> None:
        """Take in that the endpoint answered."""
        if self._learned is not None:
            with self._lock:
                if self._learned is not None:
                    self._cool_down.success()
                    self._learned += 1.0 / self._learned
                    if self._learned >= LEARNED_MAX:
                        self._learned = None

    def reported(self, upstream: str, said: Reported) -> None:
        """Take in what the provider says of its limits for a model: they hold where the settings say nothing, and what is left counts."""
        with self._lock:
            known = self._models.get(upstream, Limits())
            # The settings' own numbers stay: a person may want less than the provider allows.
            requests = known.requests_per_minute or self.limits.requests_per_minute or said.requests_per_minute
            tokens = known.tokens_per_minute or self.limits.tokens_per_minute or said.tokens_per_minute
            learned = Limits(
                requests_per_minute=requests, tokens_per_minute=tokens, concurrency=known.concurrency, burst=self.limits.burst
            )
            if learned != known and (said.requests_per_minute or said.tokens_per_minute):
                self._models[upstream] = learned
                self._rules_of.clear()
            for what, left in (("tokens", said.tokens_left), ("requests", said.requests_left)):
                if left is not None:
                    self._left[f"model:{self.name}:{upstream}:{what}"] = left

    # -- inside ------------------------------------------------------------------------------------------------------

    def _rules(self, demand: Demand) -> tuple[Rule, ...]:
        place = (demand.upstream, demand.namespace)
        rules = self._rules_of.get(place)
        if rules is None:
            found = [Rule(f"endpoint:{self.name}", self.limits, False)]
            if model := self._models.get(demand.upstream):
                found.append(Rule(f"model:{self.name}:{demand.upstream}", model, True))
            if tenant := self._tenants.get(demand.namespace) or self._tenants.get("*"):
                found.append(Rule(f"tenant:{demand.namespace}", tenant, True))
            if len(self._rules_of) > 10_000:
                self._rules_of.clear()
            rules = self._rules_of[place] = tuple(rule for rule in found if rule.limits.any)
        if demand.limits is not None and demand.limits.any:
            return (*rules, Rule(f"key:{demand.key}", demand.limits, True))
        return rules

    def _may_start(self, now: float) -> bool:
        if self._learned is not None and self.in_flight >= max(1, int(self._learned)):
            return False
        return self._cool_down.wait(now) <= 0

    def _draw(self, ticket: Ticket, now: float) -> bool:
        """Pay for a call from what is in hand; says whether that was enough."""
        if not ticket.rules:
            return True
        flows = ticket.flows
        shares, enough, remote = self._shares, True, self._keeper.remote
        for key, rate, burst, amount in flows:
            share = shares.get(key)
            if share is None:
                share = shares[key] = Share()
            share.rate, share.burst = rate, burst
            if not remote and now - share.touched > LAPSE:
                share.in_hand = min(share.in_hand, 0.0)
            if share.in_hand < amount - EPSILON * burst:
                enough = False
        if not enough:
            return False
        limited = [rule for rule in ticket.rules if rule.limits.concurrency]
        for rule in limited:
            slots = self._slots.setdefault(f"{rule.key}:calls", SlotShare())
            slots.limit = rule.limits.concurrency or 0
            if slots.used >= slots.has:
                return False
        for key, _, _, amount in flows:
            shares[key].draw(amount, now)
        for rule in limited:
            self._slots[f"{rule.key}:calls"].used += 1
        return True

    def _admit(self, ticket: Ticket, start_at: float) -> None:
        ticket.admitted, ticket.start_at = True, start_at
        self.in_flight += 1
        self._ring(ticket)

    def _pump(self) -> None:
        """Admit whom it can, and ask the store for the next one; called whenever something may have changed."""
        while True:
            with self._lock:
                now = self._clock.monotonic()
                if self._asking or not self._line:
                    return
                if not self._may_start(now):
                    self._alarm(self._cool_down.wait(now))
                    return
                ticket = self._line.next(now)
                if ticket is None:
                    self._alarm(self._line.wait(now))
                    return
                if self._draw(ticket, now):
                    self._line.serve(ticket, now)
                    self._admit(ticket, now)
                    self._settle_line()
                    continue
                take = self._question(ticket, now)
                self._asking = True
            self._keeper.ask([take], partial(self._answered, ticket, take))
            if self._keeper.remote:
                return

    def _question(self, ticket: Ticket, now: float) -> Take:
        """Return what to ask the store for, so that this call can start."""
        flows: list[Flow] = []
        for key, rate, burst, amount in ticket.flows:
            share = self._shares[key]
            need = amount - share.in_hand
            if need > EPSILON * burst:
                left = self._left.pop(key, None)
                flows.append(Flow(key=key, rate=rate, burst=burst, need=need, want=need + share.ahead, left=left))
        slots: list[Slots] = []
        for rule in ticket.rules:
            if limit := rule.limits.concurrency:
                mine = self._slots.setdefault(f"{rule.key}:calls", SlotShare())
                mine.limit = limit
                if mine.used >= mine.has:
                    want = min(len(self._line), 8) if self._keeper.remote else 1
                    slots.append(Slots(key=f"{rule.key}:calls", limit=limit, want=max(1, want)))
        return Take(gate=self.name, flows=tuple(flows), slots=tuple(slots), priority=self._line.priority(ticket, now))

    def _answered(self, ticket: Ticket, take: Take, answers: list[Answer]) -> None:
        [taken] = answers
        assert isinstance(taken, Taken)
        with self._lock:
            self._asking = False
            now = self._clock.monotonic()
            for wanted in take.slots:
                self._slots[wanted.key].contended = taken.contended
            if taken.granted:
                self._received(take, taken, now)
                # It may have been cancelled meanwhile: then what was taken waits for the next one, or is given back. Or another call has
                # turned out longer than estimated, and what is in hand is too little again: then it keeps its place.
                if ticket in self._line and self._draw(ticket, now):
                    self._line.serve(ticket, now)
                    self._admit(ticket, now + taken.delay)
                    self._settle_line()
            else:
                self._refused(ticket, take, taken, now)
        if self._keeper.remote:
            self._pump()

    def _take_at_once(self, ticket: Ticket, now: float) -> tuple[Take, Taken] | None:
        """Ask a store of this process without a place in the line, and admit the call; returns a refusal."""
        take = self._question(ticket, now)
        answers: list[Answer] = []
        self._keeper.ask([take], answers.extend)
        [taken] = answers
        assert isinstance(taken, Taken)
        if not taken.granted:
            return take, taken
        self._received(take, taken, now)
        if self._draw(ticket, now):
            self._admit(ticket, now + taken.delay)
        return None

    def _received(self, take: Take, taken: Taken, now: float) -> None:
        for flow, amount in zip(take.flows, taken.flows, strict=True):
            self._shares[flow.key].in_hand += amount
            self._shares[flow.key].touched = now
        for slots, count in zip(take.slots, taken.slots, strict=True):
            self._slots[slots.key].has += count

    def _refused(self, ticket: Ticket, take: Take, taken: Taken, now: float) -> None:
        narrow = any(taken.short.startswith(f"{rule.key}:") for rule in ticket.rules if rule.narrow)
        # All who were refused would come back at the same moment, and all but one in vain.
        spread = 0.0
        if self._keeper.remote:
            turn = max((flow.need / flow.rate for flow in take.flows), default=0.01)
            spread = self._rng.uniform(0.0, min(0.25, taken.holders * turn))
        wait = taken.wait if not taken.short else min(taken.wait, ASK_AGAIN)
        self._line.block(ticket, now + max(0.002, wait) + spread, tenant_only=narrow)

    def _settle_line(self) -> None:
        if not self._line:
            self._unwatch()
            self._unwatch = _nothing
            self._line.unblock()

    def _moved(self) -> None:
        """The clock was moved by hand."""
        self._alarm_at = 0.0
        self._pump()

    def _alarm(self, wait: float) -> None:
        """Pump again after so many seconds, on the loop of a call that waits."""
        now = self._clock.monotonic()
        if wait <= 0 or (now < self._alarm_at <= now + wait):
            return
        for ticket in self._line.calls():
            assert ticket.loop is not None
            try:
                # A millisecond more, so that the moment is past when the timer fires.
                ticket.loop.call_soon_threadsafe(ticket.loop.call_later, wait + 0.001, self._rang)
            except RuntimeError:
                # Its loop is closed, and nobody will ever await it: it must not keep the others waiting.
                self._line.remove(ticket)
                continue
            self._alarm_at = now + wait
            return

    def _rang(self) -> None:
        self._alarm_at = 0.0
        self._pump()

    def _ring(self, ticket: Ticket) -> None:
        if ticket.future is not None and ticket.loop is not None:
            try:
                ticket.loop.call_soon_threadsafe(_ring, ticket.future)
            except RuntimeError:
                if ticket.admitted:
                    self.leave(ticket, 0.0)  # Nobody is there any more to make the call.
                else:
                    self._line.remove(ticket)

    def tidy(self) -> None:
        """Give back what this process has in hand and does not use. Called by the keeper now and then."""
        now = self._clock.monotonic()
        give: list[tuple[str, float, float, float]] = []
        slots: list[tuple[str, int]] = []
        with self._lock:
            if self._line or self._asking:
                return
            for key, share in self._shares.items():
                if share.in_hand and now - share.touched > LAPSE:
                    give.append((key, share.rate, share.burst, share.in_hand))
                    share.in_hand = 0.0
            for key, mine in self._slots.items():
                if mine.has > mine.used:
                    slots.append((key, mine.has - mine.used))
                    mine.has = mine.used
        if give or slots:
            self._keeper.tell(Give(flows=tuple(give), slots=tuple(slots)))


def _nothing() -> None:
    pass


def _ring(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _rung(future: asyncio.Future[None], seconds: float) -> None:
    """Wait until the future rings or the time is over."""
    timer = asyncio.get_running_loop().call_later(seconds, _ring, future)
    try:
        await future
    finally:
        timer.cancel()
