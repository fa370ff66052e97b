"""Limits and budgets over HTTP: what is in use of them, who waits, who is parked; and that tenants see their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.conftest import clear_of_midnight
from tests.integration.api_server import PATIENCE, Caller, api
from ziggurat import llm, workflow

#: A scripted answer of 20 tokens costs two cents; a prompt is free.
INFERENCE: dict[str, Any] = {
    "endpoints": {
        "desk": {
            "kind": "scripted",
            "options": {"latency": 0.0},
            "limits": {"tokens_per_minute": 6000, "concurrency": 2},
            "model_limits": {"scribe": {"requests_per_minute": 600}},
            "prices": {"scribe": {"input": 0.0, "output": 1000.0}},
        },
        "slow": {"kind": "scripted", "options": {"latency": 3600.0}, "limits": {"concurrency": 1}},
    },
    "models": {"default": {"routes": ["desk:scribe"]}, "slow": {"routes": ["slow:x"]}},
    "budgets": {"call": 5.0, "day": 50.0, "workflows": {"write": 40.0}, "tenants": {"*": 0.005, "rich": 30.0}, "soft": 0.5},
    "limits": {"tenants": {"*": {"tokens_per_minute": 60000}, "acme": {"concurrency": 7}}},
}


def settings(folder: Path) -> dict[str, Any]:
    paths = {
        "ledger": str(folder / "ledger.db"),
        "answers": {"path": str(folder / "answers.db")},
        "switches": str(folder / "m.json"),
    }
    return {"inference": {**INFERENCE, **paths}}


@workflow
async def write(words: int = 20) -> int:
    return len(await llm.text("Write.", max_tokens=words))


@workflow
async def wait_in_line(priority: int = 3) -> str:
    return await llm.text("Hurry.", model="slow", max_tokens=5)


async def start(caller: Caller, id: str, namespace: str, workflow: str = "write", **more: Any) -> None:
    order = {"workflow": workflow, "id": id, "namespace": namespace, **more}
    await caller.ok("POST", "/runs", order)


async def test_budgets_show_what_is_spent_and_who_is_parked(tmp_path: Path) -> None:
    await clear_of_midnight()
    async with api(tmp_path, write, wait_in_line, more=settings(tmp_path), auth="always") as served:
        admin = served.key("root", "admin")
        acme, rich = served.key("a", "viewer", "acme"), served.key("r", "viewer", "rich")
        await start(admin, "small", "rich", input={"words": 20}, budget="$10")
        await admin.until("small", "completed")
        await start(admin, "large", "rich", budget="$0.005")
        await start(admin, "poor", "acme")
        for run in ("large", "poor"):
            await admin.until(run, "parked")
        found = await admin.ok("GET", "/budgets")
        budgets = {one["key"]: one for one in found["budgets"]}
        assert set(budgets) == {"call", "day", "workflow:write", "tenant:acme", "tenant:rich", "tenant:default"}
        assert budgets["call"]["limit_usd"] == 5.0 and budgets["call"]["renews_at"] is None
        rich_spent = budgets["tenant:rich"]["spent_usd"]
        assert 0 < rich_spent < 1 and budgets["day"]["spent_usd"] >= rich_spent
        assert budgets["workflow:write"]["soft_usd"] == 20.0 and budgets["day"]["renews_at"].endswith("T00:00:00Z")
        assert (budgets["tenant:acme"]["parked"], budgets["tenant:rich"]["parked"]) == (1, 0)
        runs = {one["run"]: one for one in found["runs"]}
        assert (runs["large"]["budget"], runs["large"]["budget_usd"]) == ("run:large", 0.005)
        assert (runs["poor"]["budget"], runs["poor"]["budget_usd"]) == ("tenant:acme", None)
        assert "resume" in runs["large"]["reason"] and "small" not in runs
        assert (await admin.ok("GET", "/runs/poor"))["error"]["budget"] == "tenant:acme"
        # A tenant sees what it may spend and its own runs, and nothing of what others spend.
        theirs = await acme.ok("GET", "/budgets")
        assert {one["key"] for one in theirs["budgets"]} == {"call", "tenant:acme"}
        assert [one["run"] for one in theirs["runs"]] == ["poor"]
        assert [one["run"] for one in (await rich.ok("GET", "/budgets"))["runs"]] == ["large"]
        assert (await acme.get("/budgets?namespace=rich")).status == 404


async def test_limits_show_what_is_in_use_and_who_waits(tmp_path: Path) -> None:
    async with api(tmp_path, write, wait_in_line, more=settings(tmp_path), auth="always") as served:
        admin, acme, other = served.key("root", "admin"), served.key("a", "viewer", "acme"), served.key("o", "viewer", "other")
        await start(admin, "done", "rich")
        await admin.until("done", "completed")
        for number, priority in enumerate((1, 3, 5)):
            await start(admin, f"queued-{number}", "acme", "wait_in_line", priority=priority)

        async def seen() -> tuple[dict[str, Any], dict[str, Any], dict[tuple[str, str, str], Any]]:
            found = await admin.ok("GET", "/limits")
            assert found["trouble"] == ""
            ends = {one["endpoint"]: one for one in found["endpoints"]}
            return found, ends, {(one["whose"], one["name"], one["what"]): one for one in found["limits"]}

        async with asyncio.timeout(PATIENCE):
            while (looked := await seen())[1]["slow"]["in_flight"] + sum(looked[1]["slow"]["waiting"].values()) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        _, ends, limits = looked
        assert ends["slow"]["in_flight"] == 1 and sum(ends["slow"]["waiting"].values()) == 2
        assert set(ends["slow"]["waiting"]) < {"1", "3", "5"} and ends["slow"]["processes"] == 1
        assert (limits["endpoint", "slow", "calls"]["used"], limits["endpoint", "slow", "calls"]["free"]) == (1, 0)
        tokens = limits["endpoint", "desk", "tokens"]
        assert tokens["limit"] == 6000 and tokens["used"] > 0
        assert (
            limits["model", "scribe", "requests"]["limit"] == 600 and limits["model", "scribe", "requests"]["endpoint"] == "desk"
        )
        assert limits["tenant", "acme", "calls"]["limit"] == 7 and limits["tenant", "rich", "tokens"]["limit"] == 60000
        theirs = await acme.ok("GET", "/limits")
        assert theirs["endpoints"] == []
        assert [(one["whose"], one["name"], one["what"]) for one in theirs["limits"]] == [("tenant", "acme", "calls")]
        assert (await other.ok("GET", "/limits"))["limits"] == []
        route = next(one for one in (await admin.ok("GET", "/models"))["models"] if one["alias"] == "slow")["routes"][0]
        assert (route["in_flight"], route["waiting"]) == (1, 2)
