"""Records of the orchestrator: runs, their histories, and what a watcher sees."""

from __future__ import annotations

from typing import Literal

from msgspec import Raw, Struct

from ziggurat.records.common import PRIORITY_NORMAL, CallRecord, ErrorInfo, MaybeRaw, Usage
from ziggurat.records.work import Progress

RunStatus = Literal["pending", "running", "waiting", "paused", "parked", "completed", "failed", "cancelled"]
#: Statuses from which a run never moves by itself.
ENDED: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
#: Statuses at which a caller that waits for a result stops waiting.
STOPPED: frozenset[str] = ENDED | {"parked"}


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
    #: W3C traceparent of whoever starts it; empty if nobody traces.
    trace: str = ""


class Awaited(Struct, frozen=True, omit_defaults=True):
    """A signal that a run waits for, and the step that does."""

    step: int
    signal: str
    since: float = 0.0


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
    #: The signals that it waits for, while it waits. Without the capability `awaits`, only runs found with `awaiting` have them.
    awaits: list[Awaited] = []
    #: Counts up with every continue_as_new.
    generation: int = 0
    #: Counts up with every continue_as_new and every retry; part of the ids of messages.
    epoch: int = 0
    #: The run that awaits this one, and its step.
    parent: str = ""
    parent_step: int = 0
    #: The run that this one was forked from.
    forked_from: str = ""
    #: W3C traceparent of the parent's step, or of whoever started it; empty if nobody traced.
    trace: str = ""
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
    ended_before: float | None = None
    #: Ended at that moment or later.
    ended_since: float | None = None
    tags: dict[str, str] = {}
    parent: str | None = None
    #: Only runs that wait for a signal, as `Run.awaits` has it.
    awaiting: bool = False
    #: Text that the id must contain.
    search: str = ""
    #: The ids themselves.
    ids: tuple[str, ...] = ()
    limit: int = 100
    #: The id of the last run of the page before.
    after: str = ""


EventKind = Literal[
    "run_started",
    "step_completed",
    "step_failed",
    "attempt_failed",
    "calls_recorded",
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

    @property
    def open(self) -> bool:
        """True while the step is under way, or waits."""
        return self.status in ("scheduled", "running", "retrying", "waiting")


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
