"""`ziggurat models`: aliases are pointed elsewhere under a system that runs, by one command, and taken back."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Project

FLOWS = """
    from ziggurat import llm, task, workflow

    @task
    async def ask() -> str:
        return await llm.text("Who are you?", model="fast")

    @workflow
    async def who() -> str:
        return await ask()
"""
SETTINGS = """
    [app]
    modules = ["flows"]
    [server]
    port = 0
    [inference.endpoints.old]
    kind = "scripted"
    options = { answers = [{ match = ".*", answer = "the old one" }] }
    [inference.endpoints.new]
    kind = "scripted"
    options = { answers = [{ match = ".*", answer = "the new one" }] }
    [inference.models.fast]
    routes = ["old:m"]
"""


@pytest.fixture
def flows(project: Project) -> Project:
    project.write("flows.py", FLOWS)
    project.write("ziggurat.toml", SETTINGS)
    return project


def test_a_running_system_follows_a_switch_and_its_rollback(flows: Project) -> None:
    flows.begin("serve")
    flows.until_served()

    def answers(text: str) -> bool:
        return bool(flows.ok("run", "flows:who", "--json").json["result"] == text)

    assert answers("the old one")
    assert flows.ok("models", "set", "fast=new:m").out == "fast: new:m\n"
    flows.until(lambda: answers("the new one"), "the system follows")
    listed = [row for row in flows.ok("models", "--json").json if row["alias"] == "fast"]
    assert [(row["endpoint"], row["switched"]) for row in listed] == [("new", True)]
    assert "fast (switched)" in flows.ok("models").out
    shared = flows.ok("models", "set", "fast=50%:old:m,50%:new:m", "--shadow", "new:tried", "--json").json
    assert (shared["weights"], shared["shadow"], shared["version"]) == ([0.5, 0.5], "new:tried", 2)
    assert flows.ok("models", "history", "fast").out.count("\n") == 2
    assert flows.ok("models", "rollback", "fast").out == "fast: new:m\n"
    assert flows.ok("models", "rollback", "fast").out == "fast: what the settings say\n"
    flows.until(lambda: answers("the old one"), "the system follows back")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "fast"), "write ALIAS=ROUTE"),
        (("set", "fast=elsewhere:m"), "the endpoint 'elsewhere', which is not defined"),
        (("set", "fast=new"), "write endpoint:model"),
        (("set", "fast=60%:old:m,60%:new:m"), "make 120% together"),
        (("rollback", "fast"), "never switched"),
    ],
)
def test_a_mistake_is_one_sentence(flows: Project, arguments: tuple[str, ...], said: str) -> None:
    finished = flows.run("models", *arguments)
    assert finished.code in (1, 2)
    assert said in finished.error
