"""A worker process never outlives its pool for long: it is told at once when the pool's process ends, and ended if it does not listen.

The pool reads what the worker writes to a pipe. When the pool's process is gone, however it went, nobody holds the pipe's other end, and
the kernel says so to a thread that waits for nothing else. The event loop cannot do this: a task that computes on it, or never returns,
is just the worker that would live for ever. Linux could also send a signal at the parent's death (prctl PR_SET_PDEATHSIG), but a
Python handler runs only between two steps of the main thread, and a signal that cannot be handled would cut off work that was paid for.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable

from ziggurat.telemetry import events


def watch_pool(descriptor: int, gone: Callable[[], object], patience: float) -> None:
    """Begin to watch the writing end of a pool's pipe.

    Args:
        descriptor: the pipe's end that this process writes to.
        gone: called in the watching thread when nobody reads it any more.
        patience: seconds after which this process is killed if it has not ended by then.
    """
    own = os.dup(descriptor)
    threading.Thread(target=_watch, args=(own, gone, patience), name="ziggurat-pool-watch", daemon=True).start()


def _watch(descriptor: int, gone: Callable[[], object], patience: float) -> None:
    poller = select.poll()
    poller.register(descriptor, 0)  # Errors are reported whether asked for or not.
    poller.poll()
    os.close(descriptor)
    with contextlib.suppress(RuntimeError):  # The loop has ended, and so will the process.
        gone()
    if not threading.Event().wait(patience):
        events.ORPHAN_ENDS(seconds=patience)
        os.kill(os.getpid(), signal.SIGKILL)
