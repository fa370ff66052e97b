"""The gateway beside LiteLLM's proxy, Portkey's gateway and no gateway at all, and the CPU of a model call in a worker.

    saturate  32 connections that ask again at once: requests/s of one core, CPU a request
    steady    40 requests a second, evenly: what the gateway adds where nobody waits in a line
    bursts    bursts of four against an upstream that takes 100 ms: what the gateway adds to some that come together
    streams   20 streams side by side at a fixed pace: CPU a relayed chunk
    memory    many requests, one after the other: resident memory before and after
    worker    calls and streams of the router in a process of its own, as a worker makes them

A gateway has one core, the stand-in upstream and the load the other one. Ziggurat's has virtual keys, the limits and budget of the key and
of the endpoint, and the ledger on; LiteLLM a static key and no database, Portkey no key at all: neither has a ledger without more servers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, environment, run_json, say
from benchmarks.peers import install
from benchmarks.side import cpu_seconds, free_port, resident_mib, tree
from ziggurat import __version__

SIZES: dict[str, dict[str, Any]] = {
    "saturate": {"requests": 20_000, "connections": 32},
    "steady": {"requests": 400, "rate": 40, "connections": 8},
    "bursts": {"bursts": 60, "burst": 4, "delay": 0.1},
    "streams": {"streams": 20, "chunks": 50, "pace": 0.0106, "rounds": 6},
    "memory": {"requests": 100_000, "connections": 32},
    "worker": {"calls": 8_000, "concurrency": 32, "streams": 20, "chunks": 50, "pace": 0.0106, "rounds": 6},
}
QUICK: dict[str, dict[str, Any]] = {
    "saturate": {"requests": 600, "connections": 32},
    "steady": {"requests": 40, "rate": 40, "connections": 8},
    "bursts": {"bursts": 5, "burst": 4, "delay": 0.1},
    "streams": {"streams": 20, "chunks": 50, "pace": 0.0106, "rounds": 1},
    "memory": {"requests": 1_000, "connections": 32},
    "worker": {"calls": 600, "concurrency": 32, "streams": 20, "chunks": 50, "pace": 0.0106, "rounds": 1},
}
#: The medians of so many measurements count.
REPEATS = 3
#: LiteLLM's proxy needs ten milliseconds and more for a request, Portkey's gateway one and more; they are asked fewer times.
FEWER = {"LiteLLM": {"saturate": 1_000, "memory": 6_000}, "Portkey": {"saturate": 5_000, "memory": 20_000}}
KEY = "zgk-benchmark-key-of-no-entropy-at-all"
#: Cores of the gateway, and of the upstream and the load.
CORES = ({0}, {1})


@dataclass
class Started:
    """A gateway that runs, and how to call it."""

    process: subprocess.Popen[bytes] | None
    url: str
    model: str = "mock"
    key: str = "none"
    headers: dict[str, str] = field(default_factory=dict)


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all sides, or those whose label contains one of `only`."""
    measured = Measured("gateway", patience)
    measured.sizes = QUICK if quick else SIZES
    sides = [side for side in SIDES if not only or any(word.lower() in side.lower() for word in only)]
    for side in list(sides):
        environment_name, version, _ = SIDES[side]
        why = install.install(environment_name) if environment_name else ""
        if why:
            say(f"{side} is left out: {why}.")
            sides.remove(side)
        measured.versions[side] = version
    for workload in ("saturate", "steady", "bursts", "streams", "memory"):
        for _ in range(1 if quick or workload == "memory" else REPEATS):
            for side in sides:
                if workload != "memory" or side != "direct":
                    measured.add(side, workload, _measurement(side, workload, dict(measured.sizes[workload])))
    if "Ziggurat" in sides:
        for _ in range(1 if quick else REPEATS):
            measured.add("Ziggurat", "worker", lambda: _worker(measured.sizes["worker"]))
    return measured


