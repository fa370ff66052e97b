"""up: all of it on one machine, with worker processes as many as the load wants, and a live view of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer_json, console, run_hosting, say
from ziggurat.doors.cli.serve import Api, HealthPort, Host, Port, api_of, stay
from ziggurat.telemetry import events

if TYPE_CHECKING:
    from rich.live import Live

    from ziggurat.assembly import System
    from ziggurat.doors.cli.uplook import Looks, UpLook
    from ziggurat.settings import Settings

Interval = Annotated[
    float | None,
    typer.Option(
        "--interval", min=0.1, metavar="SECONDS", help="Seconds between two looks: 0.5 on a terminal, 5 elsewhere, 1 with --json."
    ),
]
OrchestratorName = Annotated[
    str | None,
    typer.Option(
        "--orchestrator",
        metavar="BACKEND",
        help="Who keeps the runs, in place of [orchestrator] backend; with temporal a server is started here if none answers.",
    ),
]

#: Lines of a worker's output shown at a time, and bytes of it kept before its file is cut.
LINES_SHOWN, LOG_BYTES = 50, 8 * 1024 * 1024


def up(
    api: Api = True,
    host: Host = None,
    port: Port = None,
    health_port: HealthPort = None,
    interval: Interval = None,
    orchestrator: OrchestratorName = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run all of it on this machine, with workers in processes of their own: as many as the load wants, down to none.

    Each pool is scaled between its min and max. On a terminal a live view shows runs, queues, pools, rates and cost; elsewhere a line
    is written when something changed, and with --json one JSON object for each look. The first Ctrl-C or SIGTERM drains, the second
    hands everything back at once.
    """
    from ziggurat.assembly import LOCAL_QUEUES, System, development_server
    from ziggurat.settings import load_settings
    from ziggurat.workers.process import ProcessOptions

    if orchestrator is not None:
        # As a variable, so that worker processes heed it too.
        os.environ["ZIGGURAT_ORCHESTRATOR__BACKEND"] = orchestrator
    settings = load_settings(config)
    if settings.queue.backend in LOCAL_QUEUES:
        settings = _with_a_shared_queue(settings)
    live = not as_json and console(stderr=True).is_terminal
    output = settings.resolve(".ziggurat/output") if live else None
    system = System(settings, scale=True, stay=True, output=output)
    serving = api_of(system, host, port) if api else None
    view = _View(system, as_json, live, interval, output)

    async def everything() -> int:
        async with development_server(settings) as web:
            if web:
                say(f"Temporal runs here for as long as this does; its own Web UI: {web}")
            return await stay(system, ProcessOptions(health_port=health_port, works=False), as_json, serving, view)

    raise typer.Exit(run_hosting(everything()))


def _with_a_shared_queue(settings: Settings) -> Settings:
    """Return the settings with a queue that worker processes can reach. The queue is losable, so that nothing has to be moved."""
    say(
        f'queue.backend is "{settings.queue.backend}", which one process alone can use; `ziggurat up` uses "sqlite" in its place.'
    )
    return settings.model_copy(update={"queue": settings.queue.model_copy(update={"backend": "sqlite"})})


class _View:
    """What `stay` shows while the system runs and drains."""

    def __init__(self, system: System, as_json: bool, live: bool, interval: float | None, output: Path | None) -> None:
        self._system, self._as_json, self.live = system, as_json, live
        self._interval = interval or (1.0 if as_json else 0.5 if live else 5.0)
        self._outputs = Outputs(output) if output is not None else None
        self._live: Live | None = None
        self._said: object = None
        self._last: UpLook | None = None

    @contextlib.asynccontextmanager
    async def showing(self, facts: dict[str, str]) -> AsyncIterator[None]:
        """Show the system until the block ends."""
        from ziggurat.doors.cli.uplook import Looks

        looks = Looks(self._system, facts)
        with contextlib.ExitStack() as stack:
            if self.live:
                self._live = stack.enter_context(self._make_live())
            task = asyncio.create_task(self._keep_looking(looks), name="ziggurat-view")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                with contextlib.suppress(Exception):  # The last look is a courtesy.
                    self._show(await looks.look(last=True))

    def hurry(self) -> None:
        """Leave the terminal as it was: the next signal ends this process without asking anyone."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def last_word(self) -> str:
        """Return the sentence to end with."""
        if self._outputs is not None:
            self._outputs.close()
        unfinished = self._last.unfinished if self._last is not None else 0
        if not unfinished:
            return "Stopped. No run is unfinished."
        return f"Stopped. {unfinished:,} unfinished {'run goes' if unfinished == 1 else 'runs go'} on at the next start."

    def _make_live(self) -> Live:
        from rich.live import Live

        return Live(console=console(stderr=True), auto_refresh=False, transient=False, vertical_overflow="ellipsis")

    async def _keep_looking(self, looks: Looks) -> None:
        while True:
            try:
                self._show(await looks.look())
            except Exception:
                # The system runs on, whatever is wrong with its picture.
                events.LOOK_FAILED(trace_of=True)
            # A drain is short and people wait for it.
            await asyncio.sleep(min(self._interval, 0.5) if self._system.draining and not self._as_json else self._interval)

    def _show(self, look: UpLook) -> None:
        from ziggurat.doors.cli.uplook import look_object
        from ziggurat.doors.cli.upview import draw, line_of, what_changed

        self._last = look
        if self._as_json:
            answer_json(look_object(look))
        elif self.live:
            if self._live is not None:
                self._show_outputs()
                size = self._live.console.size
                self._live.update(draw(look, size.width, size.height), refresh=True)
        elif (changed := what_changed(look)) != self._said:
            self._said = changed
            say(line_of(look))

    def _show_outputs(self) -> None:
        from rich.text import Text

        assert self._live is not None
        if self._outputs is not None:
            for worker, line in self._outputs.fresh():
                self._live.console.print(Text.assemble((f"{worker} │ ", "dim"), line), soft_wrap=True)


class Outputs:
    """What worker processes print, read from their files as it comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        self._read: dict[Path, int] = {}

    def fresh(self) -> list[tuple[str, str]]:
        """Return the lines that are new since the last call, with the worker's name; of many, the newest."""
        lines: list[tuple[str, str]] = []
        for path in sorted(self._folder.glob("*.log")) if self._folder.is_dir() else ():
            with contextlib.suppress(OSError):
                lines += [(path.stem, line) for line in self._lines(path)]
        if len(lines) > LINES_SHOWN:
            left_out = len(lines) - LINES_SHOWN
            lines = [("", f"{left_out:,} more lines are in {self._folder}"), *lines[-LINES_SHOWN:]]
        return lines

    def _lines(self, path: Path) -> list[str]:
        at = self._read.get(path, 0)
        size = path.stat().st_size
        if size <= at:
            return []
        with path.open("rb") as file:
            file.seek(at)
            data = file.read(LOG_BYTES)
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == LOG_BYTES else 0)
        self._read[path] = at + whole
        if self._read[path] > LOG_BYTES and self._read[path] == size:
            # The worker writes at the file's end, wherever that is.
            os.truncate(path, 0)
            self._read[path] = 0
        return [line for line in data[:whole].decode("utf-8", "replace").splitlines() if line.strip()]

    def close(self) -> None:
        """Remove the files of workers that said nothing; what the others said can still be read."""
        for path in self._folder.glob("*.log"):
            with contextlib.suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()
