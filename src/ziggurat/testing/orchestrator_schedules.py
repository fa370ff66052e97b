"""What an orchestrator promises of schedules. The shortest interval is a second, so these tests take some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from ziggurat.errors import ConfigurationError, InvalidData, UnknownName
from ziggurat.records import Run, RunFilter, Schedule
from ziggurat.testing import orchestrator_programs as p
from ziggurat.testing.orchestrator_harness import OrchestratorHarness
from ziggurat.testing.worker_tasks import gates

#: 2024-05-01 00:00 UTC, and the seconds of an hour.
MAY, HOUR = 1_714_521_600.0, 3600.0


class SchedulePromises(OrchestratorHarness):
    """When runs start by themselves."""

    def scheduled(self, workflow: Any, *args: Any, **fields: Any) -> Schedule:
        """Return a schedule that is named after the test."""
        payload = Raw(workflow.arguments.encode(args, {}))
        return Schedule(name=self.name, workflow=workflow.name, payload=payload, **fields)

    async def runs(self, *status: str) -> list[Run]:
        """Return the runs of the test's schedule, oldest first."""
        found = await self.orchestrator.list(RunFilter(tags={"schedule": self.name}, status=status))
        return sorted(found, key=lambda run: run.tags["scheduled_at"])

    async def until_runs(self, count: int, *status: str) -> Sequence[Run]:
        """Wait until the schedule has so many runs."""

        async def enough() -> bool:
            return len(await self.runs(*status)) >= count

        await self.until(enough)
        return await self.runs(*status)

    async def test_moments_start_runs_named_after_them_also_over_a_restart(self) -> None:
        async with self.running() as orchestrator:
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 2, every=1.0, tags={"team": "night"}))
            await self.until_runs(1)
            orchestrator = await self.restart()
            runs = await self.until_runs(2, "completed")
            await orchestrator.schedules.remove(self.name)
            assert all(run.id.startswith(f"{self.name}~") and run.tags["team"] == "night" for run in runs)
            moments = [run.tags["scheduled_at"] for run in runs]
            assert len(set(moments)) == len(moments)

    async def test_schedules_are_listed_with_their_next_moment_and_survive_a_restart(self) -> None:
        async with self.running() as orchestrator:
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 2, cron=["0 5 29 2 *"], timezone="Europe/Berlin"))
            orchestrator = await self.restart()
            (found,) = [s for s in await orchestrator.schedules.list() if s.name == self.name]
            await orchestrator.schedules.remove(self.name)
            assert found.workflow == p.line.name
            assert found.cron == ["0 5 29 2 *"]
            assert found.next_at is not None
            assert found.next_at % HOUR == 0
            assert self.name not in [s.name for s in await orchestrator.schedules.list()]

    async def test_putting_it_again_changes_it(self) -> None:
        async with self.running() as orchestrator:
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 2, cron=["0 5 1 1 *"]))
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 5, cron=["0 6 1 1 *"]))
            (found,) = [s for s in await orchestrator.schedules.list() if s.name == self.name]
            run = await orchestrator.schedules.trigger(self.name)
            assert await self.result(run.id) == 5
            await orchestrator.schedules.remove(self.name)
            assert found.cron == ["0 6 1 1 *"]

    async def test_a_run_can_be_started_out_of_turn(self) -> None:
        async with self.running() as orchestrator:
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 2, cron=["0 5 1 1 *"]))
            await orchestrator.schedules.pause(self.name)
            run = await orchestrator.schedules.trigger(self.name)
            assert await self.result(run.id) == 2
            assert run.tags["schedule"] == self.name
            await orchestrator.schedules.remove(self.name)

    async def test_a_paused_schedule_starts_nothing_until_it_is_resumed(self) -> None:
        async with self.running() as orchestrator:
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 2, cron=["0 5 1 1 *"]))
            await orchestrator.schedules.pause(self.name, "the night team is away")
            (found,) = [s for s in await orchestrator.schedules.list() if s.name == self.name]
            assert found.paused
            assert found.reason == "the night team is away"
            assert found.next_at is None
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 2, every=1.0))
            (found,) = [s for s in await orchestrator.schedules.list() if s.name == self.name]
            assert found.paused
            await orchestrator.schedules.resume(self.name)
            await self.until_runs(1)
            await orchestrator.schedules.remove(self.name)

    async def test_a_moment_is_passed_over_while_the_run_before_goes_on(self) -> None:
        async with self.running() as orchestrator:
            await orchestrator.schedules.put(self.scheduled(p.hold_then_count, self.name, every=1.0))

            async def passed_over() -> bool:
                return any(s.skipped for s in await orchestrator.schedules.list() if s.name == self.name)

            await self.until(passed_over)
            assert len(await self.runs()) == 1
            await orchestrator.schedules.remove(self.name)
            gates[f"{self.name}.out"].set()
            await self.until_runs(1, "completed")

    async def test_a_backfill_starts_each_moment_once(self) -> None:
        async with self.running() as orchestrator:
            await orchestrator.schedules.put(self.scheduled(p.line, self.name, 2, cron=["30 * * * *"]))
            await orchestrator.schedules.pause(self.name)
            assert await orchestrator.schedules.backfill(self.name, MAY, MAY + 3 * HOUR) == 3
            assert await orchestrator.schedules.backfill(self.name, MAY + HOUR, MAY + 4 * HOUR) == 3
            runs = await self.until_runs(4, "completed")
            assert [run.tags["scheduled_at"] for run in runs] == [f"2024-05-01T0{hour}:30:00Z" for hour in range(4)]
            with pytest.raises(InvalidData, match="ends before it begins"):
                await orchestrator.schedules.backfill(self.name, MAY, MAY - 1)
            await orchestrator.schedules.remove(self.name)

    async def test_what_means_nothing_is_refused_in_one_sentence(self) -> None:
        async with self.running() as orchestrator:
            put = orchestrator.schedules.put
            for fields, said in (
                ({}, "says no time"),
                ({"every": 0.2}, "the shortest interval is 1 s"),
                ({"cron": ["0 25 * * *"]}, "bad hour"),
                ({"cron": ["0 5 * *"]}, "has 4 fields"),
                ({"cron": ["0 0 30 2 *"]}, "bad day-of-month"),
                ({"cron": ["0 5 * * *"], "timezone": "Mars/Olympus"}, "no time zone 'Mars/Olympus'"),
            ):
                with pytest.raises(ConfigurationError, match=said):
                    await put(self.scheduled(p.line, self.name, 2, **fields))
            with pytest.raises(UnknownName):
                await put(Schedule(name=self.name, workflow="no.such", every=60.0))
            with pytest.raises(InvalidData):
                await put(Schedule(name=self.name, workflow=p.line.name, payload=Raw(msgspec.json.encode({"x": 1})), every=60.0))
            for verb in (orchestrator.schedules.remove, orchestrator.schedules.pause, orchestrator.schedules.trigger):
                with pytest.raises(UnknownName, match="no schedule"):
                    await verb(f"{self.name}.none")
            assert self.name not in [s.name for s in await orchestrator.schedules.list()]
