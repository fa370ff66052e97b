"""serve and worker: processes that stay, until SIGTERM asks them to drain."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer_json, run_async, say


async def _until_asked_to_stop() -> str:
    """Wait for SIGTERM or SIGINT and return its name. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[str] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if asked.done():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        else:
            asked.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return await asked


def serve(config: Config = None, as_json: AsJson = False) -> None:
    """Run the system here, orchestrator, queue and workers, until SIGTERM; other commands reach it by themselves.

    On SIGTERM it takes no new work, lets running tasks finish within the grace period, and hands the rest back.
    """
    from ziggurat.assembly import System
    from ziggurat.settings import load_settings

    settings = load_settings(config)

    async def main() -> None:
        async with System(settings) as system:
            _tell(system.describe(), as_json)
            name = await _until_asked_to_stop()
            say(f"{name}: draining.")
            await system.drain()
        say("Stopped. What is unfinished goes on at the next start.")

    run_async(main())


def worker(
    pool: Annotated[list[str] | None, typer.Argument(metavar="[POOL...]", help="Pools to run; all by default.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run workers only, against a queue that processes share, until SIGTERM."""
    from ziggurat.assembly import System
    from ziggurat.settings import load_settings

    settings = load_settings(config)

    async def main() -> None:
        async with System(settings, orchestrate=False, pools=pool or None) as system:
            _tell(system.describe(), as_json)
            name = await _until_asked_to_stop()
            say(f"{name}: draining.")
            await system.drain()
        say("Stopped.")

    run_async(main())


def _tell(description: dict[str, Any], as_json: bool) -> None:
    if as_json:
        answer_json(description)
    else:
        say(
            "Running. "
            + ", ".join(f"{key}: {value}" for key, value in description.items() if value)
            + ". End with SIGTERM or Ctrl-C."
        )
