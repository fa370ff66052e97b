"""Moments of schedules, as arithmetic and on the embedded engine's fake clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from tests.unit.embedded_system import System, system
from ziggurat import signal, workflow
from ziggurat.errors import InvalidData, UnknownName
from ziggurat.orchestrator.schedules import (
    BACKFILL_MAX,
    backfill_moments,
    check,
    moments_between,
    next_moment,
    run_request,
    start_at,
)
from ziggurat.program.registry import Registry
from ziggurat.records import RunFilter, Schedule
from ziggurat.testing import FakeClock

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def times(schedule: Schedule, since: str, until: str) -> list[str]:
    found = moments_between(schedule, moment(since), moment(until))
    return [datetime.fromtimestamp(m, UTC).strftime("%dT%H:%M") for m in found]


def made(**fields: Any) -> Schedule:
    return Schedule(name="s", workflow="w", **fields)


# -- arithmetic -----------------------------------------------------------------------------------------------------


def test_intervals_are_multiples_since_the_epoch_whoever_asks_when() -> None:
    schedule = made(every=900.0)
    assert next_moment(schedule, moment("2026-05-01T10:07:31")) == moment("2026-05-01T10:15")
    assert next_moment(schedule, moment("2026-05-01T10:15")) == moment("2026-05-01T10:30")


def test_several_expressions_and_an_interval_count_together() -> None:
    schedule = made(cron=["0 9 * * 1-5", "30 9 * * *"], every=43_200.0)
    assert times(schedule, "2026-05-02T00:00", "2026-05-04T10:00") == [
        "02T00:00", "02T09:30", "02T12:00", "03T00:00", "03T09:30", "03T12:00", "04T00:00", "04T09:00", "04T09:30",
    ]  # fmt: skip


def test_a_job_of_a_fixed_time_in_the_hour_that_is_left_out_runs_right_after_it() -> None:
    # Berlin, 29 March 2026: at 02:00 (01:00 UTC) it becomes 03:00.
    assert times(made(cron=["30 2 * * *"], timezone="Europe/Berlin"), "2026-03-28T00:00", "2026-03-31T00:00") == [
        "28T01:30", "29T01:00", "30T00:30",
    ]  # fmt: skip


def test_a_job_of_a_fixed_time_in_the_hour_that_comes_twice_runs_once() -> None:
    # Berlin, 25 October 2026: at 03:00 (01:00 UTC) it becomes 02:00 again.
    schedule = made(cron=["30 2 * * *"], timezone="Europe/Berlin")
    assert times(schedule, "2026-10-24T00:00", "2026-10-27T00:00") == ["24T00:30", "25T00:30", "26T01:30"]
    # Asked within the second pass, it does not name the first pass again.
    assert next_moment(schedule, moment("2026-10-25T01:10")) == moment("2026-10-26T01:30")


def test_an_hourly_job_follows_the_clock_on_the_wall() -> None:
    assert times(made(cron=["0 * * * *"], timezone="Europe/Berlin"), "2026-10-25T00:00", "2026-10-25T04:00") == [
        "25T00:00", "25T01:00", "25T02:00", "25T03:00",
    ]  # fmt: skip


def test_a_rare_day_is_found_and_a_day_that_never_comes_has_no_moment() -> None:
    assert next_moment(made(cron=["0 0 29 2 *"]), moment("2026-05-01T00:00")) == moment("2028-02-29T00:00")
    assert next_moment(made(cron=["0 0 31 2-2 1"]), moment("2026-05-01T00:00")) is not None


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"])
EXPRESSIONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "30 2 * * *", "0 0 1 * *", "15 1,2,3 * * 0", "0 9 * * 1-5", "59 23 31 12 *", "0 */5 * * *"]
)


@given(zone=ZONES, expression=EXPRESSIONS, after=st.floats(1.0e9, 4.0e9), count=st.integers(1, 5))
def test_moments_only_go_forward_and_do_not_depend_on_where_one_starts_to_look(
    zone: str, expression: str, after: float, count: int
) -> None:
    schedule = made(cron=[expression], timezone=zone)
    check(schedule)
    seen = [after]
    for _ in range(count):
        found = next_moment(schedule, seen[-1])
        assert found is not None
        assert found > seen[-1]
        assert found % MINUTE == 0
        seen.append(found)
    # From just before a moment, that moment is the next: nothing lies between two neighbours.
    for before, found in pairwise(seen[1:]):
        assert next_moment(schedule, (before + found) / 2) == found


@given(moment_=st.integers(0, 4_000_000_000), jitter=st.floats(0.0, 600.0))
def test_jitter_stays_within_its_bound_and_is_the_same_at_every_look(moment_: int, jitter: float) -> None:
    schedule = made(every=60.0, jitter=jitter)
    found = start_at(schedule, float(moment_))
    assert moment_ <= found <= moment_ + jitter
    assert found == start_at(schedule, float(moment_))


def test_a_run_is_named_after_its_moment_and_one_out_of_turn_is_not_mistaken_for_it() -> None:
    schedule = made(every=60.0, tags={"team": "a"})
    at = moment("2026-05-01T10:15")
    request = run_request(schedule, at)
    assert request.id == "s~20260501T101500Z"
    assert request.tags == {"team": "a", "schedule": "s", "scheduled_at": "2026-05-01T10:15:00Z"}
    assert run_request(schedule, at, by_hand=True).id != request.id


def test_a_backfill_of_too_many_moments_is_refused() -> None:
    with pytest.raises(InvalidData, match=f"{BACKFILL_MAX:,} runs"):
        backfill_moments(made(every=1.0), 0.0, BACKFILL_MAX + 1.0)
    assert len(backfill_moments(made(every=1.0), 0.0, float(BACKFILL_MAX))) == BACKFILL_MAX


# -- on the engine --------------------------------------------------------------------------------------------------


@workflow(name="sched.held")
async def held() -> str:
    await signal("go")
    return "gone"


@workflow(name="sched.quick")
async def quick() -> str:
    return "done"


class Clocked:
    """An engine on a fake clock, with one schedule."""

    def __init__(self, s: System, clock: FakeClock) -> None:
        self.s, self.clock = s, clock
        self.schedules = s.engine.schedules

    async def put(self, workflow_: Any = quick, **fields: Any) -> None:
        self.s.registry.add(workflow_)
        await self.schedules.put(Schedule(name="s", workflow=workflow_.name, payload=Raw(b"{}"), **fields))

    async def advance(self, seconds: float) -> None:
        """Let time pass, and wait until what became due is decided on."""
        self.clock.advance(seconds)
        await self.schedules.settled()

    async def started(self) -> list[str]:
        runs = await self.s.engine.list(RunFilter(tags={"schedule": "s"}))
        return sorted(run.tags["scheduled_at"][11:16] for run in runs)

    async def comes_to_wait(self, run: str) -> None:
        """Wait until a run exists and waits."""
        async with asyncio.timeout(60):
            while not await self.s.engine.list(RunFilter(search=run)):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        await self.s.rests(run)

    async def schedule(self) -> Schedule:
        (found,) = await self.schedules.list()
        return found


@asynccontextmanager
async def clocked(state: Path, clock: FakeClock | None = None, registry: Registry | None = None) -> AsyncIterator[Clocked]:
    clock = clock or FakeClock(moment("2026-05-01T10:00:30"))
    async with system(state, clock=clock, registry=registry, fire_schedules=True) as s:
        yield Clocked(s, clock)


async def test_each_moment_starts_its_run(tmp_path: Path) -> None:
    async with clocked(tmp_path / "state.db") as c:
        await c.put(every=MINUTE)
        for _ in range(3):
            await c.advance(MINUTE)
        assert await c.started() == ["10:01", "10:02", "10:03"]
        assert (await c.schedule()).next_at == moment("2026-05-01T10:04")


async def test_moments_that_were_missed_are_made_up_within_the_window_and_no_further(tmp_path: Path) -> None:
    clock = FakeClock(moment("2026-05-01T10:00:30"))
    async with clocked(tmp_path / "state.db", clock) as c:
        await c.put(every=600.0, overlap="allow", catch_up=1800.0)
        registry = c.s.registry
    clock.advance(2 * HOUR)
    async with clocked(tmp_path / "state.db", clock, registry) as c:
        await c.schedules.settled()
        assert await c.started() == ["11:40", "11:50", "12:00"]


async def test_a_jump_of_the_clock_starts_no_moment_twice(tmp_path: Path) -> None:
    async with clocked(tmp_path / "state.db") as c:
        await c.put(every=MINUTE, overlap="allow")
        await c.advance(2 * MINUTE)
        c.clock.step_wall(-HOUR)
        await c.advance(MINUTE)
        assert await c.started() == ["10:01", "10:02"]


async def test_one_moment_waits_while_the_run_before_goes_on(tmp_path: Path) -> None:
    async with clocked(tmp_path / "state.db") as c:
        await c.put(held, every=MINUTE, overlap="queue")
        for _ in range(3):
            await c.advance(MINUTE)
        assert await c.started() == ["10:01"]
        assert (await c.schedule()).skipped == 1
        await c.s.signal("s~20260501T100100Z", "go")
        await c.comes_to_wait("s~20260501T100200Z")
        assert await c.started() == ["10:01", "10:02"]
        async with asyncio.timeout(60):
            while (await c.schedule()).waiting is not None:  # Noted after the start.  # noqa: ASYNC110
                await asyncio.sleep(0.002)


async def test_a_waiting_moment_outlives_the_process(tmp_path: Path) -> None:
    clock = FakeClock(moment("2026-05-01T10:00:30"))
    async with clocked(tmp_path / "state.db", clock) as c:
        await c.put(held, every=MINUTE, overlap="queue")
        for _ in range(2):
            await c.advance(MINUTE)
        registry = c.s.registry
    async with clocked(tmp_path / "state.db", clock, registry) as c:
        assert await c.started() == ["10:01"]
        await c.s.signal("s~20260501T100100Z", "go")
        await c.comes_to_wait("s~20260501T100200Z")


async def test_the_run_before_is_cancelled_for_the_newest_moment(tmp_path: Path) -> None:
    async with clocked(tmp_path / "state.db") as c:
        await c.put(held, every=MINUTE, overlap="cancel")
        await c.advance(MINUTE)
        await c.advance(MINUTE)
        assert (await c.s.engine.wait("s~20260501T100100Z", 60)).status == "cancelled"
        await c.comes_to_wait("s~20260501T100200Z")


async def test_a_pause_is_not_made_up_for(tmp_path: Path) -> None:
    async with clocked(tmp_path / "state.db") as c:
        await c.put(every=MINUTE, overlap="allow")
        await c.advance(MINUTE)
        await c.schedules.pause("s")
        await c.advance(10 * MINUTE)
        await c.schedules.resume("s")
        await c.schedules.settled()
        assert await c.started() == ["10:01"]
        await c.advance(MINUTE)
        assert await c.started() == ["10:01", "10:12"]


def _knows_none(self: Registry, name: str, entry: str = "") -> Any:
    raise UnknownName(f"There is no workflow {name!r}.")


async def test_a_workflow_that_is_gone_is_said_and_the_next_moment_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(moment("2026-05-01T10:00:30"))

    @workflow(name="sched.gone")
    async def gone() -> None: ...

    async with clocked(tmp_path / "state.db", clock) as c:
        await c.put(gone, every=MINUTE)
    monkeypatch.setattr(Registry, "workflow", _knows_none)
    async with clocked(tmp_path / "state.db", clock) as c:
        await c.advance(MINUTE)
        assert (await c.schedule()).error == "There is no workflow 'sched.gone'."
        assert await c.started() == []
        monkeypatch.undo()
        await c.advance(MINUTE)
        assert await c.started() == ["10:02"]
        assert (await c.schedule()).error == ""


async def test_an_engine_that_does_not_stay_fires_nothing(tmp_path: Path) -> None:
    clock = FakeClock(moment("2026-05-01T10:00:30"))
    async with system(tmp_path / "state.db", clock=clock) as s:
        c = Clocked(s, clock)
        await c.put(every=MINUTE)
        await c.advance(HOUR)
        await asyncio.sleep(0)
        assert await c.started() == []
