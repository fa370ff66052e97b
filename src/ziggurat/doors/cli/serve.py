"""serve and worker: processes that stay, until SIGTERM asks them to drain."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer_json, report, run_hosting, say

if TYPE_CHECKING:
    from ziggurat.assembly import System
    from ziggurat.doors.api.server import ApiServer
    from ziggurat.workers.process import ProcessOptions

HealthPort = Annotated[
    int | None,
    typer.Option(
        "--health-port", min=0, max=65535, metavar="PORT", help="Serve /healthz, /readyz and /metrics; 0 takes a free port."
    ),
]


Host = Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Where the API listens; [server] host by default.")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Its port; [server] port by default, 0 takes a free one.")
]
Api = Annotated[bool, typer.Option("--api/--no-api", help="Serve the HTTP API and the dashboard.")]


def serve(
    workers: Annotated[bool, typer.Option(help="Run the pools of workers here too.")] = True,
    api: Api = True,
    host: Host = None,
    port: Port = None,
    health_port: HealthPort = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run the system here, orchestrator, queue, workers and HTTP API, until SIGTERM; other commands reach it by themselves.

    On SIGTERM it takes no new work, lets running tasks finish within the grace period, and hands the rest back.
    """
    from ziggurat.assembly import System
    from ziggurat.settings import load_settings
    from ziggurat.workers.process import ProcessOptions

    system = System(load_settings(config), pools=None if workers else (), stay=True)
    serving = api_of(system, host, port) if api else None
    raise typer.Exit(run_hosting(stay(system, ProcessOptions(health_port=health_port, works=workers), as_json, serving)))


def worker(
    pool: Annotated[list[str] | None, typer.Argument(metavar="POOL", help="Pools to run; all by default.")] = None,
    health_port: HealthPort = None,
    status_fd: Annotated[int | None, typer.Option("--status-fd", hidden=True)] = None,
    orchestrator: Annotated[
        bool, typer.Option("--orchestrator", help="Drive runs instead of running tasks; on Temporal any number of processes may.")
    ] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run workers only, against a queue that processes share, until SIGTERM.

    With --orchestrator it is a workflow worker: it drives runs on Temporal, and runs no tasks.

    Exits with 75 when it drained because it reached its memory ceiling and wants to be started anew.
    """
    from ziggurat.workers.process import ProcessOptions

    options = ProcessOptions(health_port=health_port, status_fd=status_fd)
    raise typer.Exit(drive(pool, options, config, as_json) if orchestrator else work(pool, options, config, as_json))


def drive(pools: list[str] | None, options: ProcessOptions, config: Path | None, as_json: bool) -> int:
    """Drive runs until the process is asked to end, and return its exit code."""
    from ziggurat.assembly import System
    from ziggurat.errors import ConfigurationError
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    if settings.orchestrator.backend != "temporal" or pools:
        raise ConfigurationError(
            'worker --orchestrator drives runs on Temporal and runs no pools; set orchestrator.backend to "temporal", and name none.'
        )
    return run_hosting(stay(System(settings, pools=()), options, as_json))


def work(pools: list[str] | None, options: ProcessOptions, config: Path | None, as_json: bool = False) -> int:
    """Run workers until the process is asked to end, and return its exit code."""
    from ziggurat.assembly import System
    from ziggurat.settings import load_settings

    system = System(load_settings(config), orchestrate=False, pools=pools or None)
    return run_hosting(stay(system, options, as_json, shows_metrics=True))


def nursery(descriptor: Annotated[int, typer.Argument(hidden=True)]) -> None:
    """Fork worker processes for `ziggurat up`; not for people."""
    # What every worker needs is imported once, here.
    from ziggurat.assembly import import_queue
    from ziggurat.workers.pools.nursery import tend

    import_queue(os.environ.get("ZIGGURAT_QUEUE__BACKEND", ""))

    tend(descriptor, _forked_worker)


def _forked_worker(arguments: list[str], status: int) -> int:
    from ziggurat.workers.process import ProcessOptions

    pool, config = arguments
    try:
        return work([pool], ProcessOptions(status_fd=status), Path(config) if config else None)
    except Exception as error:
        return report(error, as_json=False)


def api_of(system: System, host: str | None, port: int | None) -> AbstractAsyncContextManager[ApiServer]:
    """Return the HTTP API of a system, to be entered once the system is open. Raises MissingExtra without its parts."""
    from ziggurat.errors import MissingExtra

    try:
        from ziggurat.doors.api.server import serving
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise MissingExtra("The HTTP API (`--no-api` goes without it)", "server") from error
    return serving(system, host, port)


class View(Protocol):
    """What is shown of a system while it runs and drains, beside its log."""

    #: It shows what the log would say; only warnings are logged beside it.
    live: bool

    def showing(self, facts: dict[str, str]) -> AbstractAsyncContextManager[None]:
        """Show the system while the block runs."""

    def hurry(self) -> None:
        """Take in that the drain is cut short."""

    def last_word(self) -> str:
        """Return the sentence to end with."""


async def stay(
    system: System,
    options: ProcessOptions,
    as_json: bool,
    serving: AbstractAsyncContextManager[ApiServer] | None = None,
    view: View | None = None,
    shows_metrics: bool = False,
) -> int:
    """Keep a system running until the process is asked to end, and return its exit code."""
    from ziggurat.doors.cli.logs import show_logs
    from ziggurat.workers.process import serve as look_after

    # A worker that a pool started says what is wrong, and leaves the rest to the pool.
    managed = options.status_fd is not None
    live = view is not None and view.live
    show_logs(staying=not managed and not live, as_json=system.settings.telemetry.logs == "json")

    def hurry() -> None:
        system.hurry()
        if view is not None:
            view.hurry()

    async with system, serving or contextlib.nullcontext() as api:
        url = str(getattr(api, "url", ""))
        showing = view.showing(_facts(system, url)) if view is not None else contextlib.nullcontext()
        async with showing:
            code = await look_after(
                system.workers,
                system.drain,
                _with_metrics(system, options, unasked=shows_metrics),
                started=lambda server: None if managed or live else _tell(system, getattr(server, "port", None), url, as_json),
                hurry=hurry,
            )
    if not managed:
        say(view.last_word() if view is not None else "Stopped. What is unfinished goes on at the next start.")
    return code


def _with_metrics(system: System, options: ProcessOptions, *, unasked: bool) -> ProcessOptions:
    """Return the options with a port for metrics: the one asked for, or any free one where others can find it."""
    from msgspec.structs import replace

    wanted = system.settings.telemetry
    if options.health_port is None and unasked and wanted.metrics and system.queue.capabilities.presence:
        return replace(options, health_port=0, health_host=wanted.metrics_host, health_is_courtesy=True)
    return replace(options, health_host=wanted.metrics_host)


def _facts(system: System, url: str) -> dict[str, str]:
    """What a view says of a system beside what changes."""
    settings = system.settings
    facts = {"orchestrator": settings.orchestrator.backend, "queue": settings.queue.backend, "api": url}
    return {name: value for name, value in facts.items() if value}


def _tell(system: System, port: int | None, url: str, as_json: bool) -> None:
    described: dict[str, Any] = {**system.describe(), "api": url, "health_port": port}
    if as_json:
        answer_json(described)
    else:
        known = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in described.items() if value)
        say(f"Running. {known}. End with SIGTERM or Ctrl-C.")
