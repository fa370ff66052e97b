"""The schedules of an orchestrator behind an HTTP API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from msgspec import Raw, Struct

from ziggurat.orchestrator.http import wire
from ziggurat.orchestrator.schedules import Schedules
from ziggurat.records import Run, Schedule

#: Asks for (method, path, type of the answer), with a body, once or until it is answered.
Ask = Callable[..., Awaitable[Any]]


class WireSchedule(Struct):
    """A ScheduleView of the API."""

    name: str
    workflow: str
    cron: list[str]
    every: float | None
    timezone: str
    jitter: float
    overlap: Literal["skip", "queue", "allow", "cancel"]
    catch_up: float
    namespace: str
    tags: dict[str, str]
    budget_usd: float | None
    origin: Literal["settings", "hand"]
    paused: bool
    reason: str
    last_run: str
    waiting: wire.Moment
    skipped: int
    error: str
    next: list[datetime]
    input: Raw = Raw(b"{}")

    def record(self) -> Schedule:
        """Return it as a record."""
        plain = {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("waiting", "next", "input")}
        upcoming = wire.at(self.next[0]) if self.next else None
        return Schedule(**plain, waiting=wire.at(self.waiting), next_at=upcoming, payload=self.input)


class WireSchedules(Struct):
    schedules: list[WireSchedule]


class HttpSchedules(Schedules):
    """See `Schedules`; `namespace` is the tenant of new ones, the key's own when empty."""

    def __init__(self, ask: Ask, namespace: str) -> None:
        self._ask, self._namespace = ask, namespace

    async def put(self, schedule: Schedule) -> Schedule:
        same = ("workflow", "cron", "every", "timezone", "jitter", "overlap", "catch_up", "tags")
        body = wire.body_of(
            **{name: getattr(schedule, name) for name in same},
            input=schedule.payload,
            budget=schedule.budget_usd,
            namespace=self._namespace or None,
        )
        kept: WireSchedule = await self._ask("PUT", _path(schedule.name), WireSchedule, body=body)
        return kept.record()

    async def list(self) -> list[Schedule]:
        found: WireSchedules = await self._ask("GET", "/schedules", WireSchedules)
        return [schedule.record() for schedule in found.schedules]

    async def remove(self, name: str) -> None:
        await self._ask("DELETE", _path(name), None, again=False)

    async def pause(self, name: str, reason: str = "") -> None:
        await self._ask("POST", _path(name, "/pause"), WireSchedule, body=wire.body_of(reason=reason))

    async def resume(self, name: str) -> None:
        await self._ask("POST", _path(name, "/resume"), WireSchedule, body=b"{}")

    async def trigger(self, name: str) -> Run:
        run: wire.WireRun = await self._ask("POST", _path(name, "/trigger"), wire.WireRun, body=b"{}", again=False)
        return run.record()

    async def backfill(self, name: str, since: float, until: float) -> int:
        body = wire.body_of(since=_iso(since), until=_iso(until))
        count: wire.WireCount = await self._ask("POST", _path(name, "/backfill"), wire.WireCount, body=body)
        return count.count


def _path(name: str, rest: str = "") -> str:
    return f"/schedules/{quote(name, safe='')}{rest}"


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
