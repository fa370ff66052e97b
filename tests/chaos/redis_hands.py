"""A worker process on a Redis queue, made to be killed and frozen: `python -m tests.chaos.redis_hands URL NAME LEASE MODE`.

It prints a line for what it has done: "t ID" took, "s ID" settled, "f ID" was fenced. Modes:

    work   takes, holds for up to 20 ms, settles; for ever, whatever the server does
    hold   takes five messages, then waits for a line on stdin, then tries to extend, settle and release them
"""

from __future__ import annotations

import asyncio
import random
import sys

from ziggurat.errors import QueueUnavailable
from ziggurat.queues.backends.redis_streams import RedisQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import Delivery
from ziggurat.testing.queue_harness import QUEUE, ids, outcome_of


def tell(letter: str, id_: str) -> None:
    sys.stdout.write(f"{letter} {id_}\n")
    sys.stdout.flush()


async def work(queue: RedisQueue, name: str) -> None:
    rng = random.Random(name)
    while True:
        try:
            taken = await queue.receive([QUEUE], rng.randint(1, 20), worker=name, wait=1.0)
            for id_ in ids(taken):
                tell("t", id_)
            await asyncio.sleep(rng.random() * 0.02)
            if rng.random() < 0.1:
                await queue.release(taken)
                continue
            fenced = await queue.settle([(delivery, outcome_of(delivery)) for delivery in taken])
            for id_ in ids(taken):
                tell("f" if id_ in fenced else "s", id_)
        except QueueUnavailable:
            continue


async def hold(queue: RedisQueue, name: str) -> None:
    taken: list[Delivery] = []
    while len(taken) < 5:
        taken += await queue.receive([QUEUE], 5 - len(taken), worker=name, wait=10.0)
    for id_ in ids(taken):
        tell("t", id_)
    await asyncio.to_thread(sys.stdin.readline)
    fenced = await queue.extend(taken) & await queue.settle([(it, outcome_of(it)) for it in taken]) & await queue.release(taken)
    for id_ in ids(taken):
        tell("f" if id_ in fenced else "s", id_)


async def main() -> None:
    url, name, lease, mode = sys.argv[1:5]
    queue = RedisQueue(url, QueueOptions(lease=float(lease), max_deliveries=1_000), patience=30.0)
    await queue.open()
    try:
        await (work if mode == "work" else hold)(queue, name)
    finally:
        await queue.close()


if __name__ == "__main__":
    asyncio.run(main())
