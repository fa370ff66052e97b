"""Cheaper hours: when they are, what calls cost in them, and that calls which may wait wait for them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.unit.batch_world import HOUR, Step, World
from ziggurat.errors import SettingsError
from ziggurat.inference.backends.openai_compatible import create
from ziggurat.inference.hours import OffPeak
from ziggurat.inference.interface import EndpointConfig, ModelConfig, Price
from ziggurat.inference.prices import Tariff
from ziggurat.inference.routes import Routes
from ziggurat.records import Usage
from ziggurat.settings import load_settings

NIGHT = OffPeak(begin=22 * 60, end=6 * 60, zone="Asia/Shanghai")
NOON = OffPeak(begin=12 * 60, end=13 * 60 + 30)


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("hours", "moment", "wait"),
    [
        (NOON, at("2026-05-01T12:00"), 0.0),
        (NOON, at("2026-05-01T13:29:59"), 0.0),
        (NOON, at("2026-05-01T13:30"), 22.5 * HOUR),
        (NOON, at("2026-05-01T11:59:30"), 30.0),
        (NIGHT, at("2026-05-01T23:00", "Asia/Shanghai"), 0.0),
        (NIGHT, at("2026-05-01T05:59", "Asia/Shanghai"), 0.0),
        (NIGHT, at("2026-05-01T06:00", "Asia/Shanghai"), 16 * HOUR),
        # The clocks go forward at 01:00 UTC, so this night has an hour less.
        (OffPeak(begin=180, end=240, zone="Europe/Berlin"), at("2026-03-28T20:00", "Europe/Berlin"), 6 * HOUR),
    ],
)
def test_cheaper_hours_begin_and_end_by_the_clock_on_the_wall(hours: OffPeak, moment: float, wait: float) -> None:
    assert hours.wait(moment) == wait
    assert hours.holds(moment) == (wait == 0.0)


def test_a_call_in_cheaper_hours_costs_its_share_and_the_bill_says_so() -> None:
    tariff = Tariff(price=Price(input=2.0), version="settings", off_peak=NOON)
    usage = Usage(calls=1, input_tokens=1_000_000)
    inside, outside = at("2026-05-01T12:30"), at("2026-05-01T14:00")
    assert (tariff.bill(usage, inside).cost_usd, tariff.version_at(inside)) == (1.0, "settings off-peak")
    assert (tariff.bill(usage, outside).cost_usd, tariff.version_at(outside)) == (2.0, "settings")
    assert tariff.bill(usage, inside, batch=True).cost_usd == 1.0, "one discount or the other"


@pytest.mark.parametrize(
    ("hours", "says"),
    [
        ("22-6", "must be hours such as"),
        ("22:00-25:00", "must be hours such as"),
        ("22:00-06:00 Mars/Base", "no time zone 'Mars/Base'"),
    ],
)
def test_hours_that_cannot_be_read_are_refused(tmp_path: Path, hours: str, says: str) -> None:
    (tmp_path / "ziggurat.toml").write_text(f'[inference.endpoints.x]\nbase_url = "http://x/v1"\noff_peak = "{hours}"\n')
    with pytest.raises(SettingsError, match=says):
        load_settings(tmp_path / "ziggurat.toml")


async def test_a_call_waits_for_cheaper_hours_if_they_begin_in_time(tmp_path: Path) -> None:
    async with World(tmp_path) as world:
        process = world.process()
        hours = OffPeak(begin=0, end=60)
        config = EndpointConfig(
            name="cheap", base_url=world.upstream.base_url, prices={"m": Price(input=1000.0, output=1000.0)}, off_peak=hours
        )
        process._table = Routes(
            {"cheap": create(config)},
            {"default": ModelConfig(routes=["cheap:m"])},
            world.clock,
            process.options,
            process._rng,
            process.keeper,
            {},
        )
        wait = hours.wait(world.now)
        assert 0 < wait < 3 * HOUR
        patient, hasty = Step("patient", due=world.now + wait + HOUR), Step("hasty", due=world.now + wait)
        await world.run(process, hasty)
        assert hasty.waits == []
        await world.run(process, patient)
        assert patient.waits == ["It waits for the off-peak hours of cheap, from 00:00 UTC."]
        assert hours.holds(patient.answered_at)
        (cheap,), (plain,) = patient.calls.values(), hasty.calls.values()
        assert (cheap.price_version, plain.price_version) == ("settings off-peak", "settings")
        await process.endpoints["cheap"].close()
