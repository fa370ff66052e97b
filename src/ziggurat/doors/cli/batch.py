"""batch: many runs of one workflow over many inputs, resumable, with the results in one file.

A run's id is made from the workflow and its input, so the same batch finds its own runs again: what has ended is not run again, what was
cut off goes on, what failed is taken up from the step that failed. Each result is one line, appended whole; a line that a crash cut
short is dropped before the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import UNSET

from ziggurat.doors.cli.common import (
    INTERRUPTED,
    AsJson,
    Config,
    Tags,
    WorkflowRef,
    answer_json,
    client_of,
    console,
    read_tags,
    run_hosting,
    run_object,
    say,
)
from ziggurat.doors.cli.files import describe_file, file_input, with_files, with_saved_files
from ziggurat.errors import ConfigurationError, InvalidData, UnknownName, ZigguratError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ziggurat.client import Client, Handle
    from ziggurat.records import Run

#: Files of inputs, one JSON object a line; every other file is an input itself.
LINES = (".jsonl", ".ndjson")
#: Seconds between two lines of progress where there is no terminal.
SAY_EVERY = 10.0


class Item:
    """One input: where it stands, and its value, or why it has none."""

    __slots__ = ("error", "files", "id", "source", "value")

    def __init__(self, source: str, value: Any = None, error: str = "") -> None:
        self.source, self.value, self.error = source, value, error
        self.id = ""
        #: Whether the value names files that are to be saved as artifacts.
        self.files = False


def batch(
    workflow: WorkflowRef,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUTS.jsonl|FILE", help="JSON Lines of inputs, or files that are the inputs.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Where results go, one JSON object a line.")
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Begins the ids of the runs; another name runs the same inputs again.")
    ] = "",
    concurrency: Annotated[int, typer.Option("--concurrency", "-j", min=1, help="Runs under way at a time.")] = 64,
    retry_failed: Annotated[bool, typer.Option(help="Take up runs that failed in an earlier try.")] = True,
    tag: Tags = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow over many inputs. The same command again goes on where it stopped.

    Each line of a .jsonl file is one input. Any other file is an input itself: it is saved as an artifact where the workflow takes one,
    else its path is given to the workflow's one parameter, or to the field "path" of a model.
    """
    items = list(read_items(inputs))
    done = read_output(output, drop_failed=retry_failed)
    options = {"tags": read_tags(tag)}

    async def main() -> int:
        async with client_of(config, "host") as client:
            job = Batch(client, workflow, name, options, retry_failed)
            job.name_items(items)
            left = [item for item in items if not item.id or item.id not in done]
            with Output(output) as file, Meter(len(items), len(items) - len(left)) as meter:
                try:
                    await job.run(left, file, meter, concurrency)
                except asyncio.CancelledError:
                    say(f"Interrupted. {meter.done} of {meter.total} are done; the same command goes on with the rest.")
                    return INTERRUPTED
            if as_json:
                answer_json(meter.summary(output))
            return 1 if meter.failed or any(status != "completed" for status in done.values()) else 0

    raise typer.Exit(run_hosting(main()))


class Batch:
    """Starts runs for items, and awaits them."""

    def __init__(self, client: Client, workflow: str, name: str, options: dict[str, Any], retry_failed: bool) -> None:
        self._client = client
        self._definition = client.attachment.load_workflow(workflow)
        self._name = name or self._definition.name
        self._options = options
        self._retry_failed = retry_failed

    def name_items(self, items: Iterable[Item]) -> None:
        """Check every input before the first is run, and name its run after it. Equal inputs get numbered ids."""
        seen: dict[str, int] = {}
        for item in items:
            if item.error:
                continue
            try:
                payload = self._payload(item)
            except ZigguratError as error:
                item.error = str(error)
                continue
            digest = hashlib.sha256(payload).hexdigest()[:16]
            seen[digest] = seen.get(digest, 0) + 1
            item.id = f"{self._name}-{digest}" + (f"-{seen[digest]}" if seen[digest] > 1 else "")

    def _payload(self, item: Item) -> bytes:
        arguments = self._definition.arguments
        if not isinstance(item.value, Path):
            described = with_files(self._definition, item.value, describe_file)
            item.files = described != item.value
            return bytes(arguments.encode_input(described))
        path = str(item.value)
        if self._client.attachment.served:
            raise InvalidData(
                f"The file {path} is on this machine, and the workflow runs on another; upload it with "
                f"POST /api/v1/workflows/{self._definition.name}/files."
            )
        if (as_artifact := file_input(self._definition, path)) is not None:
            item.value, item.files = as_artifact, True
            return bytes(arguments.encode_input(with_files(self._definition, as_artifact, describe_file)))
        parameters = list(arguments.fields)
        for value in ({parameters[0]: path} if len(parameters) == 1 else None, {"path": path}):
            if value is not None:
                try:
                    payload = bytes(arguments.encode_input(value))
                    item.value = value
                    return payload
                except InvalidData:
                    continue
        raise InvalidData(
            f"The file {path} does not fit {self._definition.what}, whose parameters are {', '.join(parameters) or 'none'}: "
            "a file is given as the path to one parameter. Write the inputs as JSON Lines instead."
        )

    async def run(self, items: list[Item], output: Output, meter: Meter, concurrency: int) -> None:
        """Run items, at most `concurrency` at a time, in their order."""
        queue = iter(items)

        async def one_after_another() -> None:
            for item in queue:
                line = await self._one(item)
                output.append(line)
                meter.count(line)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(items))):
                group.create_task(one_after_another())

    async def _one(self, item: Item) -> dict[str, Any]:
        if item.error:
            error = {"type": "InvalidData", "message": item.error}
            usage = {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}
            line = {
                "id": "",
                "workflow": self._definition.name,
                "status": "failed",
                "result": None,
                "error": error,
                "usage": usage,
            }
            return {**line, "started_at": None, "ended_at": None, "source": item.source}
        handle: Handle[Any] = await self._start(item)
        run: Run = await handle.info()
        if run.status == "failed" and self._retry_failed:
            await handle.retry()
        elif run.status in ("paused", "parked"):
            await handle.resume()
        return {**run_object(await handle.wait()), "source": item.source}

    async def _start(self, item: Item) -> Handle[Any]:
        """Start an item's run, or find it; its files are saved only for a run that is not there yet."""
        value = item.value
        if item.files:
            try:
                await self._client.get(item.id)
                value = UNSET
            except UnknownName:
                _, value = await with_saved_files(self._client, self._definition, value)
        handle: Handle[Any] = await self._client.start_with(self._definition, value, id=item.id, **self._options)
        return handle


