"""What crosses Temporal: the arguments of workflows and activities, the names of signals and queries, and JSON payloads.

A Temporal workflow has the name of ours as its type and two arguments: the run's arguments as plain JSON, and an `Origin`. An activity
has the task's name as its type and two arguments: the `Message` that a worker runs, and a `StepInfo` from which a history can be read
without the program. What an attempt came to is an `Outcome`, the result of the activity or the detail of its failure. So a history in
Temporal's own Web UI reads like the program, and any Temporal client can start, signal and query a run.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct
from temporalio.api.common.v1 import Payload, Payloads

from ziggurat.artifacts import Payloads as SealedPayloads
from ziggurat.records import PRIORITY_NORMAL, Allowance, Event, MaybeRaw, Message, Usage

T = TypeVar("T")

#: Signals that control a run; their names cannot collide with a program's, which would have to contain this prefix. PARK comes from a
#: child run that met a budget which is not its own.
PAUSE, RESUME, PARK = "ziggurat.pause", "ziggurat.resume", "ziggurat.park"
#: Queries that a run's worker answers: its open steps, its state, and the position of its last event.
STEPS, STATE, POSITION = "ziggurat.steps", "state", "ziggurat.position"
#: Keys of a run's memo: what is known from its start, what it said of itself, and whether it is held.
ABOUT_KEY, STATE_KEY, HELD_KEY = "ziggurat", "ziggurat.state", "ziggurat.held"
#: The key under which a run, and the schedule that starts it, hold our record of the schedule.
SCHEDULE_KEY = "ziggurat.schedule"
#: Where Temporal writes the moment for which a schedule started a run.
MOMENT_ATTRIBUTE = "TemporalScheduledStartTime"
#: Metadata of a result's payload: what the run consumed, so that its parent and `get` learn of it without reading its history.
USAGE_METADATA = "ziggurat-usage"
#: The type of a workflow task's failure that parks a run.
PARKED = "ziggurat.Parked"
#: Numbers of timers that wait for a next attempt start here; those below are steps.
RETRY_TIMERS = 1 << 31

#: Search attributes, by name and type. Without them a namespace can be used, but not searched by these.
SEARCH_STATUS, SEARCH_COST, SEARCH_TAGS, SEARCH_NAMESPACE = (
    "ZigguratStatus",
    "ZigguratCost",
    "ZigguratTags",
    "ZigguratNamespace",
)
SEARCH_ATTRIBUTES = {SEARCH_STATUS: "Keyword", SEARCH_COST: "Double", SEARCH_TAGS: "KeywordList", SEARCH_NAMESPACE: "Keyword"}


class About(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is known of a run from its start, kept in its memo, so that lists need no history."""

    entry: str = ""
    namespace: str = "default"
    tags: dict[str, str] = {}
    priority: int = PRIORITY_NORMAL
    budget_usd: float | None = None
    created_at: float = 0.0
    generation: int = 0
    epoch: int = 0
    parent: str = ""
    parent_step: int = 0
    forked_from: str = ""
    #: What chance is seeded with, where it is not the id.
    seed: str = ""
    #: W3C traceparent of the parent's step, or of whoever started it.
    trace: str = ""
    #: The budgets of the runs that it is a child of, as they stood when it started.
    budgets: tuple[Allowance, ...] = ()
    #: What the arguments are sealed for, where it is not the run: a schedule gives the same to all of its runs.
    sealed_for: str = ""
    #: Whether the namespace had our search attributes when the run started: a replay must write them again, or not, as it was then.
    searchable: bool = False


