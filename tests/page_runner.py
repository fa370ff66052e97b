"""Runs the blocks of one page in order, in the current folder: `python -m tests.page_runner PAGE.md`.

The page is a process of its own, so that what its snippets define, patch or leave open touches no other test. Python blocks
share one namespace and one event loop, and may await at the top level. In shell blocks `ziggurat` and `python` run; what
prepares a machine (pip install, git clone, cd, make) is checked elsewhere. Exits with 1 at the first block that fails, naming its
line.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path

from tests.pages import Block, commands, read_page
from ziggurat.settings import load_settings

SHELLS = ("bash", "console", "sh", "shell")
#: Commands that a reader runs once to prepare a machine.
NOT_RUN = ("cd ", "git clone ", "make ", "pip install ", "python -m pip install ", "uv ")
#: Seconds for one command or one Python block.
COMMAND_TIMEOUT = 150.0


class BlockFailed(Exception):
    """A block of the page does not do what a reader would expect; the text holds the line and the output."""


def run_page(path: Path) -> int:
    """Run every block; return how many were run."""
    module = types.ModuleType("page")
    sys.modules["page"] = module
    sys.path.insert(0, os.getcwd())
    ran = 0
    with asyncio.Runner() as runner:
        for block in read_page(path).blocks:
            try:
                ran += _run(block, module, runner, path)
            except BlockFailed:
                raise
            except Exception as error:
                trace = "".join(traceback.format_exception(error))
                raise BlockFailed(f"{path}:{block.line}: this block failed.\n{trace}") from error
    return ran


def _run(block: Block, module: types.ModuleType, runner: asyncio.Runner, path: Path) -> bool:
    if block.verb == "file":
        target = Path(block.argument)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text, encoding="utf-8")
        if target.suffix == ".toml":
            load_settings(target, environ={})
    elif block.runs and block.language == "python":
        _run_python(block, module, runner, path)
    elif block.runs and block.language in SHELLS:
        _run_shell(block, path)
    elif block.runs and block.language == "json":
        json.loads(block.text)
    elif block.runs and block.language == "toml":
        _check_toml(block.text)
    else:
        return False
    return True


def _check_toml(text: str) -> None:
    """TOML on a page is a whole ziggurat.toml or a part of one; unknown settings and impossible values fail."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ziggurat.toml"
        path.write_text(text, encoding="utf-8")
        load_settings(path, environ={})


def _run_python(block: Block, module: types.ModuleType, runner: asyncio.Runner, path: Path) -> None:
    # Padding gives tracebacks the page's own line numbers.
    code = compile("\n" * (block.line - 1) + block.text, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:

        async def awaited() -> None:
            async with asyncio.timeout(COMMAND_TIMEOUT):
                await eval(code, module.__dict__)

        runner.run(awaited())
    else:
        exec(code, module.__dict__)


def _run_shell(block: Block, path: Path) -> None:
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    lines = [(command, line) for command, line in commands(block) if not command.startswith(NOT_RUN)]
    for index, (command, line) in enumerate(lines):
        if not command.startswith(("ziggurat ", "python ", "export ", "echo ", "cat ", "mkdir ", "kill ")):
            raise BlockFailed(f"{path}:{line}: no test runs '{command}'; mark the block `<!-- docs: no-run: REASON -->`.")
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            os.environ[name] = environment[name] = value.strip("'\"")
            continue
        expected = int(block.argument) if block.verb == "exit" and index == len(lines) - 1 else 0
        finished = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
        if finished.returncode != expected:
            raise BlockFailed(f"{path}:{line}: '{command}' ended with {finished.returncode}, not {expected}.\n{finished.stdout}")


def main() -> int:
    try:
        print(f"{run_page(Path(sys.argv[1]))} blocks ran")
    except BlockFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
