"""What batches are made of: the lines of a batch, the batch itself, the shelf that keeps both, and what a provider must do.

    Line    one call that may wait.      waiting ─▶ sent ─▶ done        answered in a batch
                                            └─────────┴──▶ online      not answered in one: it is made as any other call
    Batch   lines that go together.      made ─▶ uploaded ─▶ creating ─▶ sent ─▶ (cancelling) ─▶ ended

"creating" is written before the request that buys: whoever finds a batch in that state looks for it at the provider before making it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from ziggurat.errors import InferenceError
from ziggurat.inference.interface import Capabilities
from ziggurat.inference.ledger import Attribution
from ziggurat.inference.prices import Tariff
from ziggurat.records import Completion

#: The group of answers that nobody has taken yet, by their deadlines.
UNTAKEN = "untaken"

LineState = Literal["waiting", "sent", "done", "online"]
BatchState = Literal["made", "uploaded", "creating", "sent", "cancelling", "ended"]


class BatchOptions(Struct, frozen=True, kw_only=True):
    """When to send, look and give up. Durations are seconds."""

    #: A batch is sent at so many calls, or once its first call has waited so long.
    lines: int = 1000
    window: float = 300.0
    #: Bytes of requests in one batch; OpenAI takes 200 MB.
    size: int = 100_000_000
    #: A call with less time than this is made at once.
    least: float = 3600.0
    #: So long before its deadline a call leaves its batch.
    margin: float = 1800.0
    #: Between two looks at a batch, at first and at most.
    look: float = 60.0
    look_most: float = 900.0
    #: How long the claim of a process that was killed keeps others from a batch.
    claim: float = 30.0


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call that may wait."""

    #: Names the call over all attempts: the step, the request, and how often it was asked.
    key: str
    #: Unique; the `custom_id` at the provider and the id of the call in the ledger, so that it is billed once.
    id: str
    endpoint: str
    upstream: str
    #: The alias that the program named.
    model: str
    state: LineState
    placed_at: float
    #: The moment by which the answer is wanted.
    due: float
    #: The request as the provider takes it, sealed; and the answer as it gave it, sealed.
    body: bytes
    answer: bytes = b""
    batch: str = ""
    #: Batches that it was part of and that did not answer it.
    tries: int = 0
    tariff: Tariff
    #: What it costs in a batch, by estimate, in US dollars: held against budgets until the bill is known.
    estimate: float = 0.0
    #: What the request was shaped to.
    capabilities: Capabilities = Capabilities()
    by: Attribution = Attribution()
    switch: int = 0
    #: The first of the attempts that took the answer; one that failed asks anew.
    taken: int = 0
    #: Nobody waits for it any more; and its answer, which nobody took, is in the ledger.
    dropped: bool = False
    billed: bool = False

    @property
    def line(self) -> str:
        """The line in which it waits: calls of one model whose time is up within a factor of two of each other."""
        left = max(1.0, (self.due - self.placed_at) / 3600.0)
        return f"waiting:{self.endpoint}:{self.upstream}:{int(left).bit_length()}"

    @property
    def group(self) -> str:
        """Where it is to be found."""
        if self.state == "waiting":
            return self.line
        if self.state == "done":
            return "" if self.taken or self.billed else UNTAKEN
        return f"batch:{self.batch}" if self.state == "sent" else ""


class Batch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Lines that go to a provider together."""

    id: str
    endpoint: str
    upstream: str
    state: BatchState
    made_at: float
    #: When to look at it next, and how often that was done.
    look_at: float = 0.0
    looks: int = 0
    #: When it was last tried to be created, and how often.
    tried_at: float = 0.0
    tries: int = 0
    #: The provider's names for the file and the batch.
    file: str = ""
    remote: str = ""

    @property
    def key(self) -> str:
        """Its name on the shelf."""
        return f"batch:{self.id}"


class Doc(Struct, frozen=True):
    """Something on the shelf. A change names the version that it was made from."""

    key: str
    version: int
    data: bytes


class Shelf(ABC):
    """Keeps documents that many processes change: each change is made to the version that was read, or not at all.

    Called from threads. Raises LayerUnreachable (StateUnusable) if it cannot be used now.
    """

    @abstractmethod
    def get(self, key: str) -> Doc | None:
        """Return a document, or None."""

    @abstractmethod
    def put(self, key: str, data: bytes, *, version: int, group: str, at: float, until: float) -> bool:
        """Write a document in the place of a version, 0 for none; returns False if another is there.

        Args:
            group: the one group that it is in from now on; "" for none.
            at: its place in the group, in seconds since the epoch.
            until: when it may be forgotten.
        """

    @abstractmethod
    def delete(self, key: str, version: int) -> bool:
        """Remove a version of a document; returns False if another is there."""

    @abstractmethod
    def group(self, group: str, limit: int) -> list[Doc]:
        """Return the documents of a group by their places."""

    @abstractmethod
    def count(self, group: str) -> tuple[int, float]:
        """Return how many documents a group has, and the place of the first."""

    def close(self) -> None:
        """Let go."""
        return


class Remote(Struct, frozen=True, kw_only=True):
    """A batch as its provider tells of it."""

    id: str
    #: The provider's word: validating, in_progress, finalizing, completed, failed, expired, cancelling, cancelled.
    status: str
    #: Files of answers and of errors.
    files: tuple[str, ...] = ()
    #: Why it failed, if it says so.
    reason: str = ""

    @property
    def ended(self) -> bool:
        """True once nothing more comes of it."""
        return self.status in ("completed", "failed", "expired", "cancelled")


class BatchApi(ABC):
    """The batches of one endpoint. Each verb is one attempt; raises InferenceError."""

    @abstractmethod
    def request(self, id: str, body: bytes) -> bytes:
        """Return one line of an input file."""

    @abstractmethod
    async def upload(self, name: str, lines: bytes) -> str:
        """Store an input file, and return the provider's name for it."""

    @abstractmethod
    async def create(self, id: str, file: str) -> Remote:
        """Buy: begin a batch over an uploaded file. `id` is ours, by which `find` finds it."""

    @abstractmethod
    async def find(self, id: str, file: str) -> Remote | None:
        """Return the batch that was created under our id, or None if there is none."""

    @abstractmethod
    async def look(self, remote: str) -> Remote:
        """Return a batch as it stands."""

    @abstractmethod
    async def cancel(self, remote: str) -> None:
        """Ask that a batch be ended; what was answered by then stays."""

    @abstractmethod
    async def answers(self, remote: Remote) -> Mapping[str, Completion | InferenceError]:
        """Return what became of the lines of an ended batch, by their ids."""

    @abstractmethod
    async def tidy(self, batch: Batch, remote: Remote | None) -> None:
        """Delete its files at the provider, which hold prompts and answers. Never raises."""
