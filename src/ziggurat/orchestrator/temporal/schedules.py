"""Schedules as Temporal's own: the server fires them, whichever of our processes are there.

A schedule of ours is one of Temporal's, whose memo holds our record. Temporal names the run of a moment after the schedule and the moment;
the moment itself is in a search attribute that Temporal sets. A run out of turn and a backfill are started from here, with ids of our own,
so that the caller learns of each run and each moment of a backfill starts once.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import replace
from temporalio.client import (
    Client,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.client import Schedule as TemporalSchedule
from temporalio.common import (
    Priority,
    RawValue,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
)
from temporalio.service import RPCError, RPCStatusCode

from ziggurat.artifacts import Payloads
from ziggurat.clock import Clock
from ziggurat.errors import UnknownName
from ziggurat.orchestrator.schedules import Schedules, accepted, backfill_moments, run_request
from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.commands import tag_words
from ziggurat.program.registry import Registry
from ziggurat.queues.temporal_link import LinkOptions, unreachable
from ziggurat.records import Run, Schedule, StartRequest

_OVERLAP = {
    "skip": ScheduleOverlapPolicy.SKIP,
    "queue": ScheduleOverlapPolicy.BUFFER_ONE,
    "allow": ScheduleOverlapPolicy.ALLOW_ALL,
    "cancel": ScheduleOverlapPolicy.CANCEL_OTHER,
}
#: Temporal's shortest catch-up window, in seconds.
_SHORTEST_CATCH_UP = 10.0
#: Longest wait in seconds until Temporal's list of schedules shows a change.
_SHOWS = 10.0


class TemporalSchedules(Schedules):
    """The schedules in a namespace that belong to one task queue.

    Args:
        start: starts a run of ours.
        searchable: whether the namespace has our search attributes.
    """

    def __init__(
        self,
        client: Client,
        link: LinkOptions,
        registry: Registry,
        clock: Clock,
        payloads: Payloads,
        start: Callable[[StartRequest], Awaitable[Run]],
        *,
        searchable: bool,
    ) -> None:
        self._client, self._link, self._registry, self._clock = client, link, registry, clock
        self._payloads, self._start, self._searchable = payloads, start, searchable

    # -- verbs ----------------------------------------------------------------------------------------------------

    async def put(self, schedule: Schedule) -> Schedule:
        schedule = replace(accepted(schedule, self._registry, self._payloads), created_at=self._clock.time())
        handle = self._client.get_schedule_handle(self._id(schedule.name))
        try:
            await self._client.create_schedule(handle.id, self._made(schedule))
        except ScheduleAlreadyRunningError:
            await self._change(handle, schedule)
        except RPCError as error:
            raise unreachable(self._link, error) from error
        await self._until_listed(schedule.name, there=True)
        return self._shown(await self._describe(schedule.name))

    async def _change(self, handle: ScheduleHandle, schedule: Schedule) -> None:
        async def update(given: ScheduleUpdateInput) -> ScheduleUpdate:
            old = given.description.schedule
            kept = _record(given.description)
            new = self._made(replace(schedule, created_at=kept.created_at))
            new.state = ScheduleState(note=old.state.note, paused=old.state.paused)
            return ScheduleUpdate(new)

        try:
            await handle.update(update)
        except RPCError as error:
            raise unreachable(self._link, error) from error

    async def list(self) -> builtins.list[Schedule]:
        names = await self._names()
        found = await asyncio.gather(*(self._describe(name) for name in names), return_exceptions=True)
        shown = []
        for one in found:
            if isinstance(one, ScheduleDescription):
                shown.append(self._shown(one))
            elif not isinstance(one, UnknownName):
                raise one
        return sorted(shown, key=lambda schedule: schedule.name)

    async def remove(self, name: str) -> None:
        await self._do(name, lambda handle: handle.delete())
        await self._until_listed(name, there=False)

    async def pause(self, name: str, reason: str = "") -> None:
        await self._do(name, lambda handle: handle.pause(note=reason or "paused by hand"))

    async def resume(self, name: str) -> None:
        await self._do(name, lambda handle: handle.unpause(note=" "))

    async def trigger(self, name: str) -> Run:
        schedule = _record(await self._describe(name))
        return await self._begin(schedule, self._clock.time(), by_hand=True)

    async def backfill(self, name: str, since: float, until: float) -> int:
        schedule = _record(await self._describe(name))
        moments = backfill_moments(schedule, since, until)
        for moment in moments:
            await self._begin(schedule, moment)
        return len(moments)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _id(self, name: str) -> str:
        return f"{self._link.task_queue}:{name}"

    async def _begin(self, schedule: Schedule, moment: float, *, by_hand: bool = False) -> Run:
        request = run_request(schedule, moment, by_hand=by_hand)
        plain = await self._payloads.open(schedule.payload, schedule.name)
        return await self._start(replace(request, payload=Raw(await self._payloads.seal(plain, request.id))))

    def _made(self, schedule: Schedule) -> TemporalSchedule:
        """Return a schedule of ours as one of Temporal's. Its action's memo holds our record."""
        about = wire.About(
            entry=schedule.entry,
            namespace=schedule.namespace,
            tags={**schedule.tags, "schedule": schedule.name},
            priority=schedule.priority,
            budget_usd=schedule.budget_usd,
            sealed_for=schedule.name,
            searchable=self._searchable,
        )
        pairs: builtins.list[SearchAttributePair[Any]] = []
        if self._searchable:
            pairs = [
                SearchAttributePair(SearchAttributeKey.for_keyword(wire.SEARCH_NAMESPACE), about.namespace),
                SearchAttributePair(SearchAttributeKey.for_keyword_list(wire.SEARCH_TAGS), tag_words(about.tags)),
            ]
        action = ScheduleActionStartWorkflow(
            schedule.workflow,
            args=[RawValue(wire.json_payload(schedule.payload)), RawValue(wire.record_payload(wire.Origin(about=about)))],
            # Temporal adds the moment.
            id=f"{schedule.name}~",
            task_queue=self._link.task_queue,
            memo={
                wire.ABOUT_KEY: RawValue(wire.record_payload(about)),
                wire.SCHEDULE_KEY: RawValue(wire.record_payload(schedule)),
            },
            typed_search_attributes=TypedSearchAttributes(pairs),
            priority=Priority(priority_key=schedule.priority, fairness_key=schedule.namespace[:64]),
        )
        every = schedule.every
        return TemporalSchedule(
            action=action,
            spec=ScheduleSpec(
                cron_expressions=schedule.cron,
                intervals=[ScheduleIntervalSpec(every=timedelta(seconds=every))] if every is not None else [],
                jitter=timedelta(seconds=schedule.jitter) if schedule.jitter else None,
                time_zone_name=schedule.timezone,
            ),
            policy=SchedulePolicy(
                overlap=_OVERLAP[schedule.overlap],
                catchup_window=timedelta(seconds=max(_SHORTEST_CATCH_UP, schedule.catch_up)),
            ),
        )

    async def _describe(self, name: str) -> ScheduleDescription:
        try:
            return await self._client.get_schedule_handle(self._id(name)).describe()
        except RPCError as error:
            raise self._translated(name, error) from error

    async def _do(self, name: str, verb: Callable[[ScheduleHandle], Awaitable[None]]) -> None:
        try:
            await verb(self._client.get_schedule_handle(self._id(name)))
        except RPCError as error:
            raise self._translated(name, error) from error

    def _translated(self, name: str, error: RPCError) -> Exception:
        if error.status == RPCStatusCode.NOT_FOUND:
            return UnknownName(f"There is no schedule {name!r}. `ziggurat schedules list` shows those that there are.")
        return unreachable(self._link, error)

    async def _names(self) -> builtins.list[str]:
        prefix = self._id("")
        try:
            return [
                entry.id.removeprefix(prefix)
                async for entry in await self._client.list_schedules()
                if entry.id.startswith(prefix)
            ]
        except RPCError as error:
            raise unreachable(self._link, error) from error

    async def _until_listed(self, name: str, *, there: bool) -> None:
        """Wait until Temporal's list shows what was done: whoever lists next expects to see it."""
        for _ in range(int(_SHOWS / 0.05)):
            if (name in await self._names()) == there:
                return
            await asyncio.sleep(0.05)

    @staticmethod
    def _shown(found: ScheduleDescription) -> Schedule:
        record, info, state = _record(found), found.info, found.schedule.state
        recent = info.recent_actions[-1] if info.recent_actions else None
        return replace(
            record,
            paused=state.paused,
            reason=(state.note or "").strip() if state.paused else "",
            decided_at=recent.scheduled_at.timestamp() if recent is not None else None,
            last_run=getattr(recent.action, "workflow_id", "") if recent is not None else "",
            skipped=info.num_actions_skipped_overlap,
            next_at=info.next_action_times[0].timestamp() if info.next_action_times and not state.paused else None,
        )


def _record(found: ScheduleDescription) -> Schedule:
    """Return our record of one of Temporal's schedules."""
    memo = getattr(found.schedule.action, "memo", None) or {}
    payload = memo.get(wire.SCHEDULE_KEY)
    data = payload.data if payload is not None else b""
    try:
        return msgspec.json.decode(data, type=Schedule)
    except msgspec.MsgspecError as error:
        raise UnknownName(f"The schedule {found.id} was made by another program; look at it in Temporal's own Web UI.") from error
