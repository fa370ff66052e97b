"""The tasks and workflows that the orchestrator suite runs. Gates and counters let a test see inside and hold a step without sleeping."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from typing import Any

import ziggurat.program.primitives as program
from ziggurat.errors import BudgetExceeded, ChildRunError, Deferred, SignalTimeout, TaskCrashed, TaskError, TaskTimeout
from ziggurat.program.context import current_attempt
from ziggurat.program.definitions import task, workflow
from ziggurat.program.options import Retry
from ziggurat.records import CallRecord, Usage
from ziggurat.testing.worker_tasks import gates

#: How often each task ran, by the name that the test gave it.
ran: Counter[str] = Counter()
#: What tasks and workflows noted, by name.
noted: defaultdict[str, list[Any]] = defaultdict(list)

_SOON = Retry(5, initial="1ms", jitter=0)


class Unwanted(Exception):
    """A failure that no other attempt can mend."""


# -- tasks -----------------------------------------------------------------------------------------------------------


@task(name="orc.count")
async def count(name: str, value: int = 0) -> int:
    """Count the call, and return the value plus one."""
    ran[name] += 1
    return value + 1


@task(name="orc.hold")
async def hold(name: str) -> str:
    """Open the gate NAME.in and wait for NAME.out; a cancellation opens NAME.cancelled."""
    ran[name] += 1
    gates[f"{name}.in"].set()
    try:
        await gates.passed(f"{name}.out", 60.0)
    except asyncio.CancelledError:
        gates[f"{name}.cancelled"].set()
        raise
    return name


@task(name="orc.hold_in_thread")
def hold_in_thread(name: str) -> str:
    """As `hold`, in a thread that learns of its cancellation through its heartbeat."""
    ran[name] += 1
    gates[f"{name}.in"].set()
    try:
        while not gates[f"{name}.out"].is_set():
            program.heartbeat()
            time.sleep(0.002)
    except asyncio.CancelledError:
        gates[f"{name}.cancelled"].set()
        raise
    return name


@task(name="orc.stumble", retry=_SOON)
async def stumble(name: str, times: int) -> int:
    """Fail so many attempts, and return the number of the one that went well."""
    ran[name] += 1
    if program.task_info().attempt <= times:
        raise ValueError(f"attempt {program.task_info().attempt} of {name}")
    return program.task_info().attempt


@task(name="orc.defer", retry=Retry(1))
async def defer(name: str, times: int, seconds: float) -> int:
    """End so many attempts only to wait, each after the same call of a model, and return the number of the one that did not."""
    attempt = current_attempt()
    assert attempt is not None
    usage = Usage(calls=1, input_tokens=3, output_tokens=2)
    attempt.record_call(CallRecord(id=f"call-{name}", model="m", endpoint="e", upstream="u", usage=usage))
    noted[name].append([attempt.info.attempt, attempt.info.deferred])
    if attempt.info.deferred < times:
        raise Deferred("an answer", seconds=seconds)
    return attempt.info.attempt


@task(name="orc.fail", retry=Retry(3, initial="1ms", jitter=0, non_retryable=[Unwanted]))
async def fail(name: str, unwanted: bool = False) -> None:
    """Fail unless the gate NAME.mended is open."""
    ran[name] += 1
    if not gates[f"{name}.mended"].is_set():
        raise Unwanted(name) if unwanted else ValueError(f"{name} is broken")


@task(name="orc.beat", retry=_SOON)
async def beat(name: str) -> list[int]:
    """Count up over attempts in the heartbeat's details, and fail until three are there."""
    found: list[int] = program.last_heartbeat(list[int]) or []
    found = [*found, program.task_info().attempt]
    program.heartbeat(found)
    if len(found) < 3:
        raise RuntimeError(name)
    return found


@task(name="orc.slow", timeout="50ms", retry=1)
async def slow() -> None:
    """Run into its timeout."""
    await asyncio.sleep(60)


@task(name="orc.late", retry=Retry(None, initial="10ms", jitter=0))
async def late(name: str) -> None:
    """Fail until the deadline of all attempts."""
    ran[name] += 1
    raise ValueError(name)


@task(name="orc.silent", heartbeat="50ms", retry=1)
async def silent() -> None:
    """Let the heartbeat fall silent."""
    program.heartbeat(1)
    await asyncio.sleep(60)


@task(name="orc.narrow", concurrency=1)
async def narrow(name: str) -> int:
    """Return how many were inside at a time."""
    ran[name] += 1
    inside = ran[name]
    await asyncio.sleep(0.003)
    ran[name] -= 1
    return inside


