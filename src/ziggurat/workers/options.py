"""How a worker works, and what it has done: the records around it."""

from __future__ import annotations

from msgspec import Struct

from ziggurat.workers.usage import Used

#: How an attempt can end, as `Tally` counts it.
ENDINGS = ("completed", "failed", "timeout", "crashed", "cancelled")


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """How a worker works. Durations are seconds, sizes bytes."""

    #: Unique among workers; made from the host's name and the process id when empty.
    name: str = ""
    #: The pool that it belongs to, for people and metrics.
    pool: str = "default"
    queues: tuple[str, ...] = ("default",)
    #: A worker with a region takes that region's messages and those of no region.
    region: str = ""
    #: Attempts at a time.
    concurrency: int = 64
    #: How long running attempts may go on after `stop`.
    grace: float = 30.0
    #: How long a stopped coroutine may take for its `finally` blocks.
    cleanup: float = 10.0
    #: Plain functions at a time; 0 means as many as `concurrency`.
    threads: int = 0
    #: process=True tasks at a time; 0 means one for each CPU.
    processes: int = 0
    #: A child process is replaced after so many tasks.
    tasks_per_process: int = 100
    #: Address space of a child process; 0 for no limit.
    process_memory: int = 0
    #: Above so much resident memory the worker drains and asks to be started anew; 0 for no ceiling.
    memory_ceiling: int = 0
    #: With more than so many attempts that could not be ended, the worker takes no more work and is unhealthy.
    abandoned_limit: int = 8
    #: Longest wait in one call of the queue; bounds how long `stop` waits for it.
    poll: float = 1.0
    #: First delay before a message that this worker cannot run is offered again; it triples with every delivery.
    refusal_delay: float = 2.0


class Tally(Struct):
    """What a worker has done since it started, for metrics."""

    started: int = 0
    completed: int = 0
    failed: int = 0
    timeout: int = 0
    crashed: int = 0
    cancelled: int = 0
    #: Attempts that ended in one of those ways, by the queue that they came from.
    ended_in: dict[str, int] = {}
    #: Seconds that the attempts which ended so ran together.
    seconds: float = 0.0
    #: Handed back: unstarted at a drain, stopped at the end of the grace period, or not runnable here.
    released: int = 0
    #: Leases that went to another worker.
    lost: int = 0
    #: What the attempts that ended took of each endpoint.
    used: dict[str, Used] = {}
