"""The settings of schedules."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ziggurat.settings.types import Dollars, Seconds, Section


class ScheduleSettings(Section):
    """A workflow that starts by itself, wherever `ziggurat serve` or `up` stays. It needs `cron`, `every` or both."""

    workflow: str = Field(description='The workflow: "module:workflow", or the name of one in [app] modules.')
    input: dict[str, Any] = Field({}, description="The arguments of every run, by parameter.")
    cron: str | list[str] = Field([], description="When, as cron expressions of five fields: minute, hour, day, month, weekday.")
    every: Seconds | None = Field(None, description="When, as an interval; moments are multiples of it since 1970, UTC.")
    timezone: str = Field("UTC", description='The zone that the cron expressions are meant in, such as "Europe/Berlin".')
    jitter: Seconds = Field(0.0, description="The most by which a start is put off, so that not everything starts at once.")
    overlap: Literal["skip", "queue", "allow", "cancel"] = Field(
        "skip",
        description="At a moment while the run before goes on: start nothing, let one moment wait, run both, or cancel the run before.",
    )
    catch_up: Seconds = Field(3600.0, description="How late a moment that nobody was there for is still made up.")
    tags: dict[str, str] = Field({}, description="Labels of every run.")
    budget: Dollars | None = Field(None, description="What each run may spend on models.")
    paused: bool = Field(False, description="Start nothing for now.")
