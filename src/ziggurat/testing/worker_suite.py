"""What a worker promises over any queue. Subclass with the hooks of `QueueHarness` and pytest runs it:

class TestWorkerOverMine(WorkerSuite):
    def make_queue(self, options): ...
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import msgspec
import pytest
from msgspec import Raw

from ziggurat.records import WIRE_VERSION, ErrorInfo, Message, Outcome
from ziggurat.testing.queue_harness import QUEUE, ids
from ziggurat.testing.worker_harness import WorkerHarness, order
from ziggurat.testing.worker_tasks import gates

#: How a child process comes to harm, and what the outcome must say of it.
DEATHS = {"_exit": "exited with code 7", "segfault": "SIGSEGV", "abort": "SIGABRT", "kill": "out of memory"}


def failure(outcome: Outcome, status: str = "failed") -> ErrorInfo:
    """Return an outcome's error, which must be there, after checking the status."""
    assert outcome.status == status, outcome
    assert outcome.error is not None
    return outcome.error


class RunningPromises(WorkerHarness):
    """Every message that can be run is run, and its outcome tells the whole story."""

    async def test_a_coroutine_runs_and_its_outcome_names_everything(self) -> None:
        async with self.working(name="w-7") as (queue, _):
            sent = order("add", a=1, b=2, generation=4, attempt=2, sent_at=12.0)
            outcome = await self.result_of(queue, sent)
            assert (outcome.status, outcome.result) == ("completed", Raw(b"3"))
            assert (outcome.task, outcome.run, outcome.generation, outcome.step, outcome.attempt) == (
                "suite.add",
                sent.run,
                4,
                1,
                2,
            )
            assert (outcome.worker, outcome.sent_at) == ("w-7", 12.0)
            assert 0 < outcome.started_at <= outcome.ended_at

    async def test_a_plain_function_runs_in_a_thread_with_typed_arguments(self) -> None:
        async with self.working() as (queue, _):
            outcome = await self.result_of(queue, order("move", point={"x": 1, "y": 2}, by=5))
            assert outcome.result == Raw(b'{"x":6,"y":7}')
            outcome = await self.result_of(queue, order("where", attempt=3, run="r", generation=2, step=9))
            assert outcome.result is not None
            place = msgspec.json.decode(outcome.result)
            assert place == {"pid": os.getpid(), "thread": True, "key": "r~2.9", "attempt": 3}

    async def test_a_process_task_runs_in_another_process_which_is_reused(self) -> None:
        async with self.working(processes=1) as (queue, _):
            first = await self.result_of(queue, order("child", kind="pid"))
            second = await self.result_of(queue, order("child", kind="pid"))
            assert first.status == "completed"
            assert first.result == second.result != Raw(str(os.getpid()).encode())

    async def test_the_attempt_leaves_with_what_it_said_and_paid(self) -> None:
        async with self.working() as (queue, _):
            outcome = await self.result_of(queue, order("child", kind="talk", number=4))
            assert (outcome.status, outcome.result) == ("completed", Raw(b'""'))
            assert [call.id for call in outcome.calls] == ["call-1"]
            (progress,) = await self.watched(queue, 1)
            assert progress.data == Raw(b'{"number":4}')

    async def test_progress_is_numbered_and_there_before_the_outcome(self) -> None:
        async with self.working() as (queue, _):
            sent = order("talk", words=["one", "two", "three"])
            await self.result_of(queue, sent)
            progress = [p for p in await queue.progress(100, 1.0) if p.kind == "emit"]
            assert [bytes(p.data) for p in progress] == [b'"one"', b'"two"', b'"three"']
            assert [p.offset for p in progress] == sorted({p.offset for p in progress})
            assert {(p.run, p.step, p.attempt) for p in progress} == {(sent.run, 1, 1)}

    async def test_a_long_attempt_is_announced(self) -> None:
        async with self.working(name="w-8") as (queue, _):
            await queue.send([order("hold", name="announced")])
            (progress,) = await self.watched(queue, 1, "started")
            assert msgspec.json.decode(progress.data) == {"worker": "w-8"}
            gates["announced.out"].set()

    async def test_no_more_runs_at_a_time_than_there_are_slots(self) -> None:
        async with self.working(concurrency=2) as (queue, worker):
            held = [order("hold", name=f"slot-{n}") for n in range(3)]
            await queue.send(held)
            await gates.passed("slot-0.in")
            await gates.passed("slot-1.in")
            assert worker.busy == 2
            assert await self.counts(queue) == (1, 2, 0, 0)
            for n in range(3):
                gates[f"slot-{n}.out"].set()
            assert {o.message for o in await self.take_outcomes(queue, 3)} == {m.id for m in held}

    async def test_many_messages_all_complete_once(self) -> None:
        async with self.working(concurrency=16) as (queue, worker):
            sent = [order("add", a=n, b=1) for n in range(300)]
            await queue.send(sent)
            outcomes = await self.take_outcomes(queue, 300)
            assert {o.message: o.result for o in outcomes} == {m.id: Raw(str(n + 1).encode()) for n, m in enumerate(sent)}
            # The outcome may be here before the worker's own call has returned.
            async with asyncio.timeout(90.0):
                while worker.tally.completed < 300:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            assert worker.tally.completed == 300
            assert await self.counts(queue) == (0, 0, 0, 0)


