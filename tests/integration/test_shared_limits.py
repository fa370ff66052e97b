"""Many processes under one limit, over real HTTP and a real Redis."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conformance.redis_servers import REDIS_8, RedisServer, running
from tests.conftest import missing_service
from ziggurat.errors import InferenceError
from ziggurat.inference.backends.openai_compatible import create
from ziggurat.inference.backends.scripted import Reply, usage_for
from ziggurat.inference.interface import EndpointConfig, ModelConfig
from ziggurat.inference.router import Router
from ziggurat.records import ChatMessage, Prompt
from ziggurat.testing.models import FaultyUpstream
from ziggurat.testing.provider import ProviderLimits

PROCESSES = 16
PER_MINUTE = 240_000
#: Seconds of calling; of the limit that may be used at once, and that the provider lets gather: calls of a busy machine arrive in heaps.
CALLING, BURST, CAPACITY = 20.0, 3.0, 9.0


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running(REDIS_8, missing_service) as server:
        yield server


def words(prompt: Prompt) -> int:
    return int(str(prompt.messages[0].content))


def tokens(prompt: Prompt) -> int:
    # What the upstream reports, too: a provider that counts otherwise than it reports cannot be met within a percent.
    usage = usage_for(prompt, answers(prompt, 1))
    return usage.input_tokens + usage.output_tokens


def answers(prompt: Prompt, asked: int) -> Reply:
    return Reply(text="w " * words(prompt), first_token=0.05)


async def test_sixteen_processes_use_all_of_a_limit_and_no_more_and_meet_hardly_a_429(redis: RedisServer) -> None:
    provider = ProviderLimits(PER_MINUTE, CAPACITY, tokens)
    async with FaultyUpstream(answers, raw=provider) as upstream:
        options = (upstream.base_url, redis.url, PER_MINUTE, BURST, CALLING)
        command = (sys.executable, "-m", "tests.integration.limit_worker", *map(str, options))
        pipe = asyncio.subprocess.PIPE
        workers = [await asyncio.create_subprocess_exec(*command, str(n), stdin=pipe, stdout=pipe) for n in range(PROCESSES)]
        for worker in workers:
            assert worker.stdout is not None
            assert await worker.stdout.readline() == b"ready\n"
        began = time.monotonic()
        said = [json.loads(out) for out, _ in await asyncio.gather(*(worker.communicate(b"go\n") for worker in workers))]
    # A burst, and then what flows. No more from the moment they were let go, and no less from the first call's arrival on: between the two
    # a busy machine may take its time.
    # At any one moment some that were let go are still on their way, so many moments are looked at.
    first = provider.taken[0][0]
    late = [at for at, _ in provider.taken if began + 0.75 * CALLING <= at < began + CALLING]
    used = {at: sum(amount for when, amount in provider.taken if when <= at) for at in late}
    attempts = sum(s["attempts"] for s in said)
    assert max(used[at] / (provider.rate * (at - first + BURST)) for at in late) >= 0.99
    assert max(used[at] / (provider.rate * (at - began + BURST)) for at in late) <= 1.01
    assert sum(s["limited"] for s in said) <= 0.005 * attempts
    assert sum(s["failed"] for s in said) == 0
    # Nobody was left out: each process had a part of it.
    assert min(s["attempts"] for s in said) >= attempts / PROCESSES / 4


async def test_an_upstream_that_fails_meets_a_tenth_more_calls_at_most() -> None:
    """Over real HTTP, with the options as they are: each call alone would try three times."""
    calls = 400
    async with FaultyUpstream(faults={"failed": 0.25}, seed=3) as upstream:
        endpoint = create(EndpointConfig(name="up", base_url=upstream.base_url))
        router = Router({"up": endpoint}, {"m": ModelConfig(routes=["up:m"])}, seed=1)
        turns = asyncio.Semaphore(40)

        async def call(number: int) -> bool:
            async with turns:
                try:
                    await router.complete(Prompt(messages=[ChatMessage(role="user", content=str(number))], model="m"))
                except InferenceError:
                    return False
                return True

        answered = sum(await asyncio.gather(*(call(n) for n in range(calls))))
        await router.close()
        assert upstream.requests <= 1.1 * calls
    assert answered > 0.7 * calls
