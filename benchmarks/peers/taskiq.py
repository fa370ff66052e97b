"""Taskiq on Redis Streams, its broker that acknowledges; no result backend, which it does not need to deliver."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from taskiq_redis import RedisStreamBroker

from benchmarks.queue_side import Meter, QueueSide, main, redis_url

broker = RedisStreamBroker(redis_url())
meter = Meter()


@broker.task(task_name="noop")
async def noop(sent_at: float) -> None:
    meter.seen(sent_at)


class Taskiq(QueueSide):
    def worker_command(self) -> list[str]:
        return [str(Path(sys.executable).parent / "taskiq"), "worker", "--workers", "1", "benchmarks.peers.taskiq:broker"]

    async def open(self) -> None:
        await broker.startup()

    async def send(self, count: int) -> None:
        at_once = asyncio.Semaphore(64)

        async def one() -> None:
            async with at_once:
                await noop.kiq(time.time())

        await asyncio.gather(*[one() for _ in range(count)])

    async def close(self) -> None:
        await broker.shutdown()


if __name__ == "__main__":
    main(Taskiq)
