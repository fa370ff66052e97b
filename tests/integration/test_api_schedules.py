"""Schedules over HTTP: made, looked at, run, paused, backfilled and removed, each by whoever may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.api_server import Caller, api
from ziggurat import workflow


@workflow
async def daily_digest(team: str = "all") -> str:
    return f"digest of {team}"


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    async with api(tmp_path, daily_digest) as calling:
        yield calling


ORDER = {"workflow": "daily_digest", "input": {"team": "night"}, "cron": ["0 3 * * *"], "timezone": "Europe/Berlin"}


async def test_a_schedule_lives_over_http(caller: Caller) -> None:
    made = await caller.ok("PUT", "/schedules/nightly", ORDER)
    assert (made["workflow"], made["origin"], made["paused"], len(made["next"])) == ("daily_digest", "hand", False, 5)
    assert await caller.ok("GET", "/schedules/nightly") == made
    assert (await caller.ok("GET", "/schedules"))["schedules"] == [made]
    run = await caller.ok("POST", "/schedules/nightly/trigger")
    assert (await caller.until(run["id"], "completed"))["result"] == "digest of night"
    paused = await caller.ok("POST", "/schedules/nightly/pause", {"reason": "away"})
    assert (paused["paused"], paused["reason"], paused["next"], paused["last_run"]) == (True, "away", [], run["id"])
    assert (await caller.ok("POST", "/schedules/nightly/resume"))["paused"] is False
    span = {"since": "2026-05-01T00:00:00Z", "until": "2026-05-03T00:00:00Z"}
    assert await caller.ok("POST", "/schedules/nightly/backfill", span) == {"count": 2}
    assert (await caller.ask("DELETE", "/schedules/nightly")).status == 204
    assert (await caller.get("/schedules/nightly")).error == "UnknownName"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"cron": []}, 400, "says no time"),
        ({"cron": ["61 * * * *"]}, 400, "bad minute"),
        ({"every": "soon"}, 422, "every"),
        ({"timezone": "Mars"}, 400, "no time zone 'Mars'"),
        ({"workflow": "os:system"}, 404, "os:system"),
        ({"input": {"team": 7}}, 422, "team"),
        ({"overlap": "both"}, 422, "overlap"),
    ],
)
async def test_a_mistake_is_one_sentence(caller: Caller, change: dict[str, object], status: int, said: str) -> None:
    answer = await caller.ask("PUT", "/schedules/nightly", {**ORDER, **change})
    assert answer.status == status, answer.body
    assert said in answer.json["error"]["message"]


async def test_a_tenant_neither_sees_nor_takes_the_schedules_of_another(caller: Caller) -> None:
    acme, other = caller.key("a", "operator", "acme"), caller.key("o", "operator", "other")
    made = await acme.ok("PUT", "/schedules/plan", ORDER)
    assert made["namespace"] == "acme"
    assert (await other.ok("GET", "/schedules"))["schedules"] == []
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/trigger")):
        assert (await other.ask(method, f"/schedules/plan{path}")).status == 404
    assert (await other.ask("PUT", "/schedules/plan", ORDER)).status == 409
    run = await acme.ok("POST", "/schedules/plan/trigger")
    assert run["namespace"] == "acme"
