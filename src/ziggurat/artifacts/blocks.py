"""Payloads that grow, as the messages of a conversation do: stored in blocks, so that each turn stores only what is new in it.

Turn n of a conversation hands on what turn n-1 did and a little more; stored whole, n turns hold n * n / 2 messages. So a payload that
begins as another of its run did is cut at places that depend on the offset alone, and each block is an object named after its content:

    offset   0       16       32  ...  112     128                256 KiB ...
             ├─ 16K ─┼─ 16K ─┼─ ... ──┼─ 16K ──┤
             ├─────────────── 128K ─────────────┼────── 128K ──────┤ ...  then 1 MiB, 8 MiB; what is left, under 16 KiB, is inline

A block is as large as fits from an offset that is a multiple of its size. So a payload of any length is a few dozen objects, one that grew
shares all but the last few with the one before, and a byte is stored once for each of the four sizes at most. Cutting at places that the
content chooses (as rsync and restic do) would also find what moved; but conversations grow at the end, and a rolling hash costs more in
Python than the store does.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator

from ziggurat.artifacts.library import Library

#: Sizes of blocks in bytes, largest first. Each is a multiple of the next.
SIZES = (8 << 20, 1 << 20, 128 << 10, 16 << 10)
#: A payload that begins as another of its run did, with so many bytes, is one that grows.
HEAD = SIZES[-1]
#: Beginnings, and blocks that were written lately, that are remembered.
_REMEMBERED = 8192
#: Seconds for which a block that was written needs not be written again. Writing renews its age, by which a store is swept of what nobody
#: refers to (`[artifacts] grace`, a day); a run refers to it long before.
_FRESH = 60.0


def cut(length: int) -> Iterator[tuple[int, int]]:
    """Yield where the blocks of a payload of so many bytes begin and end. What is behind the last is shorter than the smallest block."""
    at = 0
    while length - at >= HEAD:
        size = next(size for size in SIZES if at % size == 0 and at + size <= length)
        yield at, at + size
        at += size


class Growth:
    """Knows payloads that grow by their beginnings, and stores them. Safe to use from any thread."""

    def __init__(self) -> None:
        self._heads: OrderedDict[bytes, None] = OrderedDict()
        self._written: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def grows(self, data: bytes, run: str) -> bool:
        """Say whether another payload of that run began as this one does, and remember how this one does."""
        if len(data) < HEAD or not run:
            return False
        digest = hashlib.sha256(run.encode() + b"\0")
        digest.update(memoryview(data)[:HEAD])
        head = digest.digest()
        with self._lock:
            known = head in self._heads
            self._heads[head] = None
            self._heads.move_to_end(head)
            while len(self._heads) > _REMEMBERED:
                self._heads.popitem(last=False)
        return known

    def store(self, library: Library, data: bytes, run: str) -> tuple[list[str], bytes]:
        """Store a payload in blocks and return their keys, and what is left. Raises ArtifactsUnreachable."""
        keys: list[str] = []
        at = 0
        for begin, at in cut(len(data)):
            block = data[begin:at]
            key = library.key_for(run, hashlib.sha256(block).digest())
            if not self._is_fresh(key):
                library.put(key, block)
                self._note(key)
            keys.append(key)
        return keys, data[at:]

    def _is_fresh(self, key: str) -> bool:
        with self._lock:
            return time.monotonic() < self._written.get(key, 0.0)

    def _note(self, key: str) -> None:
        with self._lock:
            self._written[key] = time.monotonic() + _FRESH
            self._written.move_to_end(key)
            while len(self._written) > _REMEMBERED:
                self._written.popitem(last=False)


def join(library: Library, keys: list[str], rest: bytes) -> bytes:
    """Return a payload from its blocks. Whoever asks checks it. Raises ArtifactMissing, ArtifactsUnreachable, KeyMissing."""
    return b"".join([*(library.get(key, "") for key in keys), rest])
