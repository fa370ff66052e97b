"""Fan out: a thousand items, each a durable task, with a limit of fifty at a time and one bad item that does not spoil the rest.

ziggurat run examples.fan_out:score_all --input '{"count": 1000}'
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from ziggurat import Concurrent, Retry, TaskError, emit, state, task, workflow

#: Items between two reports of progress.
REPORT_EVERY = 100


class Scores(BaseModel):
    total: int
    scored: int
    failed: list[int]


@task(concurrency=Concurrent(50), retry=Retry(2, initial="10ms", non_retryable=[ValueError]), timeout="30s")
async def score(item: int) -> int:
    """Score one item. Item 13 is broken, and trying again does not mend it."""
    if item == 13:
        raise ValueError("item 13 is broken")
    return item * item % 97


@workflow
async def score_all(count: int = 1000) -> Scores:
    """Score every item, and say which could not be."""
    total, failed, done = 0, [], 0

    async def one(item: int) -> None:
        nonlocal total, done
        try:
            # Not `total += await ...`: that reads the total before it waits, and loses what others add meanwhile.
            value = await score(item)
            total += value
        except TaskError:
            failed.append(item)
        done += 1
        if done % REPORT_EVERY == 0:
            state(done=done, of=count)
            emit({"done": done, "of": count})

    async with asyncio.TaskGroup() as group:
        for item in range(count):
            group.create_task(one(item))
    return Scores(total=total, scored=count - len(failed), failed=sorted(failed))
