"""Random programs that mean something: a seeded generator, and the workflow that interprets what it generates.

A program is a JSON tree. Its result depends on every step's result, and on nothing that an honest engine may decide freely, such as
which of two tasks is done first: races are won by construction. So two executions of one program under one run id, one of them
interrupted wherever and however often, must end alike. What an engine may decide freely is passed to steps as arguments instead, which
must be the same each time a step is executed again; the side log shows whether they were.

    {"op": "gather", "key": "k3", "of": [{"op": "task", "key": "k4"}, {"op": "sleep", "key": "k5", "ms": 2}]}

The side log has a line for each execution of a task: [step, attempt, key, value], where the step is the attempt's idempotency key. A step
that a history has recorded must never be in a later line.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from ziggurat.errors import ChildRunError, Conflict, SignalTimeout, TaskError
from ziggurat.program.definitions import task, workflow
from ziggurat.program.options import Retry
from ziggurat.program.primitives import (
    continue_as_new,
    emit,
    now,
    patched,
    random,
    run_info,
    signal,
    state,
    task_info,
    uuid4,
)

Node = dict[str, Any]
#: Longer than any test: a timer of this length loses every race.
_FOR_EVER = 86_400.0


class Stumble(Exception):
    """The failure that programs raise on purpose."""


class SideLog:
    """What the tasks did, outside any engine. Whole lines, appended by the kernel, so that a killed process leaves no half ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, *fields: Any) -> None:
        """Append a line."""
        os.write(self._file, msgspec.json.encode(fields) + b"\n")

    def lines(self, after: int = 0) -> list[list[Any]]:
        """Return the lines past the first `after`."""
        return [msgspec.json.decode(line) for line in self.path.read_bytes().splitlines()[after:]]

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class Surroundings:
    """What programs of this process reach beyond their engine: the log, and a way to send signals. Set by whoever runs them."""

    log: SideLog | None = None
    send: Callable[[str, str, int, str], Awaitable[None]] | None = None


def mix(*values: Any) -> int:
    """Return a number made of JSON values, the same everywhere."""
    return zlib.crc32(msgspec.json.encode(values))


def _note(key: str, value: int) -> None:
    info = task_info()
    if Surroundings.log is not None:
        Surroundings.log.add(info.idempotency_key, info.attempt, key, value)


# -- tasks -----------------------------------------------------------------------------------------------------------


@task(name="programs.work", retry=Retry(8, initial="1ms", jitter=0))
async def work(key: str, value: int, fail: int = 0) -> int:
    """Fail `fail` attempts, then mix."""
    _note(key, value)
    await asyncio.sleep(0)
    if task_info().attempt <= fail:
        raise Stumble(key)
    return mix(key, value)


@task(name="programs.work_plainly", retry=Retry(8, initial="1ms", jitter=0))
def work_plainly(key: str, value: int, fail: int = 0) -> int:
    """As `work`, in a thread."""
    _note(key, value)
    if task_info().attempt <= fail:
        raise Stumble(key)
    return mix(key, value)


@task(name="programs.doomed", retry=Retry(2, initial="1ms", jitter=0))
async def doomed(key: str, value: int) -> int:
    """Fail every attempt."""
    _note(key, value)
    raise ValueError(key)


@task(name="programs.refused", retry=Retry(5, initial="1ms", non_retryable=(KeyError,)))
async def refused(key: str, value: int) -> int:
    """Fail for good at once."""
    _note(key, value)
    raise KeyError(key)


@task(name="programs.hang")
async def hang(key: str) -> int:
    """Wait to be cancelled."""
    _note(key, 0)
    await asyncio.sleep(_FOR_EVER)
    return 0


@task(name="programs.send", retry=Retry(None, initial="2ms", maximum="20ms", jitter=0))
async def send(run: str, name: str, value: int) -> int:
    """Send a signal to a run, which may not have started yet."""
    _note(name, value)
    if Surroundings.send is not None:
        try:
            await Surroundings.send(run, name, value, name)
        except Conflict:
            pass  # The run has ended: an attempt that was not recorded sent it before.
    return value


# -- the interpreter ---------------------------------------------------------------------------------------------------


@workflow(name="programs.run")
async def run_program(generations: list[Node], at: int = 0, value: int = 0) -> int:
    """Interpret one generation of a program after the other, each as a generation of the run."""
    value = await interpret(generations[at], value)
    if at + 1 < len(generations):
        continue_as_new(generations, at + 1, value)
    state(ended_at=at)
    return value


async def interpret(node: Node, value: int) -> int:
    """Execute a node with the value so far, and return the next value."""
    operation: Callable[[Node, int], Awaitable[int]] = _OPERATIONS[node["op"]]
    return await operation(node, value)


async def _each(node: Node, value: int) -> list[int]:
    return list(await asyncio.gather(*(interpret(child, value) for child in node["of"])))


