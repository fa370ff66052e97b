"""A provider with batches over real HTTP, on a clock that stands still, and processes that come and go around one shelf."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

from tests.unit.test_inference_router import Attempt, user
from ziggurat.artifacts import INLINE
from ziggurat.errors import Deferred
from ziggurat.inference.answers import Answers
from ziggurat.inference.backends.answers_sqlite import SqliteAnswers
from ziggurat.inference.backends.openai_batches import create as batches_of
from ziggurat.inference.backends.openai_compatible import create
from ziggurat.inference.backends.shelf_sqlite import SqliteShelf
from ziggurat.inference.batches.interface import BatchApi, BatchOptions, Doc, Shelf
from ziggurat.inference.interface import EndpointConfig, ModelConfig, Price
from ziggurat.inference.router import Router
from ziggurat.program.context import TaskInfo, attempting
from ziggurat.records import CallRecord, Completion
from ziggurat.testing import FakeClock
from ziggurat.testing.models import FaultyUpstream

HOUR = 3600.0


class Process(Router):
    """The inference layer of one process. What waits in it moves the clock."""

    def __init__(self, world: World, shelf: Shelf, **options: Any) -> None:
        self.ledger: list[CallRecord] = []
        config = EndpointConfig(name="up", base_url=world.upstream.base_url, prices={"m": Price(input=1000.0, output=1000.0)})
        endpoint = create(config)
        super().__init__(
            {"up": endpoint},
            {"default": ModelConfig(routes=["up:m"])},
            ledger=self.ledger.append,
            clock=world.clock,
            seed=1,
            **options,
        )
        self.answers = Answers(SqliteAnswers(world.folder / "answers.db", world.clock), INLINE)
        api = batches_of(endpoint)
        assert api is not None
        apis: dict[str, BatchApi] = {"up": api}
        self.open_lanes(shelf, apis, INLINE, world.options)

    async def pause(self, seconds: float) -> None:
        assert isinstance(self.clock, FakeClock)
        self.clock.advance(seconds)
        await asyncio.sleep(0)


class Step:
    """One step of a run, as the orchestrator sees it: attempts that end to wait are made again when they are due."""

    def __init__(self, name: str, *, due: float, text: str = "", task: str = "ziggurat.llm") -> None:
        self.name, self.due, self.text, self.task = name, due, text or name, task
        self.number, self.deferred, self.at = 1, 0, 0.0
        self.waits: list[str] = []
        self.answer: Completion | None = None
        self.answered_at = 0.0
        #: Calls that the history has, by id: the newest record of each.
        self.calls: dict[str, CallRecord] = {}

    def attempt(self) -> Attempt:
        made = Attempt()
        made.info = TaskInfo(
            task=self.task,
            run=self.name,
            step=1,
            attempt=self.number,
            deferred=self.deferred,
            idempotency_key=f"{self.name}~0.1",
        )
        return made


class World:
    """Use as `async with World(tmp_path) as world`."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.upstream = FaultyUpstream()
        self.upstream.batches.clock = self.clock
        self.options = BatchOptions(**{"lines": 100, **options})
        self.processes: list[Process] = []

    @property
    def now(self) -> float:
        return self.clock.time()

    async def __aenter__(self) -> World:
        await self.upstream.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self.processes:
            await process.close()
        await self.upstream.stop()

    def process(self, shelf: Shelf | None = None, **options: Any) -> Process:
        made = Process(self, shelf or SqliteShelf(self.folder / "batches.db", self.clock), **options)
        self.processes.append(made)
        return made

    async def attempt(self, process: Process, step: Step) -> bool:
        """Make a step's next attempt in a process; says whether it is answered. A step is due again at `step.at`."""
        here = step.attempt()
        try:
            with attempting(here):
                step.answer = await process.complete(user(step.text, due=step.due))
        except Deferred as wait:
            step.waits.append(str(wait))
            step.number, step.deferred = step.number + 1, step.deferred + 1
            step.at = self.now + wait.retry_after
            return False
        finally:
            step.calls |= {call.id: call for call in here.calls}
        step.answered_at = self.now
        return True

    async def run(self, process: Process, *steps: Step) -> None:
        """Make attempts of steps when they are due until each is answered."""
        left = list(steps)
        for _ in range(2_000):
            if not left:
                return
            step = min(left, key=lambda s: s.at)
            self.clock.advance(max(0.0, step.at - self.now))
            if await self.attempt(process, step):
                left.remove(step)
        raise AssertionError(f"{[step.name for step in left]} are never answered: {left[0].waits[-3:]}")


class Killed(BaseException):
    """The process is killed here."""


class MemoryShelf(Shelf):
    """A shelf in memory, asked from several threads at a time as any shelf is."""

    def __init__(self) -> None:
        self.docs: dict[str, tuple[Doc, str, float]] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> Doc | None:
        found = self.docs.get(key)
        return found[0] if found is not None else None

    def put(self, key: str, data: bytes, *, version: int, group: str, at: float, until: float) -> bool:
        with self._lock:
            found = self.docs.get(key)
            if (found[0].version if found is not None else 0) != version:
                return False
            self.docs[key] = Doc(key, version + 1, data), group, at
            return True

    def delete(self, key: str, version: int) -> bool:
        with self._lock:
            found = self.docs.get(key)
            if found is None or found[0].version != version:
                return False
            del self.docs[key]
            return True

    def group(self, group: str, limit: int) -> list[Doc]:
        with self._lock:
            found = sorted((at, doc.key, doc) for doc, of, at in self.docs.values() if of == group and group)
        return [doc for _, _, doc in found][:limit]

    def count(self, group: str) -> tuple[int, float]:
        with self._lock:
            ats = [at for _, of, at in self.docs.values() if of == group and group]
        return len(ats), min(ats, default=0.0)


class DeadlyShelf(Shelf):
    """One process's way to a shelf, which kills the process now and then: before a change is made, or after. The dead change nothing."""

    def __init__(self, shelf: Shelf, chance: random.Random, deadly: float) -> None:
        self._shelf, self._chance, self.deadly = shelf, chance, deadly
        self.dead = False

    def get(self, key: str) -> Doc | None:
        self._strike()
        return self._shelf.get(key)

    def put(self, key: str, data: bytes, *, version: int, group: str, at: float, until: float) -> bool:
        self._strike()
        done = self._shelf.put(key, data, version=version, group=group, at=at, until=until)
        self._strike()
        return done

    def delete(self, key: str, version: int) -> bool:
        self._strike()
        return self._shelf.delete(key, version)

    def group(self, group: str, limit: int) -> list[Doc]:
        self._strike()
        return self._shelf.group(group, limit)

    def count(self, group: str) -> tuple[int, float]:
        self._strike()
        return self._shelf.count(group)

    def _strike(self) -> None:
        if self.dead or self._chance.random() < self.deadly:
            self.dead = True
            raise Killed
