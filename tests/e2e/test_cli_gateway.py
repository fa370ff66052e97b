"""`ziggurat gateway` as people and process managers meet it: a process, curl, keys, SIGTERM."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing_service
from tests.e2e.conftest import HUNG, Project
from ziggurat.testing.models import event

SETTINGS = """
[inference.endpoints.s]
kind = "scripted"
options = { latency = 0.05, tokens_per_second = 20.0, spread = 0.0, answer_words = 40 }
[inference.models.s]
routes = ["s:scripted"]
[gateway]
port = 0
grace = "20s"
"""
BODY = {"model": "s", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.fixture
def project(project: Project) -> Project:
    project.write("ziggurat.toml", SETTINGS)
    return project


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "ziggurat", "gateway", "--json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())["base_url"]
        finally:
            if process.poll() is None:
                process.kill()


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=HUNG) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/readyz", timeout=HUNG) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        return False


@contextmanager
def holding() -> Iterator[tuple[str, threading.Event]]:
    """An upstream whose stream begins at once and ends when the event is set; yields its base URL and the event."""
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(event({"content": "word"}))
            end.wait(HUNG)
            self.wfile.write(event({}, finish="stop") + b"data: [DONE]\n\n")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", end
    finally:
        end.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_curl_reads_a_stream_and_sigterm_lets_it_end(project: Project) -> None:
    curl = shutil.which("curl")
    if curl is None:
        missing_service("curl", "apt install curl")
    with holding() as (upstream, end):
        scripted = SETTINGS[: SETTINGS.index("[inference.models.s]")]
        held = f'[inference.endpoints.s]\nbase_url = "{upstream}"\n'
        project.write("ziggurat.toml", SETTINGS.replace(scripted, held).replace('"20s"', f'"{HUNG}s"'))
        with gateway(project.folder) as (process, url):
            command = [curl, "-sN", "--max-time", f"{HUNG}", f"{url}/chat/completions", "-d", json.dumps(BODY)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdout is not None
                first = client.stdout.readline()
                process.send_signal(signal.SIGTERM)
                project.until(lambda: not ready(url), "it drains")
                refused, _ = post(f"{url}/chat/completions", BODY)
                end.set()
                rest = client.stdout.read()
            assert process.wait(HUNG) == 0
            assert process.stderr is not None
            said = process.stderr.read()
    assert first.startswith("data: {")
    assert refused == 503
    assert rest.endswith("data: [DONE]\n\n")
    assert "Draining: 1 requests" in said
    assert said.endswith("Stopped.\n")


def test_keys_are_made_used_billed_listed_and_revoked(project: Project) -> None:
    key = project.ok("gateway", "keys", "create", "alice", "--model", "s", "--budget", "$1", "--rpm", "100", "--json").json["key"]
    assert re.fullmatch(r"zgk-[\w-]{43}", key)
    with gateway(project.folder) as (process, url):
        body = {**BODY, "stream": False, "max_tokens": 4}
        assert post(f"{url}/chat/completions", body)[0] == 401
        assert post(f"{url}/chat/completions", body, Authorization=f"Bearer {key}")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(HUNG) == 0
        assert process.stderr is not None
        assert key not in process.stderr.read()
    (listed,) = project.ok("gateway", "keys", "list", "--json").json
    assert (listed["name"], listed["models"], listed["budget_usd"], listed["rpm"]) == ("alice", ["s"], 1.0, 100)
    assert key not in json.dumps(listed)
    assert "alice" in project.ok("gateway", "keys", "list").out
    project.ok("gateway", "keys", "revoke", "alice")
    assert project.ok("gateway", "keys", "list", "--json").json[0]["revoked_at"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], ["without any key", "ziggurat gateway keys create"]),
        (["--config", "nothing.toml"], ["nothing.toml"]),
        (["keys", "create", "x", "--model", "nope"], ["no model 'nope'", "default, fast, s"]),
        (["keys", "create", "x", "--budget", "much"], ["'much'", "$0.05"]),
        (["keys", "create", "x", "--period", "year"], ["'year'", "day, total"]),
        (["keys", "create", "\n"], ["printable"]),
        (["keys", "revoke", "nobody"], ["no key 'nobody'", "keys list"]),
    ],
)
def test_mistakes_are_one_sentence(project: Project, arguments: list[str], words: list[str]) -> None:
    done = project.run("gateway", *arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
