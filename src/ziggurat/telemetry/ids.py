"""Where a span stands in its trace: ids made from what the span is of, and their W3C form.

A run's trace id and the ids of the spans of its steps are hashes of what names them. So whoever goes on with a run after a crash goes on
with the same trace, a span can name a parent that is told of later and by another process, and nothing has to be stored for it.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

#: The key under which a message, a run and an HTTP request carry it (https://www.w3.org/TR/trace-context/).
TRACEPARENT = "traceparent"


class Place(NamedTuple):
    """A span's place: its trace, its own id, and whether the trace is recorded."""

    trace: int
    span: int
    sampled: bool = True

    def header(self) -> str:
        """Return the value of a traceparent header."""
        return f"00-{self.trace:032x}-{self.span:016x}-{'01' if self.sampled else '00'}"


def parse(header: str) -> Place | None:
    """Return what a traceparent header says, or None if it says nothing that can be used (W3C Trace Context, 3.2)."""
    parts = header.split("-")
    if len(parts) < 4 or (len(parts[0]), len(parts[1]), len(parts[2]), len(parts[3])) != (2, 32, 16, 2) or parts[0] == "ff":
        return None
    if parts[0] == "00" and len(parts) != 4:
        return None
    try:
        trace, span, flags = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None
    return Place(trace, span, bool(flags & 1)) if trace and span else None


@lru_cache(maxsize=16_384)
def trace_id(run: str, created_at: float) -> int:
    """Return the id of a run's trace. The moment of its creation is part of it: an id that is used again after a purge is a new run."""
    return int.from_bytes(blake2b(f"{run}\0{created_at:.3f}".encode(errors="replace"), digest_size=16).digest()) or 1


def span_id(*of: object) -> int:
    """Return the id of the one span that is of this."""
    return int.from_bytes(blake2b("\0".join(map(str, of)).encode(errors="replace"), digest_size=8).digest()) or 1
