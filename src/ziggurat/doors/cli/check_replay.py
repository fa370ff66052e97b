"""check-replay: whether the code as it is still fits the runs that are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer, answer_json, client_of, run_async, say

if TYPE_CHECKING:
    from ziggurat.assembly.replaying import Recording


def check_replay(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|FILE", help="Runs, or files that --export wrote; the newest runs by default."),
    ] = None,
    workflow: Annotated[str, typer.Option("--workflow", metavar="NAME", help="Only runs of this workflow.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest runs.")] = 100,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Write the histories there instead, to replay them in CI.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded runs against the code as it is, without running any task, and say where it contradicts them.

    Exits with 1 if a run does not fit: deployed like this, the code would park it. Put the change behind patched(), or let such runs end
    first.
    """
    checked = run_async(_check(targets or [], workflow, limit, export, config))
    wrong = [one for one in checked if one["contradiction"]]
    if as_json:
        answer_json(checked)
    elif export is not None:
        say(f"{len(checked)} {'history was' if len(checked) == 1 else 'histories were'} written to {export}.")
    else:
        for one in wrong:
            answer(f"✗ {one['run']} ({one['workflow']}): {one['contradiction']}.")
        say(_summary(len(checked), len(wrong)))
    raise typer.Exit(1 if wrong else 0)


def _summary(count: int, wrong: int) -> str:
    if not count:
        return "There is no run to replay."
    replayed = "1 run was replayed" if count == 1 else f"{count} runs were replayed"
    if not wrong:
        return f"{replayed}, and the code fits."
    return f"{replayed}; {wrong} {'does' if wrong == 1 else 'do'} not fit the code as it is."


async def _check(targets: list[str], workflow: str, limit: int, export: Path | None, config: Path | None) -> list[dict[str, Any]]:
    from ziggurat.assembly import build_payloads, open_registry
    from ziggurat.assembly.replaying import check_recording
    from ziggurat.settings import load_settings

    settings = load_settings(config)
    recordings = await _recordings(targets, workflow, limit, config)
    if export is not None:
        return _write(recordings, export)
    registry, payloads = open_registry(settings), build_payloads(settings)
    found: list[dict[str, Any]] = []
    for recording in recordings:
        said = await check_recording(recording, registry, payloads)
        run = recording.run
        found.append({"run": run.id, "workflow": run.workflow, "status": run.status, "contradiction": said})
    return found


async def _recordings(targets: list[str], workflow: str, limit: int, config: Path | None) -> list[Recording]:
    from ziggurat.records import RunFilter

    found, runs = _read(targets)
    if runs or not targets:
        async with client_of(config, "observe") as client:
            orchestrator = client.attachment.orchestrator
            if not targets:
                runs = [run.id for run in await orchestrator.list(RunFilter(workflow=workflow, limit=limit))]
            found += [await orchestrator.record(run) for run in runs]
    return [one for one in found if not workflow or one.run.workflow == workflow]


def _read(targets: list[str]) -> tuple[list[Recording], list[str]]:
    """Return the recordings in files, and the targets that are none."""
    from ziggurat.assembly.replaying import read_recording

    files = [target for target in targets if target.endswith(".json") and Path(target).is_file()]
    found = [read_recording(Path(file).read_bytes(), f"The file {file}") for file in files]
    return found, [target for target in targets if target not in files]


def _write(recordings: list[Recording], folder: Path) -> list[dict[str, Any]]:
    import re

    import msgspec

    folder.mkdir(parents=True, exist_ok=True)
    for recording in recordings:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", recording.run.id)
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(recording), indent=1))
    return [{"run": r.run.id, "workflow": r.run.workflow, "status": r.run.status, "contradiction": ""} for r in recordings]
