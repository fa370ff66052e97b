"""The OpenAPI document is true: whatever is sent to the API, it answers as the document says, and never with a 5xx."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Project

PROGRAM = """
    from pydantic import BaseModel
    from ziggurat import Artifact, signal, task, workflow

    class Document(BaseModel):
        title: str
        pages: int = 1

    @task
    async def count(document: Document) -> int:
        return document.pages

    @workflow
    async def analyze(document: Document) -> int:
        return await count(document) if await signal("go", bool) else 0

    @workflow
    async def read(file: Artifact) -> int:
        return file.size
"""
#: A rule between two fields, such as "ids, or all", is no part of a schema, so that a body may fit and be refused all the same: that one
#: check is left out. Streams stay open until their run ends, which schemathesis would wait for; tests/integration/test_api_runs.py reads
#: them.
OPTIONS = (
    "--checks", "all", "--exclude-checks", "positive_data_acceptance,ignored_auth", "--exclude-path-regex", "events$",
    "--generation-with-security-parameters", "false", "--generation-deterministic", "--no-shrink", "--no-color", "--continue-on-failure",
    "--request-timeout", "30", "--warnings", "off",
)  # fmt: skip


@pytest.fixture
def url(project: Project) -> str:
    project.write("app.py", PROGRAM)
    project.write("ziggurat.toml", '[app]\nmodules = ["app"]\n')
    serving = project.begin("serve", "--json", "--port", "0")
    assert serving.stdout is not None
    found = json.loads(serving.stdout.readline())["api"]
    for number in range(3):
        project.ok("start", "analyze", "--input", '{"title": "x"}', "--id", f"run-{number}")
    return str(found)


def fuzz(url: str, folder: Path, *options: str, patience: float) -> None:
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{url}/api/v1/openapi.json", *OPTIONS, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=patience, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


def test_the_api_is_what_its_document_says(url: str, tmp_path: Path) -> None:
    fuzz(url, tmp_path, "--phases", "fuzzing", "-n", "2", "--max-time", "30", patience=280)


@pytest.mark.slow
def test_the_api_is_what_its_document_says_at_every_boundary(url: str, tmp_path: Path) -> None:
    fuzz(url, tmp_path, "--phases", "coverage,fuzzing,stateful", "-n", "100", "--max-time", "1200", patience=1500)
