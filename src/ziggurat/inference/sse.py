"""Server-sent events, as far as answers need them: bytes in, the data of whole events out (WHATWG HTML, §9.2)."""

from __future__ import annotations

#: The longest event. A model's piece is some bytes; the most is a whole tool call in one.
EVENT_BYTES_MAX = 8 * 1024 * 1024


class EventTooLong(Exception):
    """One event grew beyond EVENT_BYTES_MAX without an end."""


class Events:
    """Cuts a byte stream into events. Comments (`: keep-alive`) and blank lines yield nothing: they are not data."""

    __slots__ = ("_data", "_rest", "_size", "_started")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes, cut anywhere, and return the data of the events that they complete. Raises EventTooLong."""
        if not self._started:
            self._started = True
            data = data.removeprefix(b"\xef\xbb\xbf")
        lines = (self._rest + data if self._rest else data).split(b"\n")
        self._rest = lines.pop()
        found: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    found.append(self._joined())
            elif line.startswith(b"data:"):
                value = line[6:] if line.startswith(b"data: ") else line[5:]
                self._data.append(value)
                self._size += len(value)
        if len(self._rest) + self._size > EVENT_BYTES_MAX:
            raise EventTooLong(f"an event is longer than {EVENT_BYTES_MAX:,} bytes")
        return found

    def end(self) -> list[bytes]:
        """Return the data of an event that the stream's end completes. The standard drops it; providers forget the blank line."""
        found = self.feed(b"\n") if self._rest else []
        return [*found, self._joined()] if self._data else found

    def _joined(self) -> bytes:
        joined = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        return joined
