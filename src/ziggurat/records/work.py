"""Records of the queue and the workers: a task on its way to a worker, and what became of it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Raw, Struct

from ziggurat.records.common import PRIORITY_NORMAL, WIRE_VERSION, Allowance, CallRecord, ErrorInfo, MaybeRaw


class Lane(Struct, frozen=True, omit_defaults=True):
    """Where a message waits: one line of messages with one priority."""

    #: The tenant that the run belongs to.
    namespace: str = "default"
    #: The queue that the task names; pools of workers serve queues.
    queue: str = "default"
    #: The region that the work must run in; empty means anywhere.
    region: str = ""
    #: 1 (served most often) to 5.
    priority: int = PRIORITY_NORMAL


class Concurrency(Struct, frozen=True, omit_defaults=True):
    """At most `limit` attempts that carry the same `key` run at a time, over all workers."""

    key: str
    limit: int


class Rate(Struct, frozen=True, omit_defaults=True):
    """At most `per_second` attempts that carry the same `key` start in a second, over all workers, in bursts of `burst`."""

    key: str
    per_second: float
    burst: int = 1


class Message(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A task on the queue: one attempt of one step, all that a stateless worker needs to run it."""

    #: Unique per attempt: "{run}~{generation}.{step}.{attempt}". Sending an id that the queue still holds changes nothing.
    id: str
    #: The task's registered name.
    task: str
    #: The arguments, a JSON object keyed by parameter name.
    payload: Raw
    run: str = ""
    #: Counts up when a run continues as new or is retried, so that an outcome of an older history is told apart.
    generation: int = 0
    step: int = 0
    #: From 1; counts attempts that the orchestrator ordered, not deliveries of one message.
    attempt: int = 1
    #: How many attempts right before this one ended only to wait for a model's answer.
    deferred: int = 0
    workflow: str = ""
    lane: Lane = Lane()
    sent_at: float = 0.0
    #: Seconds that the attempt may run.
    timeout: float | None = None
    #: Seconds that may pass between heartbeats.
    heartbeat_timeout: float | None = None
    #: The moment after which the attempt is pointless.
    deadline: float | None = None
    #: The last heartbeat's details of the attempt before.
    heartbeat: MaybeRaw = None
    concurrency: Concurrency | None = None
    rate: Rate | None = None
    #: The budgets that the attempt's model calls draw on: that of its run, and of the runs that it is a child of.
    budgets: tuple[Allowance, ...] = ()
    #: W3C trace context and other carriers.
    trace: dict[str, str] = {}
    version: int = WIRE_VERSION


class Delivery(Struct, frozen=True, kw_only=True):
    """A message leased to one worker until `leased_until`. The epoch fences: an older holder can do nothing with it."""

    message: Message
    #: The worker that holds the lease.
    worker: str
    #: Counts up at every delivery of the message, from 1. Ack, extend and release check it.
    epoch: int
    leased_until: float
    #: The last heartbeat's details, of an earlier delivery of the same attempt if there was one.
    heartbeat: MaybeRaw = None
    #: Moment of this process's monotonic clock until which the lease is certainly ours, known before the lease began; infinite where
    #: a frozen process loses none. What has not begun by then must not begin.
    held_until: float = float("inf")
    #: True when so many earlier deliveries came to nothing that the message may be what ends its workers: run it with nothing beside it.
    suspect: bool = False
    #: What the backend needs to find the message again, opaque to everyone else.
    receipt: Any = None


OutcomeStatus = Literal["completed", "failed", "timeout", "crashed", "cancelled", "dead"]


class Outcome(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an attempt came to. The worker reports it; the orchestrator records the first valid one of a step."""

    #: The message's id.
    message: str
    task: str
    #: "dead": the queue gave the message up after its last delivery.
    status: OutcomeStatus
    run: str = ""
    generation: int = 0
    step: int = 0
    attempt: int = 1
    result: MaybeRaw = None
    error: ErrorInfo | None = None
    #: Model calls that the attempt made, failed attempts included: they were paid for.
    calls: list[CallRecord] = []
    #: The last heartbeat's details, for the next attempt.
    heartbeat: MaybeRaw = None
    worker: str = ""
    #: When the message was sent, and when the attempt started and ended, by the clocks of those who did it.
    sent_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    version: int = WIRE_VERSION


def outcome_of(message: Message, status: OutcomeStatus, **fields: Any) -> Outcome:
    """Return what an attempt of a message came to; `fields` are the rest of the outcome's."""
    return Outcome(
        message=message.id,
        task=message.task,
        status=status,
        run=message.run,
        generation=message.generation,
        step=message.step,
        attempt=message.attempt,
        sent_at=message.sent_at,
        **fields,
    )


class Progress(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Something to watch while a run goes on: a heartbeat, a token, a number. Never in the history; may be lost."""

    run: str
    #: "started" (an attempt began), "emit" (the program's own), "token" (a piece of a model's answer), "heartbeat".
    kind: str
    step: int = 0
    attempt: int = 1
    #: The epoch of the delivery that the attempt was run under: a message that is delivered again streams anew.
    delivery: int = 0
    #: Counts within (run, step, attempt, delivery), so that a reader can drop what a failed attempt had streamed.
    offset: int = 0
    at: float = 0.0
    data: Raw = Raw(b"null")


class DeadLetter(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A message that was given up, with the reason."""

    id: str
    message: Message
    reason: str
    deliveries: int
    died_at: float


class Depth(Struct, frozen=True, omit_defaults=True):
    """How much a lane holds now. `ready` excludes leased and delayed messages."""

    ready: int = 0
    leased: int = 0
    delayed: int = 0
    dead: int = 0
    #: Seconds that the oldest ready message has waited.
    oldest_age: float = 0.0

    def __add__(self, other: Depth) -> Depth:
        return Depth(
            self.ready + other.ready,
            self.leased + other.leased,
            self.delayed + other.delayed,
            self.dead + other.dead,
            max(self.oldest_age, other.oldest_age),
        )


class Presence(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A worker as it shows itself to everyone who shares its queue."""

    #: The worker's name, unique among workers.
    worker: str
    #: The pool that it belongs to; empty for none.
    pool: str = ""
    host: str = ""
    pid: int = 0
    queues: tuple[str, ...] = ()
    region: str = ""
    #: Attempts that it may run at a time.
    slots: int = 0
    #: Attempts under way by the task's name, the most frequent ones.
    running: dict[str, int] = {}
    #: Attempts under way, all of them.
    busy: int = 0
    #: It finishes what it has and takes nothing more.
    draining: bool = False
    #: Why it takes no work although it could; empty when it is well.
    trouble: str = ""
    #: Attempts that ended since it started.
    ended: int = 0
    #: The same by queue.
    ended_in: dict[str, int] = {}
    started_at: float = 0.0
    #: Where its process answers GET /metrics, as host:port; empty for nowhere.
    metrics: str = ""
    #: When it showed itself last, by the queue's clock; the queue fills it in.
    seen_at: float = 0.0


def message_id(run: str, generation: int, step: int, attempt: int) -> str:
    """Return the id of the message that carries one attempt of one step."""
    return f"{run}~{generation}.{step}.{attempt}"
