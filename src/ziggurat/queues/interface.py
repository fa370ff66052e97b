"""What a queue promises, and the holes that a backend fills.

A queue delivers at least once, fenced. Every delivery carries an epoch; settle, extend and release check it, so a worker that was paused
past its lease can neither finish nor steal the message. A lease is short and renewed. A message that was delivered `max_deliveries`
times without an outcome is a dead letter, and the orchestrator learns of it through an outcome with status "dead". The queue is
losable: the orchestrator's history is the truth, and what vanishes here is sent again.

All verbs take batches, because a round trip or a commit for each message is what makes queues slow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import Struct, field

from ziggurat.records import DeadLetter, Delivery, Depth, Message, Outcome, Presence, Progress

#: How often each priority level is served relative to the others while all have messages: level 1 first.
PRIORITY_WEIGHTS: Mapping[int, int] = {1: 16, 2: 8, 3: 4, 4: 2, 5: 1}
#: Seconds of waiting after which a message counts as one level higher; bounds the wait of the lowest.
AGEING = 30.0


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a backend can do beyond the promises. The conformance suite asserts each declaration, both ways."""

    #: Messages survive the end of the process that sent them.
    durable: bool = False
    #: Several processes may work on it.
    shared: bool = False
    #: Longest native delay in seconds; longer ones are the orchestrator's timers.
    longest_delay: float = float("inf")
    #: Priorities are weighted by PRIORITY_WEIGHTS with ageing; otherwise levels are served in order.
    weighted_priorities: bool = True
    #: Namespaces that compete for one queue get equal shares.
    fair_shares: bool = True
    #: `Message.concurrency` and `Message.rate` are enforced over all workers.
    limits: bool = True
    #: `depth` is exact rather than approximate.
    exact_depth: bool = True
    #: A lease can be renewed without bound.
    renewable: bool = True
    #: Largest message in bytes; larger payloads must travel as artifacts.
    largest_message: int = 8 * 1024 * 1024
    #: `Delivery.suspect` is told, and a suspect delivered alone.
    tells_suspects: bool = False
    #: `cancel` removes a waiting message at once and tells the worker that holds a leased one.
    cancels: bool = True
    #: Workers can show themselves: `announce` and `workers` work.
    presence: bool = False


class QueueOptions(Struct, frozen=True, kw_only=True):
    """The policy of a queue, the same for every backend. Durations are seconds."""

    #: How long a delivery is leased before it must be extended; independent of how long tasks take.
    lease: float = 30.0
    #: After so many deliveries without an outcome a message is a dead letter.
    max_deliveries: int = 5
    #: A lane refuses messages past this many, with Overloaded.
    capacity: int = 1_000_000
    #: How often each priority level is served, by level.
    weights: Mapping[int, int] = field(default_factory=lambda: dict(PRIORITY_WEIGHTS))
    ageing: float = AGEING

    @property
    def trusted(self) -> int:
        """The deliveries of a message in which it may have company; in later ones it is a suspect. Never the first."""
        return max(1, (self.max_deliveries + 1) // 2)


class Queue(ABC):
    """A message queue. One object serves a whole process; all methods are safe to call concurrently on one event loop.

    Every method may raise QueueUnavailable when the backend's server cannot be used now.
    """

    capabilities: Capabilities
    options: QueueOptions

    @abstractmethod
    async def open(self) -> None:
        """Connect, and make what is missing. Raises QueueUnavailable, or MissingExtra."""

    @abstractmethod
    async def close(self) -> None:
        """Let go. Messages of a durable backend stay."""

    # -- the orchestrator's side ---------------------------------------------------------------------------------

    @abstractmethod
    async def send(self, messages: Sequence[Message], *, delay: float = 0.0) -> None:
        """Put messages on their lanes, to be ready after `delay` seconds. An id that the queue holds already is left as it is;
        one among the dead letters leaves them and lives again.

        Raises Overloaded when a lane is full (then none of the batch was taken), PayloadTooLarge.
        """

    @abstractmethod
    async def outcomes(self, limit: int, wait: float) -> list[Outcome]:
        """Return up to `limit` outcomes, waiting up to `wait` seconds for the first.

        An outcome comes again, after a while, until it is acknowledged.
        """

    @abstractmethod
    async def ack_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Forget outcomes that are recorded, or that nobody waits for."""

    @abstractmethod
    async def cancel(self, ids: Collection[str]) -> None:
        """Remove messages that wait; tell the workers that hold leased ones. Unknown ids are ignored."""

    @abstractmethod
    async def missing(self, ids: Collection[str]) -> set[str]:
        """Return those ids of which the queue holds neither a message nor an unacknowledged outcome: they must be sent again."""

    @abstractmethod
    async def progress(self, limit: int, wait: float) -> list[Progress]:
        """Return progress that workers published. It may be lost; it never comes twice."""

    # -- the worker's side ---------------------------------------------------------------------------------------

    @abstractmethod
    async def receive(self, queues: Sequence[str], limit: int, *, worker: str, wait: float, region: str = "") -> list[Delivery]:
        """Lease up to `limit` ready messages of these queues to a worker, waiting up to `wait` seconds for the first.

        A worker with a region takes messages of that region and of none; one without takes only those of none.
        """

    @abstractmethod
    async def extend(self, deliveries: Sequence[Delivery], details: Mapping[str, bytes] | None = None) -> set[str]:
        """Renew leases, keep heartbeat details by message id, and return the ids whose lease is lost: stop working on those."""

    @abstractmethod
    async def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> set[str]:
        """Publish outcomes and remove their messages, each atomically, and return the ids that were fenced: nothing was done for those."""

    @abstractmethod
    async def release(self, deliveries: Sequence[Delivery], *, delay: float = 0.0, reason: str = "") -> set[str]:
        """Hand unstarted work back: it is ready again after `delay` seconds. Returns the ids that were fenced.

        Without a reason the delivery does not count, which is how a worker drains. With one it counts: the worker cannot run the
        message (a task that it does not know, a newer version), and after `max_deliveries` the message is a dead letter with that
        reason.
        """

    @abstractmethod
    async def cancellations(self, worker: str, wait: float) -> list[str]:
        """Return ids, leased to this worker, that were cancelled, waiting up to `wait` seconds for the first."""

    @abstractmethod
    async def publish(self, progress: Sequence[Progress]) -> None:
        """Show progress to the orchestrator's watchers."""

    async def announce(self, presences: Sequence[Presence], *, ttl: float) -> None:
        """Show workers to everyone for `ttl` seconds, each in the place of what its name showed before; 0 takes them back.

        A broker that cannot keep such records shows nobody, and declares so (`Capabilities.presence`).
        """
        return

    # -- everyone's ----------------------------------------------------------------------------------------------

    @abstractmethod
    async def depth(self, queues: Iterable[str] | None = None) -> dict[str, Depth]:
        """Return what each queue holds, by queue name; all known queues when none are named."""

    def expect(self, lanes: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Learn which lanes may hold work, as (queue, region): for a backend that cannot find out what it holds."""
        return

    async def workers(self) -> list[Presence]:
        """Return the workers that announced themselves and whose time is not over, by name. Nobody, without `Capabilities.presence`."""
        return []

    @abstractmethod
    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters, newest first."""

    @abstractmethod
    async def redrive(self, ids: Collection[str]) -> int:
        """Put dead letters back on their lanes with a fresh delivery count; returns how many."""

    @abstractmethod
    async def discard(self, ids: Collection[str]) -> int:
        """Forget dead letters; returns how many."""
