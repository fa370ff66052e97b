"""Attempts that end only to be made again, when the answer is there that they wait for: how they are told apart from failures."""

from __future__ import annotations

from ziggurat.errors import Deferred
from ziggurat.program.options import type_name
from ziggurat.records import CallRecord, ErrorInfo, Outcome

#: The type of the failure that is none.
DEFERRED = type_name(Deferred)
#: What the history says of such an attempt in `detail`.
DETAIL = "deferred"


def deferral_in(error: BaseException) -> Deferred | None:
    """Return the deferral that ended an attempt, the soonest of a group; None if anything else went wrong too."""
    if isinstance(error, Deferred):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [deferral_in(member) for member in error.exceptions]
    known = [deferral for deferral in found if deferral is not None]
    return min(known, key=lambda d: d.retry_after) if len(known) == len(found) else None


def deferral_info(error: Deferred) -> ErrorInfo:
    """Return a deferral as a record."""
    return ErrorInfo(type=DEFERRED, message=str(error), retryable=True, retry_after=error.retry_after)


def is_deferred(outcome: Outcome) -> bool:
    """Say whether an attempt ended only to wait."""
    return outcome.status == "failed" and outcome.error is not None and outcome.error.type == DEFERRED


def due_again(outcome: Outcome, now: float, deadline: float | None) -> float:
    """Return when an attempt that ended to wait is to be made again: at the task's deadline at the latest, which ends it."""
    due = now + (outcome.error.retry_after or 0.0 if outcome.error is not None else 0.0)
    return due if deadline is None else max(now, min(due, deadline))


class Waiting:
    """What a step remembers of its attempts that ended to wait."""

    __slots__ = ("count", "told", "why")

    def __init__(self) -> None:
        #: How many there were right before the next attempt.
        self.count = 0
        #: What the last one waited for; "" once an attempt ended otherwise.
        self.why = ""
        #: Ids of the calls that they told of: the attempt that is made again tells of them again.
        self.told: frozenset[str] = frozenset()

    def ended(self, detail: str, error: ErrorInfo | None, calls: list[CallRecord]) -> None:
        """Take in an attempt that came to nothing: to a failure, or to a wait."""
        if detail != DETAIL:
            self.count, self.why = 0, ""
            return
        self.count += 1
        self.why = error.message if error is not None else ""
        self.told |= {call.id for call in calls}

    def fresh(self, calls: list[CallRecord]) -> list[CallRecord]:
        """Return the calls that were not told of before."""
        return [call for call in calls if call.id not in self.told] if self.told else calls