class Origin(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where a run comes from: its second argument. Without one, as from another client, the defaults hold."""

    about: About = About()
    #: What earlier generations, and steps that a retry cut away, consumed.
    carried: Usage = Usage()
    #: Position of the last event before this generation's.
    base: int = 0
    #: Recorded events that this run starts from: those before a fork, without the failure at a retry, not yet taken at a next generation.
    events: list[Event] = []
    #: What the program last said of itself.
    state: MaybeRaw = None
    #: Child runs that failed with this run and are taken up again with it, by id.
    children: dict[str, Origin] = {}


class StepInfo(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a history must know of a task's step to be read without the program."""

    step: int
    #: The history's length when the step was asked for, and the time.
    requested: int = 0
    requested_at: float = 0.0
    #: How many attempts had failed before this one.
    failures: int = 0
    #: The retry policy.
    attempts: int | None = 3
    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.2


class Held(Struct, frozen=True, omit_defaults=True):
    """Whether a run is paused or parked, and why; in its memo."""

    status: Literal["", "paused", "parked"] = ""
    reason: str = ""
    #: The budget that was spent, if that is why; see `BudgetExceeded.budget`.
    budget: str = ""


class Resume(Struct, frozen=True, omit_defaults=True):
    """The argument of the signal RESUME."""

    budget_usd: float | None = None
    #: The budgets of the runs above it, from a parent that was resumed.
    budgets: tuple[Allowance, ...] = ()


class Park(Struct, frozen=True, omit_defaults=True):
    """The argument of the signal PARK: why, the budget that was spent, and the limits that the call met."""

    reason: str
    budget: str
    budgets: tuple[Allowance, ...] = ()


JSON_ENCODING = b"json/plain"
#: Metadata that the codec heeds and takes off: the run for which a payload is to be sealed, and that it is a message whose payload is.
SEAL_MARK, MESSAGE_MARK = "ziggurat-seal", "ziggurat-message"


def json_payload(data: bytes | Raw, **metadata: bytes) -> Payload:
    """Return JSON as a payload that every Temporal client reads."""
    return Payload(metadata={"encoding": JSON_ENCODING, **metadata}, data=bytes(data))


def record_payload(record: Any) -> Payload:
    """Return a record as a payload."""
    return Payload(metadata={"encoding": JSON_ENCODING}, data=msgspec.json.encode(record))


def sealed_payload(data: bytes | Raw, run: str, **metadata: bytes) -> Payload:
    """Return JSON as a payload that is sealed for a run on its way."""
    return json_payload(data, **{SEAL_MARK: run.encode()}, **metadata)


def origin_payload(origin: Origin, run: str) -> Payload:
    """Return where a run comes from as a payload; a long one, with the events of a retry or a fork, is stored on its way."""
    return sealed_payload(msgspec.json.encode(origin), run)


def read_origin(payload: Payload, run: str, payloads: SealedPayloads) -> Origin:
    """Return where a run comes from. Raises msgspec.MsgspecError, or ZigguratError if it is stored and cannot be had now."""
    return msgspec.json.decode(payloads.open_now(payload.data, run), type=Origin)


def message_payload(message: Message) -> Payload:
    """Return a message as a payload; its arguments are sealed on its way."""
    return Payload(metadata={"encoding": JSON_ENCODING, MESSAGE_MARK: b"1"}, data=msgspec.json.encode(message))


def search_payload(value: Any, type_: str) -> Payload:
    """Return the value of a search attribute."""
    return Payload(metadata={"encoding": JSON_ENCODING, "type": type_.encode()}, data=msgspec.json.encode(value))


def raw_of(payload: Payload | None) -> Raw:
    """Return a payload's JSON; null for none and for what another client wrote in another encoding."""
    if payload is None or payload.metadata.get("encoding", b"") != JSON_ENCODING or not payload.data:
        return Raw(b"null")
    return Raw(payload.data)


def read_payload(payload: Payload, type_: type[T]) -> T:
    """Return a record from its payload. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(payload.data, type=type_)


def nth(payloads: Payloads | Any, index: int) -> Payload | None:
    """Return one of the payloads, or None."""
    items = payloads.payloads if isinstance(payloads, Payloads) else payloads
    return items[index] if len(items) > index else None


def usage_in(payload: Payload | None) -> Usage:
    """Return what a result's payload says that its run consumed."""
    data = payload.metadata.get(USAGE_METADATA) if payload is not None else None
    return msgspec.json.decode(data, type=Usage) if data else Usage()


def with_moment(about: About, attributes: Any) -> About:
    """Return what is known of a run with the tag that names the moment for which a schedule started it, if one did."""
    moment = attributes.get(MOMENT_ATTRIBUTE)
    if moment is None:
        return about
    return msgspec.structs.replace(about, tags={**about.tags, "scheduled_at": msgspec.json.decode(moment.data, type=str)})
