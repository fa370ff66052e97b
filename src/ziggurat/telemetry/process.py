"""What the operating system knows of this process: memory, processor time, open files, and when it began."""

from __future__ import annotations

import os
import resource
import sys
import time

#: When this module was imported, which is when the process began as far as its work is concerned.
STARTED = time.time()


def resident_bytes() -> int:
    """Return the resident set size in bytes: now on Linux (proc(5), statm), the largest so far elsewhere (getrusage(2))."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


def cpu_seconds() -> float:
    """Return the processor time that the process has used, in user and kernel mode."""
    used = os.times()
    return used.user + used.system


def open_files() -> int | None:
    """Return the number of open file descriptors, or None where the system does not show them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return None
