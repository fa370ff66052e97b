"""What an artifact store promises: objects by key, written whole or not at all, durable before the call returns.

The verbs block; whoever is on an event loop calls them in a thread (`Library` does). Objects are never changed, so a reader needs no lock,
and a key that is written again holds the same content as before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator

from msgspec import Struct

#: Bytes of one chunk when objects are written and read in pieces.
CHUNK = 1024 * 1024


class StoredObject(Struct, frozen=True):
    """One object as a listing shows it."""

    key: str
    #: Bytes in the store; an encrypted object is a little larger than its content.
    size: int
    #: When it was last written, in seconds since the epoch, by the store's clock.
    modified_at: float


class ArtifactStore(ABC):
    """Keeps objects. All methods may be called from several threads at a time.

    Every method may raise ArtifactsUnreachable when the store cannot be used now.
    """

    #: Where it is, for people; without credentials.
    url: str

    @abstractmethod
    def put(self, key: str, chunks: Iterable[bytes]) -> None:
        """Write an object, atomically and durably. One of that key that is there already is replaced."""

    @abstractmethod
    def get(self, key: str) -> Iterator[bytes]:
        """Yield an object's content in pieces. Raises ArtifactMissing."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return an object's size in the store in bytes, or None if there is none of that key."""

    @abstractmethod
    def delete(self, keys: Collection[str]) -> None:
        """Remove objects; unknown keys are ignored."""

    @abstractmethod
    def list(self) -> Iterator[StoredObject]:
        """Yield every object."""

    @abstractmethod
    def claim(self, owner: str) -> str:
        """Write down who cleans this store up, unless somebody is written down already, and return who is."""

    def close(self) -> None:
        """Let go of connections."""
