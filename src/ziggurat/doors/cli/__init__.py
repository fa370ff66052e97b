"""The command line: `ziggurat`.

One small module holds each group of commands; this one puts them together and turns every failure into one line and an exit code:
0 done, 1 the run failed, 2 usage or configuration, 3 a layer is unreachable, 130 interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import Annotated, NoReturn

import typer

from ziggurat.doors.cli import (
    allowances,
    api_keys,
    artifacts,
    batch,
    check_replay,
    costs,
    deadletters,
    doctor,
    gateway,
    init,
    models,
    queues,
    run,
    runs,
    schedules,
    serve,
    up,
    verbs,
)
from ziggurat.doors.cli.common import INTERRUPTED, answer, report, say
from ziggurat.doors.cli.cut import end_quietly, is_cut
from ziggurat.doors.cli.logs import show_logs
from ziggurat.errors import ConfigurationError

app = typer.Typer(
    name="ziggurat",
    help="Run AI agent workflows durably, from one process to a cluster.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from ziggurat import __version__

        answer(f"ziggurat {__version__}")
        raise typer.Exit


#: Commands that answer from files of this machine: with --server they would answer for the wrong system.
_OF_THIS_MACHINE = frozenset({"artifacts", "budgets", "costs", "doctor", "keys", "limits", "models"})


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what the layers do.")] = False,
    server: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="URL",
            envvar="ZIGGURAT_SERVER",
            help="Speak to the system that this server runs, over its HTTP API.",
        ),
    ] = "",
) -> None:
    show_logs(verbose=verbose)
    if server and context.invoked_subcommand in _OF_THIS_MACHINE:
        raise ConfigurationError(
            f"`ziggurat {context.invoked_subcommand}` looks at the files of this machine, and {server} is another; run it there, or ask "
            "its API, which is described at /api/v1/openapi.json."
        )
    if server:
        # As the setting that it is, so that whoever reads the settings knows of it.
        os.environ["ZIGGURAT_CLIENT__URL"] = server
        if os.environ.get("ZIGGURAT_API_KEY"):
            os.environ.setdefault("ZIGGURAT_CLIENT__API_KEY", "env:ZIGGURAT_API_KEY")


for _name, _command in (
    ("init", init.init),
    ("run", run.run),
    ("watch", run.watch),
    ("batch", batch.batch),
    ("start", run.start),
    ("list", runs.list_runs),
    ("show", runs.show),
    ("history", runs.history),
    ("signal", verbs.signal),
    ("cancel", verbs.cancel),
    ("pause", verbs.pause),
    ("resume", verbs.resume),
    ("retry", verbs.retry),
    ("fork", verbs.fork),
    ("purge", verbs.purge),
    ("check-replay", check_replay.check_replay),
    ("serve", serve.serve),
    ("worker", serve.worker),
    ("up", up.up),
    ("queues", queues.queues),
    ("workers", queues.workers),
    ("costs", costs.costs),
    ("budgets", allowances.budgets),
    ("limits", allowances.limits),
    ("doctor", doctor.doctor),
):
    app.command(_name)(_command)
app.command("nursery", hidden=True)(serve.nursery)
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(deadletters.app, name="deadletters")
app.add_typer(models.app, name="models")
app.add_typer(gateway.app, name="gateway")
app.add_typer(api_keys.app, name="keys")
app.add_typer(schedules.app, name="schedules")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    code = run_command(sys.argv[1:] if arguments is None else arguments)
    if "temporalio" in sys.modules:
        # Threads of its runtime outlive the connection, and one that calls into an interpreter which is being taken apart aborts the
        # process, after all has been done and said: on a busy machine a command then ended with SIGABRT.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run_command(arguments: list[str]) -> int:
    """Run a command and return its exit code; every failure has been reported by then."""
    try:
        return _run_command(arguments)
    except (Exception, SystemExit) as error:
        if not is_cut(error):
            raise
        return end_quietly()


def _run_command(arguments: list[str]) -> int:
    try:
        code = app(arguments, standalone_mode=False, prog_name="ziggurat")
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("Interrupted.")
        return INTERRUPTED
    except (Exception, SystemExit) as error:
        if is_cut(error):
            return end_quietly()
        return report(error, as_json="--json" in arguments)
    return code if isinstance(code, int) else 0
