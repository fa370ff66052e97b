"""Bad input on the command line: each is one sentence with its remedy, and the right exit code; nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.conftest import HUNG, Finished, Project
from tests.ports import free_port

PROGRAM = """
    import os
    import sys
    import time

    from ziggurat import llm, task, workflow


    @task(retry=1)
    async def raises() -> None:
        raise RuntimeError("the disk of the printer is full")


    @task(retry=1, timeout="0.3s")
    async def hangs() -> None:
        import asyncio

        await asyncio.Event().wait()


    @task(retry=1, timeout="0.3s", process=True)
    def hangs_for_good() -> None:
        while True:
            pass


    @task(retry=1, process=True)
    def exits() -> None:
        os._exit(3)


    @task(retry=1)
    def leaves() -> None:
        sys.exit(3)


    @task(retry=1, process=True)
    def eats() -> int:
        return len(bytearray(8 << 30))


    @task(retry=1)
    async def unwritable() -> object:
        return object()


    @task(retry=1)
    async def huge() -> str:
        return "x" * (3 << 20)


    @task
    async def asks() -> str:
        return await llm.text("Say ok")


    TASKS = {t.name: t for t in (raises, hangs, hangs_for_good, exits, leaves, eats, unwritable, huge)}


    @workflow
    async def try_out(name: str) -> str:
        return str(await TASKS[name]())


    @workflow
    async def returns_wrong() -> int:
        return "seven"  # type: ignore[return-value]


    @workflow
    async def talk() -> str:
        return await llm.text("Say ok")


    @workflow
    async def greet(name: str, times: int = 1) -> str:
        return name * times
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.write("shop.py", PROGRAM)
    return project


def refused(finished: Finished, code: int, *parts: str) -> None:
    assert finished.code == code, finished
    assert finished.out == ""
    for part in parts:
        assert part in finished.error, finished.error
    assert finished.error[-1] in ".?)" or "pip install" in finished.error


# -- the command line itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nonsense"], ["nonsense"]),
        (["run"], ["MODULE:WORKFLOW"]),
        (["run", "shop:greet", "--nonsense"], ["--nonsense"]),
        (["run", "shop:grete"], ["no workflow 'grete'", "greet"]),
        (["run", "shop:raises"], ["no workflow 'raises'"]),
        (["run", "shopp:greet"], ["no module 'shopp'"]),
        (["run", "nowhere.py:greet"], ["no file nowhere.py"]),
        (["run", "greet"], ["no workflow 'greet'", "[app] modules"]),
        (["run", "shop:greet", "-i", '{"name": 1}'], ["name", "string"]),
        (["run", "shop:greet", "-i", '{"nam": "x"}'], ["nam"]),
        (["run", "shop:greet", "-i", "{}"], ["name", "required"]),
        (["run", "shop:greet", "-i", "[1]"], ["JSON object", "name"]),
        (["run", "shop:greet", "-i", "{name: 1}"], ["--input is not valid at line 1, column 2"]),
        (["run", "shop:greet", "-i", "@nowhere.json"], ["nowhere.json", "No such file"]),
        (["run", "shop:greet", "-i", '{"name": "x"}', "--budget", "much"], ["budget", "'much'"]),
        (["run", "shop:greet", "-i", '{"name": "x"}', "--priority", "9"], ["--priority"]),
        (["run", "shop:greet", "-i", '{"name": "x"}', "--tag", "x"], ["KEY=VALUE"]),
        (["show", "nobody"], ["no run 'nobody'"]),
        (["history", "nobody"], ["no run 'nobody'"]),
        (["cancel", "nobody"], ["no run 'nobody'"]),
        (["watch", "nobody"], ["no run 'nobody'"]),
        (["list", "--status", "done"], ["no status 'done'", "completed"]),
        (["list", "--since", "yesterday"], ["'yesterday'", "2h"]),
        (["list", "--config", "nowhere.toml"], ["no settings file nowhere.toml"]),
        (["batch", "shop:greet", "nowhere.jsonl", "-o", "out.jsonl"], ["no file nowhere.jsonl"]),
        (["batch", "shop:greet", "shop.py", "-o", "shop.py"], ["shop.py", "something else than results"]),
        (["deadletters", "redrive"], ["ids, or --all"]),
        (["deadletters", "discard", "x"], ["no dead letter 'x'"]),
        (["models", "check", "nobody"], ["no model 'nobody'", "default"]),
        (["worker"], ["queue.backend"]),
        (["worker", "--json", "nobody"], ["queue.backend"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_exit_2(shop: Project, arguments: list[str], parts: list[str]) -> None:
    if "--json" in arguments:
        finished = shop.run(*arguments)
        assert finished.code == 2
        assert all(part in finished.json["error"]["message"] for part in parts)
    else:
        refused(shop.run(*arguments), 2, *parts)


def test_with_json_an_error_is_json_on_stdout_too(shop: Project) -> None:
    finished = shop.run("run", "shop:grete", "--json")
    assert finished.code == 2
    assert finished.json["error"]["type"] == "UnknownName"
    assert finished.json["error"]["message"] == finished.error
    assert finished.json["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[queue\n", ["ziggurat.toml", "line 1, column 7"]),
        ('[queue]\nbackennd = "memory"\n', ["ziggurat.toml", "'backennd'", "Did you mean 'backend'?"]),
        ('[queue]\nbackend = "memry"\n', ["ziggurat.toml", "Did you mean 'memory'?"]),
        ('[app]\nmodules = ["nowhere"]\n', ["no module 'nowhere'"]),
        ('[queue]\nbackend = "nowhere.at_all:Queue"\n', ["nowhere"]),
    ],
)
def test_wrong_settings_are_one_sentence_and_exit_2(shop: Project, text: str, parts: list[str]) -> None:
    shop.write("ziggurat.toml", text)
    refused(shop.run("run", "shop:greet", "-i", '{"name": "x"}'), 2, *parts)