class FailurePromises(WorkerHarness):
    """Whatever a task does, its attempt fails alone, and says how."""

    async def test_an_exception_keeps_its_type_text_traceback_and_bill(self) -> None:
        async with self.working() as (queue, _):
            outcome = await self.result_of(queue, order("fail", kind="value"))
            error = failure(outcome)
            assert (error.type, error.message, error.retryable) == ("ValueError", "three is not even", True)
            assert "worker_tasks.py" in error.traceback
            assert [call.id for call in outcome.calls] == ["call-1"]

    async def test_the_tasks_own_retry_says_what_is_final(self) -> None:
        async with self.working() as (queue, _):
            error = failure(await self.result_of(queue, order("fail", kind="refused")))
            assert (error.type, error.retryable) == ("ziggurat.testing.worker_tasks.Refused", False)

    @pytest.mark.parametrize(
        ("task", "kind", "text"),
        [
            ("fail", "exit", "called sys.exit(3)"),
            ("fail", "interrupt", "KeyboardInterrupt"),
            ("fail", "generator", "GeneratorExit"),
            ("fail", "stop", "StopAsyncIteration"),
            ("fail", "cancel", "cancelled by its own code"),
            ("fail", "unprintable", "cannot be read"),
            ("fail", "surrogate", "\\udcff"),
            ("fail", "group", "several"),
            ("fail_thread", "exit", "called sys.exit('bye')"),
            ("fail_thread", "stop", "StopIteration"),
            ("child", "exit", "called sys.exit(0)"),
            ("child", "value", "three is not even"),
        ],
    )
    async def test_hostile_endings_fail_the_attempt_and_spare_the_worker(self, task: str, kind: str, text: str) -> None:
        async with self.working() as (queue, _):
            error = failure(await self.result_of(queue, order(task, kind=kind)))
            assert text in error.message
            assert (await self.result_of(queue, order("add", a=1, b=1))).result == Raw(b"2")

    async def test_arguments_that_do_not_fit_are_final(self) -> None:
        async with self.working() as (queue, _):
            error = failure(await self.result_of(queue, order("move", point={"x": "left"})))
            assert not error.retryable
            assert "suite.move" in error.message
            assert "point.y" in error.message

    @pytest.mark.parametrize("task", ["wrong_result", "unserialisable"])
    async def test_a_result_that_does_not_fit_is_final(self, task: str) -> None:
        async with self.working() as (queue, _):
            error = failure(await self.result_of(queue, order(task)))
            assert (error.type, error.retryable) == ("ziggurat.errors.InvalidData", False)
            assert f"suite.{task}" in error.message

    async def test_a_result_over_the_limit_is_final(self) -> None:
        async with self.working() as (queue, _):
            limit = queue.capabilities.largest_message
            error = failure(await self.result_of(queue, order("big", size=limit)))
            assert (error.type, error.retryable) == ("ziggurat.errors.PayloadTooLarge", False)

    @pytest.mark.parametrize(("kind", "text"), DEATHS.items())
    async def test_the_death_of_a_child_process_fails_that_attempt_only(self, kind: str, text: str) -> None:
        async with self.working(processes=2) as (queue, _):
            outcome = await self.result_of(queue, order("child", kind=kind, number=7))
            error = failure(outcome, "crashed")
            assert text in error.message
            assert "suite.child" in error.message
            assert [call.id for call in outcome.calls] == (["call-1"] if kind == "_exit" else [])
            assert (await self.result_of(queue, order("child", kind="add", number=1))).result == Raw(b"2")


