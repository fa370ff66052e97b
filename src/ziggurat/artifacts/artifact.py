"""`Artifact`: a file or other large thing, by reference, as arguments, results and fields of any typed payload.

An artifact is saved once and never changes. What travels is its description: key, size, checksum, media type and name; whoever has it reads
the content from the store. A task reads and saves; a workflow passes artifacts on, and does neither, because what a store answers is not
in the history (return the part that the workflow decides by from a task). Scripts and tests may do both.
"""

from __future__ import annotations

import hashlib
import importlib
import mimetypes
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, cast

from msgspec import Struct

from ziggurat.artifacts.interface import CHUNK
from ziggurat.artifacts.keys import is_key
from ziggurat.artifacts.library import Library
from ziggurat.errors import InvalidData, NotDurable

#: What `save` takes: bytes, text, a file's path, or pieces.
Content = bytes | bytearray | memoryview | str | Path | Iterable[bytes] | AsyncIterable[bytes]
#: Bytes of a stream that are held in memory before they go to a temporary file.
_SPOOL = 8 * 1024 * 1024


class Surroundings(Struct, frozen=True):
    """Where the calling code is: in a workflow's program, in an attempt of a task, or neither."""

    workflow: bool = False
    #: Names the step of the attempt, the same for all its attempts: what it saves again is the same artifact.
    scope: str = ""


_surroundings: list[Callable[[], Surroundings]] = [Surroundings]
_libraries: list[Library | Callable[[], Library]] = []
#: Names the function that opens the artifacts of ziggurat.toml for plain scripts. A name, because imports only look down.
_DEFAULT_LIBRARY = "ziggurat.assembly:script_library"


def ask_surroundings(ask: Callable[[], Surroundings]) -> None:
    """Let artifacts find out where the code that calls them is. Called once, by the program layer."""
    _surroundings[:] = [ask]


def use_library(library: Library | Callable[[], Library] | None) -> None:
    """Set where artifacts of this process are, or what makes the library when the first is touched; None forgets it."""
    _libraries[:] = [library] if library is not None else []