async def _never(node: Node, value: int) -> int:
    """Wait for what never comes, and clean up durably when cancelled."""
    try:
        how = node["how"]
        if how == "signal":
            await signal(f"never-{node['key']}")
        elif how == "timer":
            await asyncio.sleep(_FOR_EVER)
        elif how == "task":
            await hang(node["key"])
        elif how == "child":
            await run_program([{**node, "how": "signal"}])
        else:
            await asyncio.Event().wait()
        return 0
    finally:
        if node.get("cleanup"):
            await work(f"{node['key']}/cleanup", value)


async def _seq(node: Node, value: int) -> int:
    for child in node["of"]:
        value = await interpret(child, value)
    return value


async def _task(node: Node, value: int) -> int:
    which = work_plainly if node.get("plain") else work
    return await which(node["key"], value, node.get("fail", 0))


async def _doomed(node: Node, value: int) -> int:
    try:
        if node.get("refused"):
            await refused(node["key"], value)
        else:
            await doomed(node["key"], value)
    except (ValueError, KeyError) as error:
        return mix(node["key"], value, error.attempt if isinstance(error, TaskError) else 0)
    raise AssertionError("A task that always fails did not.")


async def _sleep(node: Node, value: int) -> int:
    await asyncio.sleep(node["ms"] / 1000)
    return value


async def _gather(node: Node, value: int) -> int:
    return mix(*await _each(node, value))


async def _gather_errors(node: Node, value: int) -> int:
    async def fails() -> int:
        await work(node["key"], value)
        raise Stumble(node["key"])

    results = await asyncio.gather(*(interpret(child, value) for child in node["of"]), fails(), return_exceptions=True)
    return mix(*(r if isinstance(r, int) else type(r).__name__ for r in results))


async def _group(node: Node, value: int) -> int:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(interpret(child, value)) for child in node["of"]]
    return mix(*(t.result() for t in tasks))


async def _group_fails(node: Node, value: int) -> int:
    """One member raises; the group cancels the others, whose clean-up is durable."""

    async def fails() -> None:
        await interpret(node["of"][0], value)
        raise Stumble(node["key"])

    try:
        async with asyncio.TaskGroup() as group:
            for other in node["nevers"]:
                group.create_task(_never(other, value))
            group.create_task(fails())
    except* Stumble as errors:
        value = mix(node["key"], len(errors.exceptions), value)
    return value


async def _first(node: Node, value: int) -> int:
    """asyncio.wait for the first, of which only one can be."""
    winner = asyncio.create_task(interpret(node["of"][0], value))
    others = [asyncio.create_task(_never(other, value)) for other in node["nevers"]]
    done, pending = await asyncio.wait([winner, *others], return_when=asyncio.FIRST_COMPLETED)
    assert done == {winner}
    for one in pending:
        one.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return winner.result()


async def _wait_all(node: Node, value: int) -> int:
    done, _ = await asyncio.wait([asyncio.create_task(interpret(child, value)) for child in node["of"]])
    for index, one in enumerate(done):
        # The order of a set of tasks: it is free, and must be the same in every replay.
        await work(f"{node['key']}/{index}", one.result())
    return mix(*sorted(t.result() for t in done))


async def _as_completed(node: Node, value: int) -> int:
    results: list[int] = []
    for index, one in enumerate(asyncio.as_completed([interpret(child, value) for child in node["of"]])):
        results.append(await one)
        await work(f"{node['key']}/{index}", results[-1])
    return mix(*sorted(results))


async def _race(node: Node, value: int) -> int:
    """A free race: whoever wins, the rest of the run must remember it."""
    tasks = [asyncio.create_task(interpret(child, value), name=str(i)) for i, child in enumerate(node["of"])]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await work(f"{node['key']}/won", mix(*sorted(int(t.get_name()) for t in done)))
    for one in pending:
        one.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    await work(f"{node['key']}/over", mix(*(t.cancelled() for t in tasks)))
    return value


async def _timeout_hits(node: Node, value: int) -> int:
    try:
        if node.get("wait_for"):
            await asyncio.wait_for(_never(node["nevers"][0], value), node["ms"] / 1000)
        else:
            async with asyncio.timeout(node["ms"] / 1000):
                await _never(node["nevers"][0], value)
    except TimeoutError:
        return mix(node["key"], value)
    raise AssertionError("A timeout did not come.")


async def _timeout_spares(node: Node, value: int) -> int:
    if node.get("wait_for"):
        return await asyncio.wait_for(interpret(node["of"][0], value), _FOR_EVER)
    async with asyncio.timeout(_FOR_EVER):
        return await interpret(node["of"][0], value)


async def _timeout_races(node: Node, value: int) -> int:
    """A timeout of the length of a task: either may win, and both must be remembered."""
    try:
        async with asyncio.timeout(node["ms"] / 1000):
            await work(f"{node['key']}/raced", value)
            outcome = "done"
    except TimeoutError:
        outcome = "late"
    await work(f"{node['key']}/{outcome}", value)
    return value


