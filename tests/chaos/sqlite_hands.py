"""A worker process on a sqlite queue, made to be killed: `python -m tests.chaos.sqlite_hands FILE NAME LOG [LEASE]`.

It writes "t id" when it takes a message and "s id" when its settlement was accepted. A message whose task is "poison" kills it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

from ziggurat.queues.backends.sqlite import SqliteQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.testing.queue_harness import QUEUE, ids, outcome_of


async def work(path: str, name: str, log: int, options: QueueOptions) -> None:
    rng = random.Random(name)
    queue = SqliteQueue(path, options)
    await queue.open()
    while True:
        taken = await queue.receive([QUEUE], rng.randint(1, 20), worker=name, wait=1.0)
        os.write(log, "".join(f"t {id_}\n" for id_ in ids(taken)).encode())
        if any(delivery.message.task == "poison" for delivery in taken):
            # The neighbours of the batch are handed back, so that the poison alone counts what it does.
            await queue.release([delivery for delivery in taken if delivery.message.task != "poison"])
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(rng.random() * 0.01)
        if rng.random() < 0.1:
            await queue.release(taken)
            continue
        fenced = await queue.settle([(delivery, outcome_of(delivery)) for delivery in taken])
        os.write(log, "".join(f"s {id_}\n" for id_ in ids(taken) if id_ not in fenced).encode())


def main() -> None:
    path, name, log = sys.argv[1:4]
    lease, max_deliveries = float(sys.argv[4]), int(sys.argv[5])
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    asyncio.run(work(path, name, file, QueueOptions(lease=lease, max_deliveries=max_deliveries)))


if __name__ == "__main__":
    main()
