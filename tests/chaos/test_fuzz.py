"""Random programs, interrupted at every commit and in other ways, must end as they do uninterrupted.

`ZIGGURAT_FUZZ_SEEDS=5000` draws that many seeds and runs every mode on each, from `ZIGGURAT_FUZZ_FROM` on; `ZIGGURAT_FUZZ_SEED=123` runs
one seed in every mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from msgspec import Raw
from msgspec.structs import replace

from tests.chaos.world import World, stored_runs
from ziggurat.errors import Conflict, UnknownName
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.testing.generator import Generator

pytestmark = pytest.mark.chaos

#: A file system in memory makes a thousand lives cheap; what fsync does to a disk is not what this test is about.
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
ONE = os.environ.get("ZIGGURAT_FUZZ_SEED")
COUNT = int(os.environ.get("ZIGGURAT_FUZZ_SEEDS") or 0)
FROM = int(os.environ.get("ZIGGURAT_FUZZ_FROM") or 0)
SEEDS = [int(ONE)] if ONE else list(range(FROM, FROM + (COUNT or 240)))
#: Lives after which a program that gets no further is stuck.
LIVES_MAX = 1_000


async def evicted(world: World) -> None:
    """Every run is forgotten whenever it rests, so that everything is a replay."""
    world.options = replace(world.options, evict_always=True)
    assert await world.live()


async def after_each(world: World) -> None:
    """Each life commits once, and the caller sees an error."""
    await _crashing(world, lambda n, when, life: (n, when) == (1 + life // 60, "after"))


async def before_each(world: World) -> None:
    """Each life commits once, and fails before the second commit."""
    await _crashing(world, lambda n, when, life: (n, when) == (2 + life // 60, "before"))


async def queue_survives(world: World) -> None:
    """Each life commits once; the queue keeps what it held, as a broker does."""
    await _crashing(world, lambda n, when, life: (n, when) == (1 + life // 60, "after"), keep=lambda: True)


async def anywhere(world: World) -> None:
    """Crashes at random, with a queue that is lost or not, and runs that are evicted or not."""
    chance = random.Random(world.seed)
    world.options = replace(world.options, evict_always=chance.random() < 0.3, max_resident_runs=chance.choice((1, 2, 10_000)))
    plan: dict[int, tuple[int, str]] = {}

    def strikes(n: int, when: str, life: int) -> bool:
        at = plan.setdefault(life, (chance.randint(1, 4) + life // 60, chance.choice(("before", "after"))))
        return (n, when) == at

    await _crashing(world, strikes, keep=lambda: chance.random() < 0.5)


async def few_residents(world: World) -> None:
    """One run fits into memory."""
    world.options = replace(world.options, max_resident_runs=1)
    assert await world.live()


async def queue_lost(world: World) -> None:
    """The queue loses everything, again and again."""
    chance = random.Random(world.seed)

    async def flush(engine: EmbeddedOrchestrator, queue: MemoryQueue) -> None:
        for _ in range(6):
            await asyncio.sleep(chance.random() * 0.02)
            await queue.close()
            await queue.open()
        await asyncio.Event().wait()

    assert await world.live(meanwhile=flush)


async def timers(world: World) -> None:
    """Every timer that is set outlives a restart."""
    seen: set[tuple[str, int, float]] = set()

    async def until_timer(engine: EmbeddedOrchestrator, queue: MemoryQueue) -> None:
        is_set = asyncio.Event()
        add = engine.driver.timers.add

        def noticed(when: float, run: str, step: int) -> None:
            add(when, run, step)
            if step and when < engine.clock.time() + 60 and (run, step, when) not in seen:
                seen.add((run, step, when))
                is_set.set()

        engine.driver.timers.add = noticed  # type: ignore[method-assign]
        await is_set.wait()

    for _ in range(LIVES_MAX):
        if await world.live(meanwhile=until_timer):
            return
    raise AssertionError("The program does not get any further.")


async def paused(world: World) -> None:
    """Somebody pauses the run and lets it go on, again and again."""
    chance = random.Random(world.seed)
    world.options = replace(world.options, evict_always=chance.random() < 0.5)

    async def pause(engine: EmbeddedOrchestrator, queue: MemoryQueue) -> None:
        for _ in range(5):
            await asyncio.sleep(chance.random() * 0.02)
            with contextlib.suppress(Conflict, UnknownName):
                await engine.pause("root")
                await asyncio.sleep(chance.random() * 0.01)
                await engine.resume("root")
        await asyncio.Event().wait()

    assert await world.live(meanwhile=pause)


async def cancelled(world: World) -> None:
    """Somebody cancels the run at any moment, and the engine crashes soon after. It must end, with all its children."""
    chance = random.Random(world.seed)

    async def cancel(engine: EmbeddedOrchestrator, queue: MemoryQueue) -> None:
        await asyncio.sleep(chance.random() * 0.04)
        with contextlib.suppress(UnknownName):
            await engine.cancel("root", "enough")
        await asyncio.Event().wait()

    at = chance.randint(3, 30)
    done = await world.live(fault=lambda n, when: (n, when) == (at, "after"), meanwhile=cancel)
    while not done:
        done = await world.live()
    world.has_verdict = False


MODES: list[Callable[[World], Awaitable[None]]] = [
    evicted,
    after_each,
    before_each,
    queue_survives,
    anywhere,
    few_residents,
    queue_lost,
    timers,
    paused,
    cancelled,
]


async def _crashing(world: World, strikes: Callable[[int, str, int], bool], keep: Callable[[], bool] = lambda: False) -> None:
    for life in range(LIVES_MAX):
        if await world.live(fault=lambda n, when, life=life: strikes(n, when, life), keep_queue=keep()):  # type: ignore[misc]
            return
    raise AssertionError("The program does not get any further.")


def _size(seed: int) -> int:
    return 14 if seed % 4 else 40


@contextlib.asynccontextmanager
async def _world(seed: int) -> AsyncIterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="ziggurat-fuzz-", dir=MEMORY))
    world = World(folder, seed, _size(seed))
    try:
        yield world
    finally:
        await world.close()
        shutil.rmtree(folder)


def _modes(seed: int) -> list[Callable[[World], Awaitable[None]]]:
    """Return every mode when hunting, and two that take turns in CI."""
    return MODES if ONE or COUNT else [MODES[seed % len(MODES)], MODES[(seed // len(MODES) + seed + 4) % len(MODES)]]


@pytest.mark.parametrize("seed", SEEDS)
async def test_an_interrupted_program_ends_as_an_uninterrupted_one(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ziggurat.orchestrator")
    async with _world(seed) as world:
        assert await world.live()
        world.check()
        expected = world.verdict()
    for mode in _modes(seed):
        async with _world(seed) as world:
            try:
                await mode(world)
                world.check()
                assert world.verdict() == expected or not world.has_verdict
            except AssertionError as error:
                again = f"ZIGGURAT_FUZZ_SEED={seed} pytest tests/chaos/test_fuzz.py"
                raise AssertionError(f"seed {seed}, mode {mode.__name__}; again with: {again}\n{error}") from error


#: The operation "mail" makes ids of its run's, and a fork has another.
FORKABLE = [seed for seed in SEEDS if "mail" not in str(Generator(seed, _size(seed)).program())]


@pytest.mark.parametrize("seed", FORKABLE if ONE or COUNT else FORKABLE[:40])
async def test_a_fork_from_anywhere_ends_alike(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="ziggurat.orchestrator")
    chance = random.Random(seed)

    async def fork(engine: EmbeddedOrchestrator) -> None:
        reached = max((step.step for step in await engine.steps("root")), default=0)
        for step in chance.sample(range(1, reached + 2), min(reached + 1, 5)):
            forked = (await engine.fork("root", step, id=f"fork-{step}")).id
            for name, value in world.signals:
                with contextlib.suppress(Conflict):
                    await engine.signal(forked, name, Raw(str(value).encode()), signal_id=name)
            ended = await engine.wait(forked, 60.0)
            assert (ended.status, ended.result) == (original.status, original.result), f"before step {step}: {ended.reason}"
            history = await engine.history(forked)
            forked_at = next(event.seq for event in history if event.kind == "run_forked")
            settled = [e.step for e in history if e.seq < forked_at and e.kind in ("step_completed", "step_failed")]
            kept = {f"{forked}~{ended.epoch}.{step}" for step in settled}
            assert not kept & {line[0] for line in world.log.lines()}

    async with _world(seed) as world:
        assert await world.live()
        original = next(run for run in stored_runs(world.state) if run.id == "root")
        assert await world.live(instead=fork)
