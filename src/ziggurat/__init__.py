"""Ziggurat hosts AI agent workflows in production on four independent layers: orchestrator, queue, workers, inference.

Everything that a program imports is here; `ziggurat.testing` holds what its tests import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ziggurat.artifacts import Artifact
from ziggurat.errors import (
    ArtifactError,
    ChildRunError,
    DeadLettered,
    InferenceError,
    RunCancelled,
    RunFailed,
    RunParked,
    SignalTimeout,
    TaskCrashed,
    TaskError,
    TaskTimeout,
    ZigguratError,
)
from ziggurat.program import llm
from ziggurat.program.context import RunInfo, TaskInfo
from ziggurat.program.definitions import task, workflow
from ziggurat.program.options import Concurrent, Retry
from ziggurat.program.primitives import (
    continue_as_new,
    emit,
    heartbeat,
    last_heartbeat,
    now,
    patched,
    random,
    run_info,
    signal,
    state,
    task_info,
    uuid4,
)

if TYPE_CHECKING:
    from ziggurat.client import Client, Handle

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "ChildRunError",
    "Client",
    "Concurrent",
    "DeadLettered",
    "Handle",
    "InferenceError",
    "Retry",
    "RunCancelled",
    "RunFailed",
    "RunInfo",
    "RunParked",
    "SignalTimeout",
    "TaskCrashed",
    "TaskError",
    "TaskInfo",
    "TaskTimeout",
    "ZigguratError",
    "continue_as_new",
    "emit",
    "heartbeat",
    "last_heartbeat",
    "llm",
    "now",
    "patched",
    "random",
    "run_info",
    "signal",
    "state",
    "task",
    "task_info",
    "uuid4",
    "workflow",
]


def __getattr__(name: str) -> Any:
    """Load the client on first use: a worker or a plain script never pays for it."""
    if name in ("Client", "Handle"):
        from ziggurat import client

        return getattr(client, name)
    raise AttributeError(f"module 'ziggurat' has no attribute {name!r}")