def current_library() -> Library:
    """Return where artifacts of this process are; for a plain script that is what ziggurat.toml says, or the defaults."""
    if not _libraries:
        module, _, name = _DEFAULT_LIBRARY.partition(":")
        use_library(cast(Callable[[], Library], getattr(importlib.import_module(module), name)))
    found = _libraries[0]
    if not isinstance(found, Library):
        found = _libraries[0] = found()
    return found


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored file or other bytes, by reference. JSON on the wire; an argument, a result, or a field of any model, dataclass or Struct.

    `await artifact.read()`, `.text()` and `async for chunk in artifact.chunks()` are for async code; `read_bytes()`, `read_text()`,
    `open()` and `iter_chunks()` are the same for plain functions. They raise ArtifactMissing, ArtifactCorrupt if the content is not what
    was saved, ArtifactsUnreachable, and KeyMissing. In a workflow they are refused: pass the artifact on to a task.

    An artifact is kept as long as a run refers to it: in its input, result, signals, state, or a step's result.
    """

    #: Its key in the store.
    key: str
    #: Bytes, and the SHA-256 of the content in hexadecimal.
    size: int
    sha256: str
    media_type: str = "application/octet-stream"
    #: A file name without folders, for people and for suffixes; may be empty.
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not is_key(self.key):
            raise ValueError("it is not an artifact: its key is not one that was given out by save")

    # -- reading, in async code --------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Return the whole content, checked."""
        library = _library("read", self.name)
        return await library.in_thread(library.get, self.key, self.sha256)

    async def text(self, encoding: str = "utf-8") -> str:
        """Return the whole content as text. Raises UnicodeDecodeError."""
        return (await self.read()).decode(encoding)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the content in pieces of about 1 MiB. A checksum that does not fit raises ArtifactCorrupt after the last."""
        library = _library("read", self.name)
        source = library.chunks(self.key, self.sha256)
        while (chunk := await library.in_thread(next, source, None)) is not None:
            yield chunk

    async def download(self, path: Path | str) -> Path:
        """Write the content to a file, whole or not at all, and return its path."""
        return await _library("read", self.name).in_thread(self._write_to, Path(path))

    # -- reading, in plain functions -----------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """Return the whole content, checked."""
        return _library("read", self.name).get(self.key, self.sha256)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole content as text. Raises UnicodeDecodeError."""
        return self.read_bytes().decode(encoding)

    def iter_chunks(self) -> Iterator[bytes]:
        """Yield the content in pieces of about 1 MiB. A checksum that does not fit raises ArtifactCorrupt after the last."""
        return _library("read", self.name).chunks(self.key, self.sha256)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Give the content as a binary file, checked, for libraries that want one: `with artifact.open() as file`."""
        with tempfile.SpooledTemporaryFile(_SPOOL) as file:
            for chunk in self.iter_chunks():
                file.write(chunk)
            file.seek(0)
            yield cast(BinaryIO, file)

    def download_now(self, path: Path | str) -> Path:
        """Write the content to a file, whole or not at all, and return its path."""
        _library("read", self.name)
        return self._write_to(Path(path))

    def _write_to(self, path: Path) -> Path:
        beside = path.with_name(f".{path.name}.part")
        try:
            with beside.open("wb") as file:
                for chunk in current_library().chunks(self.key, self.sha256):
                    file.write(chunk)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path

    # -- saving ------------------------------------------------------------------------------------------------------

    @classmethod
    async def save(cls, content: Content, *, name: str = "", media_type: str = "") -> Artifact:
        """Save bytes, text, a file by its path, or an (async) iterable of bytes, and return the artifact.

        In a task, every attempt of a step that saves the same content gets the same artifact. In a workflow it is refused.

        Args:
            name: a file name; a path's own by default.
            media_type: what it is, such as "application/pdf"; told from the name by default.

        Raises ArtifactsUnreachable, InvalidData.
        """
        library, scope = _library("saved", name), _surroundings[0]().scope
        if not isinstance(content, (bytes, bytearray, memoryview, str, Path)) and isinstance(content, AsyncIterable):
            with tempfile.SpooledTemporaryFile(_SPOOL) as file:
                async for piece in content:
                    await library.in_thread(file.write, piece)
                return await library.in_thread(_save_file, library, scope, file, name, media_type)
        return await library.in_thread(_save, library, scope, content, name, media_type)

    @classmethod
    def save_now(
        cls, content: bytes | bytearray | memoryview | str | Path | Iterable[bytes], *, name: str = "", media_type: str = ""
    ) -> Artifact:
        """As `save`, for plain functions."""
        return _save(_library("saved", name), _surroundings[0]().scope, content, name, media_type)


def _library(done: str, name: str) -> Library:
    """Return the library of this process. Raises NotDurable in a workflow."""
    if _surroundings[0]().workflow:
        _refuse(done, name)
    return current_library()


def _refuse(done: str, name: str) -> NoReturn:
    thing = f"the artifact {name!r}" if name else "an artifact"
    raise NotDurable(
        f"The workflow {done} {thing}, which a replay cannot repeat. Do it in a task, and return what the workflow needs to know."
    )


def _save(library: Library, scope: str, content: Any, name: str, media_type: str) -> Artifact:
    if isinstance(content, str):
        content = content.encode()
        media_type = media_type or _guess(name) or "text/plain; charset=utf-8"
    if isinstance(content, (bytes, bytearray, memoryview)):
        data = bytes(content)
        digest = hashlib.sha256(data)
        key = library.key_for(scope, digest.digest())
        library.put(key, data)
        return Artifact(key, len(data), digest.hexdigest(), *_labels(name, media_type))
    if isinstance(content, Path):
        try:
            with content.open("rb") as file:
                return _save_file(library, scope, file, name or content.name, media_type)
        except OSError as error:
            raise InvalidData(f"The file {content} cannot be saved as an artifact: {error.strerror or error}.") from error
    if not isinstance(content, Iterable):
        raise InvalidData(f"An artifact is saved from bytes, text, a path or pieces of bytes, not from {type(content).__name__}.")
    with tempfile.SpooledTemporaryFile(_SPOOL) as spool:
        for piece in content:
            spool.write(piece)
        return _save_file(library, scope, spool, name, media_type)


def _save_file(library: Library, scope: str, file: IO[bytes], name: str, media_type: str) -> Artifact:
    """Save what is in a file: read twice, because the checksum is part of the key and a source may be larger than memory."""
    file.seek(0)
    digest, size = hashlib.sha256(), 0
    for chunk in iter(lambda: file.read(CHUNK), b""):
        digest.update(chunk)
        size += len(chunk)
    file.seek(0)
    key = library.key_for(scope, digest.digest())
    library.put_chunks(key, _unchanged(file, digest.digest()))
    return Artifact(key, size, digest.hexdigest(), *_labels(name, media_type))


def _unchanged(file: IO[bytes], expected: bytes) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(CHUNK), b""):
        digest.update(chunk)
        yield chunk
    if digest.digest() != expected:
        raise InvalidData("The file changed while it was saved as an artifact; save it again once it is complete.")


def _labels(name: str, media_type: str) -> tuple[str, str]:
    name = Path(name).name
    return media_type or _guess(name) or "application/octet-stream", name


def _guess(name: str) -> str:
    return mimetypes.guess_type(name)[0] or ""
