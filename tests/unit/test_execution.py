"""A program driven by events, without any engine: replays, mismatches, patches, endings."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import Raw

from ziggurat.orchestrator.embedded import guard
from ziggurat.orchestrator.embedded.execution import Execution, Mismatch
from ziggurat.orchestrator.embedded.steps import Finished
from ziggurat.program.definitions import task, workflow
from ziggurat.program.primitives import continue_as_new, patched, run_info, signal, uuid4
from ziggurat.records import ErrorInfo, Event, Run


@task(name="exe.a")
async def a(value: int = 0) -> int:
    return value


@task(name="exe.b")
async def b(value: int = 0) -> int:
    return value


@pytest.fixture(autouse=True)
def _guarded() -> Iterator[None]:
    """The nets are up, as they are while an engine is open."""
    guard.install()
    yield
    guard.uninstall()


class Bench:
    """An execution and its history."""

    def __init__(self, definition: Any, payload: bytes = b"{}", *, events: int = 0) -> None:
        self.definition, self.payload, self.passed_events = definition, payload, events
        self.history: list[Event] = []
        self.execution = self._new([])
        self.apply("run_started")

    def _new(self, history: list[Event]) -> Execution:
        run = Run(id="r", workflow=self.definition.name, status="running", payload=Raw(self.payload), events=self.passed_events)
        return Execution(
            self.definition,
            run,
            base=0,
            passed=max((e.requested for e in history if e.step), default=0),
            patches=[e.name for e in history if e.kind == "patched"],
            suggest_at=5,
            show=lambda kind, data: None,
        )

    def apply(self, kind: Any, **fields: Any) -> None:
        """Record an event and apply it."""
        event = Event(seq=len(self.history) + 1, kind=kind, at=100.0 + len(self.history), **fields)
        self.history.append(event)
        if kind != "patched":
            self.execution.apply(event)
        for patch in self.execution.new_patches:
            self.history.append(Event(seq=len(self.history) + 1, kind="patched", at=100.0 + len(self.history), name=patch))
        self.execution.new_patches = []

    def complete(self, step: int, result: Any = 0) -> None:
        """Record that a step that is asked for completed."""
        asked = self.execution.steps[step]
        if asked.kind == "timer":
            self.apply("timer_fired", step=step, step_kind="timer", name=asked.name, requested=asked.requested)
        else:
            fields = {"step": step, "step_kind": asked.kind, "name": asked.name, "requested": asked.requested}
            self.apply("step_completed", result=Raw(str(result).encode()), **fields)

    def replay(self, definition: Any = None) -> Execution:
        """Build the program again from its history. Raises Mismatch."""
        self.definition = definition or self.definition
        execution, ended = self._new(self.history), False
        for index, event in enumerate(self.history):
            if event.kind == "patched":
                execution.applied = event.seq
            elif ended:
                execution.come_late(event)
            else:
                execution.apply(event)
                ended = execution.finished is not None
                if ended:
                    execution.check_end(self.history[index + 1 :])
        execution.replaying = False
        self.execution = execution
        return execution

    @property
    def asked(self) -> list[tuple[int, str, str]]:
        return [(s.number, s.kind, s.name) for s in self.execution.steps.values()]

    @property
    def finished(self) -> Finished:
        assert self.execution.finished is not None
        return self.execution.finished


def test_steps_are_numbered_in_the_order_in_which_they_are_asked_for() -> None:
    @workflow(name="exe.steps")
    async def steps() -> int:
        both = await asyncio.gather(a(1), asyncio.sleep(5), signal("go"))
        return await b(both[0])

    bench = Bench(steps)
    assert bench.asked == [(1, "task", "exe.a"), (2, "timer", "sleep"), (3, "signal", "go")]
    assert bench.execution.steps[2].due == 105.0
    bench.complete(2)
    bench.apply("signal_received", name="go", result=Raw(b"1"))
    bench.complete(1, 7)
    assert bench.asked == [(4, "task", "exe.b")]
    assert bench.execution.steps[4].payload == b'{"value":7}'
    bench.complete(4, 8)
    assert (bench.finished.status, bytes(bench.finished.result or b"")) == ("completed", b"8")


def test_a_replay_comes_to_the_same_point_after_every_event() -> None:
    @workflow(name="exe.same")
    async def same() -> list[str]:
        seen = [str(uuid4())]
        return seen + [f"{await one} {uuid4()}" for one in asyncio.as_completed([a(1), b(2), a(3)])]

    bench = Bench(same)
    for step in (2, 3, 1):
        before, payloads = bench.asked, [s.payload for s in bench.execution.steps.values()]
        bench.replay()
        assert (bench.asked, [s.payload for s in bench.execution.steps.values()]) == (before, payloads)
        bench.complete(step, step * 10)
    result = bench.finished.result
    assert bench.replay().finished is not None
    assert bench.finished.result == result


def test_another_step_than_the_recorded_one_is_a_mismatch_that_shows_both() -> None:
    @workflow(name="exe.changes")
    async def before() -> None:
        await a()
        await asyncio.sleep(1)

    @workflow(name="exe.changes")
    async def after() -> None:
        await b()

    @workflow(name="exe.changes")
    async def ends() -> None:
        return None

    @workflow(name="exe.changes")
    async def waits() -> None:
        await signal("go")

    @workflow(name="exe.changes")
    async def raises() -> None:
        raise RuntimeError("changed")

    bench = Bench(before)
    bench.complete(1)
    for definition, says in (
        (after, r"step 1 the history records task 'exe\.a', but the program now asks for task 'exe\.b'"),
        (ends, r"step 1, task 'exe\.a', but the program ended before"),
        (raises, r"step 1, task 'exe\.a', but the program ended before"),
        (waits, r"step 1 the history records task 'exe\.a', but the program now asks for signal 'go'"),
    ):
        with pytest.raises(Mismatch, match=says):
            bench.replay(definition)
    assert bench.replay(before).finished is None
    assert bench.asked == [(2, "timer", "sleep")]


def test_events_that_were_on_their_way_when_the_program_ended_are_no_mismatch() -> None:
    @workflow(name="exe.first")
    async def first() -> int:
        done, _ = await asyncio.wait([asyncio.create_task(a()), asyncio.create_task(b())], return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()

    bench = Bench(first)
    bench.complete(1, 5)
    bench.history.append(
        Event(seq=3, kind="step_completed", at=103, step=2, step_kind="task", name="exe.b", requested=1, result=Raw(b"6"))
    )
    assert bench.replay().finished is not None
    assert bytes(bench.finished.result or b"") == b"5"


def test_late_events_of_dropped_steps_are_no_mismatch() -> None:
    @workflow(name="exe.drops")
    async def drops() -> int:
        task = asyncio.create_task(a())
        await asyncio.sleep(1)
        task.cancel()
        return await b()

    bench = Bench(drops)
    bench.complete(2 if (2, "timer", "sleep") in bench.asked else 1)
    assert [s.name for s in bench.execution.dropped] == ["exe.a"]
    (dropped,) = bench.execution.dropped
    bench.apply("step_completed", step=dropped.number, step_kind="task", name="exe.a", requested=1, result=Raw(b"1"))
    bench.replay()
    assert [name for _, _, name in bench.asked] == ["exe.b"]


def _versions() -> tuple[Any, Any]:
    """Return a workflow before and after a change behind a patch."""

    @workflow(name="exe.patched")
    async def before() -> str:
        await a()
        await signal("go")
        return "old"

    @workflow(name="exe.patched")
    async def after() -> str:
        await a()
        new = patched("p")
        if new:
            await b()
        await signal("go")
        return "new" if new else "old"

    return before, after


def test_a_new_run_takes_the_patch_and_keeps_it() -> None:
    bench = Bench(_versions()[1])
    bench.complete(1)
    assert [e.kind for e in bench.history] == ["run_started", "step_completed", "patched"]
    bench.replay()
    assert bench.asked == [(2, "task", "exe.b")]


def test_a_run_that_is_known_to_have_passed_keeps_to_the_old_branch() -> None:
    before, after = _versions()
    bench = Bench(before)
    bench.complete(1)
    bench.passed_events = 2  # The row says: it rested after event 2.
    bench.replay(after)
    assert bench.asked == [(2, "signal", "go")]
    bench.apply("signal_received", name="go", result=Raw(b"1"))
    assert bytes(bench.finished.result or b"") == b'"old"'


def test_a_step_behind_the_patch_shows_that_it_was_passed() -> None:
    @workflow(name="exe.patched_later")
    async def before() -> None:
        await a()
        await a()
        await signal("go")

    @workflow(name="exe.patched_later")
    async def after() -> None:
        await a()
        await (b() if patched("p") else a())
        await signal("go")

    bench = Bench(before)
    bench.complete(1)
    bench.complete(2)
    bench.replay(after)
    assert bench.asked == [(3, "signal", "go")]


def test_a_crash_before_the_patch_is_recorded_does_not_change_the_branch() -> None:
    bench = Bench(_versions()[1])
    bench.complete(1)
    del bench.history[2:]  # The patch never reached the disk, and neither did anything behind it.
    bench.replay()
    assert bench.asked == [(2, "task", "exe.b")]
    assert bench.execution.new_patches == ["p"]


def test_a_cancelled_run_cleans_up_and_is_cancelled() -> None:
    @workflow(name="exe.cleans")
    async def cleans() -> None:
        try:
            await a()
        finally:
            await b()

    bench = Bench(cleans)
    bench.apply("cancel_requested", detail="enough")
    assert [s.name for s in bench.execution.dropped] == ["exe.a"]
    assert bench.asked == [(2, "task", "exe.b")]
    bench.complete(2)
    assert bench.finished.status == "cancelled"


def test_a_workflow_that_cancels_itself_failed() -> None:
    @workflow(name="exe.cancels_itself")
    async def cancels() -> None:
        raise asyncio.CancelledError

    finished = Bench(cancels).finished
    assert finished.status == "failed"
    assert finished.error is not None
    assert "cancelled itself" in finished.error.message


@pytest.mark.parametrize("in_group", [False, True])
def test_exiting_the_interpreter_fails_the_run_only(in_group: bool) -> None:
    @workflow(name="exe.exits")
    async def exits(in_group: bool) -> None:
        async def leave() -> None:
            sys.exit(3)

        if not in_group:
            await leave()
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())

    finished = Bench(exits, b'{"in_group":%s}' % str(in_group).lower().encode()).finished
    assert finished.status == "failed"
    assert finished.error is not None
    assert finished.error.type == "SystemExit"


def test_signals_that_come_late_pass_on_to_the_next_generation_once() -> None:
    @workflow(name="exe.rounds")
    async def rounds() -> None:
        await signal("a")
        continue_as_new()

    bench = Bench(rounds)
    bench.apply("signal_received", name="b", result=Raw(b"1"), detail="id-b")
    bench.apply("signal_received", name="a", result=Raw(b"2"), detail="id-a")
    assert bench.finished.status == "continued"
    for _ in range(2):
        bench.history.append(
            Event(seq=len(bench.history) + 1, kind="signal_received", at=110, name="a", result=Raw(b"3"), detail="id-c")
        )
    bench.history.append(Event(seq=len(bench.history) + 1, kind="cancel_requested", at=110))
    execution = bench.replay()
    left = [(kind, name, bytes(payload or b"")) for kind, name, payload in execution.unclaimed()]
    assert left == [("signal_received", "b", b"1"), ("signal_received", "a", b"3"), ("cancel_requested", "", b"")]
    assert bytes(execution.signal_ids() or b"") == b'["id-b","id-a","id-c"]'


def test_arguments_that_no_longer_fit_park_the_run() -> None:
    @workflow(name="exe.parameters")
    async def parameters(name: str) -> None:
        await a()

    finished = Bench(parameters, b'{"title":"x"}').finished
    assert finished.status == "parked"
    assert "name" in finished.reason


def test_a_result_that_does_not_fit_fails_the_run() -> None:
    @workflow(name="exe.misfit")
    async def misfit() -> int:
        return "three"  # type: ignore[return-value]

    finished = Bench(misfit).finished
    assert finished.status == "failed"
    assert finished.error is not None
    assert "misfit" in finished.error.message


def test_attempts_and_heartbeats_are_read_from_the_history() -> None:
    @workflow(name="exe.attempts")
    async def attempts() -> None:
        await a()

    bench = Bench(attempts)
    fields: dict[str, Any] = {"step": 1, "step_kind": "task", "name": "exe.a", "requested": 1}
    for attempt, detail in ((1, "failed"), (2, "cancelled"), (3, "timeout")):
        event = Event(
            seq=attempt + 1,
            kind="attempt_failed",
            at=101,
            attempt=attempt,
            retry_at=200.0 + attempt,
            detail=detail,
            result=Raw(b"[%d]" % attempt),
            error=ErrorInfo(type="ValueError", message="no"),
            **fields,
        )
        bench.execution.note(event)
    step = bench.execution.steps[1]
    assert (step.attempt, step.failures, step.retry_at, bytes(step.heartbeat or b"")) == (4, 2, 203.0, b"[3]")
    bench.execution.note(Event(seq=5, kind="run_retried", at=102))
    assert (step.attempt, step.failures, step.retry_at) == (4, 0, None)


def test_a_run_is_told_when_to_continue_as_new() -> None:
    @workflow(name="exe.informed")
    async def informed() -> list[bool]:
        said = []
        for _ in range(6):
            await a()
            said.append(run_info().continue_as_new_suggested)
        return said

    bench = Bench(informed)
    for step in range(1, 7):
        bench.complete(step)
    assert bytes(bench.finished.result or b"") == b"[false,false,false,true,true,true]"


def test_nothing_is_done_for_a_program_that_is_discarded() -> None:
    acted: list[str] = []

    @workflow(name="exe.discarded")
    async def discarded() -> None:
        try:
            await a()
        finally:
            acted.append("finally")
            await b()
            acted.append("after")

    bench = Bench(discarded)
    bench.execution.discard()
    assert acted == ["finally"]
    assert [s.name for s in bench.execution.requests] == ["exe.a"]
