"""What doors and users call: start runs, watch them, act on them.

    async with Client.connect("ziggurat.toml") as client:
        handle = await client.start(analyze, document, id="doc-7")
        report = await handle.result()

One process owns a state file. The client that comes first hosts the system in its own process: orchestrator, queue, workers. One that
comes later talks to the owner through its control socket, and takes over when the owner ends before the client has its answer. Programs
cannot tell the difference.
"""

from __future__ import annotations

from ziggurat.client.client import Client
from ziggurat.client.handle import Handle, ended_error
from ziggurat.client.starting import start_request

__all__ = ["Client", "Handle", "ended_error", "start_request"]
