"""The conformance suite of orchestrators: every promise of `ziggurat.orchestrator.interface` and of the program model, one test each.

It needs pytest with pytest-asyncio in its auto mode. To run it over a backend, fill the two hooks of `OrchestratorHarness`:

    from ziggurat.testing.orchestrator_suite import OrchestratorSuite

    class TestMyOrchestrator(OrchestratorSuite):
        async def begin(self, registry): ...
        async def end(self): ...

What a backend cannot do it declares in its `Capabilities`.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest

from ziggurat.errors import Conflict
from ziggurat.testing import orchestrator_programs as p
from ziggurat.testing.generator import Generator
from ziggurat.testing.orchestrator_control import ControlPromises
from ziggurat.testing.orchestrator_harness import OrchestratorHarness
from ziggurat.testing.orchestrator_schedules import SchedulePromises
from ziggurat.testing.orchestrator_surgery import SurgeryPromises
from ziggurat.testing.programs import Surroundings, run_program
from ziggurat.testing.worker_tasks import gates


class ProgramPromises(OrchestratorHarness):
    """What a workflow may rely on."""

    async def test_asyncio_works_in_a_workflow(self) -> None:
        async with self.running():
            run = await self.start(p.primitives, self.name)
            assert await self.result(run) == [
                [2, 3],
                [[1, 2, 3, 4], 0],
                [1, 2, 3],
                [1, 2],
                9,
                10,
                "timeout",
                [1, 2, 3],
            ]

    async def test_recorded_steps_do_not_run_again_after_a_restart(self) -> None:
        async with self.running():
            run = await self.start(p.breaks, self.name)
            await self.until(lambda: self._ran(f"{self.name}.also"))
            gates[f"{self.name}.mended"].set()
            await self.restart()
            found = await self.ended(run)
            assert p.ran[f"{self.name}.first"] == 1
            assert found.status in ("completed", "failed")

    async def _ran(self, name: str) -> bool:
        return p.ran[name] > 0

    async def test_a_step_that_was_under_way_runs_again(self) -> None:
        async with self.running():
            run = await self.start(p.hold_then_count, self.name)
            await gates.passed(f"{self.name}.in")
            await self.restart()
            gates[f"{self.name}.out"].set()
            assert await self.result(run) == 1
            assert 1 <= p.ran[self.name] <= 2
            assert p.ran[f"{self.name}.after"] == 1

    async def test_a_timer_fires_over_a_restart(self) -> None:
        async with self.running():
            run = await self.start(p.timer_then_count, self.name)
            await self.restart()
            assert await self.result(run) == 1

    async def test_time_and_chance_are_the_same_in_every_replay(self) -> None:
        async with self.running():
            run = await self.start(p.informs, self.name, tags={"a": "b"})
            await self.rests(run)
            for _ in range(2):
                await self.restart()
            await self.send(run, "go")
            expected = {"id": run, "workflow": "orc.informs", "tags": {"a": "b"}, "generation": 0}
            assert await self.result(run) == expected
            assert len(p.noted[self.name]) >= 2
            assert all(values == p.noted[self.name][0] for values in p.noted[self.name])

    @pytest.mark.parametrize(
        ("how", "expected"),
        [
            ("value", ["ValueError", "NAME is broken", "orc.fail", "3"]),
            ("unwanted", ["Unwanted", "NAME", "orc.fail", "1"]),
            ("slow", ["TaskTimeout", "True"]),
            ("silent", ["TaskTimeout", "True"]),
            ("late", ["TaskTimeout", "True"]),
            ("signal", ["SignalTimeout", "True"]),
        ],
    )
    async def test_a_failure_is_what_it_would_be_without_a_run(self, how: str, expected: list[str]) -> None:
        async with self.running():
            run = await self.start(p.cares, self.name, how, self.deadline)
            found: list[str] = await self.result(run)
            assert found == [text.replace("NAME", self.name) for text in expected] or (how == "late" and found[0] == "ValueError")
            if how == "late":
                assert p.ran[self.name] > 1

    async def test_attempts_and_heartbeats_count_up_over_restarts(self) -> None:
        async with self.running():
            run = await self.start(p.stumbles, self.name)
            await self.until(lambda: self._ran(self.name))
            await self.restart()
            attempt, beats = await self.result(run)
            assert attempt == 4
            assert beats == [1, 2, 3]

    async def test_an_attempt_that_ends_to_wait_is_made_again_and_is_no_failure(self) -> None:
        async with self.running():
            run = await self.start(p.defers, self.name, 3, 0.02)
            await self.until(lambda: self._has_noted(self.name))
            await self.restart()
            assert await self.result(run) == 4
            # A restart may deliver an attempt twice, and never changes what it is.
            assert [list(pair) for pair in sorted({tuple(pair) for pair in p.noted[self.name]})] == [
                [1, 0],
                [2, 1],
                [3, 2],
                [4, 3],
            ]
            events = await self.orchestrator.history(run)
            waits = [event for event in events if event.kind == "attempt_failed" and event.detail == "deferred"]
            assert [event.attempt for event in waits] == [1, 2, 3]
            assert (await self.orchestrator.get(run)).usage.calls == 1, "the call that each attempt told of was bought once"

    async def _has_noted(self, name: str) -> bool:
        return bool(p.noted[name])

    async def test_a_step_that_waits_for_an_answer_says_so_and_is_dropped_with_its_run(self) -> None:
        async with self.running():
            run = await self.start(p.defers, self.name, 1, 3600.0)
            await self.until(lambda: self._waits(run))
            await self.restart()
            dropped: list[str] = []
            self.orchestrator.when_dropped(dropped.append)
            await self.orchestrator.cancel(run)
            assert (await self.ended(run)).status == "cancelled"

            async def told() -> bool:
                return dropped == [f"{run}~0.1"]

            await self.until(told)

    async def _waits(self, run: str) -> bool:
        steps = await self.orchestrator.steps(run)
        return any(step.status == "waiting" and "an answer" in step.detail for step in steps)

    async def test_a_run_continues_as_new_and_loses_no_signal(self) -> None:
        async with self.running() as orchestrator:
            run = await self.start(p.rounds, self.name, 4)
            for value in (1, 2, 3):
                await self.send(run, "number", value, signal_id=f"s{value}")
            await self.until(lambda: self._has_generation(run, 3))
            for value in (1, 2, 3):
                await self.send(run, "number", value, signal_id=f"s{value}")
            await self.restart()
            await self.send(run, "number", 10)
            assert await self.result(run) == 16
            found = await self.orchestrator.get(run)
            assert (found.generation, p.ran[self.name], found.usage.calls) == (3, 4, 4)
            assert orchestrator is not self.orchestrator

    async def _has_generation(self, run: str, generation: int) -> bool:
        return (await self.orchestrator.get(run)).generation == generation

    async def test_a_concurrency_limit_is_kept(self) -> None:
        async with self.running() as orchestrator:
            inside = await self.result(await self.start(p.narrows, self.name))
            assert inside == 1 or (inside > 1 and not orchestrator.capabilities.limits)

    async def test_many_runs_at_once(self) -> None:
        async with self.running():
            runs = await asyncio.gather(*(self.start(p.line, f"{self.name}-{i}") for i in range(self.many)))
            assert await asyncio.gather(*(self.result(run) for run in runs)) == [3] * self.many

    async def test_random_programs_end_alike_whether_interrupted_or_not(self) -> None:
        for seed in range(self.programs):
            async with self.running():
                results = [await self._execute(seed, interrupted) for interrupted in (False, True)]
                assert results[0] == results[1], f"seed {seed}"

    async def _execute(self, seed: int, interrupted: bool) -> Any:
        chance = random.Random(seed)
        generator = Generator(seed)
        generations = generator.program()

        async def send(run: str, name: str, value: int, signal_id: str) -> None:
            await self.send(run, name, value, signal_id)

        Surroundings.send = send
        run = await self.start(run_program, generations, id=f"{self.name}-{interrupted}")
        for name, value in generator.signals:
            with suppress(Conflict):
                await self.send(run, name, value, name)
        for _ in range(chance.randint(1, 3) if interrupted else 0):
            await asyncio.sleep(chance.random() * 0.03)
            await self.restart()
        return await self.result(run)


class OrchestratorSuite(ControlPromises, SchedulePromises, SurgeryPromises, ProgramPromises):
    """Every promise of an orchestrator. Subclass it and fill the hooks."""