def _measurement(side: str, workload: str, sizes: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    fewer = FEWER.get(side, {}).get(workload)
    if fewer is not None:
        sizes["requests"] = min(sizes["requests"], fewer)

    def measure() -> dict[str, Any]:
        with _upstream() as upstream, _gateway(side, upstream) as started:
            load = "saturate" if workload == "memory" else workload
            warm = {**sizes, "requests": min(500, int(sizes.get("requests", 0)) // 2), "bursts": 2, "rounds": 1}
            _load(load, started, warm)
            pids = tree(started.process.pid) if started.process is not None else []
            before, memory = sum(map(cpu_seconds, pids)), sum(map(resident_mib, pids))
            found = _load(load, started, sizes)
            cpu = sum(map(cpu_seconds, pids)) - before
            if found.pop("wrong"):
                raise RuntimeError("Some answers were wrong.")
            if pids and load == "saturate":
                found["cpu_us_per_request"] = cpu * 1e6 / sizes["requests"]
                found |= {"mib_before": memory, "mib_after": sum(map(resident_mib, pids)), "requests": sizes["requests"]}
            elif pids and load == "streams":
                found["cpu_us_per_chunk"] = cpu * 1e6 / found["events"]
            return found

    return measure


def _load(workload: str, started: Started, sizes: dict[str, Any]) -> dict[str, Any]:
    call = {**sizes, "model": started.model, "key": started.key, "headers": started.headers, "core": min(CORES[1])}
    return run_json([sys.executable, "-m", "benchmarks.gateway_load", workload, started.url, json.dumps(call)])


def _worker(sizes: dict[str, Any]) -> dict[str, Any]:
    with _upstream() as upstream:
        return run_json([sys.executable, "-m", "benchmarks.gateway_worker", upstream, json.dumps(sizes)])


# -- the sides -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _upstream() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.gateway_upstream", "--core", str(min(CORES[1]))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=install.ROOT, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def _gateway(side: str, upstream: str) -> Iterator[Started]:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    started = SIDES[side][2](folder, upstream)
    try:
        if started.process is not None:
            _wait(started)
        yield started
    finally:
        if started.process is not None:
            started.process.terminate()
            try:
                started.process.wait(15)
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(started: Started) -> None:
    """Wait until the gateway answers a request. Raises RuntimeError with what it said last."""
    give_up = time.monotonic() + 90.0
    while True:
        try:
            found = _load("saturate", started, {"requests": 1, "connections": 1})
        except RuntimeError as error:
            found, why = {"wrong": 1}, str(error).strip().splitlines()[-1]
        else:
            why = "it answered with an error"
        if not found["wrong"]:
            return
        assert started.process is not None
        if started.process.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"The gateway does not answer: {why}")
        time.sleep(0.2)


def _start(command: list[str], folder: Path, **env: str) -> subprocess.Popen[bytes]:
    log = folder / "log"
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**environment(), **env},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=_on_the_first_core,
        )


def _on_the_first_core() -> None:
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, CORES[0])


def _direct(folder: Path, upstream: str) -> Started:
    return Started(None, upstream)


def _ziggurat(folder: Path, upstream: str) -> Started:
    port = free_port()
    (folder / "ziggurat.toml").write_text(
        f"""
[inference.endpoints.up]
base_url = "{upstream}"
limits = {{ tokens_per_minute = 1_000_000_000, requests_per_minute = 100_000_000 }}
prices = {{ mock = {{ input = 1.0, output = 2.0 }} }}
[inference.models.mock]
routes = ["up:mock"]
[gateway]
port = {port}
[gateway.keys.bench]
key = "env:BENCH_KEY"
budget = 1_000_000.0
requests_per_minute = 100_000_000
tokens_per_minute = 1_000_000_000
namespace = "bench"
"""
    )
    process = _start([sys.executable, "-m", "ziggurat", "gateway"], folder, BENCH_KEY=KEY)
    return Started(process, f"http://127.0.0.1:{port}/v1", key=KEY)


def _litellm(folder: Path, upstream: str) -> Started:
    port = free_port()
    config = {
        "model_list": [
            {"model_name": "mock", "litellm_params": {"model": "openai/mock", "api_base": upstream, "api_key": "none"}}
        ],
        "general_settings": {"master_key": KEY},
    }
    (folder / "config.json").write_text(json.dumps(config))  # JSON is YAML.
    (folder / "config.json").rename(folder / "config.yaml")
    command = [str(install.PEERS / "litellm" / "bin" / "litellm"), "--config", "config.yaml", "--host", "127.0.0.1"]
    process = _start([*command, "--port", str(port), "--num_workers", "1"], folder, LITELLM_LOCAL_MODEL_COST_MAP="True")
    return Started(process, f"http://127.0.0.1:{port}/v1", key=KEY)


def _portkey(folder: Path, upstream: str) -> Started:
    port = free_port()
    script = install.PEERS / "portkey" / "npm" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    process = _start(["node", str(script), f"--port={port}", "--headless"], folder, NODE_ENV="production")
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": upstream}
    return Started(process, f"http://127.0.0.1:{port}/v1", headers=headers)


_PINS = install.wanted()
#: Label: environment under build/peers, version, and how it is started.
SIDES: dict[str, tuple[str, str, Callable[[Path, str], Started]]] = {
    "direct": ("", "", _direct),
    "Ziggurat": ("", __version__, _ziggurat),
    "LiteLLM": ("litellm", _PINS["litellm"]["pip"][0].partition("==")[2], _litellm),
    "Portkey": ("portkey", _PINS["portkey"]["npm"][0].rpartition("@")[2], _portkey),
}
