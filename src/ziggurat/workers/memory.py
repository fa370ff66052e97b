"""How much memory this process uses."""

from __future__ import annotations

import os
import resource
import sys


def resident_bytes() -> int:
    """Return the resident set size in bytes: now on Linux (proc(5), statm), the largest so far elsewhere (getrusage(2))."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024
