"""The shared nouns: every record that crosses a layer, with a sentence for each field.

Records are frozen msgspec structs, encoded as JSON. Times are seconds since the epoch, UTC; durations are seconds; money is US dollars.
A payload (`Raw`) is JSON text as bytes, already encoded against its declared type by `ziggurat.codec`; layers below the program carry
it without looking inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Raw, Struct, UnsetType

if TYPE_CHECKING:
    #: A payload or None, for fields that are left out of the JSON when there is none.
    MaybeRaw = Raw | None
else:
    # msgspec decodes `Raw | None` as null only; with UnsetType a missing field takes its default, None, and any JSON is kept raw.
    MaybeRaw = Raw | UnsetType

#: The version of the records on the wire. A reader refuses a message of a newer version and returns it to others.
WIRE_VERSION = 1

#: Priority levels, 1 is served most often. Weights are the queue's business; no level starves.
PRIORITY_HIGHEST, PRIORITY_NORMAL, PRIORITY_LOWEST = 1, 3, 5

RunStatus = Literal["pending", "running", "waiting", "paused", "parked", "completed", "failed", "cancelled"]
#: Statuses from which a run never moves by itself.
ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
#: Statuses at which a caller that waits for a result stops waiting.
STOPPED: frozenset[str] = ENDED | {"parked"}


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


class ErrorInfo(Struct, frozen=True, omit_defaults=True):
    """A failure as JSON: what is left of an exception once it has crossed a wire."""

    #: The exception's class name, qualified by module unless it is a builtin: "ValueError", "my_agents.Rejected".
    type: str
    #: The exception's text.
    message: str
    #: The traceback's text, for people; empty when there is none.
    traceback: str = ""
    #: False when another attempt cannot help.
    retryable: bool = True
    #: Seconds that the failing party asked us to wait before another attempt.
    retry_after: float | None = None
    #: The step whose failure this is, when a step's failure ended the run.
    step: int | None = None
    #: The id of the child run whose failure this is.
    run_id: str = ""


class Usage(Struct, frozen=True, omit_defaults=True):
    """What model calls consumed."""

    #: Calls that the endpoint answered.
    calls: int = 0
    #: Tokens of the prompt, cached ones included.
    input_tokens: int = 0
    #: Tokens of the answer, reasoning included.
    output_tokens: int = 0
    #: Those of the input tokens that the endpoint served from its prefix cache.
    cached_tokens: int = 0
    #: Those of the output tokens spent on reasoning.
    reasoning_tokens: int = 0
    #: What it cost, in US dollars.
    cost_usd: float = 0.0
    #: Those of all tokens that were estimated, because the endpoint did not report them.
    estimated_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cost_usd + other.cost_usd,
            self.estimated_tokens + other.estimated_tokens,
        )


    def negated(self) -> Usage:
        """Return this usage as something to take away."""
        return Usage(
            -self.calls,
            -self.input_tokens,
            -self.output_tokens,
            -self.cached_tokens,
            -self.reasoning_tokens,
            -self.cost_usd,
        )


class CallRecord(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One model call in the ledger. `id` is unique, so that a call recorded twice is billed once."""

    id: str
    #: The alias that the program named.
    model: str
    #: The endpoint and the upstream model that served it.
    endpoint: str
    upstream: str
    usage: Usage
    #: Names the price table that the cost was computed with.
    price_version: str = ""
    started_at: float = 0.0
    #: Seconds from the request to the last byte, and to the first token.
    latency: float = 0.0
    first_token: float | None = None
    #: "ok", or the class name of the error; "unanswered" calls may have been billed by the provider.
    status: str = "ok"


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


