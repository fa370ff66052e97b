"""The program of the storm: runs whose result shows whether every step ran with the right input, and a log of what ran.

Imported by the orchestrator and the workers of a `tests.chaos.plant`, and by the test, which computes what the runs should come to.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any, cast

from ziggurat import Retry, heartbeat, task, task_info, workflow
from ziggurat.program.context import current_attempt
from ziggurat.testing.programs import SideLog, mix

#: Names the file to which every task appends what it does.
LOG_VARIABLE = "CHAOS_LOG"
#: One task: how many seconds it takes, and how many of its attempts fail.
Errand = tuple[float, int]

_log = SideLog(Path(os.environ[LOG_VARIABLE])) if LOG_VARIABLE in os.environ else None


class Mishap(Exception):
    """The failure that errands raise on purpose."""


def note(what: str) -> None:
    """Append [moment, what, step, attempt, process, epoch of the delivery] to the log."""
    info, attempt = task_info(), cast(Any, current_attempt())
    if _log is not None:
        _log.add(time.time(), what, info.idempotency_key, info.attempt, os.getpid(), attempt.delivery.epoch)


@task(retry=Retry(4, initial="10ms", jitter=0))
async def errand(key: str, value: int, seconds: float, fails: int = 0) -> int:
    """Take a while, fail so many attempts, then mix."""
    note("begin")
    await asyncio.sleep(seconds)
    if task_info().attempt <= fails:
        raise Mishap(key)
    note("end")
    return mix(key, value)


@task(retry=Retry(4, initial="10ms", jitter=0))
def plain_errand(key: str, value: int, seconds: float, fails: int = 0) -> int:
    """As `errand`, in a thread."""
    note("begin")
    over = time.monotonic() + seconds
    while (left := over - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
        heartbeat()
    if task_info().attempt <= fails:
        raise Mishap(key)
    note("end")
    return mix(key, value)


@task
async def poison() -> None:
    """Kill the worker."""
    note("begin")
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
async def tour(key: str, groups: list[list[Errand]]) -> int:
    """Run groups of errands one after the other, those of a group side by side."""
    value = 0
    for number, group in enumerate(groups):
        asked = [
            (errand, plain_errand)[place % 2](f"{key}.{number}.{place}", value, seconds, fails)
            for place, (seconds, fails) in enumerate(group)
        ]
        value = mix(*await asyncio.gather(*asked))
        if number % 3 == 2:
            await asyncio.sleep(0.05)
    return value


def result_of(key: str, groups: list[list[Errand]]) -> int:
    """Return what `tour` must come to."""
    value = 0
    for number, group in enumerate(groups):
        value = mix(*[mix(f"{key}.{number}.{place}", value) for place in range(len(group))])
    return value


@workflow
async def doomed(key: str) -> int:
    """Run an errand, then what kills its worker."""
    value = await errand(key, 0, 0.1)
    await poison()
    return value
