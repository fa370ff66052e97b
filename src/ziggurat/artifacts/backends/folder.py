"""Artifacts in a local folder: one file an object, no server, no driver.

    FOLDER/4f/zga_4f…   an object; the folder's name is the first two characters of the key's chance
    FOLDER/new/…        objects that are being written
    FOLDER/owner        who cleans it up

A file is written beside, synced, renamed into place, and its folder synced: after a crash at any instant it is there whole or not at all
(rename(2) is atomic within a file system; fsync(2) of the folder makes the new name durable). Files are readable by this user alone.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ziggurat.artifacts.interface import CHUNK, ArtifactStore, StoredObject
from ziggurat.artifacts.keys import is_key
from ziggurat.errors import ArtifactMissing, ArtifactsUnreachable

#: Seconds after which a file that was never finished is taken for what a crash left behind.
_ABANDONED = 24 * 3600.0


class FolderStore(ArtifactStore):
    """Objects in a folder, which is made when the first is written."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.url = str(self.folder)
        self._new = self.folder / "new"

    def put(self, key: str, chunks: Iterable[bytes]) -> None:
        target = self._path(key)
        with self._translated("written"):
            self._make(target.parent)
            self._make(self._new)
            beside = self._new / f"{key}.{secrets.token_hex(6)}"
            try:
                descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    for chunk in chunks:
                        view = memoryview(chunk)
                        while view:
                            view = view[file.write(view) :]
                    os.fsync(file.fileno())
                beside.replace(target)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            _sync(target.parent)

    def get(self, key: str) -> Iterator[bytes]:
        path = self._path(key)
        with self._translated("read", key):
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    yield chunk

    def size(self, key: str) -> int | None:
        with self._translated("read"):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def delete(self, keys: Collection[str]) -> None:
        with self._translated("written"):
            for key in keys:
                self._path(key).unlink(missing_ok=True)

    def list(self) -> Iterator[StoredObject]:
        with self._translated("read"):
            if not self.folder.is_dir():
                return
            for drawer in sorted(self.folder.iterdir()):
                if not drawer.is_dir():
                    continue
                with os.scandir(drawer) as entries:
                    for entry in entries:
                        yield from self._listed(entry)

    def _listed(self, entry: os.DirEntry[str]) -> Iterator[StoredObject]:
        with suppress(FileNotFoundError):  # Deleted while we looked.
            found = entry.stat()
            if is_key(entry.name):
                yield StoredObject(entry.name, found.st_size, found.st_mtime)
            elif Path(entry.path).parent == self._new and found.st_mtime < _newest(self._new) - _ABANDONED:
                Path(entry.path).unlink(missing_ok=True)

    def claim(self, owner: str) -> str:
        path = self.folder / "owner"
        with self._translated("written"):
            self._make(self.folder)
            beside = self.folder / f"owner.{secrets.token_hex(6)}"
            beside.write_text(owner, encoding="utf-8")
            beside.chmod(0o600)
            try:
                os.link(beside, path)  # Unlike a rename, a link fails if somebody was quicker.
                _sync(self.folder)
            except FileExistsError:
                pass
            finally:
                beside.unlink(missing_ok=True)
            return path.read_text(encoding="utf-8")

    def _path(self, key: str) -> Path:
        if not is_key(key):
            raise ArtifactMissing(f"{key!r} is not the key of an artifact.")
        return self.folder / key[4:6] / key

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            if folder == self.folder:
                folder.parent.mkdir(parents=True, exist_ok=True)
            else:
                self._make(self.folder)
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync(folder.parent)

    @contextmanager
    def _translated(self, verb: str, key: str = "") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if not key:
                raise self._unusable(verb, error) from error
            raise ArtifactMissing(
                f"The artifact {key} is not in {self.url}: it was deleted, or [artifacts] url names another store than the one it "
                "was saved to."
            ) from error
        except OSError as error:
            raise self._unusable(verb, error) from error

    def _unusable(self, verb: str, error: OSError) -> ArtifactsUnreachable:
        return ArtifactsUnreachable(
            f"The artifact store {self.url} cannot be {verb}: {error.strerror or error}. Mend the folder of [artifacts] url; nothing that "
            "was recorded is lost."
        )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _newest(folder: Path) -> float:
    """Return the time of the last change in a folder: ages are told by the file system's own clock."""
    return folder.stat().st_mtime
