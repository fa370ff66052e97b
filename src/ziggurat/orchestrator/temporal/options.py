"""How the orchestrator on Temporal behaves, each value with its reason."""

from __future__ import annotations

from msgspec import Struct


class TemporalOptions(Struct, frozen=True, kw_only=True):
    """Times are seconds."""

    #: Runs that a workflow worker keeps in memory; others are replayed from their histories when something happens to them.
    max_resident_runs: int = 10_000
    #: Our events after which a run is told to continue as new, and after which it is parked. Temporal ends a run at 51,200 of its own
    #: events, of which a step makes three to five.
    history_suggest: int = 4_000
    history_limit: int = 9_000
    #: Without a heartbeat for so long an attempt is taken from its worker.
    lease: float = 30.0
    #: Tasks wait on Temporal's task queues; otherwise on the queue that the orchestrator is given, and a relay brings outcomes back.
    native: bool = True
    #: How long a workflow worker that vanished may hold its runs before another replays them.
    sticky: float = 5.0
    #: How often the relay sends heartbeats for what is on our queue, and looks for what the queue has lost.
    relay: float = 5.0
    #: Whether this process looks after what ended runs leave behind, how long ended runs are kept (None: as long as the namespace keeps
    #: them), and how long stored objects that no run refers to.
    cleans: bool = False
    retention: float | None = None
    artifact_grace: float = 86_400.0
    #: How often someone who waits for a run looks whether it is parked by another process, at first and at most.
    look: float = 2.0
    look_most: float = 10.0
    #: With `native`: attempts of the queue "default" that this process takes at a time. 0: no pool here serves it.
    eager: int = 0
