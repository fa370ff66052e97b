"""The demonstration: analyse a folder of documents through all four layers, watch it live, and compare with the truth.

    make demo
    python -m examples.document_analysis.demo [FILES …] [--state PATH]

Runs on the small local model, or on GMI Cloud or OpenAI where GMI_API_KEY or OPENAI_API_KEY is set. Every document is one run; kill the
process at any moment and start it again with the same --batch, and it goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.document_analysis.schemas import Report
from examples.document_analysis.score import load_truth, table
from examples.document_analysis.workflow import MODEL, analyze
from ziggurat import Client, ZigguratError
from ziggurat.records import Run
from ziggurat.settings import Settings, load_settings
from ziggurat.units import human_dollars, human_seconds

HERE = Path(__file__).parent
#: Where a provider's key is looked for, and the model that the example then uses.
LOCAL = "local:smollm2"
PROVIDERS = (("GMI_API_KEY", "gmi:deepseek-ai/DeepSeek-V4-Pro"), ("OPENAI_API_KEY", "openai:gpt-5.4-mini"))


def settings(state: Path) -> tuple[Settings, str]:
    """Return the settings of the demonstration, and the route that its model calls take."""
    environ = dict(os.environ)
    route = next((route for key, route in PROVIDERS if environ.get(key)), LOCAL)
    environ |= {
        "ZIGGURAT_ORCHESTRATOR__PATH": str(state),
        "ZIGGURAT_APP__MODULES": "examples.document_analysis.workflow",
        f"ZIGGURAT_INFERENCE__MODELS__{MODEL.upper()}__ROUTES": route,
    }
    return load_settings(None, environ), route


async def analyse(
    client: Client, files: Sequence[Path], batch: str, at_once: int, console: Console
) -> list[tuple[Path, Run, Report | None]]:
    """Start a run for each file, show how they get on, and return each with its report, or None if it failed."""
    slots = asyncio.Semaphore(at_once)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("documents", total=len(files))

        async def one(file: Path) -> tuple[Path, Run, Report | None]:
            # Not all at once: a document's time should be its own, not that of those before it in the model's line.
            async with slots:
                handle = await client.start(analyze, str(file), id=f"{batch}/{file.name}", tags={"batch": batch})
                run = await handle.wait()
            report = analyze.result.decode(run.result) if run.status == "completed" and run.result is not None else None
            progress.advance(bar)
            said = report.kind.value if report is not None else f"{run.status}: {run.reason or (run.error and run.error.message)}"
            console.print(f"[dim]{file.name}[/] → {said}" if console.is_terminal else f"{file.name} -> {said}")
            return file, run, report

        return await asyncio.gather(*(one(file) for file in files))


def results_table(results: Sequence[tuple[Path, Run, Report | None]]) -> Table:
    """Return the table of documents: kind, fields, summary, and what each cost."""
    shown = Table(title="Documents", title_justify="left", box=SIMPLE, expand=True)
    shown.add_column("document, kind", ratio=2, overflow="fold")
    shown.add_column("fields, summary", ratio=5, overflow="fold")
    for name in ("tokens", "cost", "ms"):
        shown.add_column(name, justify="right", no_wrap=True)
    for file, run, report in results:
        tokens = run.usage.input_tokens + run.usage.output_tokens
        took = ((run.ended_at or 0.0) - (run.started_at or 0.0)) * 1000
        if report is not None:
            fields = ", ".join(f"{name} [cyan]{escape(str(v))}[/]" for name, v in report.fields.items() if v is not None)
            kind, said = f"[green]{report.kind.value}[/]", f"{fields}\n{escape(report.summary)}"
        else:
            kind, said = f"[red]{run.status}[/]", escape(run.error.message if run.error is not None else run.reason)
        shown.add_row(
            f"{escape(file.name)}\n{kind}",
            said,
            f"{tokens:,}",
            human_dollars(run.usage.cost_usd),
            f"{took:,.0f}",
        )
    return shown


def accuracy_table(reports: Sequence[Report]) -> Table:
    """Return how the reports compare with the truth, by kind."""
    names = {report.document for report in reports}
    truths = [truth for truth in load_truth(HERE / "truth.jsonl") if truth.file in names]
    shown = Table(title="Accuracy against the truth", title_justify="left", box=SIMPLE)
    shown.add_column("kind")
    for name in ("documents", "kind right", "fields right", "summary holds the keywords"):
        shown.add_column(name, justify="right")
    for row in table(reports, truths):
        shown.add_row(
            row.name, str(row.documents), *(f"{part:.0%}" for part in row.score), style="bold" if row.name == "all" else ""
        )
    return shown


async def main(arguments: argparse.Namespace) -> int:
    # A file or a pipe has no width; a table wants more than the 80 columns that it would be given.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    files = [Path(file) for file in arguments.files] or sorted((HERE / "documents").iterdir())
    chosen, route = settings(Path(arguments.state))
    console.print(f"{len(files)} documents, model {route}, state in {arguments.state}, batch {arguments.batch}.")
    async with Client(chosen) as client:
        results = await analyse(client, files, arguments.batch, 3 if route == LOCAL else 32, console)
    console.print(results_table(results))
    reports = [report for _, _, report in results if report is not None]
    if reports:
        console.print(accuracy_table(reports))
    tokens = sum(run.usage.input_tokens + run.usage.output_tokens for _, run, _ in results)
    cost = sum(run.usage.cost_usd for _, run, _ in results)
    # From the runs' own records, so that a batch that is resumed does not look faster than it was.
    took = max(run.ended_at or 0.0 for _, run, _ in results) - min(run.created_at for _, run, _ in results)
    rate = len(files) / max(took, 0.001) * 3600
    console.print(
        f"{len(reports)} of {len(files)} documents in {human_seconds(took)} ({rate:,.0f} an hour), "
        f"{tokens:,} tokens, {human_dollars(cost)}."
    )
    state = f"ZIGGURAT_ORCHESTRATOR__PATH={arguments.state} "
    console.print(
        f"Look closer: {state}.venv/bin/ziggurat list    …show '{arguments.batch}/{files[0].name}'    …history", highlight=False
    )
    return 0 if len(reports) == len(files) else 1


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Analyse documents through all four layers.")
    parser.add_argument("files", nargs="*", help="documents; the example's own by default")
    parser.add_argument("--state", default=".ziggurat/demo.db", help="the state file (default: %(default)s)")
    parser.add_argument(
        "--batch", default=time.strftime("demo-%Y%m%d-%H%M%S"), help="names the runs; the same name resumes a batch"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(parse())))
    except ZigguratError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Stopped. Start again with the same --batch to go on where it was.", file=sys.stderr)
        sys.exit(130)