@task(name="orc.pay", retry=_SOON)
async def pay(id: str, fails: int = 0) -> None:
    """Record a model call, in failed attempts too."""
    attempt = current_attempt()
    assert attempt is not None
    usage = Usage(calls=1, input_tokens=10, output_tokens=5, cost_usd=0.25)
    attempt.record_call(CallRecord(id=f"{id}-{attempt.info.attempt}", model="m", endpoint="e", upstream="u", usage=usage))
    if attempt.info.attempt <= fails:
        raise ValueError(id)


@task(name="orc.buy", retry=Retry(1))
async def buy(name: str) -> None:
    """Stand for a model call that reserves a dollar of the budgets of its run and of those above."""
    for allowance in program.task_info().budgets:
        if allowance.spent_usd + 1.0 > allowance.limit_usd:
            refused = BudgetExceeded(f"The budget of {allowance.key} is spent.")
            refused.run_id, refused.budget = allowance.key.partition(":")[2], allowance.key
            raise refused
    ran[name] += 1


@task(name="orc.talk")
async def talk(words: list[str]) -> None:
    for word in words:
        program.emit(word)


# -- workflows -------------------------------------------------------------------------------------------------------


@workflow(name="orc.defers")
async def defers(name: str, times: int, seconds: float) -> int:
    """Run a task that waits for a model's answer before it has a result."""
    return await defer(name, times, seconds)


@workflow(name="orc.line")
async def line(name: str, steps: int = 3) -> int:
    """Some steps one after the other."""
    value = 0
    for step in range(steps):
        value = await count(f"{name}.{step}", value)
    return value


@workflow(name="orc.other")
async def other(name: str) -> None:
    """Another workflow, for ids that are taken."""


@workflow(name="orc.signals")
async def signals(names: list[str]) -> list[int]:
    """Take signals in this order."""
    return [await program.signal(name, int) for name in names]


@workflow(name="orc.waits")
async def waits(name: str, how: str) -> str:
    """Wait in the way that `how` names; clean up durably when cancelled."""
    try:
        if how == "task":
            await hold(name)
        elif how == "thread":
            await hold_in_thread(name)
        elif how == "timer":
            await asyncio.sleep(3600)
        elif how == "signal":
            await program.signal("go")
        elif how == "child":
            await waits.options(id=f"{name}/child")(f"{name}/child", "signal")
        elif how == "retry":
            await fail.options(retry=Retry(2, initial="1h", jitter=0))(name)
        elif how == "gather":
            await asyncio.gather(hold(name), asyncio.sleep(3600), program.signal("go"))
        else:
            await asyncio.Event().wait()
        return "went on"
    finally:
        noted[name].append(await count(f"{name}.cleanup"))


@workflow(name="orc.stays")
async def stays(name: str) -> str:
    """Swallow the cancellation."""
    try:
        await program.signal("go")
        return "went on"
    except asyncio.CancelledError:
        await count(f"{name}.cleanup")
        return "stayed"


@workflow(name="orc.hold_then_count")
async def hold_then_count(name: str) -> int:
    await hold(name)
    return await count(f"{name}.after")


@workflow(name="orc.timer_then_count")
async def timer_then_count(name: str, seconds: float = 0.01) -> int:
    await asyncio.sleep(seconds)
    return await count(f"{name}.after")


@workflow(name="orc.signal_then_count")
async def signal_then_count(name: str) -> int:
    return await count(f"{name}.signalled", await program.signal("a", int))


@workflow(name="orc.breaks")
async def breaks(name: str) -> list[int]:
    """Two steps that go well beside one that fails, between two others."""
    first = await count(f"{name}.first")
    beside, _, also = await asyncio.gather(count(f"{name}.beside", first), fail(name), count(f"{name}.also", first))
    return [first, beside, also, await count(f"{name}.last")]


@workflow(name="orc.child_breaks")
async def child_breaks(name: str) -> list[int]:
    return await breaks(name)


@workflow(name="orc.forks")
async def forks(name: str, factor: int) -> list[int]:
    """Chance and input decide what happens after the prefix."""
    values = [await count(f"{name}.0", program.random.randrange(1000))]
    if program.random() < 2:
        values.append(await count(f"{name}.1", values[-1]))
    values.append(await count(f"{name}.2", values[-1] * factor))
    return values


@workflow(name="orc.leaves")
async def leaves(name: str, policy: str) -> str:
    """Start a child run that waits for the gate, and end before it."""
    child = asyncio.create_task(
        waits.options(id=f"{name}/child", on_parent_end=policy)(f"{name}/child", "task"),
    )
    await program.signal("leave")
    assert not child.done()
    return "left"