class LimitPromises(WorkerHarness):
    """Time limits and cancellation end an attempt, and what it paid for is on its outcome."""

    async def test_a_coroutine_that_overruns_is_cancelled(self) -> None:
        async with self.working() as (queue, _):
            outcome = await self.result_of(queue, order("hold", name="overrun", pay=True, timeout=0.05))
            error = failure(outcome, "timeout")
            assert error.retryable
            assert "timeout of 0.05 s" in error.message
            assert gates["overrun.cancelled"].is_set()
            assert [call.id for call in outcome.calls] == ["call-overrun"]

    async def test_a_thread_that_overruns_is_left_behind_and_counted(self) -> None:
        async with self.working(abandoned_limit=0) as (queue, worker):
            outcome = await self.result_of(queue, order("hold_thread", name="left", pay=True, timeout=0.5))
            failure(outcome, "timeout")
            assert [call.id for call in outcome.calls] == ["call-left"]
            assert worker.abandoned == 1
            assert "restart the worker" in worker.trouble()
            await queue.send([order("add", a=1, b=1)])
            await self.assert_no_outcome(queue)
            gates["left.out"].set()
            (outcome,) = await self.take_outcomes(queue)
            assert outcome.result == Raw(b"2")
            assert worker.trouble() == ""

    @pytest.mark.parametrize("kind", ["loop", "deaf"])
    async def test_a_process_that_overruns_is_killed(self, kind: str) -> None:
        async with self.working() as (queue, _):
            failure(await self.result_of(queue, order("child", kind=kind, timeout=0.3)), "timeout")
            assert (await self.result_of(queue, order("child", kind="add", number=1))).result == Raw(b"2")

    async def test_a_deadline_that_has_passed_starts_nothing(self) -> None:
        async with self.working() as (queue, _):
            outcome = await self.result_of(queue, order("hold", name="late", deadline=1.0))
            error = failure(outcome, "timeout")
            assert "before the attempt could start" in error.message
            assert (error.retryable, outcome.started_at) == (False, 0.0)
            assert not gates["late.in"].is_set()

    async def test_silence_past_the_heartbeat_timeout_ends_the_attempt(self) -> None:
        async with self.working() as (queue, _):
            outcome = await self.result_of(queue, order("beat_and_hold", name="silent", details=6, heartbeat_timeout=0.5))
            assert "no heartbeat for 0.5 s" in failure(outcome, "timeout").message
            assert outcome.heartbeat == Raw(b"6")

    async def test_the_next_attempt_finds_what_the_last_heartbeat_left(self) -> None:
        async with self.working() as (queue, _):
            outcome = await self.result_of(queue, order("beat", name="first", details=41))
            assert (outcome.status, outcome.heartbeat) == ("failed", Raw(b"41"))
            outcome = await self.result_of(queue, order("beat", name="second", details=1, attempt=2, heartbeat=outcome.heartbeat))
            assert outcome.result == Raw(b"41")
            outcome = await self.result_of(queue, order("child", kind="found", attempt=2, heartbeat=Raw(b'{"page":3}')))
            assert outcome.result == Raw(b'{"page":3}')

    @pytest.mark.parametrize("task", ["hold", "hold_thread", "beat_thread"])
    async def test_a_cancelled_message_ends_its_attempt(self, task: str) -> None:
        async with self.working() as (queue, _):
            sent = order(task, name=f"cancel-{task}")
            await queue.send([sent])
            await gates.passed(f"cancel-{task}.in")
            await queue.cancel([sent.id])
            outcome = await self.outcome_of(queue, sent)
            assert outcome.status == "cancelled"
            if task != "hold_thread":
                await gates.passed(f"cancel-{task}.cancelled")
            gates[f"cancel-{task}.out"].set()

    async def test_a_cancelled_process_is_killed(self) -> None:
        async with self.working() as (queue, _):
            sent = order("child", kind="loop")
            await queue.send([sent])
            await self.watched(queue, 1, "started")
            await queue.cancel([sent.id])
            assert (await self.outcome_of(queue, sent)).status == "cancelled"


