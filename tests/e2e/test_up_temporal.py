"""`ziggurat up --orchestrator temporal` as people run it: with a server of its own, its Web UI, the API, and what is left for the next."""

from __future__ import annotations

import base64
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

from tests.conformance.temporal_servers import needed
from tests.e2e.conftest import HUNG, Project
from tests.e2e.dashboard_world import PATIENCE, World, browser
from tests.ports import free_port

pytestmark = pytest.mark.timeout(600)

FLOWS = """
    from pydantic import BaseModel
    from ziggurat import signal, task, workflow

    class Answer(BaseModel):
        go: bool

    @task
    async def double(number: int) -> int:
        return number * 2

    @workflow
    async def twice(number: int) -> int:
        return await double(await double(number))

    @workflow
    async def asks(number: int) -> int:
        answer = await signal("approval", Answer)
        return await double(number) if answer.go else 0
"""
SETTINGS = """
    [app]
    modules = ["flows"]
    [orchestrator]
    url = "127.0.0.1:{temporal}"
    [server]
    port = {api}
    [server.webhooks.crm]
    url = "{hook}"
    secret = "env:HOOK_SECRET"
"""


class Up:
    """A running `ziggurat up --orchestrator temporal`."""

    def __init__(self, project: Project, hook: str) -> None:
        # The development server puts its Web UI 1,000 above its own port.
        self.port = free_port(1_000)
        project.write("ziggurat.toml", SETTINGS.format(temporal=self.port, api=free_port(), hook=hook))
        self.process = project.begin("up", "--orchestrator", "temporal", "--json", "--interval", "0.2")
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if not first:
            raise AssertionError(project.end(self.process).err)
        self.url = json.loads(first)["api"]
        self._reading = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in ("stdout", "stderr")]
        self.said = {"stdout": "", "stderr": ""}
        for thread in self._reading:
            thread.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            self.said[name] = self.said[name] + line if name == "stderr" else line

    def get(self, path: str, method: str = "GET") -> Any:
        with urlopen(Request(f"{self.url}/api/v1{path}", method=method), timeout=HUNG) as answer:
            return json.load(answer)

    def end(self) -> str:
        """End it as a supervisor does; returns what it said on stderr."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(HUNG) == 0
        for thread in self._reading:
            thread.join(HUNG)
        return self.said["stderr"]


def listens(port: int) -> bool:
    """Return whether anybody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(name="heard")
def _heard() -> Iterator[tuple[list[dict[str, Any]], str]]:
    """What a receiver of webhooks heard, and its address."""
    heard: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield heard, f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    thread.join(HUNG)
    server.server_close()


@pytest.fixture(name="begin")
def _begin(project: Project, heard: tuple[list[dict[str, Any]], str]) -> Callable[[], Up]:
    needed()
    project.write("flows.py", FLOWS)
    project.environ["HOOK_SECRET"] = "whsec_" + base64.b64encode(bytes(32)).decode()
    # For the commands beside it; `up` is told on its command line.
    project.environ["ZIGGURAT_ORCHESTRATOR__BACKEND"] = "temporal"
    return lambda: Up(project, heard[1])


def test_a_server_of_its_own_shows_runs_tells_of_them_and_keeps_them_for_the_next_start(
    project: Project, begin: Callable[[], Up], heard: tuple[list[dict[str, Any]], str]
) -> None:
    up = begin()
    web = (project.folder / ".ziggurat" / "temporal.web").read_text()
    with urlopen(web, timeout=HUNG) as page:
        assert "text/html" in page.headers["content-type"]
    _runs_complete_and_are_linked(project, up, web)
    _an_approval_is_found_and_given(project, up)
    project.until(lambda: len(heard[0]) >= 2, "the receiver hears of both ends")
    assert {(one["type"], one["data"]["id"]) for one in heard[0]} == {("run.completed", "one"), ("run.completed", "asked")}
    assert up.get("/runs/one", "DELETE") == {"count": 1}
    assert project.ok("show", "asked", "--json").json["status"] == "completed"
    # What is not noted as delivered is told again at the next start.
    project.until(lambda: all(one["delivered_at"] for one in up.get("/webhooks")["deliveries"]), "both deliveries are noted")
    said = up.end()
    assert f"its own Web UI: {web}" in said
    assert "Stopped. No run is unfinished." in said
    assert not listens(up.port)
    assert not (project.folder / ".ziggurat" / "temporal.web").exists()

    again = begin()
    found = project.ok("show", "asked", "--json").json
    assert (found["status"], found["result"]) == ("completed", 42)
    assert len(heard[0]) == 2, "no end is told twice"
    again.process.kill()
    project.until(lambda: not listens(again.port), "the server ends with what started it")


def _runs_complete_and_are_linked(project: Project, up: Up, web: str) -> None:
    project.ok("start", "flows:twice", "--id", "one", "--input", '{"number": 3}')
    project.until(lambda: up.get("/runs/one")["status"] == "completed", "the run is completed")
    link = f"{web}/namespaces/default/workflows/one"
    shown = project.ok("show", "one", "--json").json
    assert (shown["result"], shown["links"]) == (12, {"temporal": link})
    assert link in project.ok("show", "one").out
    assert up.get("/runs/one")["links"] == {"temporal": link}
    with urlopen(link, timeout=HUNG) as page:
        assert page.status == 200
    expect.set_options(timeout=PATIENCE)
    with browser() as started:
        world = World(project, started, up.url)
        page_shown = world.open("runs/one")
        expect(page_shown.get_by_role("link", name="Temporal's Web UI")).to_have_attribute("href", link)
        world.close_pages()
        assert not world.complaints


def _an_approval_is_found_and_given(project: Project, up: Up) -> None:
    project.ok("start", "flows:asks", "--id", "asked", "--input", '{"number": 21}')

    def waiting() -> list[Any]:
        return [one for one in up.get("/approvals")["approvals"] if one["run"] == "asked"]

    project.until(waiting, "the approval is in the inbox")
    (found,) = waiting()
    assert (found["signal"], found["value_schema"]["required"]) == ("approval", ["go"])
    project.ok("signal", "asked", "approval", '{"go": true}')
    project.until(lambda: up.get("/runs/asked")["status"] == "completed", "the run is completed")
