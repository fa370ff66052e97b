"""How every backend words the end of a message that nobody could finish."""

from __future__ import annotations

from msgspec import Raw

from ziggurat.records import ErrorInfo, Message, Outcome


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
    return Outcome(
        message=message.id,
        task=message.task,
        status="dead",
        run=message.run,
        generation=message.generation,
        step=message.step,
        attempt=message.attempt,
        error=ErrorInfo(type="ziggurat.errors.DeadLettered", message=reason, retryable=False),
        heartbeat=heartbeat,
        worker=worker,
        sent_at=message.sent_at,
        ended_at=at,
    )
