"""Consistent latency, on a simulated clock: a flood of low calls waits, and high ones hardly notice; in one process and across two."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from ziggurat.inference.interface import Limits
from ziggurat.inference.limits import line
from ziggurat.inference.limits.gate import Gate
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.inference.limits.line import AGEING
from ziggurat.inference.limits.process import ProcessStore
from ziggurat.inference.limits.tickets import Demand
from ziggurat.testing.clock import FakeClock

#: Seconds of the simulation, in which the backlog grows older than any ageing, and of one step of its clock.
SPAN, STEP = 90.0, 0.1
TOKENS = 100.0


class World:
    """Calls through gates that share a store, on a clock that steps."""

    def __init__(self, gates: int, **limits: Any) -> None:
        self.clock = FakeClock()
        store = ProcessStore(self.clock)
        made = Limits(**limits)
        self.gates = [
            Gate("g", made, self.clock, random.Random(n), Keeper(store, self.clock), tenants={"other": Limits(concurrency=1000)})
            for n in range(gates)
        ]
        self.latencies: dict[str, list[float]] = {"high": [], "low": []}
        self._due: list[tuple[float, asyncio.Event]] = []
        self._calls: set[asyncio.Task[None]] = set()

    def call(self, gate: int, kind: str, service: float) -> None:
        task = asyncio.create_task(self._call(self.gates[gate], kind, service))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(self, gate: Gate, kind: str, service: float) -> None:
        began = self.clock.monotonic()
        ticket = await gate.enter(Demand(tokens=TOKENS, priority=1 if kind == "high" else 5, namespace=kind))
        done = asyncio.Event()
        self._due.append((self.clock.monotonic() + service, done))
        await done.wait()
        gate.leave(ticket, TOKENS)
        self.latencies[kind].append(self.clock.monotonic() - began)

    async def step(self) -> None:
        self.clock.advance(STEP)
        now = self.clock.monotonic()
        for moment, done in self._due:
            if moment <= now:
                done.set()
        self._due = [entry for entry in self._due if entry[0] > now]
        for _ in range(6):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)


async def simulate(gates: int, *, flood: bool, **limits: Any) -> World:
    world = World(gates, **limits)
    chance = random.Random(11)
    next_high = 0.0
    steps = int(SPAN / STEP)
    for number in range(steps):
        now = number * STEP
        # Low calls come in bursts; the first is a backlog of more than a minute.
        if flood and number % int(20 / STEP) == 0:
            for _ in range(40 if number else 250):
                world.call(gates - 1, "low", chance.uniform(0.5, 1.5))
        while next_high <= now:
            world.call(0, "high", random.Random(next_high).uniform(0.8, 1.2))
            next_high += random.Random(next_high).expovariate(2.0)
        await world.step()
    await world.end()
    return world


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


@pytest.mark.parametrize(
    ("gates", "limits"),
    [
        (1, {"tokens_per_minute": 30_000}),
        (2, {"tokens_per_minute": 30_000}),
        (2, {"requests_per_minute": 300, "concurrency": 12}),
    ],
)
async def test_high_calls_stay_within_half_of_their_unloaded_latency_while_low_ones_wait(
    gates: int, limits: dict[str, int]
) -> None:
    unloaded = await simulate(gates, flood=False, **limits)
    loaded = await simulate(gates, flood=True, **limits)
    assert len(unloaded.latencies["high"]) > 40
    assert p99(loaded.latencies["high"]) <= 1.5 * p99(unloaded.latencies["high"])
    # The low ones are served all the same, from what is left, and it is they who wait.
    assert len(loaded.latencies["low"]) > 30
    assert p99(loaded.latencies["low"]) > 2 * p99(loaded.latencies["high"])


@pytest.mark.parametrize("ageing", [AGEING, 1e9])
async def test_low_calls_are_served_now_and_then_though_high_ones_would_take_all(
    ageing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "AGEING", ageing)
    world = World(1, tokens_per_minute=30_000)
    for _ in range(60):  # Nothing is left of the burst.
        world.call(0, "high", 1.0)
    await world.step()
    for _ in range(5):
        world.call(0, "low", 1.0)
    for number in range(int(75 / STEP)):
        if number % 10 == 0:  # Six a second, where five may start.
            for _ in range(6):
                world.call(0, "high", 1.0)
        await world.step()
    served = len(world.latencies["low"])
    await world.end()
    assert (served > 0) == (ageing == AGEING), "a level that is not served for a minute has its turn"
