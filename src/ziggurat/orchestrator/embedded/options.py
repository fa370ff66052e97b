"""The limits of the embedded engine, each with its reason."""

from __future__ import annotations

from msgspec import Struct


class EngineOptions(Struct, frozen=True, kw_only=True):
    """How the embedded engine behaves. Times are seconds."""

    #: Runs kept in memory; beyond, the ones that rested longest are evicted and replayed when something happens to them.
    max_resident_runs: int = 10_000
    #: Events after which a run is told to continue as new, and after which it is parked: a replay reads the whole history.
    history_suggest: int = 10_000
    history_limit: int = 50_000
    #: How often the queue is asked whether it still holds what was sent: it may lose everything.
    sweep: float = 15.0
    #: How long a message may be out before the sweep asks for it.
    sweep_age: float = 30.0
    #: Arguments up to this many bytes are kept in the history for people to read.
    keep_input: int = 2_000
    #: How long ended runs are kept; None keeps them until they are purged.
    retention: float | None = None
    #: How long a stored object that no run refers to is kept: it may be on its way into a history.
    artifact_grace: float = 86_400.0
    #: Whether schedules start runs: in a process that stays, not in one that ends with its own run.
    fire_schedules: bool = False
    #: For tests: evict every run whenever it rests, so that everything is always a replay.
    evict_always: bool = False
    #: For seeds of jitter; None takes the system's.
    seed: int | None = None
