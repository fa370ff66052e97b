"""A worker is killed between its model calls: what it bought is not bought again, and is in the ledger once."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.conftest import Project, project  # noqa: F401

PROGRAM = """
    import asyncio
    from pathlib import Path
    from ziggurat import llm, task, workflow

    STREAMED = {streamed}

    async def ask(question: str) -> str:
        if not STREAMED:
            return await llm.text(question, model="fast")
        return "".join([piece async for piece in llm.stream(question, model="fast")])

    @task
    async def five() -> list[str]:
        said = []
        for number in range(5):
            said.append(await ask(f"Say something about {number}."))
            if number == 2 and not Path("killed").exists():
                Path("three").touch()
                await asyncio.sleep(600)
        return said

    @workflow
    async def essay() -> list[str]:
        return await five()
"""
SETTINGS = """
    [app]
    modules = ["essays"]
    [queue]
    backend = "{queue}"
    lease = "2s"
    [server]
    port = 0
    [inference.endpoints.press]
    kind = "scripted"
    [inference.endpoints.press.prices]
    "m" = {{ input = "$3", output = "$15" }}
    [inference.models.fast]
    routes = ["press:m"]
"""


@pytest.mark.chaos
@pytest.mark.parametrize(("queue", "streamed"), [("memory", False), ("sqlite", False), ("sqlite", True)])
def test_three_of_five_calls_are_not_bought_again(project: Project, queue: str, streamed: bool) -> None:  # noqa: F811
    project.write("essays.py", PROGRAM.replace("{streamed}", str(streamed)))
    project.write("ziggurat.toml", SETTINGS.format(queue=queue))
    victim = project.begin("serve")
    project.until_served()
    project.ok("start", "essays:essay", "--id", "e")
    project.until(lambda: (project.folder / "three").exists(), "three calls were made")
    project.end(victim, signal.SIGKILL)
    (project.folder / "killed").touch()
    heir = project.begin("serve")
    project.until_status("e", "completed")
    (step,) = [event for event in project.ok("history", "e", "--json").json if event["kind"] == "step_completed"]
    assert len(step["calls"]) == 5
    assert len({call["id"] for call in step["calls"]}) == 5
    (row,) = project.ok("costs", "--by", "workflow", "--json").json
    assert row["calls"] == 5
    shown = project.ok("show", "e", "--json").json
    assert shown["usage"]["cost_usd"] == pytest.approx(sum(call["usage"]["cost_usd"] for call in step["calls"]))
    project.end(heir, signal.SIGTERM)
