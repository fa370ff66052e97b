"""One of many processes that share a provider's limit: calls as fast as it may until its time is over, then says what came of it."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

from ziggurat.errors import InferenceError
from ziggurat.inference.backends.limits_redis import RedisStore
from ziggurat.inference.backends.openai_compatible import create
from ziggurat.inference.interface import EndpointConfig, Limits, ModelConfig
from ziggurat.inference.limits.caller import Caller, calling
from ziggurat.inference.limits.keeper import Keeper
from ziggurat.inference.router import Router
from ziggurat.records import CallRecord, ChatMessage, Prompt


async def main(base_url: str, redis_url: str, per_minute: int, burst: float, seconds: float, seed: int) -> None:
    records: list[CallRecord] = []
    config = EndpointConfig(name="up", base_url=base_url, limits=Limits(tokens_per_minute=per_minute, burst=burst))
    keeper = Keeper(RedisStore(redis_url))
    router = Router({"up": create(config)}, {"m": ModelConfig(routes=["up:m"])}, ledger=records.append, keeper=keeper)
    rng = random.Random(seed)
    failed = 0

    async def caller() -> None:
        nonlocal failed
        while (left := ends - time.monotonic()) > 0:
            words = rng.randint(100, 300)
            prompt = Prompt(
                messages=[ChatMessage(role="user", content=str(words))], model="m", max_tokens=words, timeout=left + 60
            )
            try:
                with calling(Caller(priority=1)):
                    await router.complete(prompt)
            except InferenceError:
                failed += 1

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    ends = time.monotonic() + seconds
    await asyncio.gather(*(caller() for _ in range(4)))
    await router.close()
    limited = sum(r.status == "RateLimited" for r in records)
    print(json.dumps({"attempts": len(records), "limited": limited, "failed": failed}), flush=True)


if __name__ == "__main__":
    url, redis, limit, burst, seconds, seed = sys.argv[1:]
    asyncio.run(main(url, redis, int(limit), float(burst), float(seconds), int(seed)))
