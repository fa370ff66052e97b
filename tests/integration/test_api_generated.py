"""A client that is generated from the OpenAPI document works, without a correction by hand."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.api_server import api
from tests.integration.test_api_system import PROGRAM

GENERATOR = Path(sys.executable).parent / "openapi-python-client"
#: Seconds after which a process has hung: it generates some 150 small files, and imports them.
HUNG = 150
USE = """
import sys, time
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
    time.sleep(0.05)
assert (found.status, found.result) == ("completed", "approve"), found
assert [one.id for one in list_runs.sync(client=client, status=[ListRunsStatusType0Item.COMPLETED]).runs] == ["made-by-machine"]
assert get_run.sync_detailed("nobody", client=client).status_code == 404
print("works")
"""


async def test_a_generated_client_works(tmp_path: Path) -> None:
    async def run(*command: str | Path) -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "made")},
            capture_output=True,
            text=True,
            timeout=HUNG,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    async with api(tmp_path, *PROGRAM) as caller:
        document, config = tmp_path / "openapi.json", tmp_path / "config.json"
        await asyncio.to_thread(document.write_bytes, (await caller.get("/openapi.json")).body)
        # It would tidy its files with tools that need not be here.
        await asyncio.to_thread(config.write_text, '{"post_hooks": []}')
        said = await run(GENERATOR, "generate", "--path", document, "--config", config, "--output-path", tmp_path / "made")
        assert "unable to" not in said.lower() and "skipping endpoint" not in said.lower(), said
        await asyncio.to_thread((tmp_path / "use.py").write_text, USE)
        assert await run(sys.executable, tmp_path / "use.py", caller.server.url) == "works\n"
