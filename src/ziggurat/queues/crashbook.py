"""Remembers over a crash which messages were being worked on, for a queue that lives in the process that crashes.

A task that kills its process would otherwise kill the next one too, for ever: a queue in memory starts empty, and the orchestrator sends
the same message again with a fresh count of deliveries. The book is an append-only file of two kinds of lines, "+id" when a message is
leased and "-id" when it is done with. What has a "+" and no "-" when the file is opened was in the hands of a process that died, and
that delivery counts. Lines are written before the work begins but not synced: they must survive the process, not the machine.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

#: Bytes after which the file is written anew with only what still counts.
COMPACT_AT = 1_000_000


class CrashBook:
    """The book of one queue. `lost` counts, by message id, the deliveries that ended with the death of a process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost: Counter[str] = Counter()
        self._open: set[str] = set()
        self._read()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = 0
        self._rewrite()

    def leased(self, ids: list[str]) -> None:
        """Note that work on these begins."""
        self._open.update(ids)
        self._append("+", ids)

    def done(self, ids: list[str]) -> None:
        """Note that these are done with."""
        for id_ in ids:
            self.lost.pop(id_, None)
        self.returned(ids)

    def returned(self, ids: list[str]) -> None:
        """Note that these were handed back unharmed: what they did to earlier processes still counts."""
        self._open.difference_update(ids)
        self._append("-", ids)

    def close(self, *, clean: bool = True) -> None:
        """Close the file; after a clean end nothing was lost by a crash."""
        if clean:
            self._open.clear()
            self._rewrite()
        os.close(self._file)

    def _append(self, sign: str, ids: Iterable[str]) -> None:
        data = "".join([f"{sign}{id_}\n" for id_ in ids]).encode()
        os.write(self._file, data)
        self._size += len(data)
        if self._size > COMPACT_AT:
            self._rewrite()

    def _rewrite(self) -> None:
        lines = [f"={count} {id_}\n" for id_, count in self.lost.items()] + [f"+{id_}\n" for id_ in self._open]
        data = "".join(lines).encode()
        # A crash between the two calls loses counts, never messages; a second file and a rename would cost more than that is worth.
        os.ftruncate(self._file, 0)
        os.write(self._file, data)
        self._size = len(data)

    def _read(self) -> None:
        try:
            text = self.path.read_text(errors="replace")
        except FileNotFoundError:
            return
        unfinished: Counter[str] = Counter()
        for line in text.splitlines():
            sign, rest = line[:1], line[1:]
            if sign == "+":
                unfinished[rest] = 1
            elif sign == "-":
                unfinished.pop(rest, None)
            elif sign == "=":
                count, _, id_ = rest.partition(" ")
                if count.isdigit():
                    self.lost[id_] = int(count)
        self.lost.update(unfinished)
