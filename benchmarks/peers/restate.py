"""Restate: its Rust server from npm, one worker of its Python SDK served by hypercorn, and a client that calls the server's ingress.

Three processes. Starting and awaiting a run is one HTTP call, as Restate's own clients do it.
"""
# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

import asyncio
import glob
import os
import subprocess
import sys
from datetime import timedelta
from typing import Any

import aiohttp
import restate

from benchmarks.side import HOUR, STARTED, Side, free_port, main, step_started, until_listening

# The binary itself: the command that npm installs is a script that runs it as a child.
SERVERS = "build/peers/restate/npm/node_modules/@restatedev/restate-server-*/bin/restate-server"

# The inactivity timeout lets a waiting run leave the worker's memory after a second; a minute is the default.
service = restate.Service("bench", inactivity_timeout=timedelta(seconds=1))


async def step(number: int) -> int:
    return number


async def slow_step(run: int, number: int, step_ms: int) -> int:
    step_started(run, number)
    await asyncio.sleep(step_ms / 1e3)
    return number


@service.handler()
async def sequential(context: restate.Context, steps: int) -> int:
    for number in range(steps):
        await context.run_typed("step", step, number=number)
    return steps


@service.handler()
async def parallel(context: restate.Context, steps: int) -> int:
    await restate.gather(*[context.run_typed("step", step, number=number) for number in range(steps)])
    return steps


@service.handler()
async def waiter(context: restate.Context, number: int) -> int:
    await context.sleep(timedelta(seconds=HOUR))
    return number


@service.handler()
async def slow(context: restate.Context, given: list[int]) -> int:
    run, steps, step_ms = given
    for number in range(steps):
        await context.run_typed("slow_step", slow_step, run=run, number=number, step_ms=step_ms)
    return steps


app = restate.app(services=[service])


class Restate(Side):
    async def open(self) -> None:
        self._worker_port, self._ingress, admin = free_port(), free_port(), free_port()
        settings = {
            "RESTATE_INGRESS__BIND_PORT": self._ingress,
            "RESTATE_ADMIN__BIND_PORT": admin,
            "RESTATE_BIND_PORT": free_port(),
            "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_BASE_DIR": self.folder / "server",
            "RESTATE_DISABLE_TELEMETRY": "true",
            "RESTATE_LOG_FILTER": "warn",
        }
        server = self.spawn(
            "server", [*map(os.path.abspath, glob.glob(SERVERS))], {key: str(value) for key, value in settings.items()}
        )
        worker = self._start_worker()
        await until_listening(admin, server)
        await until_listening(self._worker_port, worker)
        self._http = aiohttp.ClientSession(
            f"http://127.0.0.1:{self._ingress}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        body = {"uri": f"http://127.0.0.1:{self._worker_port}", "force": True}
        for attempt in range(200):
            async with self._http.post(f"http://127.0.0.1:{admin}/deployments", json=body) as response:
                if response.status < 300:
                    break
                if attempt == 199:
                    raise RuntimeError(await response.text())
            await asyncio.sleep(0.05)
        for attempt in range(200):  # Its partitions take a moment to elect leaders.
            try:
                await self._call("sequential", 1)
                return
            except RuntimeError:
                if attempt == 199:
                    raise
                await asyncio.sleep(0.05)

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self.spawn("worker", [sys.executable, "-c", _SERVE, str(self._worker_port)])

    async def close(self) -> None:
        await self._http.close()

    async def _call(self, handler: str, given: Any, send: str = "") -> Any:
        async with self._http.post(f"/bench/{handler}{send}", json=given) as response:
            if response.status >= 300:
                raise RuntimeError(f"{response.status}: {await response.text()}")
            return await response.json()

    async def sequential(self, runs: int, steps: int) -> None:
        await asyncio.gather(*[self._call("sequential", steps) for _ in range(runs)])

    async def parallel(self, steps: int) -> None:
        await self._call("parallel", steps)

    async def wait(self, runs: int) -> None:
        at_once = asyncio.Semaphore(200)

        async def start(number: int) -> None:
            async with at_once:
                await self._call("waiter", number, "/send")

        await asyncio.gather(*[start(number) for number in range(runs)])

    async def begin_slow(self, runs: int, steps: int, step_ms: int) -> subprocess.Popen[bytes]:
        await self.open()
        self._slow = [asyncio.create_task(self._call("slow", [run, steps, step_ms])) for run in range(runs)]
        # One call starts and awaits; all of them are with the server long before half of the steps have run.
        (self.folder / STARTED).touch()
        return self.processes["worker"]

    async def resume_slow(self) -> None:
        self._start_worker()
        await asyncio.gather(*self._slow)


# hypercorn's command line runs the app in a child process, which a kill of the parent would leave behind; this is its one-process form.
_SERVE = """
import asyncio, sys
import hypercorn.asyncio, hypercorn.config
from benchmarks.peers.restate import app
config = hypercorn.config.Config()
config.bind = ["127.0.0.1:" + sys.argv[1]]
asyncio.run(hypercorn.asyncio.serve(app, config))
"""

if __name__ == "__main__":
    main(Restate)