def test_a_temporal_server_that_is_not_there_is_named_with_the_settings_that_say_where(shop: Project) -> None:
    shop.write("ziggurat.toml", '[orchestrator]\nbackend = "temporal"\nurl = "127.0.0.1:1"\n')
    refused(shop.run("run", "shop:greet", "-i", '{"name": "x"}'), 3, "127.0.0.1:1", "cannot be reached", "[orchestrator] url")


def test_modules_that_do_not_import_are_named_with_the_cause(shop: Project) -> None:
    for source, part in (
        ("import nothing_of_that_name", "needs 'nothing_of_that_name', which is not installed"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
    ):
        shop.write("broken.py", source)
        refused(shop.run("run", "broken:flow"), 2, "'broken' cannot be imported", part)
    shop.write("leaver.py", "raise SystemExit(7)")
    assert "sys.exit" in shop.run("run", "leaver:flow").error


# -- programs that go wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("raises", ["RuntimeError: the disk of the printer is full"]),
        ("hangs", ["timeout of 0.3 s"]),
        ("hangs_for_good", ["timeout of 0.3 s"]),
        ("exits", ["process"]),
        ("leaves", ["sys.exit(3)"]),
        ("unwritable", ["result of the task 'unwritable'", "JSON"]),
        ("huge", ["over the limit"]),
    ],
)
def test_a_task_that_goes_wrong_fails_its_run_and_nothing_else(shop: Project, name: str, parts: list[str]) -> None:
    shop.write("ziggurat.toml", '[app]\nmodules = ["shop"]\n[orchestrator]\npayload_limit = "1mib"\n')
    refused(shop.run("run", "shop:try_out", "-i", json.dumps({"name": name}), "--id", "r"), 1, "The run r failed", *parts)
    assert shop.ok("run", "shop:greet", "-i", '{"name": "fine"}').out == "fine\n"


def test_a_task_that_eats_memory_fails_its_run_only(shop: Project) -> None:
    shop.write("ziggurat.toml", '[app]\nmodules = ["shop"]\n[workers.default]\nmemory_ceiling = "2gib"\n')
    refused(shop.run("run", "shop:try_out", "-i", '{"name": "eats"}', "--id", "r"), 1, "The run r failed", "MemoryError")


def test_a_workflow_whose_result_does_not_fit_fails_with_the_reason(shop: Project) -> None:
    refused(shop.run("run", "shop:returns_wrong", "--id", "r"), 1, "result of the workflow 'returns_wrong'", "int")


# -- the state file -------------------------------------------------------------------------------------------------


def test_a_corrupt_state_file_is_left_alone(shop: Project) -> None:
    path = shop.write(".ziggurat/state.db", "not a database at all, " * 300)
    before = path.read_bytes()
    for arguments in (("run", "shop:greet", "-i", '{"name": "x"}'), ("list",), ("start", "shop:greet", "-i", '{"name": "x"}')):
        refused(shop.run(*arguments), 3, str(path), "not a state file", "backup")
    assert path.read_bytes() == before


