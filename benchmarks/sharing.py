"""One limit shared by many processes, and the latency of high calls while low ones wait: over real HTTP and a real Redis."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from functools import partial
from typing import Any

from benchmarks.harness import ROOT, Measured, environment
from benchmarks.queue import redis_server
from ziggurat import __version__
from ziggurat.inference.backends.scripted import Reply, usage_for
from ziggurat.records import Prompt
from ziggurat.testing.models import FaultyUpstream
from ziggurat.testing.provider import ProviderLimits

SHARE = {"processes": 16, "seconds": 60.0, "per_minute": 480_000, "burst": 1.0, "capacity": 4.0}
LATENCY = {"seconds": 60.0, "per_minute": 120_000, "burst": 10.0, "capacity": 15.0, "high_per_s": 3.0, "low": 0}
QUICK = {"seconds": 4.0}
SIZES = {"share": SHARE, "unloaded": LATENCY, "flooded": {**LATENCY, "low": 600}}


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all workloads, or those whose name contains one of `only`."""
    measured = Measured("sharing", patience)
    measured.sizes = {name: {**sizes, **(QUICK if quick else {})} for name, sizes in SIZES.items()}
    measured.versions["Ziggurat"] = __version__
    for name, sizes in measured.sizes.items():
        if not only or any(word in name for word in only):
            measured.add("Ziggurat", name, partial(_measure, name, sizes))
    return measured


def _measure(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    with redis_server() as url:
        return asyncio.run(_run(name, sizes, url))


def _answers(prompt: Prompt, asked: int) -> Reply:
    return Reply(text="w " * int(str(prompt.messages[0].content)), first_token=0.3)


def _tokens(prompt: Prompt) -> int:
    usage = usage_for(prompt, _answers(prompt, 1))
    return usage.input_tokens + usage.output_tokens


async def _run(name: str, sizes: dict[str, Any], redis: str) -> dict[str, Any]:
    provider = ProviderLimits(sizes["per_minute"], sizes["capacity"], _tokens)
    async with FaultyUpstream(_answers, raw=provider) as upstream:
        workload = "share" if name == "share" else "latency"
        workers = [
            _start(workload, {**sizes, "url": upstream.base_url, "seed": n}, redis) for n in range(sizes.get("processes", 1))
        ]
        for worker in workers:
            assert worker.stdout is not None
            await asyncio.to_thread(worker.stdout.readline)
        began = time.monotonic()
        said = await asyncio.gather(*(asyncio.to_thread(worker.communicate, "go\n") for worker in workers))
    found = [json.loads(out.partition("RESULT ")[2]) for out, _ in said]
    attempts = sum(f["attempts"] for f in found)
    result = {
        "attempts": attempts,
        "limited_share": sum(f["limited"] for f in found) / max(1, attempts),
        "cpu_ms_per_call": sum(f["cpu_ms_per_call"] for f in found) / len(found),
    }
    if workload == "latency":
        return result | {key: found[0][key] for key in ("p50_ms", "p99_ms", "low_served")}
    last = max(at for at, _ in provider.taken if at < began + sizes["seconds"])
    used = sum(amount for at, amount in provider.taken if at <= last)
    return result | {"used_of_limit": used / (provider.rate * (last - began + sizes["burst"]))}


def _start(workload: str, sizes: dict[str, Any], redis: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.sharing_worker", workload, json.dumps(sizes)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment({"BENCH_REDIS": redis})
    )
