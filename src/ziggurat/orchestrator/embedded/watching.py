"""Those who watch runs: bounded queues of what happens, one a watcher."""

from __future__ import annotations

import asyncio
from collections import deque

from msgspec import Raw

from ziggurat.clock import Clock
from ziggurat.orchestrator.embedded.resident import open_view
from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.records import Event, Progress, Run, RunEvent

#: Events kept for a watcher that does not read; past that it loses the oldest progress, never the end.
BACKLOG_MAX = 10_000


class Watcher:
    """One reader of one run's happenings."""

    def __init__(self) -> None:
        self._events: deque[RunEvent] = deque()
        self._wake: asyncio.Future[None] | None = None

    def put(self, event: RunEvent) -> None:
        """Add an event."""
        if len(self._events) >= BACKLOG_MAX:
            self._events.popleft()
        self._events.append(event)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def take(self) -> RunEvent | None:
        """Return the next event, or None while there is none."""
        return self._events.popleft() if self._events else None

    def arrival(self) -> asyncio.Future[None]:
        """Return a future that the next event resolves."""
        self._wake = asyncio.get_running_loop().create_future()
        return self._wake


class Watchers:
    """All watchers, by run."""

    def __init__(self) -> None:
        self._by_run: dict[str, list[Watcher]] = {}

    def __contains__(self, run: str) -> bool:
        return run in self._by_run

    def __bool__(self) -> bool:
        return bool(self._by_run)

    def add(self, run: str) -> Watcher:
        """Watch a run from now on."""
        watcher = Watcher()
        self._by_run.setdefault(run, []).append(watcher)
        return watcher

    def remove(self, run: str, watcher: Watcher) -> None:
        """Watch it no longer."""
        watchers = self._by_run.get(run, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            self._by_run.pop(run, None)

    def tell(self, event: RunEvent) -> None:
        """Hand an event to the watchers of its run."""
        for watcher in self._by_run.get(event.run, ()):
            watcher.put(event)

    def event(self, run: Run, event: Event) -> None:
        """Show an event of the history."""
        if run.id in self._by_run:
            self.tell(RunEvent(run=run.id, kind="history", offset=event.seq, event=event))

    def step(self, run: Run, step: Step) -> None:
        """Show a step that is under way."""
        if run.id in self._by_run:
            self.tell(RunEvent(run=run.id, kind="step", step=open_view(step)))

    def status(self, run: Run) -> None:
        """Show a run's status."""
        if run.id in self._by_run:
            self.tell(RunEvent(run=run.id, kind="status", status=run.status, reason=run.reason))

    def emitted(self, run: str, clock: Clock, kind: str, data: bytes) -> None:
        """Show what a workflow emitted."""
        if run in self._by_run:
            self.tell(RunEvent(run=run, kind="progress", progress=Progress(run=run, kind=kind, at=clock.time(), data=Raw(data))))
