"""Schedules: what an orchestrator promises of them, and the pure arithmetic of their moments.

A moment is decided on once: its run has an id made of the schedule's name and the moment, and starting an id twice starts once. So a
crash between the start and the note of it costs nothing and doubles nothing.

Cron expressions are read by cronsim, which follows Debian's cron where clocks change (crontab(5), "Daylight Saving Time"): a job of a
fixed time that falls into the hour that is left out runs right after it, one in the hour that comes twice runs once; jobs with a star
for the hour or the minute follow the clock on the wall.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from msgspec import Raw
from msgspec.structs import replace

from ziggurat.artifacts import Payloads, artifact_keys
from ziggurat.errors import ConfigurationError, InvalidData
from ziggurat.program.registry import Registry
from ziggurat.records import Run, Schedule, StartRequest

#: The shortest interval, in seconds. Work that comes more often belongs into one run that sleeps.
SHORTEST = 1.0
#: The most runs that one backfill starts.
BACKFILL_MAX = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Schedules(ABC):
    """The schedules of an orchestrator. Every verb on an unknown name raises UnknownName."""

    @abstractmethod
    async def put(self, schedule: Schedule) -> Schedule:
        """Make a schedule, or change the one of that name; how it went so far is kept. Returns it as it stands.

        Raises ConfigurationError for a cron expression, zone or interval that means nothing, UnknownName for the workflow,
        InvalidData if the arguments do not fit it.
        """

    @abstractmethod
    async def list(self) -> list[Schedule]:
        """Return all schedules by name, each with its next moment."""

    @abstractmethod
    async def remove(self, name: str) -> None:
        """Forget a schedule. Its runs go on."""

    @abstractmethod
    async def pause(self, name: str, reason: str = "") -> None:
        """Start nothing until `resume`."""

    @abstractmethod
    async def resume(self, name: str) -> None:
        """Go on from now: moments that passed meanwhile are not made up."""

    @abstractmethod
    async def trigger(self, name: str) -> Run:
        """Start a run now, whatever else is running, and return it."""

    @abstractmethod
    async def backfill(self, name: str, since: float, until: float) -> int:
        """Start a run for each moment of [since, until), whatever else is running; returns how many.

        A moment whose run exists starts nothing. Raises InvalidData for more than BACKFILL_MAX moments.
        """


# -- moments --------------------------------------------------------------------------------------------------------


def check(schedule: Schedule) -> None:
    """Raise ConfigurationError with the cause if a schedule means nothing."""
    what = f"The schedule {schedule.name!r}"
    if not _NAME.fullmatch(schedule.name):
        raise ConfigurationError(
            f"{what} needs a name of letters, digits, '.', '_' and '-', because its runs are named after it."
        )
    if not schedule.cron and schedule.every is None:
        raise ConfigurationError(f"{what} says no time: give it a cron expression or an interval.")
    if schedule.every is not None and schedule.every < SHORTEST:
        raise ConfigurationError(f"{what} comes every {schedule.every:g} s; the shortest interval is {SHORTEST:g} s.")
    zone(schedule.timezone)
    for expression in schedule.cron:
        _parse(schedule.name, expression)


def accepted(schedule: Schedule, registry: Registry, payloads: Payloads) -> Schedule:
    """Return a schedule as it is kept: checked, with arguments that fit its workflow and are sealed.

    Raises ConfigurationError, UnknownName, InvalidData.
    """
    check(schedule)
    registry.workflow(schedule.workflow, schedule.entry).arguments.decode(schedule.payload)
    plain = bytes(schedule.payload)
    if artifact_keys(plain):
        raise InvalidData(
            f"The input of the schedule {schedule.name!r} refers to an artifact, and artifacts go with the runs that they belong to; "
            "let the workflow fetch or save what it needs."
        )
    return replace(schedule, payload=Raw(payloads.seal_inline(plain, schedule.name)), next_at=None)


def zone(name: str) -> ZoneInfo:
    """Return a time zone. Raises ConfigurationError."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"There is no time zone {name!r}; write one such as 'Europe/Berlin'. "
            "(A machine without a zone database needs: pip install tzdata)"
        ) from error


