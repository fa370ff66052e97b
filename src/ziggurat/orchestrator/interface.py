"""What an orchestrator promises: the control of runs, whoever keeps their state.

The embedded engine and Temporal both stand behind this. What one of them cannot do is a declared capability, never a surprise.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection

from msgspec import Raw, Struct
from msgspec.structs import replace

from ziggurat.orchestrator.recording import Recording
from ziggurat.orchestrator.schedules import Schedules
from ziggurat.records import DeadLetter, Event, Run, RunEvent, RunFilter, StartRequest, StepView


class Capabilities(Struct, frozen=True, kw_only=True):
    """What a backend can do beyond the promises. The conformance suite asserts each declaration."""

    pause: bool = True
    #: `retry` resumes a failed run from the failed step.
    retry: bool = True
    #: `fork` starts a run that shares a recorded prefix.
    fork: bool = True
    #: `fork` may change the input.
    fork_with_input: bool = True
    #: `purge` deletes ended runs.
    purge: bool = True
    #: What was purged is gone at once; otherwise the backend deletes it in its own time.
    immediate_purge: bool = True
    #: Concurrency keys and rates of tasks are kept over all workers.
    limits: bool = True
    #: `list` shows a change at once; otherwise some moments later.
    immediate_list: bool = True
    #: `list` finds runs that wait for a signal in an index. Otherwise it looks at the newest of those that wait one by one.
    awaits: bool = True
    #: `list` tells tokens and calls; otherwise only what a run cost, and `get` tells the rest.
    listed_usage: bool = True
    #: Progress and tokens of tasks reach those who watch a run from another process than the task's.
    remote_progress: bool = True
    #: `discard` forgets a dead letter without its run.
    discard: bool = True


class Orchestrator(ABC):
    """The control surface over runs. Every verb on an unknown run raises UnknownName; an impossible one raises Conflict."""

    capabilities: Capabilities
    #: When runs start by themselves; usable between `open` and `close`.
    schedules: Schedules

    @abstractmethod
    async def open(self) -> None:
        """Take hold of the state and go on with unfinished runs. Raises LayerUnreachable."""

    @abstractmethod
    async def close(self) -> None:
        """Stop driving runs, write what is pending, and let go. Runs go on at the next open."""

    @abstractmethod
    async def start(self, request: StartRequest) -> Run:
        """Start a run, durably, and return it. An id that exists already starts nothing: that run is returned.

        Raises UnknownName for a workflow that is not known here, Conflict if the id belongs to another workflow.
        """

    @abstractmethod
    async def signal(self, run: str, name: str, payload: Raw, *, signal_id: str = "") -> None:
        """Send a signal, durably. A `signal_id` that the run has seen already is ignored. Raises Conflict on an ended run."""

    @abstractmethod
    async def cancel(self, run: str, reason: str = "") -> None:
        """Ask a run to stop: its workflow sees CancelledError and may clean up. Cancelling an ended run changes nothing."""

    @abstractmethod
    async def pause(self, run: str, reason: str = "") -> None:
        """Let running attempts finish, and hold everything else until `resume`."""

    @abstractmethod
    async def resume(self, run: str, *, budget_usd: float | None = None) -> None:
        """Let a paused or parked run go on, with another hard limit of what it may spend in all if one is given."""

    @abstractmethod
    async def retry(self, run: str) -> Run:
        """Take a failed run up again from the step that failed; all other recorded steps stay recorded."""

    @abstractmethod
    async def fork(self, run: str, step: int, *, payload: Raw | None = None, id: str = "") -> Run:
        """Start a new run that shares every recorded step before `step` (1 for none), optionally with other input."""

    @abstractmethod
    async def get(self, run: str) -> Run:
        """Return a run."""

    @abstractmethod
    async def list(self, where: RunFilter) -> list[Run]:
        """Return runs without payloads and results, newest first."""

    async def count(self, where: RunFilter) -> dict[str, int]:
        """Return how many runs match, by status. A backend that can count without listing overrides this."""
        counts: dict[str, int] = {}
        page = replace(where, limit=1000)
        while found := await self.list(page):
            for run in found:
                counts[run.status] = counts.get(run.status, 0) + 1
            page = replace(page, after=found[-1].id)
        return counts

    @abstractmethod
    async def history(self, run: str, *, after: int = 0, limit: int = 1000) -> builtins.list[Event]:
        """Return a run's events past position `after`."""

    async def record(self, run: str) -> Recording:
        """Return a run with its whole history, to be replayed elsewhere. Payloads that are sealed stay so."""
        return Recording(run=await self.get(run), events=await self.history(run, limit=-1))

    @abstractmethod
    async def steps(self, run: str) -> builtins.list[StepView]:
        """Return a run's steps, those under way included, by number."""

    @abstractmethod
    async def wait(self, run: str, timeout: float | None = None) -> Run:
        """Return the run once it has ended or is parked. Raises TimeoutError after `timeout` seconds."""

    @abstractmethod
    def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[RunEvent, None]:
        """Yield what happens to a run, its history first, until it has ended or is parked."""

    @abstractmethod
    async def dead_letters(self, limit: int = 100) -> builtins.list[DeadLetter]:
        """Return messages that their queue gave up and whose steps therefore failed, newest first."""

    @abstractmethod
    async def redrive(self, ids: Collection[str]) -> int:
        """Give dead letters another chance: their failed runs are retried from those steps. Returns how many runs were taken up."""

    @abstractmethod
    async def discard(self, ids: Collection[str]) -> int:
        """Forget dead letters; returns how many. Their runs stay failed."""

    def when_dropped(self, call: Callable[[str], None]) -> None:
        """Have `call` told of steps that waited for a model's answer and are wanted no more, each by the idempotency key of its attempts.

        It may be called from any thread, and must be quick. A process that does not drive runs has nothing to tell.
        """
        return

    @abstractmethod
    async def purge(self, where: RunFilter) -> int:
        """Delete ended runs that match, with their histories; returns how many. Raises Conflict if a run has not ended."""