def test_a_state_file_of_a_newer_version_says_what_to_upgrade(shop: Project) -> None:
    shop.ok("run", "shop:greet", "-i", '{"name": "x"}')
    with sqlite3.connect(shop.folder / ".ziggurat" / "state.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    for arguments in (("run", "shop:greet", "-i", '{"name": "x"}'), ("list",)):
        refused(shop.run(*arguments), 3, "newer Ziggurat", "pip install -U ziggurat-agents")


def is_held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_state_file_that_another_process_holds_is_named_with_the_process(shop: Project) -> None:
    # A process that holds the lock and never listens, as one that was stopped while it started.
    shop.ok("run", "shop:greet", "-i", '{"name": "x"}')
    holder = subprocess.Popen(["flock", ".ziggurat/state.db.lock", "sleep", "600"], cwd=shop.folder, start_new_session=True)
    try:
        shop.until(lambda: is_held(shop.folder / ".ziggurat" / "state.db.lock"), "the lock is held")
        shop.ok("run", "shop:greet", "-i", '{"name": "x"}', ZIGGURAT_ORCHESTRATOR__PATH="elsewhere.db")
        refused(shop.run("run", "shop:greet", "-i", '{"name": "x"}'), 3, "in use by another process")
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()


@pytest.mark.parametrize(
    ("size", "limit", "what"), [(4_000_000, 2_000_000, "artifact store"), (100_000, 90_000, "state file")], ids=["store", "state"]
)
def test_a_full_disk_is_said_and_loses_nothing(shop: Project, size: int, limit: int, what: str) -> None:
    shop.ok("run", "shop:greet", "-i", '{"name": "x"}', "--id", "before")
    # A limit on the size of files is the nearest thing to a full disk that a test can have.
    shop.write("large.json", json.dumps({"name": "x" * size}))
    full = subprocess.run(
        shop.command("run", "shop:greet", "-i", "@large.json"),
        cwd=shop.folder,
        env=shop.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    refused(Finished(full.returncode, full.stdout, full.stderr), 3, what, "nothing that was recorded is lost")
    assert [run["id"] for run in shop.ok("list", "--json").json if run["status"] == "completed"] == ["before"]


# -- models ---------------------------------------------------------------------------------------------------------


@contextmanager
def upstream(status: int, body: str, headers: dict[str, str] | None = None) -> Iterator[str]:
    """An HTTP server that answers everything alike; yields its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(shop: Project, base_url: str, total: float = 60.0) -> None:
    shop.write(
        "ziggurat.toml",
        f"""
        [inference.endpoints.house]
        base_url = "{base_url}"
        api_key = "env:HOUSE_KEY"
        timeouts = {{ total = "{total}s", first_token = "{total}s" }}
        [inference.models.default]
        routes = ["house:big"]
        """,
    )


@pytest.mark.parametrize(
    ("status", "body", "parts"),
    [
        (401, '{"error": {"message": "bad key"}}', ["house", "key"]),
        (404, '{"error": {"message": "no such model"}}', ["house", "big"]),
        (200, "<html>a login page</html>", ["house"]),
    ],
    ids=["401", "404", "nonsense"],
)
def test_an_endpoint_that_refuses_is_named_with_the_reason(shop: Project, status: int, body: str, parts: list[str]) -> None:
    with upstream(status, body) as base_url:
        use(shop, base_url)
        checked = shop.run("models", "check", "default", "--json", HOUSE_KEY="sk-hidden")
        assert checked.code == 3
        assert [row["ok"] for row in checked.json] == [False]
        assert all(part in checked.json[0]["error"] for part in parts)
        assert "sk-hidden" not in checked.out + checked.err


def test_an_endpoint_that_is_down_is_unreachable(shop: Project) -> None:
    use(shop, f"http://127.0.0.1:{free_port()}/v1", total=3.0)
    checked = shop.run("models", "check", HOUSE_KEY="k")
    assert checked.code == 3
    assert "house" in checked.err
    examined = shop.run("doctor", "--json", HOUSE_KEY="k")
    assert examined.code == 3
    (finding,) = [f for f in examined.json if f["what"] == "endpoint house"]
    assert finding["state"] == "wrong"


def test_429_for_ever_ends_with_the_callers_patience(shop: Project) -> None:
    with upstream(429, '{"error": {"message": "slow down"}}', {"Retry-After": "1"}) as base_url:
        use(shop, base_url, total=3.0)
        checked = shop.run("models", "check", "--json", HOUSE_KEY="k")
        assert checked.code == 3
        assert "house" in checked.json[0]["error"]


def test_a_key_that_is_not_set_is_named_and_the_next_route_serves(shop: Project) -> None:
    use(shop, "http://127.0.0.1:9/v1")
    checked = shop.run("models", "check", "--json")
    assert checked.code == 3
    assert "HOUSE_KEY is not set" in checked.json[0]["error"]
    text = (shop.folder / "ziggurat.toml").read_text()
    text = text.replace('["house:big"]', '["house:big", "script:any"]')
    shop.write("ziggurat.toml", text + '\n[inference.endpoints.script]\nkind = "scripted"\n')
    assert shop.ok("run", "shop:talk").out.strip()


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"]])
def test_a_reader_that_goes_away_is_told_nothing(project: Project, arguments: list[str]) -> None:
    """As in `ziggurat models | head -1`: nothing is left to tell anybody, least of all a traceback."""
    command = [sys.executable, "-m", "ziggurat", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=project.folder, env=project.environ, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # Long before it can have written anything.
        said = process.stderr.read()
        assert (process.wait(HUNG), said) == (141, "")
