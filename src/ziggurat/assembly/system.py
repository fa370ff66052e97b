"""A running system: the layers of one process, opened and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, cast

from ziggurat import codec
from ziggurat.artifacts import Library, Payloads
from ziggurat.assembly.answering import build_answers
from ziggurat.assembly.artifacts import build_payloads, open_library
from ziggurat.assembly.backends import LOCAL_QUEUES, build_orchestrator, build_queue
from ziggurat.assembly.batching import open_lanes
from ziggurat.assembly.depths import Depths
from ziggurat.assembly.endpoints import build_models
from ziggurat.assembly.ledgers import baseline, recorder
from ziggurat.assembly.models import child_bootstrap
from ziggurat.assembly.modules import AppRegistry, make_importable, reach_entry
from ziggurat.assembly.scaled import ScaledPool, nursery_of, quotas_of
from ziggurat.assembly.schedules import take_over_schedules
from ziggurat.assembly.switching import follow_switches
from ziggurat.clock import Clock, SystemClock
from ziggurat.errors import ConfigurationError, QueueUnavailable
from ziggurat.inference.ledger import Ledger
from ziggurat.inference.router import Router
from ziggurat.orchestrator.control import ControlServer, socket_path
from ziggurat.orchestrator.interface import Orchestrator
from ziggurat.program.llm import use_models
from ziggurat.program.registry import definitions_made
from ziggurat.queues.interface import Queue
from ziggurat.settings import Settings, WorkerSettings
from ziggurat.telemetry import events
from ziggurat.telemetry.export import flush, set_up
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.pools.nursery import NurseryStarter
from ziggurat.workers.worker import Worker

#: The inference layers of the systems that are open in this process; direct calls use the newest.
_models: list[Any] = []
#: Seconds between two looks for queues that a pool with "*" does not serve yet.
_NEW_QUEUES_EVERY = 1.0


class System:
    """The layers of one process: `async with System(settings) as system`.

    Args:
        settings: which layers, and how.
        clock: the time.
        drive: False opens the state for control verbs only; nothing is executed.
        orchestrate: False runs workers only, against a queue that processes share.
        pools: names of the pools to run here; all when None.
        stay: True for a process that stays: schedules start runs here, and those of the settings are taken over.
        scale: True runs each pool as processes of their own, as many as the load wants; False as one worker in this process.
        output: a folder for what those processes print; None for this process's stderr.
        registry: what is known already; the app's modules are imported otherwise.

    Opening raises StateLocked if another process owns the state file, and whatever the layers raise. What was opened by then is closed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        drive: bool = True,
        orchestrate: bool = True,
        pools: Collection[str] | None = None,
        stay: bool = False,
        scale: bool = False,
        output: Path | None = None,
        registry: AppRegistry | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self._drive, self._orchestrate = drive, orchestrate
        self._pool_names, self._scale, self._stay, self._output = pools, scale, stay, output
        #: True once `drain` was called.
        self.draining = False
        self._registry = registry
        self._stack = contextlib.AsyncExitStack()
        self.queue: Queue
        self.payloads: Payloads
        self.orchestrator: Orchestrator | None = None
        self.control: ControlServer | None = None
        #: The inference layer, where there is one here.
        self.models: Router | None = None
        self.pools: list[Pool | ScaledPool] = []
        #: How many definitions there were when the pools last looked for queues that tasks name.
        self._served = -1

    @property
    def registry(self) -> AppRegistry:
        """What this process knows of tasks and workflows."""
        assert self._registry is not None
        return self._registry

    async def __aenter__(self) -> System:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _open(self) -> None:
        settings = self.settings
        codec.PAYLOAD_LIMIT = settings.orchestrator.payload_limit
        make_importable(settings.folder)
        if self._registry is None:
            self._registry = AppRegistry(settings.app.modules)
        self._registry.loaded = self.serve_named_queues
        if self._drive:
            # After the app's modules, which may set up a provider of their own.
            set_up(settings.telemetry)
            self._stack.push_async_callback(asyncio.to_thread, flush)
        if (self._scale or not self._orchestrate) and settings.queue.backend in LOCAL_QUEUES:
            raise ConfigurationError(
                f'Workers in processes of their own need a queue that processes share, and queue.backend is "{settings.queue.backend}"; '
                "set it to sqlite or redis, or run `ziggurat serve`."
            )
        self.payloads = build_payloads(settings)
        library = self.payloads.library
        self._stack.callback(open_library(lambda: cast(Library, library)))
        chosen = self._chosen_pools()
        embedded = self._orchestrate and settings.orchestrator.backend == "embedded"
        state = settings.state_path
        # Next to the state file, whose owner alone may write it.
        crashbook = state.with_name(f"{state.name}.working") if embedded and self._drive else None
        queue = self.queue = build_queue(settings, self.clock, crashbook=crashbook)
        queue.expect(self._lanes)
        self._stack.push_async_callback(queue.close)
        if settings.queue.backend not in LOCAL_QUEUES:
            await queue.open()
        if self._orchestrate:
            await self._open_orchestrator(() if self._scale else chosen.values())
        if settings.queue.backend in LOCAL_QUEUES:
            # After the lock: its file belongs to the owner. The engine's own tasks have not run yet, for nothing has waited since.
            await queue.open()
        if embedded and self._drive:
            await self._open_control()
        if self._drive:
            ledger = Ledger(settings.ledger_path)
            self._stack.callback(ledger.close)
            models = self.models = build_models(settings, ledger=recorder(settings, ledger), baseline=baseline(settings))
            models.answers = build_answers(settings, self.payloads)
            open_lanes(models, settings, self.payloads)
            self._hear_of_dropped_steps(models)
            await asyncio.to_thread(follow_switches, models, settings)
            _models.append(models)
            use_models(models)
            self._stack.push_async_callback(_forget_models, models)
            quotas = quotas_of(settings)
            nursery = await self._open_nursery() if self._scale else None
            for name, wanted in chosen.items():
                pool = (
                    ScaledPool(name, wanted, settings, queue, quotas, nursery, self._output)
                    if self._scale
                    else Pool(name, wanted, self)
                )
                self.pools.append(pool)
                self._stack.push_async_callback(pool.stop)
                pool.open()

    def _hear_of_dropped_steps(self, models: Router) -> None:
        """Have batches told of calls that no run waits for any more."""
        lanes, loop = models.lanes, asyncio.get_running_loop()
        if lanes is None or self.orchestrator is None:
            return

        def dropped(step: str) -> None:
            loop.call_soon_threadsafe(lanes.drop_soon, step)

        self.orchestrator.when_dropped(dropped)

    async def _open_nursery(self) -> NurseryStarter | None:
        nursery = nursery_of(self.settings)
        if nursery is not None:
            await nursery.prepare()  # It imports while nothing waits for it.
            self._stack.push_async_callback(nursery.close)
        return nursery

    def _chosen_pools(self) -> dict[str, WorkerSettings]:
        known = self.settings.workers
        names = list(known) if self._pool_names is None else list(self._pool_names)
        for name in names:
            if name not in known:
                raise ConfigurationError(f"There is no pool {name!r}; the pools are: {', '.join(known)}. Add [workers.{name}].")
        return {name: known[name] for name in names}

    async def _open_orchestrator(self, pools: Collection[WorkerSettings]) -> None:
        settings = self.settings
        orchestrator = build_orchestrator(
            settings, self.queue, self.registry, self.clock, self.payloads, drive=self._drive, stay=self._stay, pools=pools
        )
        await orchestrator.open()
        self.orchestrator = orchestrator
        self._stack.push_async_callback(orchestrator.close)
        if self._stay:
            await take_over_schedules(settings, self.registry, orchestrator.schedules)
        if self._drive:
            looking = asyncio.create_task(Depths(self.queue, self._shown_queues).run(), name="ziggurat-depths")
            self._stack.push_async_callback(_end, looking)

    async def _open_control(self) -> None:
        assert self.orchestrator is not None
        path = socket_path(self.settings.state_path)
        self.control = ControlServer(self.orchestrator, self.queue, reach_entry)
        await self.control.open(path)
        self._stack.push_async_callback(self.control.close)
        cast(Any, self.orchestrator).lock.announce(str(path))

    def _shown_queues(self) -> set[str]:
        return {"default"} | {task.options_.queue for task in self.registry.tasks() if not task.name.startswith("ziggurat.")}

    def _lanes(self) -> set[tuple[str, str]]:
        """Return where tasks may wait, as (queue, region), as far as the program and the pools say."""
        pools, workflows = self.settings.workers.values(), [workflow.options_ for workflow in self.registry.workflows()]
        tasks = [task.options_ for task in self.registry.tasks()]
        queues = {queue for pool in pools for queue in pool.queues} - {"*"} | {"default"}
        queues |= {task.queue for task in tasks} | {workflow.queue for workflow in workflows}
        regions = {"", *(named.region for named in (*pools, *tasks, *workflows))}
        return {(queue, region) for queue in queues - {""} for region in regions}

    def serve_named_queues(self) -> None:
        """Let pools with "*" serve the queues of tasks that were defined since the system opened."""
        made = definitions_made()
        if made != self._served:
            self._served = made
            for pool in self.pools:
                pool.serve_named()

    def workers(self) -> list[Worker]:
        """Return the workers that run in this process."""
        return [worker for pool in self.pools for worker in pool.workers]

    async def drain(self, grace: float | None = None) -> None:
        """Take no new work, let running tasks finish within `grace` seconds (each pool's own by default), hand the rest back."""
        self.draining = True
        busy = any(pool.busy for pool in self.pools)
        await asyncio.gather(*(pool.stop(grace) for pool in self.pools))
        if busy and self.orchestrator is not None:
            # What the last attempts came to is on the queue; a memory queue takes it along when it goes, so let it be recorded.
            await asyncio.sleep(0.1)

    def hurry(self) -> None:
        """Let a drain hand back at once what is still running."""
        for pool in self.pools:
            pool.hurry()

    async def close(self, grace: float = 0.0) -> None:
        """Let go of everything, in the reverse order of opening."""
        if self.pools:
            await self.drain(grace)
        await self._stack.aclose()

    def describe(self) -> dict[str, Any]:
        """Return what runs here, as JSON."""
        settings = self.settings
        state = str(settings.state_path) if self._orchestrate and settings.orchestrator.backend == "embedded" else ""
        return {
            "pid": os.getpid(),
            "orchestrator": settings.orchestrator.backend if self._orchestrate else "",
            "state": state,
            "queue": settings.queue.backend,
            "pools": ", ".join(pool.name for pool in self.pools),
        }