class Progress(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Something to watch while a run goes on: a heartbeat, a token, a number. Never in the history; may be lost."""

    run: str
    #: "started" (an attempt began), "emit" (the program's own), "token" (a piece of a model's answer), "heartbeat".
    kind: str
    step: int = 0
    attempt: int = 1
    #: Counts within (run, step, attempt), so that a reader can drop what a failed attempt had streamed.
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


# -- runs and their history ------------------------------------------------------------------------------------------


class StartRequest(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The wish to start a run. An id that exists already starts nothing and returns the run that there is."""

    workflow: str
    payload: Raw
    id: str = ""
    namespace: str = "default"
    #: "module:name" of the workflow, a hint for people when its module is not loaded.
    entry: str = ""
    tags: dict[str, str] = {}
    priority: int = PRIORITY_NORMAL
    #: Hard limit of what the run and its children may spend on models, in US dollars.
    budget_usd: float | None = None


class Run(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One execution of a workflow, as the orchestrator knows it."""

    id: str
    workflow: str
    status: RunStatus
    payload: Raw = Raw(b"{}")
    result: MaybeRaw = None
    error: ErrorInfo | None = None
    #: Why the run is paused or parked, or what it waits for; one sentence.
    reason: str = ""
    namespace: str = "default"
    entry: str = ""
    tags: dict[str, str] = {}
    priority: int = PRIORITY_NORMAL
    budget_usd: float | None = None
    usage: Usage = Usage()
    #: The part of `usage` that the current history does not account for: earlier generations, and steps that a retry cut away.
    carried: Usage = Usage()
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    #: The moment of the next timer, while the run waits.
    wake_at: float | None = None
    #: Counts up with every continue_as_new.
    generation: int = 0
    #: Counts up with every continue_as_new and every retry; part of the ids of messages.
    epoch: int = 0
    #: The run that awaits this one, and its step.
    parent: str = ""
    parent_step: int = 0
    #: The run that this one was forked from.
    forked_from: str = ""
    #: What the program's chance is seeded with, where it is not the id: a fork repeats the chance of the run that it came from.
    seed: str = ""
    #: What the program said of itself with `state(...)`.
    state: MaybeRaw = None
    #: Number of events recorded.
    events: int = 0


class RunFilter(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Which runs to list. Empty fields match all; newest first."""

    status: tuple[str, ...] = ()
    workflow: str = ""
    namespace: str = ""
    since: float | None = None
    until: float | None = None
    tags: dict[str, str] = {}
    parent: str | None = None
    #: Text that the id must contain.
    search: str = ""
    limit: int = 100
    #: The id of the last run of the page before.
    after: str = ""


EventKind = Literal[
    "run_started",
    "step_completed",
    "step_failed",
    "attempt_failed",
    "timer_fired",
    "signal_received",
    "cancel_requested",
    "patched",
    "run_completed",
    "run_failed",
    "run_cancelled",
    "run_parked",
    "run_paused",
    "run_resumed",
    "run_retried",
    "run_forked",
    "run_continued",
]


class Event(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line of a run's history. Events are applied to the program in their order; a replay applies them again."""

    #: Position in the run's history, from 1.
    seq: int
    kind: EventKind
    at: float
    #: The step that it concerns, 0 for none, and what kind of step: "task", "timer", "signal", "child".
    step: int = 0
    step_kind: str = ""
    #: The task's, signal's, workflow's or patch's name.
    name: str = ""
    attempt: int = 0
    #: The history's length when the step was asked for: places the request in the history without a row of its own.
    requested: int = 0
    #: When the step was asked for, and when its last attempt was sent, began and ended.
    requested_at: float = 0.0
    sent_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0
    #: The arguments, for people; kept when small.
    input: MaybeRaw = None
    result: MaybeRaw = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    calls: list[CallRecord] = []
    #: When the next attempt is due, for attempt_failed.
    retry_at: float | None = None
    worker: str = ""
    #: Whatever else a kind needs: the child's id, a reason.
    detail: str = ""


class StepView(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A step as people look at it: made from the history, plus what is under way."""

    step: int
    kind: str
    name: str
    status: Literal["scheduled", "running", "retrying", "waiting", "completed", "failed", "cancelled"]
    attempt: int = 1
    requested_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    usage: Usage = Usage()
    error: ErrorInfo | None = None
    detail: str = ""


class RunEvent(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a watcher of a run sees, in order: an event of the history, a step's change, progress, or the run's new status."""

    run: str
    kind: Literal["history", "step", "progress", "status"]
    #: Position in this stream, to resume from.
    offset: int = 0
    event: Event | None = None
    step: StepView | None = None
    progress: Progress | None = None
    status: str = ""
    reason: str = ""


# -- inference -------------------------------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]


class ToolCall(Struct, frozen=True, omit_defaults=True):
    """The model's wish to call a tool. `arguments` is the JSON text as the model wrote it, not yet validated."""

    id: str
    name: str
    arguments: str


class ChatMessage(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One message of a conversation. `content` is text, or a list of OpenAI-style content parts."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    name: str | None = None


class Tool(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A function that the model may ask for; `parameters` is the JSON schema of its arguments object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Prompt(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request to a model, independent of the endpoint that will serve it."""

    messages: list[ChatMessage]
    #: The alias of [inference.models], resolved by the router.
    model: str = "default"
    tools: list[Tool] = []
    #: "auto", "none", "required", or a tool's name.
    tool_choice: str = "auto"
    #: The JSON schema that the answer must fit, and its name.
    schema: dict[str, Any] | None = None
    schema_name: str = "answer"
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    seed: int | None = None
    #: Seconds that the caller waits for the whole answer, all routes and retries included.
    timeout: float | None = None
    #: Names what shares a prefix, so that a router can keep it on one replica.
    session: str = ""
    #: Endpoint-specific fields, sent as they are.
    extra: dict[str, Any] = {}


class Completion(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A model's whole answer."""

    text: str = ""
    tool_calls: list[ToolCall] = []
    finish: FinishReason = "stop"
    #: Text of a refusal, where the endpoint reports one.
    refusal: str = ""
    reasoning: str = ""
    usage: Usage = Usage()
    #: The alias, the endpoint and the upstream model that served it.
    model: str = ""
    endpoint: str = ""
    upstream: str = ""
    #: The ledger entry of the call.
    call: CallRecord | None = None


class Chunk(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A piece of a streamed answer. The last one carries the finish reason and, where the endpoint sends it, the usage."""

    text: str = ""
    reasoning: str = ""
    #: Pieces of tool calls: (index, id or "", name or "", piece of the arguments).
    tool_calls: list[tuple[int, str, str, str]] = []
    finish: FinishReason | None = None
    usage: Usage | None = None


def message_id(run: str, generation: int, step: int, attempt: int) -> str:
    """Return the id of the message that carries one attempt of one step."""
    return f"{run}~{generation}.{step}.{attempt}"


def encode(record: Struct) -> bytes:
    """Return a record as JSON."""
    return _encoder.encode(record)


_encoder = msgspec.json.Encoder()
