"""streaQ on Redis, with its defaults."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import streaq

from benchmarks.queue_side import Meter, QueueSide, main, redis_url

worker: Any = streaq.Worker(redis_url=redis_url())
meter = Meter()


@worker.task(name="noop")
async def noop(sent_at: float) -> None:
    meter.seen(sent_at)


class Streaq(QueueSide):
    def worker_command(self) -> list[str]:
        return [str(Path(sys.executable).parent / "streaq"), "run", "benchmarks.peers.streaq:worker"]

    async def open(self) -> None:
        await worker.__aenter__()

    async def send(self, count: int) -> None:
        if count == 1:
            await noop.enqueue(time.time())
        else:
            await worker.enqueue_many([noop.enqueue(time.time()) for _ in range(count)])

    async def close(self) -> None:
        await worker.__aexit__(None, None, None)


if __name__ == "__main__":
    main(Streaq)
