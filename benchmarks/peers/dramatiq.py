"""Dramatiq on Redis, one process with eight threads, its default."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import sys
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.queue_side import Meter, QueueSide, main, redis_url

broker = RedisBroker(url=redis_url())
dramatiq.set_broker(broker)
meter = Meter()


@dramatiq.actor(actor_name="noop")
def noop(sent_at: float) -> None:
    meter.seen(sent_at)


class Dramatiq(QueueSide):
    def worker_command(self) -> list[str]:
        return [str(Path(sys.executable).parent / "dramatiq"), "benchmarks.peers.dramatiq", "--processes", "1"]

    async def open(self) -> None:
        pass

    async def send(self, count: int) -> None:
        for _ in range(count):
            noop.send(time.time())


if __name__ == "__main__":
    main(Dramatiq)
