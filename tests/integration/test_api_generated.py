"""A client that is generated from the OpenAPI document works, without a correction by hand."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.integration.api_server import api
from tests.integration.test_api_system import PROGRAM

GENERATOR = "openapi-python-client>=0.26,<1"
USE = """
import sys
from ziggurat_client import Client
from ziggurat_client.api.runs import get_run, list_runs, signal_run, start_run
from ziggurat_client.api.system import list_workflows
from ziggurat_client.models import ListRunsStatusType0Item, SignalOrder, StartOrder

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
run = start_run.sync(client=client, body=StartOrder.from_dict({"workflow": "review", "input": {"title": "x"}, "id": "made-by-machine"}))
assert run.id == "made-by-machine", run
names = {one.name for one in list_workflows.sync(client=client).workflows}
assert {"review", "weigh"} <= names, names
signal_run.sync("made-by-machine", client=client, body=SignalOrder.from_dict({"name": "decision", "value": {"verdict": "approve"}}))
while (found := get_run.sync("made-by-machine", client=client)).ended_at is None:
    pass
assert (found.status, found.result) == ("completed", "approve"), found
assert [one.id for one in list_runs.sync(client=client, status=[ListRunsStatusType0Item.COMPLETED]).runs] == ["made-by-machine"]
assert get_run.sync_detailed("nobody", client=client).status_code == 404
print("works")
"""


@pytest.mark.slow
@pytest.mark.network
async def test_a_generated_client_works(tmp_path: Path, missing_service: Callable[[str, str], NoReturn]) -> None:
    async def run(*command: str | Path) -> str:
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    uv, tools = Path(sys.executable).parent / "uv", tmp_path / "tools"
    try:
        # Of its own, because its parts are not ours.
        await run(uv, "venv", "--quiet", tools)
        await run(uv, "pip", "install", "--quiet", "--python", tools / "bin/python", GENERATOR)
    except AssertionError as error:
        missing_service(f"The generator ({error})", f"pip install '{GENERATOR}'")
    async with api(tmp_path, *PROGRAM) as caller:
        document = tmp_path / "openapi.json"
        await asyncio.to_thread(document.write_bytes, (await caller.get("/openapi.json")).body)
        said = await run(tools / "bin/openapi-python-client", "generate", "--path", document, "--output-path", tmp_path / "made")
        assert "unable to" not in said.lower() and "skipping endpoint" not in said.lower(), said
        await asyncio.to_thread((tmp_path / "made" / "use.py").write_text, USE)
        assert await run(tools / "bin/python", tmp_path / "made" / "use.py", caller.server.url) == "works\n"
