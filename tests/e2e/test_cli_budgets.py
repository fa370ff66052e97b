"""A run that has spent its budget, as people meet it: parked with the reason, taken up with more, and paid for once."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Project

PROGRAM = """
    from ziggurat import llm, task, workflow

    @task
    async def describe(number: int) -> str:
        return await llm.text(f"Describe number {number}.", model="m", max_tokens=40)

    @workflow{budget}
    async def catalogue(count: int) -> int:
        for number in range(count):
            await describe(number)
        return count
"""
SETTINGS = """
    [app]
    modules = ["shops"]
    [inference.endpoints.s]
    kind = "scripted"
    [inference.endpoints.s.prices]
    m = {{ input = 200.0, output = 400.0 }}
    [inference.models.m]
    routes = ["s:m"]
    {more}
"""


def shop(project: Project, *, budget: str = "", more: str = "") -> None:
    project.write("shops.py", PROGRAM.replace("{budget}", budget))
    project.write("ziggurat.toml", SETTINGS.format(more=more))


def test_a_spent_run_is_parked_and_goes_on_with_more(project: Project) -> None:
    shop(project, budget='(budget="$0.05")')
    parked = project.run("run", "shops:catalogue", "--input", '{"count": 8}', "--id", "c")
    assert parked.code == 1
    assert (
        "has been spent of the budget of the run c. Resume it with a larger one: ziggurat resume c --budget '+$1'" in parked.error
    )
    spent = project.ok("show", "c", "--json").json
    assert spent["status"] == "parked"
    assert 0.0 < spent["usage"]["cost_usd"] <= 0.05
    wrong = project.run("resume", "c", "--budget", "lots")
    assert (wrong.code, "lots" in wrong.error) == (2, True)
    project.ok("resume", "c", "--budget", "+$1")
    done = project.ok("run", "shops:catalogue", "--input", '{"count": 8}', "--id", "c", "--json").json
    assert (done["status"], done["result"]) == ("completed", 8)
    (row,) = project.ok("costs", "--by", "run", "--json").json
    assert row["calls"] == 8
    assert row["cost_usd"] == pytest.approx(done["usage"]["cost_usd"])


def test_a_larger_budget_in_the_settings_lets_a_parked_run_go_on(project: Project) -> None:
    shop(project, more="[inference.budgets]\n    step = 0.01")
    parked = project.run("run", "shops:catalogue", "--input", '{"count": 8}', "--id", "c")
    assert parked.code == 1
    assert "of $0.01 has been spent of the budget of a step. Raise step in [inference.budgets]" in parked.error
    shop(project, more="[inference.budgets]\n    step = 1.0")
    project.ok("resume", "c")
    assert project.ok("run", "shops:catalogue", "--input", '{"count": 8}', "--id", "c", "--json").json["result"] == 8
