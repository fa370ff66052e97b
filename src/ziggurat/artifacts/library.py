"""Objects with their checks: a store, the keys, and what was read lately.

    Artifact, Payloads ──▶ Library ──(encrypted or as it is)──▶ ArtifactStore
                              └── the newest small objects, already checked

What is read is compared with the SHA-256 that the reference holds before anybody sees it, or at the end of a stream.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ziggurat.artifacts.encryption import Keyring
from ziggurat.artifacts.interface import CHUNK, ArtifactStore
from ziggurat.artifacts.keys import ENCRYPTED, key_for
from ziggurat.errors import ArtifactCorrupt, KeyMissing

T = TypeVar("T")

#: Bytes of objects that are kept in memory, so that an engine and a worker in one process read no object that the other has just written.
CACHE_BYTES = 128 * 1024 * 1024
#: Objects written or read at a time, beside the event loop.
_THREADS = 8


class Library:
    """A store with its keys. All methods but `in_thread` block and may be called from any thread.

    Args:
        store: where objects are.
        keyring: encrypts new objects, if it has a key in use, and decrypts old ones.
        cache_bytes: how much of what was written or read lately stays in memory.
    """

    def __init__(self, store: ArtifactStore, keyring: Keyring | None = None, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.store = store
        self.keyring = keyring
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached = 0
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    @property
    def encrypts(self) -> bool:
        """Whether new objects are encrypted."""
        return self.keyring is not None and bool(self.keyring.use)

    def key_for(self, scope: str, digest: bytes) -> str:
        """Return the key of content with this SHA-256 within a scope; the same each time, unless there is no scope."""
        if self.encrypts and scope and self.keyring is not None:
            # Blinded, so that nobody who lists the store can try out what a run may have stored.
            scope = self.keyring.blind(scope)
        return key_for(scope, digest, encrypted=self.encrypts)

    # -- whole objects ---------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes) -> None:
        """Write an object. Raises ArtifactsUnreachable."""
        self.put_chunks(key, [data])
        self._remember(key, data)

    def put_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        """Write an object that may be larger than memory. Raises ArtifactsUnreachable."""
        if key.startswith(ENCRYPTED):
            chunks = self._keys(key).seal_object(key, chunks)
        self.store.put(key, chunks)

    def get(self, key: str, sha256: str) -> bytes:
        """Return an object's content. Raises ArtifactMissing, ArtifactCorrupt, ArtifactsUnreachable, KeyMissing."""
        known = self.cached(key)
        if known is None:
            known = b"".join(self.chunks(key, sha256))
            self._remember(key, known)
        return known

    def chunks(self, key: str, sha256: str) -> Iterator[bytes]:
        """Yield an object's content in pieces; raises as `get` does, ArtifactCorrupt at the end at the latest."""
        source = self.store.get(key)
        if key.startswith(ENCRYPTED):
            source = self._keys(key).open_object(key, source)
        digest = hashlib.sha256()
        for chunk in source:
            digest.update(chunk)
            yield chunk
        if sha256 and digest.hexdigest() != sha256:
            raise ArtifactCorrupt(
                f"The artifact {key} is damaged: its content has another SHA-256 than when it was saved. Restore it from a copy."
            )

    def cached(self, key: str) -> bytes | None:
        """Return an object's content if it is in memory."""
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
            return known

    def delete(self, keys: Collection[str]) -> None:
        """Remove objects. Raises ArtifactsUnreachable."""
        with self._lock:
            for key in keys:
                self._cached -= len(self._cache.pop(key, b""))
        self.store.delete(keys)

    def _remember(self, key: str, data: bytes) -> None:
        if len(data) > self._cache_bytes // 2:
            return
        with self._lock:
            self._cached += len(data) - len(self._cache.pop(key, b""))
            self._cache[key] = data
            while self._cached > self._cache_bytes:
                self._cached -= len(self._cache.popitem(last=False)[1])

    def _keys(self, key: str) -> Keyring:
        if self.keyring is None:
            raise KeyMissing(
                f"The artifact {key} is encrypted, and [encryption.keys] holds no key; add the one that it was saved with."
            )
        return self.keyring

    # -- beside the event loop ---------------------------------------------------------------------------------------

    async def in_thread(self, call: Callable[..., T], *args: object) -> T:
        """Call something that blocks in a thread of this library's own: `asyncio.to_thread` has few, and others wait for them."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "ziggurat-artifacts")
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(context.run, call, *args))

    def close(self) -> None:
        """End the threads and let go of the store."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self.store.close()


def pieces(data: bytes) -> Iterator[memoryview]:
    """Yield data in chunks without copying it."""
    view = memoryview(data)
    for at in range(0, len(view), CHUNK):
        yield view[at : at + CHUNK]