async def _shield(node: Node, value: int) -> int:
    inner = asyncio.create_task(interpret(node["of"][0], value))

    async def wait() -> int:
        return await asyncio.shield(inner)

    outer = asyncio.create_task(wait())
    await asyncio.sleep(0)
    outer.cancel()
    await asyncio.gather(outer, return_exceptions=True)
    return await inner


async def _event(node: Node, value: int) -> int:
    event = asyncio.Event()

    async def waits(child: Node) -> int:
        await event.wait()
        return await interpret(child, value)

    async def sets() -> int:
        result = await interpret(node["of"][0], value)
        event.set()
        return result

    return mix(*await asyncio.gather(*(waits(child) for child in node["of"][1:]), sets()))


async def _queue(node: Node, value: int) -> int:
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)

    async def produce(child: Node) -> None:
        await queue.put(await interpret(child, value))

    async def consume() -> int:
        got = [await queue.get() for _ in node["of"]]
        await work(node["key"], mix(*got))
        return mix(*sorted(got))

    consumer = asyncio.create_task(consume())
    await asyncio.gather(*(produce(child) for child in node["of"]))
    return await consumer


async def _limited(node: Node, value: int) -> int:
    """A semaphore, or a lock when it admits one."""
    limit: Any = asyncio.Lock() if node["limit"] == 1 else asyncio.Semaphore(node["limit"])
    inside = 0

    async def enter(child: Node) -> int:
        nonlocal inside
        async with limit:
            inside += 1
            assert inside <= node["limit"]
            try:
                return await interpret(child, value)
            finally:
                inside -= 1

    return mix(*await asyncio.gather(*(enter(child) for child in node["of"])))


async def _condition(node: Node, value: int) -> int:
    condition, ready = asyncio.Condition(), 0

    async def waits() -> int:
        async with condition:
            await condition.wait_for(lambda: ready == len(node["of"]))
        return await work(node["key"], value)

    async def helps(child: Node) -> int:
        nonlocal ready
        result = await interpret(child, value)
        async with condition:
            ready += 1
            condition.notify_all()
        return result

    return mix(*await asyncio.gather(waits(), *(helps(child) for child in node["of"])))


async def _cancels(node: Node, value: int) -> int:
    """Cancel a task that waits; it may clean up, or swallow the cancellation."""

    async def waits() -> int:
        try:
            return await _never(node["nevers"][0], value)
        except asyncio.CancelledError:
            if node.get("swallow"):
                return await work(f"{node['key']}/swallowed", value)
            raise

    victim = asyncio.create_task(waits())
    value = await interpret(node["of"][0], value)
    victim.cancel()
    (result,) = await asyncio.gather(victim, return_exceptions=True)
    return mix(node["key"], value, result if isinstance(result, int) else type(result).__name__)


async def _finally(node: Node, value: int) -> int:
    try:
        try:
            value = await interpret(node["of"][0], value)
            raise Stumble(node["key"])
        finally:
            value = await interpret(node["of"][1], value)
    except Stumble:
        return mix(node["key"], value)


async def _child(node: Node, value: int) -> int:
    try:
        return await run_program(node["generations"], 0, value)
    except ChildRunError as error:
        return mix(node["key"], value, error.info.type if error.info is not None else "")


async def _raise(node: Node, value: int) -> int:
    raise Stumble(node["key"])


async def _abandons(node: Node, value: int) -> int:
    """Start a child run and let go of it: it goes on by itself."""
    child = asyncio.create_task(run_program.options(on_parent_end="abandon")(node["generations"], 0, value))
    value = await work(node["key"], value)
    child.cancel()
    await asyncio.gather(child, return_exceptions=True)
    return value


async def _mail(node: Node, value: int) -> int:
    """Send a signal to a child run from a task beside it."""
    info = run_info()
    child = f"{info.id}:{info.generation}:{node['key']}"
    waits = [{"op": "signal", "key": node["key"], "name": node["key"]}]
    return mix(*await asyncio.gather(run_program.options(id=child)(waits, 0, value), send(child, node["key"], value)))


async def _signal(node: Node, value: int) -> int:
    return mix(value, await signal(node["name"], int))


async def _signal_times_out(node: Node, value: int) -> int:
    try:
        await signal(f"never-{node['key']}", timeout=node["ms"] / 1000)
    except SignalTimeout:
        return mix(node["key"], value)
    raise AssertionError("A signal came that nobody sent.")


async def _patched(node: Node, value: int) -> int:
    return await interpret(node["of"][0], value) if patched(node["key"]) else 0


async def _stamp(node: Node, value: int) -> int:
    """Pass what the engine decides to a step: all later executions of it must see the same."""
    await work(f"{node['key']}/stamp", mix(now().timestamp(), random(), str(uuid4()), random.choice([1, 2, 3])))
    return value


async def _tell(node: Node, value: int) -> int:
    emit({"at": node["key"]})
    state(at=node["key"])
    return value


_OPERATIONS: dict[str, Callable[[Node, int], Awaitable[int]]] = {
    name[1:]: function
    for name, function in list(globals().items())
    if name.startswith("_") and inspect.iscoroutinefunction(function)
}
