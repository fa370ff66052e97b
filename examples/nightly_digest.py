"""A nightly digest: one run that sleeps until two in the morning, works, and begins anew, for years, in a bounded history.

ziggurat start examples.nightly_digest:digest --id digest --input '{"settings": {"feeds": ["news", "incidents"]}}'
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from pydantic import BaseModel, Field

from ziggurat import continue_as_new, emit, llm, now, state, task, workflow


class Settings(BaseModel):
    feeds: list[str] = Field(min_length=1)
    hour: int = Field(default=2, ge=0, le=23)
    model: str = "default"
    #: Nights after which the run ends; None for no end.
    nights: int | None = None


class Digest(BaseModel):
    night: str
    text: str


@task(queue="default", retry=5, timeout="1m")
async def collect(feed: str, day: str) -> list[str]:
    """Fetch what a feed brought that day. Here every feed brings two lines."""
    return [f"{feed} on {day}: nothing burned down.", f"{feed} on {day}: one thing was mended."]


@task(retry=5)
async def deliver(digest: Digest) -> None:
    """Send the digest out. A real one sends mail."""


def next_night(moment: datetime, hour: int) -> datetime:
    """Return the next moment at which the clock shows that hour."""
    night = moment.replace(hour=hour, minute=0, second=0, microsecond=0)
    return night if night > moment else night + timedelta(days=1)


@workflow
async def digest(settings: Settings) -> Digest:
    """Sleep until the night, digest all feeds with a model, deliver, and begin anew."""
    due = next_night(now(), settings.hour)
    state(next_digest=due.isoformat())
    await asyncio.sleep((due - now()).total_seconds())
    day = due.date().isoformat()
    lines = [line for feed in await asyncio.gather(*(collect(feed, day) for feed in settings.feeds)) for line in feed]
    text = await llm.text(
        "Write one plain paragraph that sums these up:\n" + "\n".join(lines), model=settings.model, max_tokens=120
    )
    result = Digest(night=day, text=text)
    await deliver(result)
    emit({"delivered": day})
    if settings.nights is None or settings.nights > 1:
        left = settings.nights - 1 if settings.nights is not None else None
        continue_as_new(settings.model_copy(update={"nights": left}))
    return result
