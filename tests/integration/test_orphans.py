"""A worker process whose pool is gone ends: when it listens, by draining; when it does not, by force."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, time
from ziggurat.workers.orphans import watch_pool

told = []
watch_pool(int(sys.argv[1]), lambda: (told.append(1), os.write(1, b"told\\n")), float(sys.argv[3]))
os.write(1, b"watching\\n")
if sys.argv[2] == "hangs":
    while True:  # A task that never gives the event loop back.
        pass
while not told:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("behaviour", "patience", "code"), [("hangs", 0.2, -signal.SIGKILL), ("listens", 600.0, 0)])
def test_a_worker_does_not_outlive_its_pool(behaviour: str, patience: float, code: int) -> None:
    reading, writing = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(writing), behaviour, str(patience)],
        pass_fds=(writing,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"watching\n"
        assert worker.poll() is None, "it lives while its pool does"
        os.close(reading)  # As the kernel does when the pool's process ends, however it ends.
        out, _ = worker.communicate(timeout=120)
        assert out == b"told\n"
        assert worker.returncode == code
    finally:
        worker.kill()
        worker.wait()
