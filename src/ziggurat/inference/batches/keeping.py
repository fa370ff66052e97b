"""Documents of the shelf as records, and changes of them that are made to what was read or not at all."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import Struct

from ziggurat.clock import Clock
from ziggurat.inference.batches.interface import UNTAKEN, Batch, Doc, Line, Shelf

#: Seconds for which a line and its batch are kept past the line's deadline.
KEPT = 7 * 86_400.0


class Owner(Struct, frozen=True):
    """The lines of one step."""

    lines: list[str] = []


class Held(Struct, frozen=True):
    """Until when one process does something that one alone may do."""

    until: float


class Claim:
    """The right to do something, for a while."""

    __slots__ = ("name", "version")

    def __init__(self, name: str, version: int) -> None:
        self.name, self.version = name, version


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

    async def claim(self, what: str, lease: float) -> Claim | None:
        """Keep others from something for `lease` seconds; None if somebody keeps us from it."""
        name = f"claim:{what}"
        doc = await asyncio.to_thread(self.shelf.get, name)
        if doc is not None and _held(doc.data).until > self._clock.time():
            return None
        claim = Claim(name, doc.version if doc is not None else 0)
        return claim if await self.renew(claim, lease) else None

    async def renew(self, claim: Claim, lease: float) -> bool:
        """Keep others away for `lease` seconds from now; says whether the claim was still ours."""
        now = self._clock.time()
        data, version = _encode(Held(now + lease)), claim.version
        put = self.shelf.put
        done = await asyncio.to_thread(lambda: put(claim.name, data, version=version, group="", at=0.0, until=now + KEPT))
        claim.version += done
        return done

    async def release(self, claim: Claim) -> None:
        """Let others do it again."""
        await asyncio.to_thread(self.shelf.delete, claim.name, claim.version)

    async def claimed(self, what: str) -> bool:
        """Say whether somebody has a claim now."""
        doc = await asyncio.to_thread(self.shelf.get, f"claim:{what}")
        return doc is not None and _held(doc.data).until > self._clock.time()

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


_encode = msgspec.json.Encoder().encode
_line = msgspec.json.Decoder(Line).decode
_batch = msgspec.json.Decoder(Batch).decode
_held = msgspec.json.Decoder(Held).decode
_owner = msgspec.json.Decoder(Owner).decode
