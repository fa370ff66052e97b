"""`ziggurat models`: aliases are pointed elsewhere under a system that runs, by one command, and taken back."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.conftest import Project
from ziggurat.testing.models import FaultyUpstream

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


async def test_the_list_says_what_a_route_costs_where_it_is_and_how_its_replicas_are(project: Project) -> None:
    async with FaultyUpstream() as well, FaultyUpstream() as ill:
        well.health, ill.health = 200, 503
        well.metrics = 'vllm:num_requests_running{model_name="qwen"} 7.0\nvllm:num_requests_waiting{model_name="qwen"} 2.0\n'
        project.write(
            "ziggurat.toml",
            f"""
            [inference.endpoints.pool]
            urls = ["{well.base_url}", "{ill.base_url}"]
            gpu = "h200"
            region = "eu"
            quality = {{ qwen = 4 }}
            [inference.models.fast]
            routes = ["pool:qwen", "gmi:deepseek-ai/DeepSeek-V4-Pro", "gmi:openai/gpt-5.4-mini"]
            regions = ["eu"]
            """,
        )
        listed = await asyncio.to_thread(lambda: project.ok("models", "--json").json)
        pool, deepseek, mini = (row for row in listed if row["alias"] == "fast")
        assert (pool["region"], pool["quality"], pool["usd_per_hour"]) == ("eu", 4, 5.2)
        assert [(one["url"], one["health"], one["running"]) for one in pool["replicas"]] == [
            (well.base_url, "well", 7), (ill.base_url, "ill", None)
        ]  # fmt: skip
        assert (deepseek["input_usd_per_million"], deepseek["output_usd_per_million"]) == (1.39, 1.39)
        assert (mini["input_usd_per_million"], mini["output_usd_per_million"]) == (0.40, 2.50)
        refused = await asyncio.to_thread(lambda: project.run("models", "set", "fast=gmi:a/b"))
        assert refused.code == 2 and "must stay in 'eu'" in refused.err
        shown = await asyncio.to_thread(lambda: project.ok("models", COLUMNS="240"))
        for said in ("2 replicas, 1 well", f"well    {well.base_url} (7 running, 2 waiting)", "$5.20/h", "$0.40/$2.50 per M"):
            assert said in shown.out
        assert f"{ill.base_url} is ill: " in shown.err and "503" in shown.err
