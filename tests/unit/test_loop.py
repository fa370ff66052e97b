"""The deterministic loop: the same order every time, whatever the machine does with hashes and addresses."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from ziggurat.errors import NotDurable
from ziggurat.orchestrator.embedded import loop as loop_module
from ziggurat.orchestrator.embedded.loop import RunLoop, RunTimer


class Bench:
    """A loop without an engine: timers are collected, and fired by hand."""

    def __init__(self) -> None:
        self.timers: list[RunTimer] = []
        make: Any = RunLoop
        self.loop: RunLoop = make("seed", self.timers.append, self._stop)

    def _stop(self, timer: RunTimer) -> None:
        if timer in self.timers:  # asyncio.sleep cancels its timer after it has fired, too.
            self.timers.remove(timer)

    def run(self, coro: Any) -> asyncio.Task[Any]:
        """Start a coroutine, and run until it waits for a timer or is done."""
        task = self.loop.create_task(coro)
        self.loop.drain()
        return task

    def fire(self) -> None:
        """Let the earliest timer fire."""
        timer = min(self.timers, key=lambda t: t.when())
        self.timers.remove(timer)
        self.loop.advance(timer.when())
        self.loop.fire(timer)
        self.loop.drain()


def test_time_stands_still_until_it_is_moved() -> None:
    bench = Bench()

    async def program() -> list[float]:
        seen = [asyncio.get_running_loop().time()]
        for _ in range(2):
            await asyncio.sleep(5)
            seen.append(asyncio.get_running_loop().time())
        return seen

    task = bench.run(program())
    while not task.done():
        bench.fire()
    assert task.result() == [0, 5, 10]
    bench.loop.advance(3)
    assert bench.loop.time() == 10


def test_a_timer_that_is_cancelled_is_told_of() -> None:
    bench = Bench()

    async def program() -> str:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        return "done"

    assert bench.run(program()).result() == "done"
    assert not bench.timers


def test_spinning_ends_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "CALLBACKS_MAX", 1000)
    bench = Bench()

    async def spins() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(NotDurable, match="instead of spinning"):
        bench.run(spins())
    bench.loop.discard()


@pytest.mark.parametrize("name", sorted(loop_module._REFUSED))
def test_what_cannot_be_repeated_is_refused(name: str) -> None:
    bench = Bench()
    with pytest.raises(NotDurable, match="task"):
        getattr(bench.loop, name)()
    assert isinstance(bench.loop.lost_error, NotDurable)


def test_discarding_runs_no_clean_up_and_leaves_nothing_behind(recwarn: pytest.WarningsRecorder) -> None:
    bench = Bench()
    acted: list[str] = []

    async def nested() -> None:
        try:
            try:
                await asyncio.sleep(5)
            finally:
                await asyncio.sleep(1)
                acted.append("inner")
        finally:
            await asyncio.gather(asyncio.sleep(1), asyncio.sleep(2))
            acted.append("outer")

    async def program() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(nested())

    bench.run(program())
    bench.loop.create_task(nested())  # Never begun.
    bench.loop.discard()
    gc.collect()
    assert acted == []
    assert not bench.loop.tasks
    assert [str(w.message) for w in recwarn] == []


def test_an_async_generator_is_finalised_in_its_run_and_never_by_the_outer_loop() -> None:
    acted: list[str] = []

    async def numbers(name: str) -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            acted.append(f"{name} {type(asyncio.get_running_loop()).__name__}")

    async def breaks() -> None:
        async for _ in numbers("left"):
            break
        await asyncio.sleep(1)

    async def holds() -> None:
        async for _ in numbers("discarded"):
            await asyncio.sleep(60)

    async def outer() -> None:
        bench = Bench()
        bench.run(breaks())
        bench.run(holds())
        bench.loop.discard()
        del bench
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(outer())
    assert acted == ["left RunLoop"]


async def test_the_outer_task_is_current_again_after_a_drain() -> None:
    bench = Bench()
    mine = asyncio.current_task()
    inside: list[Any] = []

    async def program() -> None:
        inside.append(asyncio.current_task())
        await asyncio.sleep(0)
        inside.append(asyncio.current_task())

    task = bench.run(program())
    assert inside == [task, task]
    assert asyncio.current_task() is mine
    await asyncio.sleep(0)
    assert asyncio.current_task() is mine


ORDER = """
    import asyncio, sys
    junk = [object() for _ in range(int(sys.argv[1]))]
    from ziggurat.orchestrator.embedded import guard
    from ziggurat.orchestrator.embedded.loop import RunLoop
    guard.install()
    order = []

    async def one(name, after):
        await after.wait()
        order.append(name)

    async def program():
        go = asyncio.Event()
        tasks = [asyncio.create_task(one(f"t{i}", go)) for i in range(40)]
        asyncio.get_running_loop().call_soon(go.set)
        done, _ = await asyncio.wait(tasks)
        order.extend(t.get_name() for t in done)
        go.clear(); asyncio.get_running_loop().call_soon(go.set)
        for each in asyncio.as_completed([one(f"c{i}", go) for i in range(40)]):
            await each
        gathered = [asyncio.gather(asyncio.sleep(0, i)) for i in range(20)]
        done, _ = await asyncio.wait(gathered)
        order.extend(str(f.result()) for f in done)
        go.clear()
        async def fails():
            await asyncio.sleep(0)
            raise ValueError
        async def cancelled(i):
            try:
                await go.wait()
            finally:
                order.append(f"g{i}")
        try:
            async with asyncio.TaskGroup() as group:
                for i in range(40):
                    group.create_task(cancelled(i))
                group.create_task(fails())
        except* ValueError:
            pass

    loop = RunLoop("seed", lambda timer: None, lambda timer: None)
    task = loop.create_task(program())
    loop.drain()
    task.result()
    print(" ".join(order))
"""


def test_the_order_of_sets_of_tasks_is_the_same_in_every_process() -> None:
    outputs = set()
    for index, seed in enumerate(("0", "1", "random", "12345")):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(ORDER), str(index * 997)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONMALLOC": "malloc" if index % 2 else "pymalloc"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1
    (order,) = outputs
    assert len(order.split()) == 40 * 4 + 20
