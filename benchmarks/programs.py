"""The workloads as Ziggurat programs."""

from __future__ import annotations

import asyncio

from benchmarks.side import HOUR, step_started
from ziggurat import task, workflow


@task
async def step(number: int) -> int:
    return number


@task
async def slow_step(run: int, number: int, step_ms: int) -> int:
    step_started(run, number)
    await asyncio.sleep(step_ms / 1e3)
    return number


@workflow
async def sequential(steps: int) -> int:
    for number in range(steps):
        await step(number)
    return steps


@workflow
async def parallel(steps: int) -> int:
    return sum(await asyncio.gather(*[step(number) for number in range(steps)]))


@workflow
async def waiter(number: int) -> int:
    await asyncio.sleep(HOUR)
    return number


@workflow
async def slow(run: int, steps: int, step_ms: int) -> int:
    for number in range(steps):
        await slow_step(run, number, step_ms)
    return steps


@workflow
async def paced(steps: int, gap: float) -> int:
    for number in range(steps):
        await step(number)
        await asyncio.sleep(gap)
    return steps
