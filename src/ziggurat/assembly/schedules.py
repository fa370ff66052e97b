"""From [schedules] of the settings to schedules of the orchestrator."""

from __future__ import annotations

from typing import Literal

from msgspec import Raw

from ziggurat.assembly.modules import AppRegistry
from ziggurat.errors import ConfigurationError, InvalidData, UnknownName
from ziggurat.orchestrator.schedules import Schedules
from ziggurat.program.registry import load_workflow
from ziggurat.records import PRIORITY_NORMAL, Schedule
from ziggurat.settings import ScheduleSettings, Settings

#: The reason of a pause that the settings ask for; a person's pause has another, and stays when the settings change.
_PAUSED_HERE = "paused in the settings"


def schedule_of(
    name: str,
    wanted: ScheduleSettings,
    settings: Settings,
    registry: AppRegistry,
    origin: Literal["settings", "hand"] = "settings",
) -> Schedule:
    """Return the schedule that a table of the settings means. Raises ConfigurationError, InvalidData."""
    try:
        workflow = load_workflow(wanted.workflow, registry)
        payload = workflow.arguments.encode_input(wanted.input)
    except (ConfigurationError, InvalidData, UnknownName) as error:
        raise type(error)(f"The schedule {name!r} cannot be kept: {error}") from error
    options = workflow.options_
    return Schedule(
        name=name,
        workflow=workflow.name,
        entry=workflow.entry,
        payload=Raw(payload),
        cron=[wanted.cron] if isinstance(wanted.cron, str) else list(wanted.cron),
        every=wanted.every,
        timezone=wanted.timezone,
        jitter=wanted.jitter,
        overlap=wanted.overlap,
        catch_up=wanted.catch_up,
        namespace=settings.app.namespace,
        tags={**options.tags, **wanted.tags},
        priority=options.priority or PRIORITY_NORMAL,
        budget_usd=wanted.budget if wanted.budget is not None else options.budget,
        origin=origin,
    )


async def take_over_schedules(settings: Settings, registry: AppRegistry, schedules: Schedules) -> None:
    """Make the orchestrator's schedules agree with the settings. Those made by hand are left alone.

    Raises ConfigurationError, InvalidData, UnknownName if one of the settings means nothing; then nothing was changed.
    """
    wanted = {name: schedule_of(name, table, settings, registry) for name, table in settings.schedules.items()}
    there = {schedule.name: schedule for schedule in await schedules.list()}
    for name in wanted:
        if name in there and there[name].origin == "hand":
            raise ConfigurationError(
                f"A schedule {name!r} was made by hand, and [schedules.{name}] is another; rename one, or: ziggurat schedules remove {name}"
            )
    for name, schedule in wanted.items():
        kept = await schedules.put(schedule)
        if settings.schedules[name].paused and not kept.paused:
            await schedules.pause(name, _PAUSED_HERE)
        elif kept.paused and kept.reason == _PAUSED_HERE and not settings.schedules[name].paused:
            await schedules.resume(name)
    for name, found in there.items():
        if found.origin == "settings" and name not in wanted:
            await schedules.remove(name)
