"""An embedded system in which programs are executed and interrupted: one state file, and one life of the engine after another."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from ziggurat.errors import Conflict, LayerUnreachable, UnknownName
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.orchestrator.embedded.options import EngineOptions
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.queues.interface import QueueOptions
from ziggurat.records import ENDED, Event, Run, RunFilter, StartRequest
from ziggurat.testing.generator import Generator
from ziggurat.testing.programs import SideLog, Surroundings, run_program
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker

#: Seconds that one life of an engine may take before the test gives up.
LIFE_LIMIT = 120.0


class Fault(sqlite3.OperationalError):
    """What a broken disk raises."""


class World:
    """Executes one program. Use `live` for each life of the engine, then look at `verdict`."""

    def __init__(self, folder: Path, seed: int, size: int = 14, options: EngineOptions | None = None) -> None:
        self.seed = seed
        generator = Generator(seed, size)
        self.generations = generator.program()
        self.signals = generator.signals
        self.chance = random.Random(seed)
        self.state = folder / "state.db"
        self.log = SideLog(folder / "side.log")
        self.options = options or EngineOptions(seed=seed, sweep=0.05, sweep_age=0.05)
        self.queue: MemoryQueue | None = None
        self.lives = 0
        #: False when the mode itself decides how the program ends.
        self.has_verdict = True
        self.commits = 0
        #: Steps that the history held when an engine opened, with the length of the side log at that moment.
        self.recorded: list[tuple[int, set[str]]] = []

    # -- lives ----------------------------------------------------------------------------------------------------

    async def live(
        self,
        *,
        fault: Callable[[int, str], bool] | None = None,
        keep_queue: bool = False,
        meanwhile: Callable[[EmbeddedOrchestrator, MemoryQueue], Coroutine[Any, Any, None]] | None = None,
        instead: Callable[[EmbeddedOrchestrator], Coroutine[Any, Any, None]] | None = None,
    ) -> bool:
        """Open the engine and go on until every run has ended, or the fault strikes. Returns whether all have ended.

        `fault(n, when)` is asked at the n-th commit of this life, "before" and "after" it; when it says yes, the commit fails.
        `meanwhile` runs beside; when it returns, the life ends in order. `instead` is what the life is for, if not for the program.
        """
        self.lives += 1
        if self.queue is None or not keep_queue:
            await self.close_queue()
            self.queue = MemoryQueue(QueueOptions(lease=0.25, max_deliveries=1_000))
            await self.queue.open()
        self.recorded.append((len(self.log.lines()), recorded_steps(self.state)))
        engine = EmbeddedOrchestrator(self.state, self.queue, Registry(), options=self.options)
        worker = Worker(self.queue, Registry(), options=WorkerOptions(poll=0.2))
        Surroundings.log, Surroundings.send = self.log, self._sender(engine)
        await engine.open()
        writer = engine._journal.writer
        count, struck = 0, False

        def strike(when: str) -> None:
            nonlocal count, struck
            count += when == "before"
            if fault is not None and fault(count, when):
                struck = True
                raise Fault("disk I/O error")

        writer.fault = strike
        working = asyncio.create_task(worker.run())
        waiting = asyncio.create_task((instead or self._finish)(engine))
        disturbing = asyncio.create_task(meanwhile(engine, self.queue)) if meanwhile is not None else None
        try:
            async with asyncio.timeout(LIFE_LIMIT):
                await asyncio.wait([task for task in (waiting, disturbing) if task], return_when=asyncio.FIRST_COMPLETED)
                for task in (waiting, disturbing):
                    if task is not None and task.done():
                        task.result()
        except LayerUnreachable:
            pass
        except TimeoutError:
            raise AssertionError(f"The runs did not end: {await self.report(engine)}") from None
        finally:
            self.commits += writer.commits
            for task in (waiting, working, disturbing):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await engine.close()
        return not struck and not waiting.cancelled()

    def _sender(self, engine: EmbeddedOrchestrator) -> Any:
        async def send(run: str, name: str, value: int, signal_id: str) -> None:
            await engine.signal(run, name, Raw(str(value).encode()), signal_id=signal_id)

        return send

    async def _finish(self, engine: EmbeddedOrchestrator) -> None:
        payload = Raw(msgspec.json.encode({"generations": self.generations}))
        await engine.start(StartRequest(workflow=run_program.name, payload=payload, id="root"))
        sending = asyncio.create_task(self._send_signals(engine))
        try:
            await engine.wait("root")
            await sending
            while unended := [r for r in await engine.list(RunFilter(limit=10_000)) if r.status not in ENDED]:
                await engine.wait(unended[0].id)
                assert (await engine.get(unended[0].id)).status in ENDED, await self.report(engine)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send_signals(self, engine: EmbeddedOrchestrator) -> None:
        """Send every signal, some before they are waited for and some after; those that were sent in an earlier life again."""
        for name, value in self.signals:
            await asyncio.sleep(self.chance.choice((0, 0, 0.002, 0.01)))
            try:
                await engine.signal("root", name, Raw(str(value).encode()), signal_id=name)
            except (Conflict, UnknownName):
                return

    # -- what came of it --------------------------------------------------------------------------------------------

    def verdict(self) -> dict[str, Any]:
        """Return what must be the same however often the program was interrupted."""
        run = next(r for r in stored_runs(self.state) if r.id == "root")
        error = (run.error.type, run.error.message) if run.error else None
        return {"status": run.status, "result": bytes(run.result or b""), "error": error, "generation": run.generation}

    def check(self) -> None:
        """Assert that no recorded step ran again, and that steps which ran again did so with the same arguments."""
        lines = self.log.lines()
        for length, steps in self.recorded:
            again = [line for line in lines[length:] if line[0] in steps]
            assert not again, f"recorded steps ran again: {again}"
        seen: dict[str, Any] = {}
        for step, _, key, value in lines:
            assert seen.setdefault(step, [key, value]) == [key, value], f"step {step} ran with {seen[step]}, then {[key, value]}"
        parked = [(r.id, r.reason) for r in stored_runs(self.state) if r.status not in ENDED]
        assert not parked, parked

    async def report(self, engine: EmbeddedOrchestrator) -> str:
        """Describe the runs that did not end."""
        parts = []
        for run in await engine.list(RunFilter(limit=10_000)):
            if run.status not in ENDED:
                steps = [f"{s.step} {s.kind} {s.name} {s.status}" for s in await engine.steps(run.id) if s.status != "completed"]
                parts.append(f"{run.id} is {run.status} {run.reason!r} {steps} in flight {list(engine._dispatcher.in_flight)}")
        return "; ".join(parts)

    async def close_queue(self) -> None:
        """Lose the queue with all that it holds."""
        if self.queue is not None:
            await self.queue.close()
            self.queue = None

    async def close(self) -> None:
        """Let go of everything."""
        await self.close_queue()
        self.log.close()


def stored_runs(state: Path) -> list[Run]:
    """Read all runs, results included, straight from the file."""
    from ziggurat.orchestrator.embedded.store import Reader

    reader = Reader(state)
    try:
        return [found[1] for r in reader.runs(RunFilter(limit=100_000)) if (found := reader.run(r.id)) is not None]
    finally:
        reader.close()


def recorded_steps(state: Path) -> set[str]:
    """Return the idempotency keys of all task steps that are recorded, straight from the file."""
    if not state.exists():
        return set()
    connection = sqlite3.connect(state)
    try:
        rows = connection.execute("SELECT runs.id, head, data FROM events JOIN runs ON runs.key = events.run ORDER BY run, seq")
        found: set[str] = set()
        epoch: dict[str, int] = {}
        for run, _, data in rows.fetchall():
            event = msgspec.json.decode(data, type=Event)
            if event.kind == "run_continued":
                epoch[run] = int(event.detail)
            elif event.kind in ("step_completed", "step_failed") and event.step_kind == "task":
                found.add(f"{run}~{epoch.get(run, _first_epoch(connection, run))}.{event.step}")
        return found
    except sqlite3.OperationalError:
        return set()  # The first commit never came.
    finally:
        connection.close()


def _first_epoch(connection: sqlite3.Connection, run: str) -> int:
    """Return the epoch of the first generation that is still in the file: the last one but one at most."""
    (data,) = connection.execute("SELECT head FROM runs WHERE id = ?", (run,)).fetchone()
    continued: int = connection.execute(
        "SELECT count(*) FROM events JOIN runs ON key = run WHERE id = ? AND json_extract(data, '$.kind') = 'run_continued'",
        (run,),
    ).fetchone()[0]
    return max(0, msgspec.json.decode(data, type=Run).epoch - continued)
