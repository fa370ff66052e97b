"""`ziggurat up` as people run it: from none to many workers and back, drained, killed, and looked at on a terminal."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.conftest import HUNG, Project

FLOWS = """
    import asyncio, os
    from pathlib import Path
    from ziggurat import task, workflow

    @task
    async def hold(name: str) -> int:
        # Renamed, so that whoever sees the file can read the number in it.
        Path(f"{name}.new").write_text(str(os.getpid()))
        Path(f"{name}.new").rename(f"{name}.in")
        print("holding", name, flush=True)
        while not Path(f"{name}.out").exists():
            await asyncio.sleep(0.02)
        return os.getpid()

    @workflow
    async def held(names: list[str]) -> list[int]:
        return list(await asyncio.gather(*(hold(name) for name in names)))
"""
SETTINGS = """
    [app]
    modules = ["flows"]
    [queue]
    backend = "sqlite"
    lease = "10s"
    [workers.default]
    concurrency = 2
    max = 3
    target_wait = "0.5s"
    idle_window = "1s"
    grace = "{grace}"
    price_per_hour = "$0.25"
"""


class Up:
    """A running `ziggurat up --json`, and what it said last."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self.project = project
        self.process = project.begin("up", "--json", "--interval", "0.1", *(arguments or ("--no-api",)))
        assert self.process.stdout is not None
        self.described = json.loads(self.process.stdout.readline())
        assert self.described["pid"] == self.process.pid
        self.last: dict[str, Any] = {}
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # The last one of a killed process may have been cut.
                self.last = json.loads(line)

    @property
    def pool(self) -> dict[str, Any]:
        return dict(self.last["pools"][0]) if self.last else {}

    def workers(self) -> int:
        return sum(self.pool.get(state, 0) for state in ("starting", "ready", "draining"))

    def until(self, true: Callable[[], object], what: str) -> None:
        try:
            self.project.until(true, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last look was {self.last}") from None

    def end(self, number: signal.Signals | None = None) -> str:
        """Signal it if asked to, wait for its end, and return what it said on stderr."""
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(HUNG)
        self._reading.join(HUNG)
        assert self.process.stderr is not None
        return self.process.stderr.read()


@pytest.fixture
def held(project: Project) -> Project:
    """A project whose tasks run until they are let go."""
    project.write("flows.py", FLOWS)
    project.write("ziggurat.toml", SETTINGS.format(grace="30s"))
    return project


def begin(project: Project, id: str, names: list[str]) -> None:
    project.ok("start", "flows:held", "--id", id, "--input", json.dumps({"names": names}))


def started(project: Project, *names: str) -> bool:
    return all((project.folder / f"{name}.in").exists() for name in names)


def let_go(project: Project, *names: str) -> None:
    for name in names:
        (project.folder / f"{name}.out").touch()


def pid_of(project: Project, name: str) -> int:
    return int((project.folder / f"{name}.in").read_text())


def alive(pid: int) -> bool:
    """Say whether a process is there; one that has ended and is not waited for yet is not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def attempts(project: Project, run: str) -> list[tuple[str, int]]:
    """Return how each step ended, and at which attempt."""
    shown = project.ok("show", run, "--json").json
    return [(step["status"], step["attempt"]) for step in shown["steps"]]


def test_a_burst_brings_workers_the_busy_are_spared_and_then_there_are_none(held: Project) -> None:
    up = Up(held)
    up.until(lambda: up.last, "it looks")
    assert up.workers() == 0, "nobody works while nothing is to be done"
    names = [f"n{number}" for number in range(6)]
    begin(held, "burst", names)
    up.until(lambda: started(held, *names), "every task of the burst runs")
    seen = {"busy": 3, "running": 6, "cost_per_hour": 0.75}
    up.until(lambda: seen.items() <= up.pool.items(), "three workers are seen busy, and what they cost")
    kept = pid_of(held, "n0")
    let_go(held, *(name for name in names if pid_of(held, name) != kept))
    up.until(lambda: up.workers() == 1 and up.pool["running"] == 2, "the idle ones go after the idle window")
    assert alive(kept), "the busy one stays"
    let_go(held, *names)
    up.until(lambda: up.workers() == 0, "the last one goes too")
    up.until(lambda: up.last["runs"] == {"completed": 1}, "the run has completed")
    assert attempts(held, "burst") == [("completed", 1)] * 6
    assert "Stopped. No run is unfinished." in up.end(signal.SIGTERM)


def test_sigterm_under_load_loses_nothing_and_burns_no_attempt(held: Project) -> None:
    held.write("ziggurat.toml", SETTINGS.format(grace="0.5s"))
    up = Up(held)
    names = [f"n{number}" for number in range(9)]
    begin(held, "drained", names)
    up.until(lambda: sum(started(held, name) for name in names) == 6, "six tasks run and three wait")
    let_go(held, "n0")
    assert "1 unfinished run goes on at the next start" in up.end(signal.SIGTERM)
    assert up.process.returncode == 0
    assert up.last["draining"]
    (queue,) = up.last["queues"]
    assert (queue["leased"], queue["dead"]) == (0, 0), "what could not finish is back on the queue at once"
    for name in names[1:]:
        (held.folder / f"{name}.in").unlink(missing_ok=True)
    again = Up(held)
    again.until(lambda: sum(started(held, name) for name in names[1:]) == 6, "they run again")
    let_go(held, *names)
    held.until_status("drained", "completed")
    assert attempts(held, "drained") == [("completed", 1)] * 9
    again.end(signal.SIGTERM)


def test_a_second_signal_hands_everything_back_at_once(held: Project) -> None:
    held.write("ziggurat.toml", SETTINGS.format(grace="10m"))
    up = Up(held)
    begin(held, "hurried", ["a", "b"])
    up.until(lambda: started(held, "a", "b"), "both run")
    up.process.send_signal(signal.SIGINT)
    up.until(lambda: up.last["draining"] and up.pool["draining"] >= 1, "it drains")
    assert up.workers() >= 1, "running tasks have ten minutes"
    up.end(signal.SIGINT)
    assert up.process.returncode == 0
    (queue,) = up.last["queues"]
    assert (queue["ready"], queue["leased"]) == (2, 0)
    assert not alive(pid_of(held, "a"))


def test_workers_of_a_killed_server_end_and_the_next_one_goes_on(held: Project) -> None:
    held.write("ziggurat.toml", SETTINGS.format(grace="0.5s"))
    up = Up(held)
    begin(held, "orphaned", ["a", "b", "c"])
    up.until(lambda: started(held, "a", "b", "c"), "all run")
    pids = {pid_of(held, name) for name in "abc"}
    up.process.kill()
    up.end()
    held.until(lambda: not any(map(alive, pids)), "its workers have ended")
    let_go(held, "a", "b", "c")
    again = Up(held)
    held.until_status("orphaned", "completed")
    assert attempts(held, "orphaned") == [("completed", 1)] * 3
    again.end(signal.SIGTERM)


# -- on a terminal --------------------------------------------------------------------------------------------------


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, project: Project, *arguments: str, columns: int = 100, rows: int = 30) -> None:
        self.fd, other = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environ = {name: value for name, value in project.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        self.process = subprocess.Popen(
            project.command(*arguments),
            cwd=project.folder,
            env={**environ, "TERM": "xterm-256color"},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)
        self.text = ""
        # A read may end amid a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def words(self) -> str:
        """What was shown, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)

    def until(self, pattern: str) -> None:
        """Read until words that match a pattern were shown."""
        limit = time.monotonic() + HUNG
        while not re.search(pattern, self.words):
            assert time.monotonic() < limit, f"{pattern!r} was not shown in {self.text[-3000:]!r}"
            if not self._read(0.1):
                assert re.search(pattern, self.words), self.text[-3000:]

    def end(self) -> int:
        """Read to the end, and return the exit code."""
        limit = time.monotonic() + HUNG
        while self._read(0.1):
            assert time.monotonic() < limit, f"it did not end: {self.text[-3000:]!r}"
        return self.process.wait(HUNG)

    def _read(self, wait: float) -> bool:
        """Read what is there, and say whether there may be more."""
        if not select.select([self.fd], [], [], wait)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # No process holds the other end any more.
            data = b""
        self.text += self._decoder.decode(data, final=not data)
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(held: Project) -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, **size: int) -> Terminal:
            made = Terminal(held, *arguments, **size)
            stack.callback(made.close)
            return made

        yield begin


def test_the_live_view_shows_runs_queues_and_pools_and_leaves_the_terminal_clean(
    held: Project, terminal: Callable[..., Terminal]
) -> None:
    shown = terminal("up")
    shown.until("Rates")
    shown.until(r"http://127\.0\.0\.1:\d+")
    begin(held, "watched", ["a", "b", "c"])
    shown.until("watched")
    for name in "abc":
        shown.until(rf"default-\d+ │ holding {name}\s")  # What a worker prints, with its name.
    let_go(held, "a", "b", "c")
    shown.until("1 completed")
    os.kill(shown.process.pid, signal.SIGINT)
    assert shown.end() == 0
    assert "Stopped. No run is unfinished." in shown.words
    assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "Traceback" not in shown.text
    assert " info " not in shown.text, "the view says what the log would"


def test_a_narrow_terminal_loses_columns_and_no_sense(held: Project, terminal: Callable[..., Terminal]) -> None:
    shown = terminal("up", "--no-api", columns=44, rows=16)
    shown.until("Pools")
    os.kill(shown.process.pid, signal.SIGTERM)
    assert shown.end() == 0
    assert "Stopped." in shown.words
    assert "bound by" not in shown.words
