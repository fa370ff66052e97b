"""Commands that speak to a server over HTTP, and what is left when it is killed in the middle: nothing half-done."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import HUNG, Project
from tests.ports import free_port

PROGRAM = """
    import asyncio, pathlib
    from ziggurat import Artifact, emit, signal, task, workflow

    @task
    async def measure(file: Artifact) -> int:
        return len(await file.read())

    @workflow
    async def weigh(file: Artifact) -> int:
        return await measure(file)

    @task
    async def talk() -> str:
        for number in range(3):
            emit(f"word{number} ", "token")
        while not pathlib.Path("go-on").exists():
            await asyncio.sleep(0.02)
        return "talked"

    @workflow
    async def ask(question: str) -> str:
        return f"{question} {await signal('answer', str)} {await talk()}"
"""


class Served:
    """A project whose system is served, and a folder from which it is called as from another machine."""

    def __init__(self, project: Project, away: Project) -> None:
        self.project, self.away = project, away
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.away.environ["ZIGGURAT_SERVER"] = self.url
        self.serve()

    def serve(self) -> None:
        self.process = self.project.begin("serve", "--json", "--port", str(self.port))
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())["api"] == self.url

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        told = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, told, method=method)
        with urllib.request.urlopen(request, timeout=HUNG) as answer:
            return json.loads(answer.read())


@pytest.fixture
def served(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    project.write("app.py", PROGRAM)
    project.write("ziggurat.toml", '[app]\nmodules = ["app"]\n')
    away = Project(tmp_path_factory.mktemp("away"))
    yield Served(project, away)
    away.close()


def test_the_same_commands_work_from_another_machine(served: Served) -> None:
    away = served.away
    assert away.ok("start", "ask", "--input", '{"question": "Well?"}', "--id", "q", "--tag", "a=b").out.strip() == "q"
    watching = away.begin("watch", "q", "--json")
    assert [one["id"] for one in away.ok("list", "--json").json] == ["q"]
    away.ok("signal", "q", "answer", '"Yes."')
    served.project.write("go-on", "")
    watched = away.end(watching)
    assert watched.code == 0 and watched.json["result"] == "Well? Yes. talked"
    assert away.run("resume", "q").error.startswith("The run q is completed and cannot be resumed")
    assert away.ok("workers", "--json").json[0]["pool"] == "default"
    wrong = away.run("start", "ask", "--input", '{"questoin": "?"}')
    assert wrong.code == 2 and "questoin" in wrong.error
    # Nothing was made here: no state file, no lock.
    assert not (away.folder / ".ziggurat").exists()


def test_keys_are_made_on_the_command_line_and_wanted_off_loopback(project: Project, tmp_path: Path) -> None:
    project.write("app.py", PROGRAM)
    project.write("ziggurat.toml", '[app]\nmodules = ["app"]\n[server]\nauth = "always"\n')
    made = project.ok("keys", "create", "ci", "--role", "operator", "--namespace", "acme", "--expires", "30d", "--json").json
    key = made["key"]
    listed = project.ok("keys", "--json")
    assert listed.json[0]["name"] == "ci" and key not in listed.out
    assert project.run("keys", "create", "ci").code == 2
    process = project.begin("serve", "--json", "--port", "0")
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["api"]
    refused = project.run("--server", url, "list")
    assert refused.code == 2 and "needs an API key" in refused.error
    run = project.ok("--server", url, "start", "ask", "--input", '{"question": "?"}', "--json", ZIGGURAT_API_KEY=key).json
    assert run["workflow"] == "ask"
    denied = project.run("--server", url, "queues", ZIGGURAT_API_KEY=key)
    assert denied.code == 2 and "whole system" in denied.error and key not in denied.err
    project.ok("keys", "revoke", "ci")
    assert project.run("--server", url, "list", ZIGGURAT_API_KEY=key).code == 2


def upload(files: dict[str, bytes], *, whole: bool = True) -> tuple[bytes, str]:
    parts = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\nContent-Type: text/plain\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in files.items()
    )
    return parts + (b"--b--\r\n" if whole else b""), "multipart/form-data; boundary=b"


def test_a_server_that_is_killed_in_an_upload_has_started_all_or_nothing_that_counts(served: Served) -> None:
    files = {f"{n}.txt": b"x" * n for n in range(1, 9)}
    body, kind = upload(files)
    # Half of it is on its way when the server dies: nothing is started.
    with socket.create_connection(("127.0.0.1", served.port)) as half:
        head = "POST /api/v1/workflows/weigh/files?batch=b1 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        half.sendall(head.encode() + body[: len(body) // 2])
        served.kill()
    served.serve()
    assert served.ask("GET", "/runs")["runs"] == []
    # It dies when all of it has come and some runs may have been started: sent again, each file has one run.
    with socket.create_connection(("127.0.0.1", served.port)) as whole:
        whole.sendall(head.encode() + body)
        served.project.until(lambda: served.ask("GET", "/runs")["runs"], "a run was started")
        served.kill()
    served.serve()
    answer = served.ask("POST", "/workflows/weigh/files?batch=b1", body, {"content-type": kind})
    assert len({one["run"] for one in answer["files"]}) == 8
    served.project.until(lambda: served.ask("GET", "/runs/counts")["counts"] == {"completed": 8}, "all runs are done")
    weights = sorted(served.ask("GET", f"/runs/{one['run']}")["result"] for one in answer["files"])
    assert weights == list(range(1, 9))


def test_a_stream_goes_on_behind_its_last_event_when_its_server_was_killed(served: Served) -> None:
    served.ask("POST", "/runs", {"workflow": "ask", "input": {"question": "Still there?"}, "id": "q"})
    seen: list[int] = []
    last = ""
    killed = False
    while True:
        request = urllib.request.Request(f"{served.url}/api/v1/runs/q/events", headers={"last-event-id": last} if last else {})
        kind = ""
        with urllib.request.urlopen(request, timeout=HUNG) as stream:
            for line in stream:
                name, _, value = line.decode().strip().partition(": ")
                if name == "id":
                    last = value
                elif name == "event":
                    kind = value
                elif name == "data" and kind == "history":
                    seen.append(json.loads(value)["seq"])
                elif name == "data" and kind == "status" and not killed:
                    break
                if kind == "end":
                    break
        if kind == "end":
            break
        if not killed:
            served.kill()
            served.serve()
            killed = True
            served.project.write("go-on", "")
            served.ask("POST", "/runs/q/signal", {"name": "answer", "value": "Yes."})
    run = served.ask("GET", "/runs/q")
    assert run["result"] == "Still there? Yes. talked"
    assert seen == list(range(1, run["events"] + 1))


def test_a_bulk_order_outlives_its_server(served: Served) -> None:
    count = 60
    for number in range(count):
        served.ask("POST", "/runs", {"workflow": "ask", "input": {"question": "?"}, "id": f"q{number}"})
    served.project.until(lambda: served.ask("GET", "/runs/counts")["counts"] == {"waiting": count}, "all of them wait")
    order = served.ask("POST", "/bulk", {"verb": "cancel", "status": ["waiting", "running"], "reason": "enough", "id": "all"})
    served.kill()
    served.serve()
    assert order["total"] == count
    served.project.until(lambda: served.ask("GET", "/bulk/all")["ended_at"], "the order is done")
    done = served.ask("GET", "/bulk/all")
    assert (done["done"], done["refused"]) == (count, 0)
    served.project.until(lambda: served.ask("GET", "/runs/counts")["counts"] == {"cancelled": count}, "all are cancelled")


def test_a_command_says_what_is_wrong_with_the_address(project: Project) -> None:
    for url in ("http://127.0.0.1:1", "http://nothing.invalid"):
        failed = project.run("--server", url, "list", "--json")
        assert failed.code == 3 and "does not answer" in failed.error
    assert project.run("--server", "not a url", "list").code == 2
    local = project.run("--server", "http://127.0.0.1:1", "costs")
    assert local.code == 2 and "files of this machine" in local.error
    assert not (project.folder / ".ziggurat").exists()


def test_serving_says_when_its_port_is_taken_and_what_extra_is_missing(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failed = project.run("serve", "--port", str(taken.getsockname()[1]))
    assert failed.code == 3 and "cannot listen" in failed.error
    hide = "import sys; sys.modules['fastapi'] = None; from ziggurat.doors.cli import main; main(['serve'])"
    done = subprocess.run(
        [project.command()[0].replace("ziggurat", "python"), "-c", hide],
        cwd=project.folder, env=project.environ, capture_output=True, text=True, timeout=HUNG, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "pip install 'ziggurat-agents[server]'" in done.stderr
