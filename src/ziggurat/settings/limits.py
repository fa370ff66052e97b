"""The settings of limits: what may be used, and how those who use it share it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ziggurat.settings.types import Dollars, Positive, Seconds, Secret, Section, Shown, Url

LIMIT_STORES = ("process", "sqlite")


class LimitSettings(Section):
    """What may be used in a minute and at a time, by all workers together."""

    requests_per_minute: Positive | None = Field(None, description="Calls that may start in a minute.")
    tokens_per_minute: Positive | None = Field(None, description="Input and output tokens in a minute.")
    concurrency: Positive | None = Field(None, description="Calls under way at a time.")
    burst: Seconds = Field(
        10.0, description="How much of the minute may be used at once, as seconds of it; less where a provider counts strictly."
    )


def _store(value: Any) -> Any:
    if isinstance(value, Secret) or value == "" or value in LIMIT_STORES:
        return value
    if re.match(r"(rediss?|sentinels?|rediss?\+cluster|unix)://", value) or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        return value
    raise ValueError(
        f"it is {value!r} and must be one of: {', '.join(LIMIT_STORES)}, or a Redis URL such as redis://localhost:6379"
    )


Store = Annotated[
    Url,
    BeforeValidator(lambda value: value),
    AfterValidator(_store),
    Shown('"process" \\| "sqlite" \\| Redis URL \\| "env:NAME"'),
]


class BudgetSettings(Section):
    """What may be spent on models, beside what a workflow or a run allows itself. Days are UTC days."""

    call: Dollars | None = Field(None, description="One call.")
    step: Dollars | None = Field(None, description="One step of a run, all its attempts.")
    day: Dollars | None = Field(None, description="All calls of a day.")
    workflows: dict[str, Dollars] = Field({}, description="All runs of a workflow in a day, by its name.")
    tenants: dict[str, Dollars] = Field(
        {}, description='All calls of a tenant in a day, by namespace; "*" for each that is not named.'
    )
    soft: float = Field(0.8, ge=0.0, le=1.0, description="The share of a budget after which `downgrade` is used.")
    downgrade: str = Field("", description="The alias of a cheaper model, used once a budget's soft share is spent.")


class SharingSettings(Section):
    """How limits and budgets are shared by those who make calls."""

    store: Store = Field(
        "",
        description="Where they meet: in one process, in a file of one machine, or in Redis. Without it, where the queue is: a Redis queue "
        "shares its server, a queue in memory stays in its process, all others use the file.",
    )
    path: str = Field(".ziggurat/limits.db", description="The file of the sqlite store.")
    tenants: dict[str, LimitSettings] = Field(
        {}, description='What a tenant may use of all endpoints, by namespace; "*" for each that is not named.'
    )
