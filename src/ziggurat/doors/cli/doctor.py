"""doctor: looks at every configured layer, and says what is wrong and how to mend it. Nothing is changed and nothing is bought."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from ziggurat.doors.cli.common import AsJson, Config, answer_json, console, run_async
from ziggurat.errors import ConfigurationError, ZigguratError

if TYPE_CHECKING:
    from ziggurat.settings import Settings

#: Free space below which a state file is about to be in trouble.
DISK_LOW = 1024**3
DISK_OUT = 64 * 1024**2
#: Seconds that one endpoint may take.
PATIENCE = 20.0
#: Extras by what they bring, and the module that shows whether they are there.
EXTRAS = {
    "local": ("xllamacpp", "a model on this machine"),
    "prices": ("genai_prices", "prices of known models"),
    "redis": ("redis", "the redis queue"),
    "rabbitmq": ("aio_pika", "the rabbitmq queue"),
    "sqs": ("boto3", "the sqs queue"),
    "cloud-tasks": ("google.cloud.tasks", "the cloud-tasks queue"),
    "temporal": ("temporalio", "the temporal orchestrator"),
    "server": ("fastapi", "the API, the dashboard and the gateway"),
    "telemetry": ("opentelemetry.sdk", "traces"),
    "artifacts": ("obstore", "artifacts in S3, GCS and Azure"),
    "crypto": ("cryptography", "encrypted payloads"),
}


@dataclass
class Finding:
    """One line of the report."""

    layer: str
    what: str
    state: Literal["ok", "note", "wrong"]
    said: str
    exit_code: int = 0


def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """Check every configured layer, and say what is wrong and how to mend it.

    Exits with 0 if all is well, 2 if something written is wrong, 3 if a layer cannot be reached.
    """
    findings = run_async(_examine(config))
    if as_json:
        answer_json([{key: value for key, value in asdict(finding).items() if key != "exit_code"} for finding in findings])
    else:
        _print(findings)
    raise typer.Exit(next((code for code in (2, 3, 1) if any(f.exit_code == code for f in findings)), 0))


async def _examine(config: Path | None) -> list[Finding]:
    from ziggurat.settings import load_settings

    try:
        settings = load_settings(config)
    except ZigguratError as error:
        return [_wrong("settings", str(config or "ziggurat.toml"), error)]
    source = str(settings.source) if settings.source is not None else "defaults, as there is no ziggurat.toml"
    findings = [Finding("settings", source, "ok", "every key is known and of its type")]
    findings += _modules(settings)
    findings += _state(settings)
    findings += [finding async for finding in _temporal(settings)]
    findings += [finding async for finding in _queue(settings)]
    findings += [finding async for finding in _artifacts(settings)]
    findings += [finding async for finding in _endpoints(settings)]
    findings += _extras(settings)
    return findings


def _wrong(layer: str, what: str, error: BaseException) -> Finding:
    code = error.exit_code if isinstance(error, ZigguratError) else 1
    said = str(error) if isinstance(error, ZigguratError) else f"Unexpected {type(error).__name__}: {error}"
    return Finding(layer, what, "wrong", " ".join(said.split()), code)


def _modules(settings: Settings) -> Iterator[Finding]:
    """The program: do its modules import, can its types travel, does a pool serve each queue that its tasks name?"""
    from ziggurat.assembly import make_importable
    from ziggurat.program.registry import Registry, import_module

    make_importable(settings.folder)
    for module in settings.app.modules:
        try:
            import_module(module)
        except (Exception, SystemExit) as error:
            yield _wrong("program", module, error)
            continue
        registry = Registry()
        ours = [d for d in [*registry.tasks(), *registry.workflows()] if d.entry.startswith(f"{module}:")]
        try:
            for definition in ours:
                _ = definition.arguments, definition.result
        except ZigguratError as error:
            yield _wrong("program", module, error)
            continue
        workflows = sum(d.kind == "workflow" for d in ours)
        yield Finding("program", module, "ok", f"{workflows} workflows, {len(ours) - workflows} tasks")
    if not settings.app.modules:
        yield Finding(
            "program", "[app] modules", "note", "none are named; `ziggurat run module:workflow` finds its module by itself"
        )
    served = {queue for pool in settings.workers.values() for queue in pool.queues}
    for queue in sorted({task.options_.queue for task in Registry().tasks()} - served if "*" not in served else ()):
        yield _wrong(
            "workers",
            f"queue {queue}",
            ConfigurationError(f"Tasks name the queue {queue!r} and no pool serves it; add it to the queues of a pool."),
        )
    for name, pool in settings.workers.items():
        said = f"queues {', '.join(pool.queues)}; {pool.concurrency} tasks at a time; {pool.min} to {pool.max} workers"
        yield Finding("workers", f"pool {name}", "ok", said)


def _state(settings: Settings) -> Iterator[Finding]:
    """The state file: its folder, who owns it, what it holds, the disk."""
    if settings.orchestrator.backend != "embedded":
        return
    from ziggurat.assembly import look_at_state

    path = settings.state_path
    try:
        seen = look_at_state(settings)
    except ZigguratError as error:
        yield _wrong("orchestrator", str(path), error)
        return
    counts = ", ".join(f"{count} {status}" for status, count in seen.runs.items()) or "no runs yet"
    yield Finding("orchestrator", str(path), "ok", f"{counts}; {seen.owner}")
    free = seen.free_bytes
    if free < DISK_OUT:
        yield _wrong(
            "orchestrator",
            "disk",
            ConfigurationError(f"Only {free >> 20} MiB are free on the disk of the state file; free some, or move it."),
        )
    else:
        low = "; that is little" if free < DISK_LOW else ""
        yield Finding("orchestrator", "disk", "note" if low else "ok", f"{free / 1024**3:.1f} GiB free{low}")


async def _temporal(settings: Settings) -> AsyncIterator[Finding]:
    """The Temporal server: can it be reached, does it have the namespace?"""
    if settings.orchestrator.backend != "temporal":
        return
    from ziggurat.assembly import look_at_temporal

    try:
        async with asyncio.timeout(PATIENCE):
            yield Finding("orchestrator", "temporal", "ok", await look_at_temporal(settings))
    except TimeoutError:
        text = f"No answer within {PATIENCE:g} s; check orchestrator.url and that the server runs."
        yield Finding("orchestrator", "temporal", "wrong", text, 3)
    except Exception as error:
        yield _wrong("orchestrator", "temporal", error)


async def _queue(settings: Settings) -> AsyncIterator[Finding]:
    """The queue: can it be reached, what does it hold?"""
    from ziggurat.assembly import LOCAL_QUEUES, build_queue
    from ziggurat.clock import SystemClock

    backend = settings.queue.backend
    try:
        queue = build_queue(settings, SystemClock())
        if backend in LOCAL_QUEUES:
            yield Finding("queue", backend, "ok", "in the process that runs the system")
            return
        async with asyncio.timeout(PATIENCE):
            await queue.open()
            try:
                depths = await queue.depth()
            finally:
                await queue.close()
    except TimeoutError:
        yield Finding("queue", backend, "wrong", f"No answer within {PATIENCE:g} s; check queue.url and that the server runs.", 3)
    except Exception as error:
        yield _wrong("queue", backend, error)
    else:
        held = sum(depth.ready + depth.leased + depth.delayed for depth in depths.values())
        dead = sum(depth.dead for depth in depths.values())
        yield Finding("queue", backend, "ok", f"{held} messages" + (f", {dead} dead letters" if dead else ""))


async def _artifacts(settings: Settings) -> AsyncIterator[Finding]:
    """The artifact store and the keys: can it be reached, is each key there?"""
    from ziggurat.artifacts import key_for
    from ziggurat.assembly import build_keyring, build_store

    url = settings.artifacts.url
    try:
        store = build_store(settings)
        async with asyncio.timeout(PATIENCE):
            # An object that is not there: to be told so needs the network and the credentials.
            await asyncio.to_thread(store.size, key_for("", b"", encrypted=False))
        store.close()
    except TimeoutError:
        yield Finding("artifacts", url, "wrong", f"No answer within {PATIENCE:g} s; check [artifacts] url and the network.", 3)
    except Exception as error:
        yield _wrong("artifacts", url, error)
    else:
        local = "://" not in url or url.startswith("file:")
        far = local and settings.queue.backend not in ("memory", "sqlite")
        yield Finding(
            "artifacts", url, "note" if far else "ok", "a folder; workers on other machines need a bucket" if far else "reached"
        )
    wanted = settings.encryption
    if not wanted.keys:
        return
    try:
        build_keyring(settings)
    except ZigguratError as error:
        yield _wrong("artifacts", "encryption", error)
    else:
        held = f"{len(wanted.keys)} key{'s' if len(wanted.keys) > 1 else ''} can be used"
        yield Finding(
            "artifacts", "encryption", "ok", f"on, with the key {wanted.use!r}; {held}" if wanted.use else f"off; {held}"
        )


async def _endpoints(settings: Settings) -> AsyncIterator[Finding]:
    """The endpoints that routes name: reachable, key valid, model served."""
    from ziggurat.assembly import build_endpoint

    upstream: dict[str, list[str]] = {}
    for model in settings.inference.models.values():
        for route in model.routes:
            name, _, served = route.partition(":")
            if served not in upstream.setdefault(name, []):
                upstream[name].append(served)
    for name, models in upstream.items():
        what = f"endpoint {name}"
        try:
            endpoint = build_endpoint(name, settings.inference.endpoints[name])
            try:
                async with asyncio.timeout(PATIENCE):
                    said = await endpoint.check()
                    listed = await endpoint.models()
            finally:
                await endpoint.close()
        except TimeoutError:
            yield Finding("inference", what, "wrong", f"No answer within {PATIENCE:g} s; check base_url and the network.", 3)
            continue
        except Exception as error:
            yield _wrong("inference", what, error)
            continue
        yield Finding("inference", what, "ok", said)
        for model_name in models:
            # A scripted endpoint answers to every name.
            if listed and model_name not in listed and settings.inference.endpoints[name].kind != "scripted":
                text = f"The endpoint does not list the model {model_name!r}; it has: {', '.join(listed[:8])}."
                yield _wrong("inference", f"{name}:{model_name}", ConfigurationError(text))


def _extras(settings: Settings) -> Iterator[Finding]:
    """The optional parts: those that the settings need and that are missing are wrong, others are only noted."""
    needed = {settings.queue.backend, settings.orchestrator.backend}
    if "://" in settings.artifacts.url and not settings.artifacts.url.startswith("file:"):
        needed.add("artifacts")
    if settings.encryption.keys:
        needed.add("crypto")
    if any(endpoint.kind == "local" for endpoint in settings.inference.endpoints.values()):
        needed.add("local")
    for extra, (module, brings) in EXTRAS.items():
        install = f"pip install 'ziggurat-agents[{extra}]'"
        if _installed(module):
            yield Finding("extras", extra, "ok", brings)
        elif extra in needed and extra != "local":
            yield Finding("extras", extra, "wrong", f"{brings} is configured; install it with: {install}", 2)
        else:
            yield Finding("extras", extra, "note", f"not installed ({brings}): {install}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    marks: dict[str, tuple[str, str]] = {"ok": ("✓", "green"), "note": ("·", "dim"), "wrong": ("✗", "red")}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    last = ""
    for finding in findings:
        mark, style = marks[finding.state]
        layer = finding.layer if finding.layer != last else ""
        last = finding.layer
        table.add_row(
            Text(mark, style=style), layer, Text(finding.what), Text(finding.said, style=style if finding.state != "ok" else "")
        )
    screen = console()
    screen.print(table)
    wrong = sum(finding.state == "wrong" for finding in findings)
    screen.print(Text(f"\n{wrong} things to mend." if wrong > 1 else "\n1 thing to mend." if wrong else "\nAll is well."))