class LeasePromises(WorkerHarness):
    """What a worker cannot run or finish goes on to others, and none of it is lost or done twice over a valid lease."""

    @pytest.mark.parametrize("kind", ["unknown", "newer"])
    async def test_what_this_worker_cannot_run_goes_to_others_and_then_to_the_dead_letters(self, kind: str) -> None:
        async with self.working(max_deliveries=3, refusal_delay=0.0) as (queue, worker):
            sent = order("no_such_task") if kind == "unknown" else order("add", a=1, b=1, version=WIRE_VERSION + 1)
            outcome = await self.result_of(queue, sent)
            reason = "no task 'suite.no_such_task'" if kind == "unknown" else f"version {WIRE_VERSION + 1}"
            assert reason in failure(outcome, "dead").message
            (letter,) = await queue.dead_letters()
            assert (letter.id, letter.deliveries) == (sent.id, 3)
            assert reason in letter.reason
            async with asyncio.timeout(90.0):
                while worker.tally.released < 3:  # noqa: ASYNC110  # Counted a moment after the queue has it.
                    await asyncio.sleep(0.002)
            assert worker.tally.released == 3

    async def test_leases_are_renewed_while_a_task_runs(self) -> None:
        lease = self.short_lease()
        async with self.working(lease=lease) as (queue, worker):
            sent = order("hold", name=f"renewed-{lease}")
            await queue.send([sent])
            await gates.passed(f"renewed-{lease}.in")
            await self.several_leases(lease)
            gates[f"renewed-{lease}.out"].set()
            assert (await self.outcome_of(queue, sent)).status == "completed"
            assert (worker.tally.started, worker.tally.lost) == (1, 0)

    async def test_a_lost_lease_stops_the_attempt_and_drops_its_outcome(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            async with self.another(queue, name="first") as first:
                sent = order("hold", name="lost")
                await queue.send([sent])
                await gates.passed("lost.in")
                # The first worker is stopped in its tracks for longer than its lease; another takes the message.
                first.keeper.muted = True
                first.stop(30.0)
                await self.lapse()
                taken = await self.take_one(queue, worker="second")
                assert ids([taken]) == [sent.id]
                first.keeper.muted = False
                await first.renew_leases()
                await gates.passed("lost.cancelled")
                # Ending a worker takes a while on a busy machine.
                assert await queue.extend([taken]) == set()
            assert first.tally.lost == 1
            await self.assert_no_outcome(queue)
            await self.finish(queue, [taken])

    async def test_a_drain_hands_back_what_waits_and_lets_finish_what_runs(self) -> None:
        async with self.working(concurrency=3, threads=1) as (queue, worker):
            held = [order("hold", name="drain-0"), order("hold_thread", name="drain-1"), order("hold_thread", name="drain-2")]
            for sent in held:
                await queue.send([sent])
            await gates.passed("drain-0.in")
            await gates.passed("drain-1.in")
            worker.stop()
            back = await self.take_one(queue, worker="other")
            assert back.message.id == held[2].id
            assert not gates["drain-2.in"].is_set()
            for n in range(2):
                gates[f"drain-{n}.out"].set()
            assert {o.message for o in await self.take_outcomes(queue, 2)} == {held[0].id, held[1].id}
            await self.finish(queue, [back])

    @pytest.mark.parametrize("task", ["hold", "hold_thread"])
    async def test_the_end_of_the_grace_period_burns_no_attempt(self, task: str) -> None:
        async with self.opened(max_deliveries=2) as queue:
            sent = order(task, name=f"grace-{task}")
            await queue.send([sent])
            for round_ in range(4):
                async with self.another(queue) as worker:
                    await gates.passed(f"grace-{task}.in")
                    worker.stop(0.0)
                gates[f"grace-{task}.in"].clear()
                assert worker.tally.released == 1, round_
            (back,) = await self.take(queue)
            assert back.message.id == sent.id
            gates[f"grace-{task}.out"].set()

    def short_lease(self) -> float:
        """A lease that a test can outlive by waiting, and that a machine which stalls for a second does not lose."""
        return 3.0

    async def several_leases(self, lease: float) -> None:
        await asyncio.sleep(2.0 * lease)

    async def test_heartbeat_details_survive_the_worker(self) -> None:
        async with self.opened(lease=self.lease) as queue:
            async with self.another(queue) as first:
                sent: Message = order("beat_and_hold", name="survive", details=17)
                await queue.send([sent])
                await gates.passed("survive.in")
                await first.renew_leases()
                first.stop(0.0)
            async with self.another(queue):
                outcome = await self.outcome_of(queue, sent)
                assert outcome.result == Raw(b"17")


class WorkerSuite(RunningPromises, FailurePromises, LimitPromises, LeasePromises):
    """Every promise of a worker."""

    @pytest.fixture(autouse=True)
    def _gates_of_this_test(self) -> Iterator[None]:
        yield
        gates.open_all()


__all__ = ["QUEUE", "WorkerSuite"]