@workflow(name="orc.cares")
async def cares(name: str, how: str, deadline: float = 0.08) -> list[str]:
    """What a failing step looks like to the workflow."""
    try:
        if how == "value":
            await fail(name)
        elif how == "unwanted":
            await fail(name, True)
        elif how == "slow":
            await slow()
        elif how == "late":
            await late.options(deadline=deadline)(name)
        elif how == "silent":
            await silent()
        elif how == "child":
            await breaks.options(id=f"{name}/child")(name)
        elif how == "signal":
            await program.signal("never", timeout=0.005)
        return ["nothing"]
    except (ValueError, Unwanted) as error:
        return [type(error).__name__, str(error), *([error.task, str(error.attempt)] if isinstance(error, TaskError) else [])]
    except (TaskTimeout, TaskCrashed, SignalTimeout) as error:
        return [type(error).__name__, str(isinstance(error, TimeoutError))]
    except ChildRunError as error:
        return [type(error).__name__, error.run_id, error.info.type]


@workflow(name="orc.stumbles")
async def stumbles(name: str) -> list[Any]:
    return [await stumble(name, 3), await beat(name)]


@workflow(name="orc.rounds")
async def rounds(name: str, left: int, total: int = 0) -> int:
    """Continue as new until nothing is left, taking one signal in each generation."""
    total += await program.signal("number", int)
    await count(name)
    await pay(f"{name}-{left}")
    if left > 1:
        program.continue_as_new(name, left - 1, total)
    return total


@workflow(name="orc.narrows")
async def narrows(name: str) -> int:
    return max(await asyncio.gather(*(narrow(name) for _ in range(6))))


@workflow(name="orc.pays")
async def pays(name: str) -> None:
    await pay(f"{name}-a", 2)
    await pays_too(name)


@workflow(name="orc.pays_too")
async def pays_too(name: str) -> None:
    await pay(f"{name}-b")


@workflow(name="orc.buys")
async def buys(name: str, depth: int) -> int:
    """Buy in a child run of a child run, this deep."""
    if depth:
        return await buys.options(id=f"{name}/{depth}")(name, depth - 1) + 1
    await buy(name)
    return 0


@workflow(name="orc.affords")
async def affords(name: str, budget: float) -> str:
    """Give a child run a budget of its own, and go on without it."""
    try:
        await buys.options(id=f"{name}/owner", budget=budget)(name, 1)
    except ChildRunError:
        return "given up"
    return "bought"


@workflow(name="orc.tells")
async def tells(name: str) -> None:
    """State, progress and a task's progress, with a pause between."""
    program.state(stage="first", name=name)
    program.emit({"part": 1})
    await talk(["a", "b"])
    program.state(stage="second")
    await program.signal("go")
    program.emit({"part": 2}, kind="answer")
    program.state(stage="third")


@workflow(name="orc.informs")
async def informs(name: str) -> dict[str, Any]:
    """What the engine decides, noted at every pass: replays must see the same."""
    noted[name].append([program.now().timestamp(), program.random(), str(program.uuid4()), program.random.choice("abc")])
    await program.signal("go")
    info = program.run_info()
    return {"id": info.id, "workflow": info.workflow, "tags": info.tags, "generation": info.generation}


@workflow(name="orc.primitives")
async def primitives(name: str) -> list[Any]:
    """Every part of asyncio that is durable, each with a step inside."""
    found: list[Any] = [await asyncio.gather(count(name, 1), count(name, 2))]
    done, pending = await asyncio.wait([asyncio.create_task(count(name, i)) for i in range(4)])
    found.append([sorted(t.result() for t in done), len(pending)])
    found.append(sorted([await one for one in asyncio.as_completed([count(name, i) for i in range(3)])]))
    async with asyncio.TaskGroup() as group:
        grouped = [group.create_task(count(name, i)) for i in range(2)]
    found.append([t.result() for t in grouped])
    found.append(await asyncio.wait_for(count(name, 8), 60))
    found.append(await asyncio.shield(count(name, 9)))
    for pause in (0, 0.002):
        await asyncio.sleep(pause)
    try:
        async with asyncio.timeout(0.003):
            await program.signal("never")
    except TimeoutError:
        found.append("timeout")
    found.append(await _together(name))
    return found


async def _together(name: str) -> list[int]:
    """An event, a queue, a lock, a semaphore and a condition between tasks."""
    event, queue, condition = asyncio.Event(), asyncio.Queue[int](maxsize=1), asyncio.Condition()
    lock, semaphore = asyncio.Lock(), asyncio.Semaphore(2)

    async def produce() -> None:
        await event.wait()
        for number in range(3):
            async with lock, semaphore:
                await queue.put(await count(name, number))
        async with condition:
            condition.notify_all()

    async def consume() -> list[int]:
        return [await queue.get() for _ in range(3)]

    async def wait_for_the_end() -> None:
        async with condition:
            await condition.wait()

    tasks = [asyncio.create_task(produce()), asyncio.create_task(wait_for_the_end())]
    consumer = asyncio.create_task(consume())
    await count(name)
    event.set()
    await asyncio.gather(*tasks)
    return await consumer
