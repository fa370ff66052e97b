"""The orchestrator suite, first part: what the control verbs promise."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec import Raw

from ziggurat.errors import Conflict, InvalidData, UnknownName
from ziggurat.records import RunFilter, StartRequest
from ziggurat.testing import orchestrator_programs as p
from ziggurat.testing.orchestrator_harness import OrchestratorHarness
from ziggurat.testing.worker_tasks import gates


class ControlPromises(OrchestratorHarness):
    """Start, signal, cancel, pause and resume."""

    # -- start ---------------------------------------------------------------------------------------------------

    async def test_a_run_returns_the_result_of_its_workflow(self) -> None:
        async with self.running():
            run = await self.start(p.line, self.name)
            assert await self.result(run) == 3
            assert [p.ran[f"{self.name}.{i}"] for i in range(3)] == [1, 1, 1]

    async def test_an_id_starts_once(self) -> None:
        async with self.running():
            ids = await asyncio.gather(*(self.start(p.line, self.name, id=self.name) for _ in range(5)))
            assert set(ids) == {self.name}
            assert await self.result(self.name) == 3
            assert await self.start(p.line, self.name, id=self.name) == self.name
            await self.restart()
            assert await self.start(p.line, "elsewhere", id=self.name) == self.name
            assert await self.result(self.name) == 3
            assert p.ran[f"{self.name}.0"] == 1

    async def test_an_id_of_another_workflow_is_a_conflict(self) -> None:
        async with self.running():
            await self.start(p.line, self.name, id=self.name)
            with pytest.raises(Conflict, match=self.name):
                await self.start(p.other, self.name, id=self.name)

    async def test_an_unknown_workflow_is_named(self) -> None:
        async with self.running() as orchestrator:
            with pytest.raises(UnknownName, match="nowhere"):
                await orchestrator.start(StartRequest(workflow="nowhere", payload=Raw(b"{}")))

    async def test_arguments_that_do_not_fit_are_refused_and_leave_no_run(self) -> None:
        async with self.running() as orchestrator:
            with pytest.raises(InvalidData, match="name"):
                await orchestrator.start(StartRequest(workflow=p.line.name, payload=Raw(b'{"name": 5}'), id=self.name))
            assert not await orchestrator.list(RunFilter(search=self.name))

    async def test_every_verb_names_an_unknown_run(self) -> None:
        async with self.running() as orchestrator:
            verbs: list[Coroutine[Any, Any, Any]] = [
                *(orchestrator.get("no-such"), orchestrator.history("no-such"), orchestrator.steps("no-such")),
                *(orchestrator.wait("no-such"), orchestrator.cancel("no-such"), orchestrator.pause("no-such")),
                *(orchestrator.resume("no-such"), orchestrator.retry("no-such"), orchestrator.fork("no-such", 1)),
                *(orchestrator.signal("no-such", "go", Raw(b"1")), anext(orchestrator.watch("no-such"))),
            ]
            for verb in verbs:
                with pytest.raises(UnknownName, match="no-such"):
                    await verb

    # -- signals -------------------------------------------------------------------------------------------------

    async def test_signals_may_come_before_and_after_they_are_waited_for(self) -> None:
        async with self.running():
            run = await self.start(p.signals, ["a", "b", "a"])
            await self.send(run, "b", 2)
            await self.rests(run)
            await self.send(run, "a", 1)
            await self.send(run, "a", 3)
            assert await self.result(run) == [1, 2, 3]

    async def test_signals_of_one_name_keep_their_order_over_a_restart(self) -> None:
        async with self.running():
            run = await self.start(p.signals, ["go", *["a"] * 4])
            for value in range(4):
                await self.send(run, "a", value)
            await self.restart()
            await self.send(run, "go", 9)
            assert await self.result(run) == [9, 0, 1, 2, 3]

    async def test_a_signal_id_counts_once(self) -> None:
        async with self.running():
            run = await self.start(p.signals, ["a", "a"])
            await asyncio.gather(*(self.send(run, "a", 1, signal_id="one") for _ in range(3)))
            await self.restart()
            await self.send(run, "a", 1, signal_id="one")
            await self.rests(run)
            await self.send(run, "a", 2, signal_id="two")
            assert await self.result(run) == [1, 2]

    async def test_an_ended_run_takes_no_signal(self) -> None:
        async with self.running():
            run = await self.start(p.line, self.name)
            await self.ended(run)
            with pytest.raises(Conflict, match="completed"):
                await self.send(run, "a")

    # -- cancel --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("how", ["task", "thread", "timer", "signal", "child", "retry", "gather", "event"])
    async def test_a_cancelled_run_stops_whatever_it_waits_for_and_cleans_up(self, how: str) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.waits, self.name, how)
            if how in ("task", "thread", "gather"):
                await gates.passed(f"{self.name}.in")
            elif how == "retry":
                await self.until(lambda: _is(p.ran[self.name] == 1))
            else:
                await self.rests(run)
            await orchestrator.cancel(run, "enough")
            assert (await self.ended(run)).status == "cancelled"
            assert set(p.noted[self.name]) == {1}  # A replay notes it again.
            assert p.ran[f"{self.name}.cleanup"] == 1
            if how in ("task", "thread", "gather"):
                await gates.passed(f"{self.name}.cancelled")
            if how == "child":
                assert (await self.ended(f"{self.name}/child")).status == "cancelled"
                assert set(p.noted[f"{self.name}/child"]) == {1}
                assert p.ran[f"{self.name}/child.cleanup"] == 1

    async def test_a_cancellation_survives_a_restart(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.waits, self.name, "signal")
            await self.rests(run)
            await orchestrator.cancel(run)
            await self.restart()
            assert (await self.ended(run)).status == "cancelled"

    async def test_a_workflow_may_swallow_its_cancellation(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.stays, self.name)
            await self.rests(run)
            await orchestrator.cancel(run)
            assert await self.result(run) == "stayed"

    async def test_cancelling_an_ended_run_changes_nothing(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.line, self.name)
            before = await self.ended(run)
            await orchestrator.cancel(run)
            assert await orchestrator.get(run) == before

    async def test_a_run_is_cancelled_before_its_first_step_is_done(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.waits, self.name, "event")
            await orchestrator.cancel(run)
            assert (await self.ended(run)).status == "cancelled"

    # -- children ------------------------------------------------------------------------------------------------

    async def test_a_child_run_ends_with_its_parent_unless_it_is_abandoned(self) -> None:
        async with self.running() as orchestrator:
            for policy in ("cancel", "abandon"):
                name = f"{self.name}-{policy}"
                run = await self.start(p.leaves, name, policy)
                await gates.passed(f"{name}/child.in")
                await self.send(run, "leave")
                assert await self.result(run) == "left"
                child = await orchestrator.get(f"{name}/child")
                assert child.parent == run
                if policy == "cancel":
                    assert (await self.ended(child.id)).status == "cancelled"
                else:
                    gates[f"{name}/child.out"].set()
                    assert await self.result(child.id) == "went on"

    async def test_a_child_runs_failure_reaches_its_parent(self) -> None:
        async with self.running():
            run = await self.start(p.cares, self.name, "child")
            assert await self.result(run) == ["ChildRunError", f"{self.name}/child", "ValueError"]

    async def test_a_child_run_whose_id_is_taken_is_refused(self) -> None:
        async with self.running():
            await self.start(p.signals, ["never"], id=f"{self.name}/child")
            run = await self.start(p.cares, self.name, "child")
            assert (await self.result(run))[0] == "ChildRunError"

    async def test_a_child_run_goes_on_over_a_restart(self) -> None:
        async with self.running():
            run = await self.start(p.waits, self.name, "child")
            await self.rests(f"{self.name}/child")
            await self.restart()
            await self.send(f"{self.name}/child", "go")
            assert await self.result(run) == "went on"
            assert p.ran[f"{self.name}/child.cleanup"] == 1

    # -- budgets -------------------------------------------------------------------------------------------------

    async def test_a_budget_that_is_spent_below_parks_all_runs_up_to_its_owner_which_resumes_them(self) -> None:
        async with self.running():
            run = await self.start(p.buys, self.name, 2, budget_usd=0.5)
            for parked in (run, f"{self.name}/2", f"{self.name}/1"):
                found = await self.rests(parked, "parked")
                assert f"run:{run} is spent" in found.reason
                assert found.error is not None
                assert found.error.run_id == run
            await self.restart()
            with pytest.raises(Conflict, match="parked"):
                await self.send(run, "a")
            await self.orchestrator.resume(run, budget_usd=10.0)
            assert await self.result(run) == 2
            assert p.ran[self.name] == 1

    async def test_a_run_above_the_owner_of_a_spent_budget_waits_on(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.affords, self.name, 0.5)
            owner = await self.rests(f"{self.name}/owner", "parked")
            await self.rests(f"{self.name}/1", "parked")
            assert owner.budget_usd == 0.5
            await self.rests(run)
            await orchestrator.cancel(owner.id)
            assert (await self.ended(owner.id)).status == "cancelled"
            assert await self.result(run) == "given up"

    # -- pause ---------------------------------------------------------------------------------------------------

    async def test_a_paused_run_finishes_what_is_under_way_and_begins_nothing(self) -> None:
        async with self.running() as orchestrator:
            if not self.pauses():
                return
            run = await self.start(p.hold_then_count, self.name)
            await gates.passed(f"{self.name}.in")
            await orchestrator.pause(run, "looking")
            found = await orchestrator.get(run)
            assert (found.status, found.reason) == ("paused", "looking")
            gates[f"{self.name}.out"].set()
            await self.until(lambda: self._has_recorded(run, "step_completed"))
            await asyncio.sleep(self.glance)
            assert p.ran[f"{self.name}.after"] == 0
            await self.restart()
            await asyncio.sleep(self.glance)
            assert p.ran[f"{self.name}.after"] == 0
            await self.orchestrator.pause(run)
            await self.orchestrator.resume(run)
            assert await self.result(run) == 1
            assert p.ran[self.name] == 1

    async def test_moments_and_signals_that_come_during_a_pause_count_after_it(self) -> None:
        async with self.running() as orchestrator:
            if not self.pauses():
                return
            timer = await self.start(p.timer_then_count, self.name, self.moment)
            signals = await self.start(p.signal_then_count, self.name)
            await asyncio.gather(orchestrator.pause(timer), orchestrator.pause(signals))
            await self.send(signals, "a", 7)
            await asyncio.sleep(self.moment + self.glance)
            assert (p.ran[f"{self.name}.after"], p.ran[f"{self.name}.signalled"]) == (0, 0)
            await asyncio.gather(orchestrator.resume(timer), orchestrator.resume(signals))
            assert await self.result(timer) == 1
            assert await self.result(signals) == 8

    async def test_a_paused_run_can_be_cancelled(self) -> None:
        async with self.running() as orchestrator:
            if not self.pauses():
                return
            run = await self.start(p.waits, self.name, "signal")
            await self.rests(run)
            await orchestrator.pause(run)
            await orchestrator.cancel(run)
            assert (await self.ended(run)).status == "cancelled"
            assert set(p.noted[self.name]) == {1}
            assert p.ran[f"{self.name}.cleanup"] == 1

    async def test_an_ended_run_is_neither_paused_nor_resumed(self) -> None:
        async with self.running() as orchestrator:
            if not self.pauses():
                return
            run = await self.start(p.line, self.name)
            await self.ended(run)
            for verb in (orchestrator.pause, orchestrator.resume):
                with pytest.raises(Conflict, match="completed"):
                    await verb(run)

    def pauses(self) -> bool:
        """Say whether the backend declares that it pauses."""
        return self.orchestrator.capabilities.pause

    async def _has_recorded(self, run: str, kind: str) -> bool:
        return any(event.kind == kind for event in await self.orchestrator.history(run))


async def _is(value: bool) -> bool:
    return value
