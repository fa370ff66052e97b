"""LangChain's standard tests and pydantic-ai's agents against a gateway process: neither knows that it is no OpenAI."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SUITE = Path(__file__).parent / "langchain_suite.py"
#: Compares how ChatOpenAI writes itself down with a snapshot that is kept by LangChain. No request is made.
LEFT_OUT = ["test_serdes"]
#: What the local model of 135 million parameters cannot: its answer repeats itself until max_tokens cuts the JSON.
TOO_HARD = ["test_structured_output_optional_param"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in a process of its own, with a scripted model "s" and the local model "local"; its base URL."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "ziggurat.toml").write_text(
        '[inference.endpoints.s]\nkind = "scripted"\noptions = { reads = true }\n'
        '[inference.models.s]\nroutes = ["s:scripted"]\n'
        '[inference.models.local]\nroutes = ["local:smollm2"]\n'
        "[gateway]\nport = 0\n"
    )
    command = [sys.executable, "-m", "ziggurat", "gateway", "--json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r'"base_url": ?"([^"]+)"', process.stdout.readline())
            assert found is not None
            yield found.group(1)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0


def run_suite(folder: Path, url: str, model: str, left_out: list[str]) -> str:
    """Run LangChain's suite and return its last line. What is left out is named, never matched by accident."""
    options: dict[str, Any] = {
        "asyncio_mode": "auto",
        # ChatOpenAI shares one HTTP client by all models, and so by all tests; it cannot outlive its loop.
        "asyncio_default_test_loop_scope": "session",
        "asyncio_default_fixture_loop_scope": "session",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        f"--rootdir={folder}",
        "-p",
        "no:cacheprovider",
        "--benchmark-disable",
    ]
    command += [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    command += ["-k", " and ".join(f"not {name}" for name in left_out), str(SUITE)]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "LANGCHAIN_", "LANGSMITH_"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environ, "GATEWAY_URL": url, "GATEWAY_MODEL": model},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_langchains_standard_tests_pass_on_the_scripted_model(gateway: str, tmp_path: Path) -> None:
    last = run_suite(tmp_path, gateway, "s", LEFT_OUT)
    passed = re.search(r"(\d+) passed", last)
    assert passed is not None
    assert int(passed.group(1)) >= 45


@pytest.mark.slow
def test_langchains_standard_tests_pass_on_the_local_model(gateway: str, tmp_path: Path) -> None:
    last = run_suite(tmp_path, gateway, "local", [*LEFT_OUT, *TOO_HARD])
    passed = re.search(r"(\d+) passed", last)
    assert passed is not None
    assert int(passed.group(1)) >= 44


# -- pydantic-ai -----------------------------------------------------------------------------------------------------

AGENT = '''
import asyncio, sys
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

class City(BaseModel):
    name: str
    people: int

async def main(url, kind):
    provider = OpenAIProvider(base_url=url, api_key="any")
    model = (OpenAIChatModel if kind == "chat" else OpenAIResponsesModel)("s", provider=provider)
    plain = await Agent(model).run("Say something.")
    assert plain.output and plain.usage.output_tokens, plain
    agent = Agent(model)
    seen = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """Tells the weather of a city."""
        seen.append(city)
        return "dry"

    called = await agent.run("How is the weather in 'Ur'?")
    assert seen == ["Ur"], seen
    assert called.output
    shaped = await Agent(model, output_type=City).run("Tell of 'Ur' and its 30 people.")
    assert shaped.output == City(name="Ur", people=30), shaped.output
    async with Agent(model).run_stream("Say something.") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 1, pieces

for door in ("chat", "responses"):
    asyncio.run(main(sys.argv[1], door))
print("well")
'''


def test_pydantic_ai_agents_talk_call_tools_fill_schemas_and_stream(gateway: str, tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(AGENT)
    done = subprocess.run([sys.executable, str(script), gateway], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "well\n", done.stdout + done.stderr
