"""Model calls as a worker makes them: the router in this process, over real HTTP. Prints the CPU of a call and of a streamed chunk.

`python -m benchmarks.gateway_worker http://127.0.0.1:9000/v1 '{"calls": 800, …}'`
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from ziggurat.inference.backends import openai_compatible
from ziggurat.inference.interface import EndpointConfig, Limits, ModelConfig, Price
from ziggurat.inference.router import Router
from ziggurat.records import CallRecord, ChatMessage, Prompt

_FILLER = "Describe the building in plain words and keep to what is known of it. " * 11


async def measure(upstream: str, sizes: dict[str, Any]) -> dict[str, float]:
    """Make calls side by side, then streams side by side."""
    limits = Limits(tokens_per_minute=10**9, requests_per_minute=10**8)
    config = EndpointConfig(name="up", base_url=upstream, limits=limits, prices={"mock": Price(input=1.0, output=2.0)})
    records: list[CallRecord] = []
    router = Router({"up": openai_compatible.create(config)}, {"m": ModelConfig(routes=["up:mock"])}, ledger=records.append)
    plain = Prompt(messages=[ChatMessage(role="user", content=_FILLER)], model="m", max_tokens=256)
    steer = f"chunks={sizes['chunks']} pace={sizes['pace']} "
    steered = Prompt(messages=[ChatMessage(role="user", content=steer + _FILLER)], model="m")

    async def calls(count: int) -> None:
        for _ in range(count):
            await router.complete(plain)

    async def streams(count: int) -> int:
        chunks = 0
        for _ in range(count):
            async for _ in router.stream(steered):
                chunks += 1
        return chunks

    await calls(50)
    concurrency = int(sizes["concurrency"])
    began = time.process_time()
    await asyncio.gather(*(calls(int(sizes["calls"]) // concurrency) for _ in range(concurrency)))
    call = (time.process_time() - began) / (int(sizes["calls"]) // concurrency * concurrency)
    began = time.process_time()
    chunks = sum(await asyncio.gather(*(streams(int(sizes["rounds"])) for _ in range(int(sizes["streams"])))))
    chunk = (time.process_time() - began) / chunks
    await router.close()
    return {"cpu_us_per_call": call * 1e6, "cpu_us_per_chunk": chunk * 1e6}


if __name__ == "__main__":
    print("RESULT " + json.dumps(asyncio.run(measure(sys.argv[1], json.loads(sys.argv[2])))), flush=True)
