"""init: a project that works at once: settings, one workflow, one test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ziggurat.doors.cli.common import AsJson, answer, answer_json, say
from ziggurat.errors import ConfigurationError

_TOML = """\
# Settings of {name}. Every one is described in the settings reference; any can be given as a variable too,
# such as ZIGGURAT_QUEUE__BACKEND=sqlite.

[app]
modules = ["{module}"]

[orchestrator]
backend = "embedded"
path = ".ziggurat/state.db"

[queue]
backend = "memory"

[workers.default]
concurrency = 64

# A small model on this machine serves until a better one is named: put the key into GMI_API_KEY and write
#
# [inference.models.default]
# routes = ["gmi:deepseek-ai/DeepSeek-V4-Pro", "local:smollm2"]
"""

_WORKFLOW = '''\
"""The workflows of {name}. Run one with: ziggurat run {module}:greet --input '{{"name": "Ada"}}'"""

from __future__ import annotations

import asyncio

from ziggurat import Retry, task, workflow


@task(retry=Retry(attempts=3), timeout="30s")
async def compose(name: str) -> str:
    """Write a greeting. A task runs on a worker, and is tried again if it fails."""
    return f"Hello, {{name}}!"


@task
def measure(text: str) -> int:
    """Count letters. A plain function works too; it runs in a thread."""
    return sum(letter.isalpha() for letter in text)


@workflow
async def greet(name: str) -> dict[str, str | int]:
    """Greet someone. What is recorded never runs again, whatever crashes."""
    greeting = await compose(name)
    await asyncio.sleep(0.1)  # A durable timer: it may as well be three days.
    return {{"greeting": greeting, "letters": await measure(greeting)}}
'''

_TEST = '''\
"""Tasks and workflows are plain functions: a test awaits them, with no engine at all."""

from __future__ import annotations

import asyncio

from {module} import compose, greet


def test_compose() -> None:
    assert asyncio.run(compose("Ada")) == "Hello, Ada!"


def test_greet() -> None:
    assert asyncio.run(greet("Ada")) == {{"greeting": "Hello, Ada!", "letters": 8}}
'''

_IGNORE = "# The state file and the local queue of this folder's system.\n*\n"


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where; made if missing.")] = Path(),
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The module's name; the folder's by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a project: ziggurat.toml, one workflow and one test. Existing files are never overwritten."""
    title = name or folder.resolve().name
    module = re.sub(r"\W+", "_", title.lower()).strip("_") or "agents"
    if not module.isidentifier():
        module = f"app_{module}"
    texts = {
        Path("ziggurat.toml"): _TOML,
        Path(f"{module}.py"): _WORKFLOW,
        Path(f"test_{module}.py"): _TEST,
        Path(".ziggurat/.gitignore"): _IGNORE,
    }
    if present := [str(path) for path in texts if (folder / path).exists() and path.name != ".gitignore"]:
        raise ConfigurationError(f"{folder / present[0]} exists already; choose another folder, or a name with --name.")
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text.format(name=title, module=module), encoding="utf-8")
    made = [str(folder / path) for path in texts if path.name != ".gitignore"]
    if as_json:
        answer_json({"made": made, "module": module})
        return
    for one in made:
        answer(one)
    place = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    say(f'Try it: {place}ziggurat run {module}:greet --input \'{{"name": "Ada"}}\'')
