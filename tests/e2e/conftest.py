"""The command line as people run it: real processes in a folder of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

#: Seconds after which a command has hung. A busy machine takes many times as long for one as an idle one.
HUNG = 120.0


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON value that it must be."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, f"not one line of error:\n{self.err}"
        assert "Traceback" not in self.err + self.out
        return lines[0].removeprefix("error: ")


class Project:
    """A folder with a program and settings, and the commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ZIGGURAT_")},
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "error",
            "TMPDIR": str(folder),
        }
        self._started: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> Path:
        """Write a file, dedented."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).parent / "ziggurat"), *arguments]

    def run(self, *arguments: str, stdin: str = "", **environ: str) -> Finished:
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environ, **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=HUNG,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, **environ: str) -> Finished:
        """Run a command that must succeed."""
        finished = self.run(*arguments, **environ)
        assert finished.code == 0, f"exit {finished.code}\n{finished.out}\n{finished.err}"
        return finished

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command; it is killed at the end of the test if it still runs."""
        process = subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self.keep(process)

    def keep(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """Kill a process at the end of the test if it still runs."""
        self._started.append(process)
        return process

    def end(self, process: subprocess.Popen[str], number: signal.Signals | None = None) -> Finished:
        """Wait for a command that was begun, after sending it a signal if one is given."""
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=HUNG)
        return Finished(process.returncode, out, err)

    def until(self, true: Callable[[], object], what: str) -> None:
        """Wait for another process to have done something."""
        limit = time.monotonic() + HUNG
        while not true():
            assert time.monotonic() < limit, f"gave up waiting until {what}"
            time.sleep(0.02)

    def until_served(self) -> None:
        """Wait until a process owns the state file and listens."""
        lock = self.folder / ".ziggurat" / "state.db.lock"
        self.until(lambda: lock.exists() and '"socket"' in lock.read_text(), "a process owns the state")

    def until_status(self, run: str, status: str) -> None:
        """Wait until a run has a status."""

        def has() -> bool:
            shown = self.run("show", run, "--json")
            return shown.code == 0 and bool(shown.json["status"] == status)

        self.until(has, f"{run} is {status}")

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """An empty project."""
    made = Project(tmp_path)
    yield made
    made.close()
