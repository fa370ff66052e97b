"""A worker process for tests: `worker_process.py QUEUE_FILE [--options JSON] [--health] [--status-fd N]`.

`ziggurat worker` is the same with settings around it; here the pieces are met without it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from ziggurat.program.registry import Registry
from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.workers.health import HealthServer
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.process import ProcessOptions, run, serve
from ziggurat.workers.worker import Worker


async def main(arguments: argparse.Namespace) -> int:
    queue = SqliteQueue(arguments.queue, QueueOptions(lease=2.0))
    await queue.open()
    worker = Worker(
        queue,
        Registry(["ziggurat.testing.worker_tasks"]),
        options=WorkerOptions(**{"poll": 0.1, **json.loads(arguments.options)}),
        lease_keeper=lambda: SqliteQueue(arguments.queue, QueueOptions(lease=2.0)),
    )
    running = asyncio.create_task(worker.run())

    async def drain(grace: float | None) -> None:
        worker.stop(grace)
        await running

    def started(server: HealthServer | None) -> None:
        print(json.dumps({"health": server.port if server is not None else None}), flush=True)

    options = ProcessOptions(health_port=0 if arguments.health else None, status_fd=arguments.status_fd)
    try:
        return await serve(lambda: [worker], drain, options, started=started)
    finally:
        await queue.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("queue", type=Path)
    parser.add_argument("--options", default="{}")
    parser.add_argument("--health", action="store_true")
    parser.add_argument("--status-fd", type=int)
    sys.exit(run(main(parser.parse_args())))
