"""The settings: one table of models, read from ziggurat.toml and from ZIGGURAT_SECTION__KEY variables, and the source of its own reference.

A variable wins over the file, the file over the defaults. Without either, the system runs embedded: state in .ziggurat/state.db, a queue
in memory, one pool of workers in this process, and a small local model. Relative paths are relative to the file's folder.

Secrets are never written down. Where one is due, the file holds "env:NAME"; the variable is read when the secret is used, and what is
kept, printed and logged is the name.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import Field, PrivateAttr

from ziggurat.settings.artifacts import ArtifactSettings, EncryptionSettings
from ziggurat.settings.gateway import GatewaySettings
from ziggurat.settings.inference import InferenceSettings
from ziggurat.settings.schedules import ScheduleSettings
from ziggurat.settings.server import ClientSettings, ServerSettings
from ziggurat.settings.telemetry import TelemetrySettings
from ziggurat.settings.temporal import TemporalSettings
from ziggurat.settings.types import Bytes, OrchestratorBackend, Positive, QueueBackend, Seconds, Section, Url
from ziggurat.settings.workers import WorkerSettings

FILE_NAME = "ziggurat.toml"
PREFIX = "ZIGGURAT_"
#: Names the settings file when no path is given.
FILE_VARIABLE = "ZIGGURAT_CONFIG"


class AppSettings(Section):
    """The program."""

    modules: list[str] = Field([], description="Modules that define the tasks and workflows; they are imported at start.")
    namespace: str = Field("default", description="The tenant that new runs belong to.")


class OrchestratorSettings(Section):
    """Layer 1: who keeps the runs."""

    backend: OrchestratorBackend = Field("embedded", description="Who keeps the runs.")
    path: str = Field(".ziggurat/state.db", description="The state file of the embedded engine.")
    url: Url = Field("localhost:7233", description="The address of the Temporal server.")
    history_limit: Positive = Field(
        50_000, description="Events after which a run is parked instead of growing; it should continue as new before."
    )
    max_resident_runs: Positive = Field(10_000, description="Waiting runs kept in memory; more are evicted and replayed on wake.")
    sweep: Seconds = Field(
        30.0,
        description="How long a task may be out before the queue is asked whether it still has it; what a queue has lost is sent again.",
    )
    retention: Seconds | None = Field(None, description="How long ended runs are kept; without it, until `ziggurat purge`.")
    temporal: TemporalSettings = TemporalSettings()
    payload_limit: Bytes = Field(
        64 * 1024 * 1024, description="Largest arguments or result, as JSON; larger ones must be files (`Artifact`)."
    )


class QueueSettings(Section):
    """Layer 2: what carries tasks to workers."""

    backend: QueueBackend = Field("memory", description="What carries tasks to workers.")
    url: Url | None = Field(None, description="The broker's address, for backends that have a server.")
    path: str = Field(".ziggurat/queue.db", description="The file of the sqlite backend.")
    lease: Seconds = Field(
        30.0, description="How long a delivery is leased before it must be renewed; independent of how long tasks take."
    )
    max_deliveries: Positive = Field(5, description="Deliveries without an outcome after which a message is a dead letter.")
    capacity: Positive = Field(1_000_000, description="Messages that a lane holds before it refuses more.")


class Settings(Section):
    """All settings of a system."""

    app: AppSettings = AppSettings()
    orchestrator: OrchestratorSettings = OrchestratorSettings()
    queue: QueueSettings = QueueSettings()
    workers: dict[str, WorkerSettings] = Field({}, description="Pools of workers, by name.")
    inference: InferenceSettings = InferenceSettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    gateway: GatewaySettings = GatewaySettings()
    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    schedules: dict[str, ScheduleSettings] = Field({}, description="Workflows that start by themselves, by name.")

    _source: Path | None = PrivateAttr(None)

    @property
    def source(self) -> Path | None:
        """The file that was read, or None."""
        return self._source

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self._source.parent if self._source is not None else Path.cwd()

    def resolve(self, path: str) -> Path:
        """Return a path of the settings as an absolute one."""
        return (self.folder / Path(path).expanduser()).absolute()

    @property
    def state_path(self) -> Path:
        """The state file of the embedded engine."""
        return self.resolve(self.orchestrator.path)

    @property
    def ledger_path(self) -> Path:
        """The file of model calls that no run makes."""
        return self.resolve(self.inference.ledger)


# -- the shape of the table, for those that walk it ------------------------------------------------------------------


def leaves(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the plain types that an annotation allows, each with what is attached to it; None is left out."""
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        yield from leaves(inner, [*metadata, *extra])
    elif get_origin(annotation) in (typing.Union, types.UnionType):
        for argument in get_args(annotation):
            yield from leaves(argument, metadata)
    elif annotation is not type(None):
        yield annotation, metadata


def model_of(annotation: Any) -> type[Section] | None:
    """Return the table that an annotation means, or None."""
    for leaf, _ in leaves(annotation, []):
        if isinstance(leaf, type) and issubclass(leaf, Section):
            return leaf
    return None


def value_type(annotation: Any) -> Any:
    """Return the type of the values of a dict annotation, or None."""
    for leaf, _ in leaves(annotation, []):
        if get_origin(leaf) is dict:
            return get_args(leaf)[1]
    return None
