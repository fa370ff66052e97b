"""A process of the benchmark `sharing`: one of many under a limit, or the whole of the latency workload. Prints what came of it.

python -m benchmarks.sharing_worker share SIZES-JSON    says "ready", waits for a line, calls, and prints "RESULT " and its figures
python -m benchmarks.sharing_worker latency SIZES-JSON  the same, with high calls and a flood of low ones in one process
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from typing import Any

from ziggurat.errors import InferenceError
from ziggurat.inference.backends.limits_redis import RedisStore
from ziggurat.inference.backends.openai_compatible import create
from ziggurat.inference.interface import EndpointConfig, Limits, ModelConfig
from ziggurat.inference.limits.caller import Caller, calling
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.inference.router import Router
from ziggurat.records import CallRecord, ChatMessage, Prompt


def router(sizes: dict[str, Any], records: list[CallRecord]) -> Router:
    limits = Limits(tokens_per_minute=sizes["per_minute"], burst=sizes["burst"])
    endpoint = create(EndpointConfig(name="up", base_url=sizes["url"], limits=limits))
    keeper = Keeper(RedisStore(os.environ["BENCH_REDIS"]))
    return Router({"up": endpoint}, {"m": ModelConfig(routes=["up:m"])}, ledger=records.append, keeper=keeper)


async def call(models: Router, words: int, priority: int, patience: float) -> float | None:
    """Make one call and return its seconds, or None if it failed."""
    began = time.monotonic()
    message = ChatMessage(role="user", content=str(words))
    try:
        with calling(Caller(priority=priority)):
            await models.complete(Prompt(messages=[message], model="m", max_tokens=words, timeout=patience))
    except InferenceError:
        return None
    return time.monotonic() - began


async def share(models: Router, sizes: dict[str, Any]) -> dict[str, Any]:
    ends = time.monotonic() + sizes["seconds"]
    chance = random.Random(sizes["seed"])

    async def caller() -> None:
        while (left := ends - time.monotonic()) > 0:
            await call(models, chance.randint(100, 300), 1, left + 30)

    await asyncio.gather(*(caller() for _ in range(4)))
    return {}


async def latency(models: Router, sizes: dict[str, Any]) -> dict[str, Any]:
    ends = time.monotonic() + sizes["seconds"]
    chance = random.Random(5)
    high: list[float] = []
    low: list[float] = []

    async def one(kind: list[float], priority: int) -> None:
        seconds = await call(models, 200, priority, 600.0)
        if seconds is not None:
            kind.append(seconds)

    async def arrivals() -> list[asyncio.Task[None]]:
        calls = []
        while time.monotonic() < ends:
            await asyncio.sleep(chance.expovariate(sizes["high_per_s"]))
            calls.append(asyncio.create_task(one(high, 1)))
        return calls

    flood = [asyncio.create_task(one(low, 5)) for _ in range(sizes["low"])]
    await asyncio.gather(*await arrivals())
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    high.sort()
    return {"p50_ms": 1e3 * high[len(high) // 2], "p99_ms": 1e3 * high[int(0.99 * (len(high) - 1))], "low_served": len(low)}


async def main(workload: str, sizes: dict[str, Any]) -> None:
    records: list[CallRecord] = []
    models = router(sizes, records)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    cpu = time.process_time()
    found = await (share if workload == "share" else latency)(models, sizes)
    found["cpu_ms_per_call"] = 1e3 * (time.process_time() - cpu) / max(1, len(records))
    found |= {"attempts": len(records), "limited": sum(r.status == "RateLimited" for r in records)}
    await models.close()
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
