"""The tables of backends, and the functions that make one of each from the settings.

A backend is one line of a table: its name in the settings, and what makes it. Modules are imported when a setting names them, so the
parts that nobody uses need not be installed. A backend of others is written as "package.module:factory" in the settings; its factory is
called with the settings.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ziggurat.artifacts import Payloads
from ziggurat.assembly.secrets import plain
from ziggurat.assembly.temporal import temporal_link, temporal_options
from ziggurat.clock import Clock
from ziggurat.errors import ConfigurationError, MissingExtra
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.orchestrator.sealing import SealedOrchestrator
from ziggurat.program.registry import Registry
from ziggurat.queues.interface import Queue, QueueOptions
from ziggurat.settings import Settings, WorkerSettings

if TYPE_CHECKING:
    from ziggurat.orchestrator.embedded.options import EngineOptions

QUEUES: Mapping[str, str] = {
    "memory": "ziggurat.queues.backends.memory:MemoryQueue",
    "sqlite": "ziggurat.queues.backends.sqlite:SqliteQueue",
    "redis": "ziggurat.queues.backends.redis_streams:RedisQueue",
    "rabbitmq": "ziggurat.queues.backends.rabbitmq:RabbitQueue",
    "sqs": "ziggurat.queues.backends.sqs:SqsQueue",
    "cloud-tasks": "ziggurat.queues.backends.cloud_tasks:CloudTasksQueue",
    "temporal": "ziggurat.queues.backends.temporal:TemporalQueue",
}
#: What each queue's constructor takes before `options` and `clock`.
_QUEUE_PLACE: Mapping[str, Callable[[Settings], list[Any]]] = {
    "memory": lambda settings: [],
    "sqlite": lambda settings: [settings.resolve(settings.queue.path)],
    "temporal": lambda settings: [temporal_link(settings)],
}
#: Queues that only one process can use.
LOCAL_QUEUES = frozenset({"memory"})
ORCHESTRATORS: Mapping[str, str] = {
    "embedded": "ziggurat.orchestrator.embedded.engine:EmbeddedOrchestrator",
    "temporal": "ziggurat.orchestrator.temporal.engine:TemporalOrchestrator",
}
EXTRAS = {
    "redis": "redis",
    "rabbitmq": "rabbitmq",
    "sqs": "sqs",
    "cloud-tasks": "cloud-tasks",
    "temporal": "temporal",
    "objects": "artifacts",
}


def load_backend(layer: str, name: str, table: Mapping[str, str]) -> Any:
    """Import a backend. Raises MissingExtra if its driver is not installed, ConfigurationError if there is no such backend."""
    reference = table.get(name, name)
    module, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            if name in table:
                raise ConfigurationError(
                    f"The {layer} backend {name!r} is not part of this version of Ziggurat; choose another."
                ) from error
            raise ConfigurationError(
                f"The {layer} backend {name!r} names a module that cannot be found: {error.name}."
            ) from error
        if name in EXTRAS:
            raise MissingExtra(f"The {layer} backend {name!r}", EXTRAS[name]) from error
        raise ConfigurationError(f"The {layer} backend {name!r} needs {error.name!r}, which is not installed.") from error
    if found is None:
        raise ConfigurationError(f"The {layer} backend {name!r} names {attribute!r}, which the module {module} does not have.")
    return found


def build_queue(settings: Settings, clock: Clock, *, crashbook: Path | None = None) -> Queue:
    """Return the configured queue, not yet open. Raises ConfigurationError, MissingExtra.

    `crashbook` is where a queue in memory remembers what was being worked on when its process died.
    """
    wanted = settings.queue
    made = load_backend("queue", wanted.backend, QUEUES)
    if wanted.backend not in QUEUES:
        return cast(Queue, made(settings))
    options = QueueOptions(lease=wanted.lease, max_deliveries=wanted.max_deliveries, capacity=wanted.capacity)
    place = _QUEUE_PLACE[wanted.backend](settings) if wanted.backend in _QUEUE_PLACE else [plain(wanted.url)]
    memory = {"crashbook": crashbook} if wanted.backend == "memory" else {}
    return cast(Queue, made(*place, options, clock=clock, **memory))


def shows_workers(settings: Settings) -> bool:
    """Say whether the configured queue can tell who works on it. Raises ConfigurationError, MissingExtra."""
    made = load_backend("queue", settings.queue.backend, QUEUES)
    return bool(getattr(getattr(made, "capabilities", None), "presence", False))


def import_queue(backend: str) -> None:
    """Import a queue backend of ours ahead of its use; one that cannot be is left for its user to complain about."""
    if backend in QUEUES:
        with contextlib.suppress(ConfigurationError, MissingExtra):
            load_backend("queue", backend, QUEUES)


def build_orchestrator(
    settings: Settings,
    queue: Queue,
    registry: Registry,
    clock: Clock,
    payloads: Payloads,
    *,
    drive: bool,
    stay: bool = False,
    pools: Collection[WorkerSettings] = (),
) -> Orchestrator:
    """Return the configured orchestrator behind the seam of payloads, not yet open. Raises ConfigurationError, MissingExtra.

    One that is to `stay` fires schedules. `pools` are those whose workers run in this process.
    """
    wanted = settings.orchestrator
    make = load_backend("orchestrator", wanted.backend, ORCHESTRATORS)
    shared = {"clock": clock, "payloads": payloads, "drive": drive}
    made: Orchestrator
    if wanted.backend == "temporal":
        temporal = temporal_options(settings, pools, stay=stay)
        made = make(temporal_link(settings), queue, registry, options=temporal, **shared)
    elif wanted.backend == "embedded":
        made = make(settings.state_path, queue, registry, options=_engine_options(settings, fire_schedules=stay), **shared)
    else:
        made = make(settings, queue, registry)
    return SealedOrchestrator(made, payloads)


def _engine_options(settings: Settings, *, fire_schedules: bool) -> EngineOptions:
    from ziggurat.orchestrator.embedded.options import EngineOptions

    wanted = settings.orchestrator
    return EngineOptions(
        max_resident_runs=wanted.max_resident_runs,
        history_limit=wanted.history_limit,
        retention=wanted.retention,
        artifact_grace=settings.artifacts.grace,
        sweep=wanted.sweep / 2,
        sweep_age=wanted.sweep,
        fire_schedules=fire_schedules,
    )