# -- inputs ---------------------------------------------------------------------------------------------------------


def read_items(paths: Iterable[Path]) -> Iterator[Item]:
    """Yield the inputs of files; a line that is no JSON is an item with an error. Raises ConfigurationError on a missing file."""
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"There is no file {path}.")
        if path.suffix.lower() not in LINES:
            yield Item(str(path), path)
            continue
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _line_item(f"{path}:{number}", line)


def _line_item(source: str, line: bytes) -> Item:
    try:
        return Item(source, json.loads(line))
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return Item(source, error=f"{source} is not valid JSON: {reason[:1].lower()}{reason[1:]}.")


# -- output ---------------------------------------------------------------------------------------------------------


def read_output(path: Path, *, drop_failed: bool) -> dict[str, str]:
    """Return which ids an earlier try finished, with their statuses.

    What must be done again is taken out of the file: a line that was cut short, lines of invalid inputs, and, with `drop_failed`,
    those of runs that did not complete.
    """
    if not path.exists():
        return {}
    done: dict[str, str] = {}
    kept: list[bytes] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            found = json.loads(line)
            id, status = found["id"], found["status"]
        except (ValueError, KeyError, TypeError):
            if line is lines[-1]:
                continue
            raise ConfigurationError(
                f"{path} exists and holds something else than results; choose another --output, or move it away."
            ) from None
        if line.endswith(b"\n") and id and (status == "completed" or not drop_failed):
            done[id] = status
            kept.append(line)
    if len(kept) != len(lines):
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(b"".join(kept))
        beside.replace(path)
    return done


class Output:
    """The file of results. A line is written with one call, and so is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exc: object) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def append(self, line: dict[str, Any]) -> None:
        """Add a result."""
        data = memoryview(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        while data:
            data = data[os.write(self._file, data) :]


class Meter:
    """Counts what is done, and shows it: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, skipped: int) -> None:
        self.total, self.skipped = total, skipped
        self.done, self.failed = skipped, 0
        self.tokens, self.cost_usd = 0, 0.0
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Meter:
        screen = console(stderr=True)
        if self.skipped:
            say(f"{self.skipped} of {self.total} are done already.")
        if screen.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=screen)
            self._row = self._bar.add_task("", total=self.total, completed=self.done, note="")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        say(f"{self.done} of {self.total} done, {self._note()}")

    def count(self, line: dict[str, Any]) -> None:
        """Count a result."""
        self.done += 1
        self.failed += line["status"] != "completed"
        usage = line["usage"]
        self.tokens += usage["input_tokens"] + usage["output_tokens"]
        self.cost_usd += usage["cost_usd"]
        now = time.monotonic()
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, completed=self.done, note=self._note())
        elif now - self._said >= SAY_EVERY:
            self._said = now
            rate = (self.done - self.skipped) / max(now - self._began, 1e-9)
            say(f"{self.done} of {self.total} done, {self._note()}, about {(self.total - self.done) / rate:.0f} s left")

    def _note(self) -> str:
        from ziggurat.units import human_dollars

        rate = (self.done - self.skipped) / max(time.monotonic() - self._began, 1e-9)
        cost = f", {self.tokens:,} tokens, {human_dollars(self.cost_usd)}" if self.tokens else ""
        return f"{self.failed} failed, {rate:.1f}/s{cost}"

    def summary(self, output: Path) -> dict[str, Any]:
        """Return the counts as JSON."""
        return {
            "total": self.total,
            "completed": self.done - self.skipped - self.failed,
            "failed": self.failed,
            "skipped": self.skipped,
            "tokens": self.tokens,
            "cost_usd": self.cost_usd,
            "seconds": round(time.monotonic() - self._began, 3),
            "output": str(output),
        }
