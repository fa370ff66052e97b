"""Documents of the shelf as records, and changes of them that are made to what was read or not at all."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ziggurat.clock import Clock
from ziggurat.inference.batches.interface import UNTAKEN, Batch, Doc, Line, Shelf

#: Seconds for which a line and its batch are kept past the line's deadline.
KEPT = 7 * 86_400.0


class Owner(Struct, frozen=True):
    """The lines of one step."""

    lines: list[str] = []


class Lock(Struct, frozen=True):
    """Until when one process sends what waits in a line."""

    until: float


class Lost(Exception):
    """Somebody else changed the batch meanwhile, and goes on with it."""


class Keeping:
    """The shelf as coroutines over records. A version of 0 means that there is none yet."""

    def __init__(self, shelf: Shelf, clock: Clock) -> None:
        self.shelf, self._clock = shelf, clock

    async def line(self, key: str) -> tuple[Line, int] | None:
        """Return a line and its version."""
        doc = await asyncio.to_thread(self.shelf.get, f"line:{key}")
        return (_line(doc.data), doc.version) if doc is not None else None

    async def put_line(self, line: Line, version: int) -> bool:
        """Write a line in the place of a version of it; says whether that was still there."""
        return await asyncio.to_thread(self._put_line, line, version)

    def _put_line(self, line: Line, version: int) -> bool:
        at = line.due if line.group == UNTAKEN else line.placed_at
        return self.shelf.put(f"line:{line.key}", _encode(line), version=version, group=line.group, at=at, until=line.due + KEPT)

    async def forget_line(self, line: Line, version: int) -> bool:
        """Remove a version of a line."""
        return await asyncio.to_thread(self.shelf.delete, f"line:{line.key}", version)

    async def lines(self, group: str, limit: int) -> list[tuple[Line, int]]:
        """Return the lines of a group, the first first."""
        docs: list[Doc] = await asyncio.to_thread(self.shelf.group, group, limit)
        return [(_line(doc.data), doc.version) for doc in docs]

    async def count(self, group: str) -> tuple[int, float]:
        """Return how many documents a group has, and the place of the first."""
        return await asyncio.to_thread(self.shelf.count, group)

    async def own(self, owner: str, key: str) -> None:
        """Note that a step has a line, before it has it."""
        name = f"owner:{owner}"
        while True:
            doc = await asyncio.to_thread(self.shelf.get, name)
            held = _owner(doc.data) if doc is not None else Owner()
            if key in held.lines:
                return
            data = _encode(Owner([*held.lines, key]))
            if await asyncio.to_thread(self._put_owner, name, data, doc.version if doc is not None else 0):
                return

    def _put_owner(self, name: str, data: bytes, version: int) -> bool:
        # A month: longer than any deadline that makes sense.
        return self.shelf.put(name, data, version=version, group="", at=0.0, until=self._clock.time() + 30 * 86_400.0)

    async def owned(self, owner: str) -> list[str]:
        """Return the keys of a step's lines."""
        doc = await asyncio.to_thread(self.shelf.get, f"owner:{owner}")
        return _owner(doc.data).lines if doc is not None else []

    async def lock(self, line: str, lease: float) -> int:
        """Keep others from sending what waits in a line; returns the version to unlock it with, or 0 if somebody sends it already."""
        now, name = self._clock.time(), f"sending:{line}"
        doc = await asyncio.to_thread(self.shelf.get, name)
        if doc is not None and _lock(doc.data).until > now:
            return 0
        version, data = doc.version if doc is not None else 0, _encode(Lock(now + lease))
        done = await asyncio.to_thread(lambda: self.shelf.put(name, data, version=version, group="", at=0.0, until=now + KEPT))
        return version + 1 if done else 0

    async def unlock(self, line: str, version: int) -> None:
        """Let others send again."""
        await asyncio.to_thread(self.shelf.delete, f"sending:{line}", version)

    async def batch(self, id: str) -> tuple[Batch, int] | None:
        """Return a batch and its version."""
        doc = await asyncio.to_thread(self.shelf.get, f"batch:{id}")
        return (_batch(doc.data), doc.version) if doc is not None else None

    async def batches(self, limit: int = 1000) -> list[Batch]:
        """Return the batches that have not ended."""
        return [_batch(doc.data) for doc in await asyncio.to_thread(self.shelf.group, "batches", limit)]

    async def put_batch(self, batch: Batch, version: int) -> int:
        """Write a batch in the place of a version of it, and return the new version. Raises Lost."""
        group = "" if batch.state == "ended" else "batches"
        until = batch.made_at + 4 * KEPT
        data = _encode(batch)
        put = self.shelf.put
        if not await asyncio.to_thread(put, batch.key, data, version=version, group=group, at=batch.made_at, until=until):
            raise Lost
        return version + 1

    async def claim(self, id: str, holder: str, now: float, lease: float) -> tuple[Batch, int] | None:
        """Take a batch to work on it; None if somebody does already, or it has ended."""
        found = await self.batch(id)
        if found is None or found[0].state == "ended" or found[0].held_until > now:
            return None
        batch = replace(found[0], holder=holder, held_until=now + lease)
        try:
            return batch, await self.put_batch(batch, found[1])
        except Lost:
            return None


_encode = msgspec.json.Encoder().encode
_line = msgspec.json.Decoder(Line).decode
_batch = msgspec.json.Decoder(Batch).decode
_lock = msgspec.json.Decoder(Lock).decode
_owner = msgspec.json.Decoder(Owner).decode
