"""Celery on Redis, results ignored, its pool "solo": at no-op tasks the fastest of its pools, threads and prefork included."""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import celery

from benchmarks.queue_side import Meter, QueueSide, main, redis_url

app = celery.Celery("bench", broker=redis_url())
app.conf.update(task_ignore_result=True, task_acks_late=True, broker_connection_retry_on_startup=True)
meter = Meter()


@app.task(name="noop")
def noop(sent_at: float) -> None:
    meter.seen(sent_at)


class Celery(QueueSide):
    def worker_command(self) -> list[str]:
        pool = os.environ.get("BENCH_CELERY_POOL", "solo")
        command = [str(Path(sys.executable).parent / "celery"), "-A", "benchmarks.peers.celery", "worker", "-P", pool]
        return [*command, "-c", "8" if pool == "threads" else "1", "--without-gossip", "--without-mingle", "-l", "warning"]

    async def open(self) -> None:
        pass

    async def send(self, count: int) -> None:
        for _ in range(count):
            noop.delay(time.time())


if __name__ == "__main__":
    main(Celery)
