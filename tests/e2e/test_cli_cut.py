"""Commands whose reader is gone, as `head` is once it has its ten lines: no word, and the exit code that shells give such tools."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.e2e.conftest import HUNG, Project

FLOWS = """
    from ziggurat import workflow

    @workflow
    async def talk(length: int = 1) -> str:
        return "x" * length
"""
#: What prints in different ways: rich tables and panels, JSON, plain text, what click prints itself, a run that is watched, a mistake.
COMMANDS = (
    ("show", "r"),
    ("show", "r", "--json"),
    ("history", "r"),
    ("list",),
    ("models",),
    ("doctor",),
    ("--help",),
    ("--version",),
    ("run", "cutflows:talk", "--id", "r"),
    ("show", "unknown", "--json"),
)


@pytest.fixture
def told(project: Project) -> Project:
    project.write("cutflows.py", FLOWS)
    project.write("ziggurat.toml", '[app]\nmodules = ["cutflows"]')
    project.ok("run", "cutflows:talk", "--id", "r")
    return project


def cut(project: Project, *arguments: str, stderr_too: bool = False) -> tuple[int, str]:
    """Run a command whose stdout nobody reads; returns its exit code and what it said on stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            project.command(*arguments),
            cwd=project.folder,
            env=project.environ,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.STDOUT if stderr_too else subprocess.PIPE,
            text=True,
            timeout=HUNG,
            check=False,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


def test_a_reader_that_leaves_ends_every_command_without_a_word(told: Project) -> None:
    ended = {arguments: cut(told, *arguments) for arguments in COMMANDS}
    assert {arguments: code for arguments, (code, _) in ended.items()} == dict.fromkeys(COMMANDS, 141)
    said = {arguments: err for arguments, (_, err) in ended.items() if "Traceback" in err or "bug" in err or "sys.exit" in err}
    assert said == {}
    assert cut(told, "show", "r", stderr_too=True)[0] == cut(told, "show", "unknown", stderr_too=True)[0] == 141


def test_head_gets_its_lines_and_a_pipeline_succeeds(told: Project) -> None:
    # More than a pipe holds, so that the command is still writing when head leaves.
    told.ok("run", "cutflows:talk", "--id", "long", "--input", '{"length": 100000}')
    command = " ".join(told.command("show", "long", "--json"))
    piped = subprocess.run(
        f"{command} | head -c 200", shell=True, cwd=told.folder, env=told.environ, capture_output=True, timeout=HUNG, check=False
    )
    assert (piped.returncode, len(piped.stdout), piped.stderr) == (0, 200, b"")
