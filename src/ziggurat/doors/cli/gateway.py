"""gateway: the OpenAI-compatible door to the models, and its virtual keys."""

from __future__ import annotations

import asyncio
import gc
import importlib
import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli import keys
from ziggurat.doors.cli.common import AsJson, Config, answer_json, run_async, say

if TYPE_CHECKING:
    from ziggurat.settings import Settings

app = typer.Typer(help="Serve the models to OpenAI clients, with virtual keys.", invoke_without_command=True)
app.add_typer(keys.app, name="keys")


@app.callback()
def serve_gateway(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="The address to listen on, in place of gateway.host.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port, in place of gateway.port; 0 takes a free one.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Serve the models of [inference.models] to OpenAI clients, until SIGTERM.

    On SIGTERM it answers new requests with 503, lets answers under way end within the grace period, and exits.
    """
    if context.invoked_subcommand is not None:
        return
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    changes = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    if changes:
        settings = settings.model_copy(update={"gateway": settings.gateway.model_copy(update=changes)})
    raise typer.Exit(_run(_serve(settings, as_json)))


def _run(main: Coroutine[Any, Any, int]) -> int:
    """Run the gateway on uvloop where that is installed (extra `server`): a tenth less CPU a request."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return run_async(main)
    code: int = uvloop.run(main)
    return code


async def _serve(settings: Settings, as_json: bool) -> int:
    from ziggurat.doors.cli.logs import show_logs
    from ziggurat.doors.gateway import open_gateway

    show_logs(staying=True, as_json=settings.telemetry.logs == "json")
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    async with open_gateway(settings) as (gateway, models):
        _collect_rarely()
        _tell(gateway.base_url, models.aliases(), as_json)
        await asked.wait()
        asked.clear()
        if gateway.in_flight:
            say(f"Draining: {gateway.in_flight} requests are under way. Again ends them now.")
        hurry = asyncio.create_task(asked.wait())
        draining = asyncio.create_task(gateway.drain())
        await asyncio.wait({hurry, draining}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        draining.cancel()
        if gateway.in_flight:
            say(f"{gateway.in_flight} requests were cut.")
    say("Stopped.")
    return 0


def _collect_rarely() -> None:
    """Let the collector of cycles look more rarely, and never at what is there before the first request.

    Requests make hardly any cycles, and the collector's default rhythm costs a tenth of their CPU. That memory stays flat all the same is
    what the `memory` workload of the gateway's benchmark looks at.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _tell(base_url: str, aliases: list[str], as_json: bool) -> None:
    described: dict[str, Any] = {"base_url": base_url, "models": aliases}
    if as_json:
        answer_json(described)
    else:
        say(f"Serving {', '.join(aliases)} at {base_url}. End with SIGTERM or Ctrl-C.")
