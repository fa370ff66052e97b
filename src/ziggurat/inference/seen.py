"""What a stream has brought so far."""

from __future__ import annotations

from msgspec.structs import replace

from ziggurat.inference.tokens import byte_length
from ziggurat.records import Chunk, Usage


class Seen:
    """What a stream has brought so far: enough to bill it wherever it ends."""

    __slots__ = ("final", "first", "size", "usage")

    def __init__(self) -> None:
        #: Seconds to the first chunk.
        self.first: float | None = None
        #: Bytes of the answer.
        self.size = 0
        self.usage = Usage()
        self.final = Chunk(finish="stop")

    def take(self, chunk: Chunk) -> Chunk | None:
        """Take in a chunk and return what is to be passed on now: the end is kept back until its usage is known."""
        self.size += byte_length(chunk.text) + byte_length(chunk.reasoning)
        for _, _, name, arguments in chunk.tool_calls:
            self.size += len(name) + len(arguments)
        if chunk.usage is not None:
            if chunk.usage.calls:
                self.usage = chunk.usage
            chunk = replace(chunk, usage=None)
            if chunk.finish is None and not (chunk.text or chunk.reasoning or chunk.tool_calls):
                return None
        if chunk.finish is None:
            return chunk
        self.final = chunk
        return None
