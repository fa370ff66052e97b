"""The settings of calls that may wait: when they are gathered into batches, looked after, and made at once after all."""

from __future__ import annotations

from pydantic import Field

from ziggurat.settings.types import Bytes, Positive, Seconds, Section


class BatchSettings(Section):
    """Calls with a deadline at endpoints with `batch = true`; with a Redis queue they are kept in Redis."""

    path: str = Field(".ziggurat/batches.db", description="The file that keeps batches and their calls.")
    lines: Positive = Field(1000, description="A batch is sent at so many calls; OpenAI takes 50,000.")
    window: Seconds = Field(300.0, description="Or once its first call has waited so long.")
    size: Bytes = Field(100_000_000, description="Requests of one batch, in bytes; OpenAI takes 200 MB.")
    least: Seconds = Field(3600.0, description="A call with less time than this is made at once.")
    margin: Seconds = Field(
        1800.0,
        description="So long before its deadline a call leaves its batch: the batch is cancelled, and the call is made at once.",
    )
    look: Seconds = Field(60.0, description="Between two looks at a batch, at first.")
    look_most: Seconds = Field(900.0, description="Between two looks at a batch, at most.")
    claim: Seconds = Field(30.0, description="How long a process that was killed keeps others from the batch that it was at.")
