"""The seam through which payloads enter and leave the wire: large ones are left at the store, secret ones are sealed.

A payload is the JSON of arguments, a result, a signal, a heartbeat or a state, as a codec makes and takes it. Between its two ends it
passes the orchestrator's history and a queue, which carry it without looking inside. `Payloads` stands at both ends:

    program ─ JSON ─▶ seal(data, run) ─▶ history, queue, Temporal ─▶ open(data, run) ─ JSON ─▶ program

Rules, which every backend keeps, so that each can rely on the others:

1.  A verb of `orchestrator.interface.Orchestrator` takes and returns plain JSON. `orchestrator.sealing.SealedOrchestrator` wraps a backend
    and seals and opens for it, bound to the run's id; `assembly` does the wrapping. Behind it everything is sealed: `StartRequest.payload`,
    `Run.payload`, `Run.result`, `Run.state`, `Event.result`, `Event.input`, `Message.payload`, `Outcome.result`, heartbeats, progress.
2.  The worker opens `Message.payload` with `Message.run`, and seals what the task returned with the same run.
3.  Who runs a workflow's program opens what he hands to it, and seals what it asks for: a task's arguments and the run's own result for the
    run itself, a child run's arguments for the child. A child's result is `rebind`-ed to its parent.
4.  A backend with hooks of its own (Temporal's payload codec) calls `await seal` and `await open` there, where waiting is allowed.

What travels is the JSON itself, unchanged, while it is small and no key is in use: then both calls cost a comparison or two. Otherwise it
is an envelope, which is JSON too and begins with `{"$ziggurat":1`:

    {"$ziggurat":1,"stored":KEY,"size":N,"sha256":HEX,"refs":[KEY…]}    over `inline_limit`: the JSON is the artifact KEY (claim check)
    {"$ziggurat":1,"blocks":N,"rest":BASE64,"size":…,"sha256":…,"refs":[…]}  one that grows: the first N refs are its blocks, see `blocks`
    {"$ziggurat":1,"key":NAME:MARK,"sealed":BASE64,"refs":[KEY…]}            encrypted; inside is the JSON, or an envelope of the kind above
    {"$ziggurat":1,"plain":BASE64,"refs":[KEY…]}                        JSON of the user's that itself begins like an envelope

`refs` name the artifacts that the payload refers to, so that `artifact_keys` finds in any recorded payload what must be kept for it.
A history from before encryption was turned on holds plain JSON, and stays readable.

Claim checks are addressed by run and content: an attempt that is made again writes the same object again, and a run never shares an object
with another run. Sealing is not idempotent: a sealed payload is never sealed again, but opened.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ziggurat.artifacts.blocks import HEAD, Growth, join
from ziggurat.artifacts.encryption import Keyring, no_key
from ziggurat.artifacts.keys import artifact_keys, is_key
from ziggurat.artifacts.library import Library
from ziggurat.errors import ArtifactCorrupt, ConfigurationError

#: Payloads above this many bytes are stored, where nothing else is set. Under the limits of all brokers: SQS had 256 KiB until 2025.
INLINE_LIMIT = 128 * 1024

_PREFIX = b'{"$ziggurat":'
_LENGTH = len(_PREFIX)
_VERSION = 1

Payload = bytes | Raw


class Envelope(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, rename={"version": "$ziggurat"}):
    """What travels in place of a payload. One of `stored`, `sealed` and `plain` is set."""

    version: int
    #: The key of the artifact that holds it, its size in bytes and its SHA-256.
    stored: str = ""
    size: int = 0
    sha256: str = ""
    #: The name and mark of the key that it is encrypted with, and the nonce and ciphertext.
    key: str = ""
    sealed: bytes = b""
    #: True if what is sealed is the envelope of a stored payload.
    fetch: bool = False
    plain: bytes = b""
    #: How many of `refs`, from the first, are the blocks of a payload that grows, and what comes after them. An encrypted one says it too.
    blocks: int = 0
    rest: bytes = b""
    #: Keys of artifacts that it refers to.
    refs: list[str] = []


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Envelope).decode


def is_sealed(data: Payload) -> bool:
    """Say whether a payload is an envelope."""
    return memoryview(data)[:_LENGTH] == _PREFIX


class Payloads:
    """Seals and opens payloads. The plain methods never wait; `seal` and `open` may, on the event loop; `*_now` block.

    Args:
        library: where large payloads go; None leaves all of them inline.
        keyring: the keys; None encrypts nothing.
        inline_limit: bytes of JSON above which a payload is stored.
    """

    def __init__(
        self, library: Library | None = None, *, keyring: Keyring | None = None, inline_limit: int = INLINE_LIMIT
    ) -> None:
        self.library = library
        self._keyring = keyring
        self._encrypts = keyring is not None and bool(keyring.use)
        self._inline_limit = inline_limit if library is not None else float("inf")
        self._growth = Growth()

    # -- sealing -------------------------------------------------------------------------------------------------

    def seal_small(self, data: bytes, run: str) -> bytes | None:
        """Return what travels for a payload of that run, or None if it is so large that it must be stored first."""
        if len(data) > self._inline_limit:
            return None
        return self.seal_inline(data, run)

    def seal_inline(self, data: bytes, run: str) -> bytes:
        """Return what travels for something that is never stored, whatever its size: a state, a heartbeat, progress."""
        if self._encrypts:
            return self._encrypt(data, run, artifact_keys(data))
        if data[:_LENGTH] == _PREFIX:
            return _encode(Envelope(_VERSION, plain=data, refs=artifact_keys(data)))
        return data

    def seal_now(self, data: bytes, run: str) -> bytes:
        """Return what travels for a payload of that run; stores it if need be. Raises ArtifactsUnreachable."""
        small = self.seal_small(data, run)
        return small if small is not None else self._store(data, run)

    async def seal(self, data: bytes, run: str) -> bytes:
        """As `seal_now`, beside the event loop."""
        small = self.seal_small(data, run)
        if small is not None:
            return small
        assert self.library is not None
        return await self.library.in_thread(self._store, data, run)

    async def seal_sparingly(self, data: bytes, run: str) -> bytes:
        """As `seal`, for a history that keeps what travels: of one that grows, each block is stored once, below `inline_limit` too."""
        if len(data) < HEAD or self.library is None:
            return await self.seal(data, run)
        if self._growth.grows(data, run):
            return await self.library.in_thread(self._store_blocks, data, run)
        small = self.seal_small(data, run)
        return small if small is not None else await self.library.in_thread(self._store_whole, data, run)

    def _store_blocks(self, data: bytes, run: str) -> bytes:
        assert self.library is not None
        keys, rest = self._growth.store(self.library, data, run)
        refs = [*keys, *(key for key in artifact_keys(data) if key not in keys)]
        digest = hashlib.sha256(data).hexdigest()
        envelope = _encode(Envelope(_VERSION, blocks=len(keys), rest=rest, size=len(data), sha256=digest, refs=refs))
        return self._encrypt(envelope, run, refs, fetch=True, blocks=len(keys)) if self._encrypts else envelope

    def _store(self, data: bytes, run: str) -> bytes:
        return self._store_blocks(data, run) if self._growth.grows(data, run) else self._store_whole(data, run)

    def _store_whole(self, data: bytes, run: str) -> bytes:
        library = self.library
        assert library is not None
        digest = hashlib.sha256(data)
        key = library.key_for(run, digest.digest())
        library.put(key, data)
        refs = artifact_keys(data)
        envelope = _encode(Envelope(_VERSION, stored=key, size=len(data), sha256=digest.hexdigest(), refs=refs))
        return self._encrypt(envelope, run, [key, *refs], fetch=True) if self._encrypts else envelope

    def _encrypt(self, data: bytes, run: str, refs: list[str], *, fetch: bool = False, blocks: int = 0) -> bytes:
        keyring = self._keyring
        assert keyring is not None
        sealed = keyring.seal(data, run, _beside(run, fetch, refs))
        return _encode(Envelope(_VERSION, key=keyring.use, sealed=sealed, fetch=fetch, blocks=blocks, refs=refs))

    # -- opening -------------------------------------------------------------------------------------------------

    def open_now(self, data: Payload, run: str) -> bytes:
        """Return the JSON of a payload of that run; reads it from the store if it is there and not in memory.

        Raises ArtifactMissing, ArtifactCorrupt, ArtifactsUnreachable, KeyMissing.
        """
        if not is_sealed(data):
            return bytes(data)
        envelope = self._unwrap(data, run)
        return envelope.plain or _fetch(self._stored(envelope), envelope)

    async def open(self, data: Payload, run: str) -> bytes:
        """As `open_now`, beside the event loop."""
        if not is_sealed(data):
            return bytes(data)
        envelope = self._unwrap(data, run)
        if not _objects(envelope):
            return envelope.plain
        library = self._stored(envelope)
        at_hand = all(library.cached(key) is not None for key in _objects(envelope))
        return _fetch(library, envelope) if at_hand else await library.in_thread(_fetch, library, envelope)

    def must_wait(self, data: Payload) -> bool:
        """Say whether opening a payload means to read it from the store."""
        if not is_sealed(data):
            return False
        library = self.library
        return any(library is None or library.cached(key) is None for key in _objects(_read(data)))

    def outline(self, data: Payload, run: str) -> bytes:
        """Return a payload for people: its JSON, or what stands for it if it is stored. Raises ArtifactCorrupt, KeyMissing."""
        if not is_sealed(data):
            return bytes(data)
        envelope = self._unwrap(data, run)
        objects = _objects(envelope)
        if not objects:
            return envelope.plain
        shown: dict[str, Any] = {"artifact": objects[0]} if len(objects) == 1 and not envelope.blocks else {"artifacts": objects}
        shown |= {"size": envelope.size, "sha256": envelope.sha256}
        return msgspec.json.encode(shown)

    def rebind(self, data: Payload, run: str, to: str) -> bytes:
        """Return a sealed payload of one run as a payload of another, which refers to the same stored object. Never waits.

        Raises ArtifactCorrupt, KeyMissing.
        """
        if not is_sealed(data):
            return bytes(data)
        outer = _read(data)
        if not outer.key:
            return bytes(data)
        inner = self._decrypt(outer, run)
        if self._encrypts:
            return self._encrypt(inner, to, outer.refs, fetch=outer.fetch, blocks=outer.blocks)
        return inner if outer.fetch else self.seal_small(inner, to) or inner

    def check_key(self, data: Payload) -> None:
        """Raise KeyMissing if a payload is encrypted with a key that is not known here."""
        if is_sealed(data):
            name = _read(data).key
            if name and self._keyring is None:
                raise no_key(name.rpartition(":")[0])
            if name and self._keyring is not None:
                self._keyring.check(name)

    def _unwrap(self, data: Payload, run: str) -> Envelope:
        """Return the envelope without its encryption: `plain`, `stored` or `blocks` is set."""
        envelope = _read(data)
        if not envelope.key:
            return envelope
        inner = self._decrypt(envelope, run)
        return _read(inner) if envelope.fetch else Envelope(_VERSION, plain=inner)

    def _decrypt(self, envelope: Envelope, run: str) -> bytes:
        if self._keyring is None:
            raise no_key(envelope.key.rpartition(":")[0])
        return self._keyring.open(envelope.key, envelope.sealed, run, _beside(run, envelope.fetch, envelope.refs))

    def _stored(self, envelope: Envelope) -> Library:
        objects = _objects(envelope)
        for key in objects:
            if not is_key(key):
                raise ArtifactCorrupt(f"A payload names the artifact {key[:80]!r}, which is no key; it was changed. Restore it.")
        if self.library is None:
            raise ConfigurationError(
                f"The payload is the artifact {objects[0]}, and no artifact store is open here; set [artifacts] url as it was."
            )
        return self.library


def _objects(envelope: Envelope) -> list[str]:
    """Return the keys of what must be read to open a payload."""
    if envelope.blocks:
        return envelope.refs[: envelope.blocks]
    if envelope.fetch:
        return envelope.refs[:1]
    return [envelope.stored] if envelope.stored else []


def _fetch(library: Library, envelope: Envelope) -> bytes:
    if envelope.stored:
        return library.get(envelope.stored, envelope.sha256)
    data = join(library, envelope.refs[: envelope.blocks], envelope.rest)
    if hashlib.sha256(data).hexdigest() != envelope.sha256:
        raise ArtifactCorrupt(
            f"A payload in {envelope.blocks} blocks, the first of which is {envelope.refs[0]}, is damaged: its content has another SHA-256 "
            "than when it was saved. Restore them from a copy."
        )
    return data


def _beside(run: str, fetch: bool, refs: list[str]) -> bytes:
    """Return what an encrypted payload is bound to: its run, and what its envelope says in the open."""
    return _encode((run, fetch, refs))


def _read(data: Payload) -> Envelope:
    try:
        envelope = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(
            f"A recorded payload is damaged: its envelope does not hold together ({error}). Restore it."
        ) from error
    if envelope.version != _VERSION:
        raise ArtifactCorrupt(
            f"A recorded payload has an envelope of version {envelope.version}, and this Ziggurat reads {_VERSION}; it was written by a "
            "newer one. Upgrade with: pip install -U ziggurat-agents"
        )
    sealed = bool(envelope.key and envelope.sealed)
    kinds = bool(envelope.stored) + sealed + bool(envelope.plain) + (envelope.blocks > 0 and not sealed)
    if kinds != 1 or (envelope.fetch and not envelope.refs) or not 0 <= envelope.blocks <= len(envelope.refs):
        raise ArtifactCorrupt("A recorded payload is damaged: its envelope is empty, or says two things. Restore it from a copy.")
    return envelope


#: For parts that are used by themselves: everything stays inline, nothing is encrypted.
INLINE = Payloads()
