"""Threads for plain functions, made when needed, reused, and never waited for.

`concurrent.futures` joins its threads when the interpreter ends, so one task that hangs in native code would keep a worker from ever
exiting. These are daemon threads: a function that overran its time keeps its thread until it returns or the process ends. How many
run at a time is the executor's business; here a call always finds or makes a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Threads:
    """Runs functions in threads. `submit` may be called from any thread; a function must not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        #: Threads that wait for work, less the functions that wait for a thread.
        self._spare = 0
        self._count = 0
        self._closed = False

    def submit(self, function: Callable[[], None]) -> None:
        """Run a function soon, in a spare thread or a new one."""
        with self._lock:
            if self._closed:
                raise RuntimeError("The worker's threads are closed; no task can start any more.")
            if self._spare > 0:
                self._spare -= 1
            else:
                self._count += 1
                # A daemon, so that a function that never returns cannot keep the process from ending.
                threading.Thread(target=self._serve, name=f"{self._name}-{self._count}", daemon=True).start()
            self._work.put(function)

    def close(self) -> None:
        """Let spare threads end, and busy ones once their function returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in range(self._count):
                self._work.put(None)

    def _serve(self) -> None:
        while True:
            function = self._work.get()
            if function is None:
                return
            function()
            # Let go of the arguments and the result, which may be large, before the next wait.
            del function
            with self._lock:
                self._spare += 1
