"""kill -9, for real: at commits and at any moment, of a process that executes random programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.chaos.world import World, recorded_steps

#: The folder in which `tests` is a package.
HERE = Path(__file__).parents[2]

pytestmark = pytest.mark.chaos


async def _victim(folder: Path, seed: int, *kill: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.victim", str(folder), str(seed), *kill),
        stderr=asyncio.subprocess.PIPE,
        cwd=HERE,
    )


async def _expected(folder: Path, seed: int) -> dict[str, object]:
    os.mkdir(folder)
    world = World(folder, seed)
    assert await world.live()
    await world.close()
    return world.verdict()


async def _judge(world: World, expected: dict[str, object]) -> None:
    """Let the program end, then compare."""
    while not await world.live():
        pass
    world.check()
    assert world.verdict() == expected
    await world.close()


def _remember(world: World) -> None:
    world.recorded.append((len(world.log.lines()), recorded_steps(world.state)))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("seed", [2, 5])
async def test_a_process_killed_at_every_commit_gets_there(seed: int, when: str, tmp_path: Path) -> None:
    expected = await _expected(tmp_path / "reference", seed)
    folder = tmp_path / "killed"
    folder.mkdir()
    world = World(folder, seed)
    for life in range(9):
        victim = await _victim(folder, seed, str(2 + life // 6), when)
        _, errors = await victim.communicate()
        if victim.returncode == 0:
            break
        assert victim.returncode == -signal.SIGKILL, errors.decode()
        _remember(world)
    await _judge(world, expected)


@pytest.mark.parametrize("seed", range(100, 104))
async def test_a_process_killed_at_any_moment_gets_there(seed: int, tmp_path: Path) -> None:
    expected = await _expected(tmp_path / "reference", seed)
    folder, chance = tmp_path / "killed", random.Random(seed)
    folder.mkdir()
    world = World(folder, seed)
    for _ in range(3):
        lines = len(world.log.lines()) + chance.randint(0, 4)
        victim = await _victim(folder, seed)
        ended = asyncio.create_task(victim.communicate())
        # Once it works, so that not all are killed while they import.
        while len(world.log.lines()) <= lines and not ended.done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(chance.random() * 0.01)
        with contextlib.suppress(ProcessLookupError):
            victim.kill()
        _, errors = await ended
        assert victim.returncode in (0, -signal.SIGKILL), errors.decode()
        _remember(world)
    await _judge(world, expected)
