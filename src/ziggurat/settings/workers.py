"""The settings of layer 3: pools of workers, what each serves, and how large it may grow."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ziggurat.settings.types import Bytes, Count, Dollars, Positive, Seconds, Section


class WorkerSettings(Section):
    """Layer 3: one pool of workers. The pool "default" exists when no other is named."""

    queues: list[str] = Field(["*"], description='Queues that the pool serves; "*" stands for all that the tasks name.')
    concurrency: Positive = Field(64, description="Tasks that one worker runs at a time.")
    min: Count = Field(0, description="Fewest workers.")
    max: Positive = Field(1, description="Most workers.")
    region: str = Field("", description="The region that the workers are in; empty for none.")
    grace: Seconds = Field(30.0, description="How long running tasks may go on after SIGTERM before they are handed back.")
    memory_ceiling: Bytes | None = Field(
        None, description="Memory at which a worker takes no more tasks, and at which a process=True attempt is ended."
    )
    target_wait: Annotated[Seconds, Field(gt=0)] = Field(
        5.0, description="How soon a waiting task should start: a backlog is given workers enough for that."
    )
    idle_window: Seconds = Field(
        30.0, description="How long a surplus of workers is kept before it is given back; longer than a worker takes to start."
    )
    price_per_hour: Dollars = Field(0.0, description="What one worker costs in an hour, for the budget and the reports.")
    budget_per_hour: Dollars | None = Field(
        None, description="What the pool's workers may cost together in an hour; needs price_per_hour."
    )