class Pool:
    """The workers of one pool in this process: one, and for "*" one more for each set of queues that turns up later."""

    def __init__(self, name: str, wanted: WorkerSettings, system: System) -> None:
        self.name = name
        self._wanted = wanted
        self._system = system
        self._workers: list[tuple[Worker, asyncio.Task[None]]] = []
        self._served: set[str] = set()
        #: True for a pool with "*".
        self._open_ended = False
        self._looking: asyncio.Task[None] | None = None

    @property
    def grace(self) -> float:
        """Seconds that running tasks have when it drains."""
        return self._wanted.grace

    @property
    def busy(self) -> int:
        """Attempts under way."""
        return sum(worker.busy for worker, _ in self._workers)

    @property
    def workers(self) -> list[Worker]:
        """The workers of this pool in this process."""
        return [worker for worker, _ in self._workers]

    def open(self) -> None:
        """Begin to work."""
        fixed = {queue for queue in self._wanted.queues if queue != "*"}
        if "*" not in self._wanted.queues:
            self._serve(fixed)
            return
        self._serve(fixed | {"default"} | self._named())
        self._open_ended = True
        self._looking = asyncio.create_task(self._look_for_queues(), name=f"ziggurat-pool-{self.name}")

    def serve_named(self) -> None:
        """Serve the queues that tasks name and nobody serves yet."""
        if self._open_ended and (new := self._named() - self._served):
            self._serve(new)

    def _named(self) -> set[str]:
        registry = self._system.registry
        workflows = {workflow.options_.queue for workflow in registry.workflows()} - {""}
        return {task.options_.queue for task in registry.tasks()} | workflows

    async def _look_for_queues(self) -> None:
        """Serve queues that nobody named when the pool opened: of modules loaded since, or of `options(queue=...)`."""
        while True:
            await asyncio.sleep(_NEW_QUEUES_EVERY)
            try:
                waiting = {queue for queue, depth in (await self._system.queue.depth()).items() if depth.ready}
            except QueueUnavailable:
                continue  # The workers say so.
            except Exception:
                events.POOL_LOOK_FAILED(trace_of=True, pool=self.name)
                continue
            if new := (waiting | self._named()) - self._served:
                self._serve(new)

    def _serve(self, queues: set[str]) -> None:
        wanted, settings = self._wanted, self._system.settings
        self._served |= queues
        ceiling = wanted.memory_ceiling or 0
        options = WorkerOptions(
            pool=self.name,
            queues=tuple(sorted(queues)),
            region=wanted.region,
            concurrency=wanted.concurrency,
            grace=wanted.grace,
            process_memory=ceiling,
            # A process that also orchestrates cannot be recycled for its memory.
            memory_ceiling=0 if self._system.orchestrator is not None else ceiling,
        )
        queue = self._system.queue
        worker = Worker(
            queue,
            self._system.registry,
            options=options,
            clock=self._system.clock,
            bootstrap=child_bootstrap(settings),
            payloads=self._system.payloads,
            # A broker is reached from the thread that renews leases too, over a connection of its own.
            lease_keeper=partial(build_queue, settings, SystemClock()) if queue.capabilities.shared else None,
        )
        task = asyncio.create_task(worker.run(), name=f"ziggurat-worker-{self.name}")
        self._workers.append((worker, task))
        task.add_done_callback(partial(self._ended, worker, queues))

    def _ended(self, worker: Worker, queues: set[str], task: asyncio.Task[None]) -> None:
        """Replace a worker that failed, which is a bug; one that was told to stop is not replaced."""
        if task.cancelled() or task.exception() is None:
            return
        events.WORKER_REPLACED(trace_of=task.exception(), pool=self.name)
        if not worker.stopping:
            self._workers = [(other, of) for other, of in self._workers if other is not worker]
            asyncio.get_running_loop().call_later(_NEW_QUEUES_EVERY, self._serve, queues)

    def hurry(self) -> None:
        """Hand back at once what draining workers have; whoever looks after them in this process has told them already."""

    async def stop(self, grace: float | None = None) -> None:
        """Drain within `grace` seconds, the pool's own by default."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
        workers, self._workers = self._workers, []
        for worker, _ in workers:
            worker.stop(grace)
        await asyncio.gather(*(task for _, task in workers), return_exceptions=True)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _forget_models(models: Any) -> None:
    _models.remove(models)
    use_models(_models[-1] if _models else None)
    await models.close()
