"""Many calls, many processes that are killed anywhere, and a provider that fails anyhow: each line is bought once and answered in time.

A step is an orchestrator's: an attempt whose process was killed is delivered again under its number, one that ended to wait is made again
when it is due. What is checked at the end is the provider's own count of what it sold.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.batch_world import HOUR, DeadlyShelf, Killed, MemoryShelf, Process, Step, World

FAULTS = {
    "upload": ["fails", "cut", "limited"],
    "create": ["fails", "made", "cut", "limited"],
    "list": ["fails", "cut"],
    "look": ["fails", "cut", "limited"],
    "cancel": ["fails", "made"],
    "content": ["fails", "cut"],
}
#: Seconds until the message of a killed worker is delivered again.
LEASE = 60.0


async def drive(world: World, deadly: float, chance: random.Random, steps: list[Step]) -> None:
    """Make attempts when they are due, in whichever process, until each step is answered."""
    shelf = MemoryShelf()

    def begin() -> Process:
        return world.process(DeadlyShelf(shelf, chance, deadly))

    processes = [begin() for _ in range(3)]
    left = list(steps)
    for _ in range(3_000):
        if not left:
            return
        step = min(left, key=lambda s: s.at)
        world.clock.advance(max(0.0, step.at - world.now))
        which = chance.randrange(3)
        try:
            if await world.attempt(processes[which], step):
                left.remove(step)
        except Killed:
            processes[which] = begin()
            step.at = world.now + LEASE
    raise AssertionError(f"{left[0].name} is never answered: {left[0].waits[-5:]}")


def sold(world: World) -> tuple[Counter[str], Counter[str]]:
    """Return what the provider sold, by the prompt's text: answered in batches, and at once."""
    in_batches: Counter[str] = Counter()
    desk = world.upstream.batches
    for batch in desk.made.values():
        for line in desk.lines_of(batch):
            in_batches[line["body"]["messages"][-1]["content"]] += desk.answered[line["custom_id"]] > 0
    at_once = Counter(body["messages"][-1]["content"] for body in world.upstream.bodies)
    return in_batches, at_once


def faults(chance: random.Random) -> dict[str, list[str]]:
    return {verb: [chance.choice(kinds) for _ in range(chance.randrange(3))] for verb, kinds in FAULTS.items()}


@pytest.mark.parametrize("seed", range(16))
async def test_each_line_is_bought_once_and_answered_by_its_deadline(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with World(tmp_path, lines=chance.choice([2, 4, 100])) as world:
        desk = world.upstream.batches
        desk.faults = faults(chance)
        desk.takes = chance.choice([300.0, HOUR, 3 * HOUR, None])
        desk.ends = chance.choice(["completed", "completed", "expired"])
        desk.share = chance.choice([1.0, 0.5])
        desk.cancel_takes, desk.cancel_share = chance.choice([0.0, 120.0, HOUR]), chance.choice([0.0, 0.5, 1.0])
        deadly = chance.choice([0.0, 0.01, 0.03])
        steps = [Step(f"r{n}", due=world.now + chance.uniform(0.5, 8) * HOUR) for n in range(6)]
        for step in steps:
            step.at = world.now + chance.uniform(0, 600.0)
        await drive(world, deadly, chance, steps)
        in_batches, at_once = sold(world)
        for step in steps:
            told = (seed, step.name, step.waits[-3:])
            assert step.answer is not None, told
            assert step.answered_at <= step.due, told
            ok = [call for call in step.calls.values() if call.status == "ok"]
            maybe = [call for call in step.calls.values() if call.status == "unanswered"]
            assert len(ok) == 1, told
            # A second purchase is allowed in one case, and then it is written down: the batch could not be left in time.
            assert in_batches[step.name] + at_once[step.name] <= 1 + len(maybe), told
            assert ("batch" in ok[0].price_version) == (at_once[step.name] == 0), told
        marks = Counter(batch["metadata"]["ziggurat_batch"] for batch in desk.made.values())
        assert set(marks.values()) <= {1}, "no batch was made twice"
        assert max(desk.answered.values(), default=0) <= 1, "no line was answered twice"


async def test_two_processes_that_do_the_same_step_at_once_buy_once(tmp_path: Path) -> None:
    async with World(tmp_path, lines=2) as world:
        shelf = MemoryShelf()
        first, second = world.process(shelf), world.process(shelf)
        steps = [Step(f"r{n}", due=world.now + 6 * HOUR) for n in range(4)]
        world.upstream.batches.takes = 60.0
        await asyncio.gather(*(world.attempt(process, step) for process in (first, second) for step in steps))
        await world.run(first, *[step for step in steps if step.answer is None])
        assert set(world.upstream.batches.bought.values()) == {1}
        assert world.upstream.requests == 0
