"""How every backend words the end of a message that nobody could finish."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from ziggurat.records import WIRE_VERSION, ErrorInfo, Message, Outcome, outcome_of


def lease_ran_out(deliveries: int, worker: str) -> str:
    """Return the reason of a message whose last lease ran out."""
    times = "once" if deliveries == 1 else f"{deliveries} times"
    return (
        f"It was delivered {times} and no worker finished it; the last lease, of worker {worker!r}, ran out. "
        "Workers that run out of memory or are killed look like this."
    )


def process_died(times: int) -> str:
    """Return the reason of a message that was being worked on each time its process died."""
    return (
        f"The process died {times} times while it ran this message. Look for what ends a process: os._exit, a crash in native code, "
        "or memory running out; @task(process=True) keeps such a task apart."
    )


def dead_outcome(message: Message, reason: str, *, worker: str, heartbeat: Raw | None, at: float) -> Outcome:
    """Return the outcome that tells the orchestrator that the queue gave a message up. `at` is seconds since the epoch."""
    error = ErrorInfo(type="ziggurat.errors.DeadLettered", message=reason, retryable=False)
    return outcome_of(message, "dead", error=error, heartbeat=heartbeat, worker=worker, ended_at=at)


def unreadable(body: bytes) -> str:
    """Return the reason of a message that cannot be decoded here."""
    version = _fields(body).get("version", 1)
    if isinstance(version, int) and version > WIRE_VERSION:
        return f"It is of the newer version {version}, and this one reads up to {WIRE_VERSION}. Upgrade the workers, then redrive it."
    return "It is not a message that this version can read. It was changed on the queue, or written by something else."


def salvaged(body: bytes, id_: str) -> Message:
    """Return what can be told of a message that cannot be decoded, so that its run still learns of its end."""
    fields = _fields(body)
    kinds = {"task": str, "run": str, "generation": int, "step": int, "attempt": int, "workflow": str, "version": int}
    kept: dict[str, Any] = {name: fields[name] for name, kind in kinds.items() if type(fields.get(name)) is kind}
    return Message(id=id_, payload=Raw(b"{}"), **{"task": "", **kept})


def _fields(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return {}
    return found if isinstance(found, dict) else {}
