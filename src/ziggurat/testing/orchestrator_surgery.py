"""The orchestrator suite, second part: runs that stopped are taken up again, forked, looked at and deleted."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import replace

from ziggurat.errors import Conflict, UnknownName
from ziggurat.program.definitions import workflow
from ziggurat.program.primitives import patched, signal
from ziggurat.records import RunFilter, Usage
from ziggurat.testing import orchestrator_programs as p
from ziggurat.testing.orchestrator_harness import OrchestratorHarness
from ziggurat.testing.worker_tasks import gates


class SurgeryPromises(OrchestratorHarness):
    """Retry, fork, changed code, looking and purging."""

    # -- retry ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("flow", [p.breaks, p.child_breaks], ids=["run", "child"])
    async def test_a_failed_run_is_taken_up_from_the_step_that_failed(self, flow: Any) -> None:
        async with self.running() as orchestrator:
            run = await self.start(flow, self.name)
            failed = await self.ended(run)
            assert failed.status == "failed"
            assert failed.error is not None
            if not orchestrator.capabilities.retry:
                with pytest.raises(Conflict):
                    await orchestrator.retry(run)
                return
            attempts = p.ran[self.name]
            gates[f"{self.name}.mended"].set()
            await orchestrator.retry(run)
            assert await self.result(run) == [1, 2, 2, 1]
            assert p.ran[self.name] == attempts + 1
            assert [p.ran[f"{self.name}.{step}"] for step in ("first", "last")] == [1, 1]
            with pytest.raises(Conflict, match="completed"):
                await orchestrator.retry(run)

    async def test_a_retried_run_may_fail_again_and_keeps_its_usage(self) -> None:
        async with self.running() as orchestrator:
            if not orchestrator.capabilities.retry:
                return
            run = await self.start(p.breaks, self.name)
            await self.ended(run)
            await orchestrator.retry(run)
            assert (await self.ended(run)).status == "failed"
            assert p.ran[self.name] == 6
            assert p.ran[f"{self.name}.first"] == 1

    # -- fork ----------------------------------------------------------------------------------------------------

    async def test_a_fork_shares_the_steps_before_it(self) -> None:
        async with self.running() as orchestrator:
            if not orchestrator.capabilities.fork:
                return
            run = await self.start(p.forks, self.name, 1)
            values = await self.result(run)
            for step in (1, 2, 3, 4):
                p.ran.clear()
                forked = await orchestrator.fork(run, step, id=f"{run}-fork-{step}")
                assert (forked.id, forked.forked_from) == (f"{run}-fork-{step}", run)
                assert await self.result(forked.id) == values
                assert [p.ran[f"{self.name}.{i}"] for i in range(3)] == [int(i >= step - 1) for i in range(3)]
            assert await self.result(run) == values

    async def test_a_fork_may_have_other_input(self) -> None:
        async with self.running() as orchestrator:
            if not orchestrator.capabilities.fork_with_input:
                return
            run = await self.start(p.forks, self.name, 1)
            values = await self.result(run)
            payload = Raw(p.forks.arguments.encode((self.name, 10), {}))
            forked = await orchestrator.fork(run, 3, payload=payload)
            assert await self.result(forked.id) == [*values[:2], values[1] * 10 + 1]
            assert p.ran[f"{self.name}.1"] == 1

    async def test_an_impossible_fork_is_a_conflict(self) -> None:
        async with self.running() as orchestrator:
            if not orchestrator.capabilities.fork:
                return
            run = await self.start(p.line, self.name)
            await self.result(run)
            for step in (0, 99):
                with pytest.raises(Conflict, match="step"):
                    await orchestrator.fork(run, step)
            with pytest.raises(Conflict, match=run):
                await orchestrator.fork(run, 1, id=run)

    # -- changed code --------------------------------------------------------------------------------------------

    async def test_code_that_contradicts_the_history_parks_the_run_until_it_is_mended(self) -> None:
        @workflow(name="orc.changes")
        async def before(name: str) -> int:
            await p.count(name)
            await signal("go")
            return await p.count(name, 5)

        @workflow(name="orc.changes")
        async def after(name: str) -> int:
            await p.stumble(name, 0)
            await signal("go")
            return 0

        async with self.running():
            self.registry.add(before)
            run = await self.start(before, self.name)
            await self.rests(run)
            self.registry.add(after)
            await self.restart()
            await self._touch(run)
            parked = await self.ended(run)
            assert parked.status == "parked"
            assert "step 1" in parked.reason
            assert "'orc.count'" in parked.reason
            assert "'orc.stumble'" in parked.reason
            with pytest.raises(Conflict, match="parked"):
                await self.send(run, "go")
            self.registry.add(before)
            await self.orchestrator.resume(run)
            await self.rests(run)
            await self.send(run, "go")
            assert await self.result(run) == 6
            assert p.ran[self.name] == 2

    async def _touch(self, run: str) -> None:
        """Make a run that rests come back."""
        with suppress(Conflict):  # Parked already.
            await self.send(run, "touch")

    async def test_code_that_ends_before_its_history_parks_the_run_and_it_can_be_cancelled(self) -> None:
        @workflow(name="orc.shrinks")
        async def before(name: str) -> None:
            await p.count(name)
            await signal("go")

        @workflow(name="orc.shrinks")
        async def after(name: str) -> None:
            return None

        async with self.running():
            self.registry.add(before)
            run = await self.start(before, self.name)
            await self.rests(run)
            self.registry.add(after)
            await self.restart()
            await self._touch(run)
            parked = await self.ended(run)
            assert parked.status == "parked"
            assert "'orc.count'" in parked.reason
            await self.orchestrator.cancel(run, "given up")
            assert (await self.ended(run)).status == "cancelled"

    async def test_a_patch_keeps_runs_that_passed_it_on_the_old_branch(self) -> None:
        @workflow(name="orc.patches")
        async def before(name: str) -> str:
            await p.count(name)
            await signal("go")
            return "old"

        @workflow(name="orc.patches")
        async def after(name: str) -> str:
            await p.count(name)
            branch = "new" if patched("other-branch") else "old"
            if branch == "new":
                await p.count(f"{name}.new")
            await signal("go")
            return branch if patched("other-branch") == (branch == "new") else "torn"

        async with self.running():
            self.registry.add(before)
            old = await self.start(before, self.name)
            await self.rests(old)
            self.registry.add(after)
            await self.restart()
            new = await self.start(after, self.name)
            await self.rests(new)
            await self.restart()
            for run, result in ((old, "old"), (new, "new")):
                await self.send(run, "go")
                assert await self.result(run) == result
            assert p.ran[f"{self.name}.new"] == 1

    # -- looking -------------------------------------------------------------------------------------------------

    async def test_the_history_tells_every_step(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.line, self.name)
            await self.result(run)
            events = await orchestrator.history(run)
            assert [e.seq for e in events] == sorted({e.seq for e in events})
            assert [e.kind for e in events] == ["run_started", *["step_completed"] * 3, "run_completed"]
            assert [bytes(e.result or b"") for e in events[1:4]] == [b"1", b"2", b"3"]
            assert await orchestrator.history(run, after=events[1].seq) == events[2:]
            assert await orchestrator.history(run, after=events[0].seq, limit=2) == events[1:3]

    async def test_steps_show_what_is_done_and_what_is_under_way(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.waits, self.name, "gather")
            await gates.passed(f"{self.name}.in")

            async def shows() -> bool:
                steps = await orchestrator.steps(run)
                assert steps[0].status in ("scheduled", "running")  # That it began is progress, which may be lost.
                return [(s.kind, s.name) for s in steps] == [("task", "orc.hold"), ("timer", "sleep"), ("signal", "go")]

            await self.until(shows)
            await orchestrator.cancel(run)
            await self.ended(run)
            (last,) = [s for s in await orchestrator.steps(run) if s.name == "orc.count"]
            assert (last.status, last.attempt) == ("completed", 1)

    async def test_state_and_progress_are_shown_in_order(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.tells, self.name)
            watching = asyncio.create_task(self.watched(run))
            state = (await self.rests(run)).state
            assert msgspec.json.decode(state or b"null") == {"stage": "second"}
            await asyncio.sleep(self.glance)
            await self.send(run, "go")
            await self.ended(run)
            state = (await orchestrator.get(run)).state
            assert msgspec.json.decode(state or b"null") == {"stage": "third"}
            seen = await watching
            history = [e.event for e in seen if e.kind == "history"]
            assert history == await orchestrator.history(run)
            assert (seen[-1].kind, seen[-1].status) == ("status", "completed")
            shown = [(e.progress.kind, msgspec.json.decode(e.progress.data)) for e in seen if e.progress is not None]
            words = [data for kind, data in shown if kind == "emit" and isinstance(data, str)]
            assert words == [word for word in ("a", "b") if word in words]
            assert ("answer", {"part": 2}) in shown

    async def test_a_watcher_may_come_late_or_in_the_middle(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.line, self.name)
            await self.result(run)
            history = await orchestrator.history(run)
            for after in (0, 2, history[-1].seq):
                seen = await self.watched(run, after=after)
                assert [e.event for e in seen if e.kind == "history"] == [e for e in history if e.seq > after]
                assert seen[-1].status == "completed"

    async def test_waiting_has_a_limit(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.signals, ["a"])
            with pytest.raises(TimeoutError):
                await orchestrator.wait(run, 0.01)
            await self.send(run, "a", 1)
            assert await self.result(run) == [1]

    async def test_lists_are_filtered_and_paged_newest_first(self) -> None:
        async with self.running() as orchestrator:
            ids = [
                await self.start(p.line, self.name, 1, id=f"{self.name}-{i}", tags={"half": str(i % 2)}, namespace=f"ns{i // 3}")
                for i in range(6)
            ]
            waiting = await self.start(p.signals, ["a"], id=f"{self.name}-waits")
            for run in ids:
                await self.result(run)
            await self.rests(waiting)

            async def listed(**where: Any) -> list[str]:
                return [r.id for r in await orchestrator.list(RunFilter(search=self.name, **where))]

            newest = [waiting, *reversed(ids)]
            if not orchestrator.capabilities.immediate_list:

                async def shows_all() -> bool:
                    return await listed() == newest and await listed(status=("completed",)) == newest[1:]

                await self.until(shows_all)
            assert await listed() == newest
            assert await listed(limit=3) == newest[:3]
            assert await listed(limit=3, after=newest[2]) == newest[3:6]
            assert await listed(status=("completed",)) == newest[1:]
            assert await listed(workflow=p.signals.name) == [waiting]
            assert await listed(tags={"half": "1"}) == [ids[5], ids[3], ids[1]]
            assert await listed(namespace="ns1") == [ids[5], ids[4], ids[3]]
            assert await listed(ids=(ids[1], ids[4], "no-such")) == [ids[4], ids[1]]
            assert await listed(parent="") == newest
            assert await listed(parent=waiting) == []
            assert await orchestrator.count(RunFilter(search=self.name)) == {"completed": 6, "waiting": 1}
            ended = [(await orchestrator.get(run)).ended_at or 0.0 for run in ids]
            assert set(await listed(ended_since=ended[3])) == {i for i, e in zip(ids, ended, strict=True) if e >= ended[3]}
            assert set(await listed(ended_before=ended[3])) == {i for i, e in zip(ids, ended, strict=True) if e < ended[3]}
            created = [(await orchestrator.get(run)).created_at for run in ids]
            assert set(await listed(since=created[2], until=created[4])) == {
                i for i, c in zip(ids, created, strict=True) if created[2] <= c < created[4]
            }
            light = (await orchestrator.list(RunFilter(search=ids[0])))[0]
            assert (light.result, bytes(light.payload)) == (None, b"{}")

    async def test_runs_that_wait_for_a_signal_are_found_with_what_they_wait_for(self) -> None:
        async with self.running() as orchestrator:
            waiting = await self.start(p.signals, ["a"], id=f"{self.name}-signal")
            other = await self.start(p.waits, self.name, "timer", id=f"{self.name}-timer")
            for run in (waiting, other):
                await self.rests(run)
            where = RunFilter(search=self.name, awaiting=True)

            async def shows() -> bool:
                return [run.id for run in await orchestrator.list(where)] == [waiting]

            await self.until(shows)
            (found,) = await orchestrator.list(where)
            assert [(one.step, one.signal) for one in found.awaits] == [(1, "a")]
            assert found.awaits[0].since > 0
            assert await orchestrator.list(replace(where, workflow=p.waits.name)) == []
            assert await orchestrator.list(replace(where, status=("completed",))) == []
            await self.send(waiting, "a", 1)
            await self.result(waiting)

            async def shows_none() -> bool:
                return await orchestrator.list(where) == []

            await self.until(shows_none)
            await orchestrator.cancel(other)
            await self.ended(other)

    async def test_a_status_is_found_behind_newer_runs_of_another(self) -> None:
        async with self.running() as orchestrator:
            tags = {"test": self.name}
            waiting = await self.start(p.signals, ["a"], tags=tags)
            await self.rests(waiting)
            for number in range(2):
                await self.start(p.hold_then_count, f"{self.name}-{number}", tags=tags)
                await gates.passed(f"{self.name}-{number}.in")

            async def shows() -> bool:
                return await orchestrator.count(RunFilter(tags=tags)) == {"running": 2, "waiting": 1}

            await self.until(shows)
            found = await orchestrator.list(RunFilter(tags=tags, status=("waiting",), limit=1))
            assert [run.id for run in found] == [waiting]
            assert await orchestrator.count(RunFilter(tags=tags, status=("waiting", "completed"))) == {"waiting": 1}

    async def test_usage_counts_every_attempt_and_every_child(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.pays, self.name, id=self.name)
            assert (await self.ended(run)).status == "completed"
            expected = Usage(calls=4, input_tokens=40, output_tokens=20, cost_usd=1.0)
            assert (await orchestrator.get(run)).usage == expected
            await self.restart()
            assert (await self.orchestrator.get(run)).usage == expected
            tells_all = self.orchestrator.capabilities.listed_usage

            async def lists() -> bool:
                found = await self.orchestrator.list(RunFilter(search=self.name, parent=""))
                return [one.usage for one in found] == [expected if tells_all else Usage(cost_usd=expected.cost_usd)]

            await self.until(lists)

    # -- purge ---------------------------------------------------------------------------------------------------

    async def test_ended_runs_are_purged_and_no_others(self) -> None:
        async with self.running() as orchestrator:
            if not orchestrator.capabilities.purge:
                return
            done = await self.start(p.line, self.name, id=f"{self.name}-done")
            going = await self.start(p.signals, ["a"], id=f"{self.name}-going")
            await self.result(done)
            with pytest.raises(Conflict, match=going):
                await orchestrator.purge(RunFilter(search=going))
            completed = RunFilter(search=self.name, status=("completed",))

            async def shows() -> bool:
                return [run.id for run in await orchestrator.list(completed)] == [done]

            if not orchestrator.capabilities.immediate_list:
                await self.until(shows)
            assert await orchestrator.purge(completed) == 1
            await self.send(going, "a", 1)
            assert await self.result(going) == [1]
            if not orchestrator.capabilities.immediate_purge:
                return
            with pytest.raises(UnknownName):
                await orchestrator.get(done)
            assert await self.result(await self.start(p.line, self.name, id=done)) == 3
            assert p.ran[f"{self.name}.0"] == 2

    async def test_runs_that_are_named_are_purged_and_nothing_else(self) -> None:
        async with self.running() as orchestrator:
            if not orchestrator.capabilities.purge:
                return
            kept, gone, going = (f"{self.name}-{what}" for what in ("kept", "gone", "going"))
            for run in (kept, gone):
                await self.result(await self.start(p.line, run, id=run))
            await self.start(p.signals, ["a"], id=going)
            assert await orchestrator.purge(RunFilter(ids=(gone, going, "no-such"))) == 1
            if orchestrator.capabilities.immediate_purge:
                with pytest.raises(UnknownName):
                    await orchestrator.get(gone)
            assert (await orchestrator.get(kept)).status == "completed"
            await self.send(going, "a", 1)
            assert await self.result(going) == [1]

    async def test_a_run_that_was_taken_up_again_is_not_purged_for_its_first_end(self) -> None:
        async with self.running() as orchestrator:
            if not (orchestrator.capabilities.purge and orchestrator.capabilities.retry):
                return
            tags = {"test": self.name}
            run = await self.start(p.breaks, self.name, tags=tags)
            failed = await self.ended(run)

            async def counts(status: str) -> bool:
                return await orchestrator.count(RunFilter(tags=tags)) == {status: 1}

            await self.until(lambda: counts("failed"))
            gates[f"{self.name}.mended"].set()
            await orchestrator.retry(run)
            await self.result(run)
            await self.until(lambda: counts("completed"))
            assert await orchestrator.purge(RunFilter(tags=tags, ended_before=(failed.ended_at or 0.0) + 0.001)) == 0
            assert await self.result(run) == [1, 2, 2, 1]
