"""Records of schedules: when runs of a workflow start by themselves."""

from __future__ import annotations

from typing import Literal

from msgspec import Raw, Struct

from ziggurat.records.common import PRIORITY_NORMAL

#: What happens at a moment while the run of an earlier moment goes on: nothing ("skip"), one moment waits until it has ended ("queue"),
#: both run ("allow"), or the earlier one is cancelled and the newest moment waits until it has ended ("cancel").
Overlap = Literal["skip", "queue", "allow", "cancel"]


class Schedule(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """When runs of a workflow start by themselves, and how that went so far."""

    name: str
    workflow: str
    #: "module:name" of the workflow, a hint for people when its module is not loaded.
    entry: str = ""
    #: The arguments of every run.
    payload: Raw = Raw(b"{}")
    #: Cron expressions of five fields; each of their moments counts.
    cron: list[str] = []
    #: Seconds between moments, which are multiples of it since the epoch, whoever restarts when.
    every: float | None = None
    #: The zone that the cron expressions are meant in.
    timezone: str = "UTC"
    #: Seconds by which a start may be put off, different for each moment and the same at every look.
    jitter: float = 0.0
    overlap: Overlap = "skip"
    #: Seconds after which a moment that nobody was there for is not made up.
    catch_up: float = 3600.0
    namespace: str = "default"
    tags: dict[str, str] = {}
    priority: int = PRIORITY_NORMAL
    budget_usd: float | None = None
    #: "settings": it stands in ziggurat.toml, and goes when it goes there; "hand": a person made it.
    origin: Literal["settings", "hand"] = "hand"

    # How it went.
    paused: bool = False
    #: Why it is paused.
    reason: str = ""
    created_at: float = 0.0
    #: The last moment that was decided on, whatever the decision.
    decided_at: float | None = None
    #: The run of the last moment that started one.
    last_run: str = ""
    #: The moment that waits for that run to end.
    waiting: float | None = None
    #: Moments that were passed over because a run was going on.
    skipped: int = 0
    #: Why the last moment started nothing, if it failed to.
    error: str = ""
    #: The next moment, jitter left out; known where schedules are listed.
    next_at: float | None = None