def _parse(name: str, expression: str) -> None:
    from cronsim import CronSim, CronSimError

    try:
        if len(expression.split()) != 5:
            raise CronSimError(f"it has {len(expression.split())} fields and must have 5: minute hour day month weekday")
        next(CronSim(expression, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        text = str(error)
        cause = text if text.startswith("it ") else f"it has a {text[:1].lower()}{text[1:]}"
        raise ConfigurationError(f"The schedule {name!r} has the cron expression {expression!r}, and {cause}.") from error
    except StopIteration:
        raise ConfigurationError(
            f"The schedule {name!r} has the cron expression {expression!r}, which matches no day of the next 50 years."
        ) from None


def next_moment(schedule: Schedule, after: float) -> float | None:
    """Return the first moment of a checked schedule past `after`, in seconds since the epoch; None if there is none in 50 years."""
    from cronsim import CronSim

    moments: list[float] = []
    if schedule.every is not None:
        count = math.floor(after / schedule.every) + 1
        # A quotient that was rounded down would name the moment itself again, without end.
        while count * schedule.every <= after:
            count += 1
        moments.append(count * schedule.every)
    start = datetime.fromtimestamp(after, zone(schedule.timezone))
    for expression in schedule.cron:
        # A job of a fixed time comes once in the hour that comes twice, but seen from the second pass it would come again.
        found = next((m for m in map(datetime.timestamp, CronSim(expression, start)) if m > after), None)
        if found is not None:
            moments.append(found)
    return min(moments, default=None)


def moments_between(schedule: Schedule, since: float, until: float) -> Iterator[float]:
    """Yield the moments of [since, until)."""
    moment = next_moment(schedule, since - 1e-6)
    while moment is not None and moment < until:
        yield moment
        moment = next_moment(schedule, moment)


def start_at(schedule: Schedule, moment: float) -> float:
    """Return when the run of a moment starts: the moment and its jitter."""
    if not schedule.jitter:
        return moment
    digest = hashlib.sha256(f"{schedule.name}~{moment}".encode()).digest()
    return moment + schedule.jitter * int.from_bytes(digest[:4]) / 2**32


def run_request(schedule: Schedule, moment: float, *, by_hand: bool = False) -> StartRequest:
    """Return the wish for the run of a moment; its id names both. `by_hand` tells a run apart that was started out of turn."""
    stamp = datetime.fromtimestamp(moment, UTC)
    form = "%Y%m%dT%H%M%S.%fZ" if by_hand or moment % 1 else "%Y%m%dT%H%M%SZ"
    scheduled = stamp.isoformat(timespec="milliseconds" if moment % 1 else "seconds").replace("+00:00", "Z")
    return StartRequest(
        workflow=schedule.workflow,
        payload=schedule.payload,
        id=f"{schedule.name}~{stamp.strftime(form)}",
        namespace=schedule.namespace,
        entry=schedule.entry,
        tags={**schedule.tags, "schedule": schedule.name, "scheduled_at": scheduled},
        priority=schedule.priority,
        budget_usd=schedule.budget_usd,
    )


def backfill_moments(schedule: Schedule, since: float, until: float) -> list[float]:
    """Return the moments that a backfill of [since, until) starts. Raises InvalidData for too many, or none of time."""
    if until <= since:
        raise InvalidData(f"The backfill of {schedule.name!r} ends before it begins; give the earlier moment first.")
    moments: list[float] = []
    for moment in moments_between(schedule, since, until):
        if len(moments) == BACKFILL_MAX:
            raise InvalidData(
                f"The backfill of {schedule.name!r} would start more than {BACKFILL_MAX:,} runs; choose a shorter time, or several."
            )
        moments.append(moment)
    return moments
