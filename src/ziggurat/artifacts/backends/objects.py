"""Artifacts in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure; through obstore.

The URL names the bucket and a prefix, such as s3://bucket/ziggurat. Credentials, region and endpoint come from the environment, by the
names that each vendor's own tools use (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, …) or from the machine's role; docs/how-to/work-with-files.md lists them. Google's
endpoint is GOOGLE_BASE_URL, for which its own tools have no name. See https://developmentseed.org/obstore/latest/authentication/.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from ziggurat.artifacts.interface import CHUNK, ArtifactStore, StoredObject
from ziggurat.artifacts.keys import is_key
from ziggurat.errors import ArtifactMissing, ArtifactsUnreachable, ConfigurationError

#: Tries of one request, and how long they may take together; callers try again later themselves.
_RETRIES, _PATIENCE = 4, timedelta(seconds=20)
#: Bytes above which an object is sent in parts; S3 takes no part below 5 MiB but the last.
_PART = 8 * 1024 * 1024


class ObjectStore(ArtifactStore):
    """Objects under a URL. Raises ConfigurationError if the URL or what the environment says of it cannot be used."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        options: dict[str, Any] = {}
        if parts.scheme == "file":
            options = {"mkdir": True}
        elif parts.scheme != "memory":
            options = {
                "retry_config": {"max_retries": _RETRIES, "retry_timeout": _PATIENCE},
                "client_options": {"timeout": "60 seconds", "connect_timeout": "10 seconds", "allow_http": _plain_http()},
            }
        try:
            self._store: Any = from_url(url, **options)
        except (BaseError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"The artifact store {url} cannot be used: {_cause(error)}. Write [artifacts] url as a folder, s3://bucket/prefix, "
                "gs://bucket/prefix or az://container/prefix, and give the credentials in the environment."
            ) from error

    def put(self, key: str, chunks: Iterable[bytes]) -> None:
        with self._translated("written"):
            # Most objects fit one request, which is atomic and needs no clean-up after a crash; a larger one goes in parts.
            source = iter(chunks)
            head: list[bytes] = []
            size = 0
            for chunk in source:
                head.append(chunk)
                size += len(chunk)
                if size > _PART:
                    obstore.put(self._store, self._path(key), itertools.chain(head, source), chunk_size=_PART, use_multipart=True)
                    return
            obstore.put(self._store, self._path(key), b"".join(head), use_multipart=False)

    def get(self, key: str) -> Iterator[bytes]:
        with self._translated("read", key):
            for chunk in obstore.get(self._store, self._path(key)).stream(min_chunk_size=CHUNK):
                yield bytes(chunk)

    def size(self, key: str) -> int | None:
        with self._translated("read"):
            try:
                return int(obstore.head(self._store, self._path(key))["size"])
            except (NotFoundError, FileNotFoundError):
                return None

    def delete(self, keys: Collection[str]) -> None:
        with self._translated("written"):
            for key in keys:
                try:
                    obstore.delete(self._store, self._path(key))
                except (NotFoundError, FileNotFoundError):
                    continue

    def list(self) -> Iterator[StoredObject]:
        with self._translated("read"):
            for page in obstore.list(self._store, chunk_size=1000):
                for found in page:
                    key = found["path"].rpartition("/")[2]
                    if is_key(key):
                        yield StoredObject(key, int(found["size"]), found["last_modified"].timestamp())

    def claim(self, owner: str) -> str:
        with self._translated("written"):
            try:
                obstore.put(self._store, "owner", owner.encode(), mode="create")
                return owner
            except AlreadyExistsError:
                return bytes(obstore.get(self._store, "owner").bytes()).decode()

    @staticmethod
    def _path(key: str) -> str:
        if not is_key(key):
            raise ArtifactMissing(f"{key!r} is not the key of an artifact.")
        return f"{key[4:6]}/{key}"

    @contextmanager
    def _translated(self, verb: str, key: str = "") -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            # S3's and Google's name for it, and Azure's.
            if key and not any(name in str(error) for name in ("NoSuchBucket", "ContainerNotFound")):
                raise ArtifactMissing(
                    f"The artifact {key} is not in {self.url}: it was deleted, or [artifacts] url names another store than the one it "
                    "was saved to."
                ) from error
            raise self._unusable(verb, error, "Make the bucket") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._unusable(verb, error, "Check the credentials in the environment and what they allow") from error
        except (BaseError, OSError) as error:
            raise self._unusable(verb, error, "Check that it can be reached and the credentials in the environment") from error

    def _unusable(self, verb: str, error: Exception, remedy: str) -> ArtifactsUnreachable:
        return ArtifactsUnreachable(
            f"The artifact store {self.url} cannot be {verb} now: {_cause(error)}. {remedy}; nothing that was recorded is lost."
        )


def _plain_http() -> bool:
    """Say whether the environment names an endpoint without TLS: whoever does that, as for MinIO on this machine, means it."""
    names = (
        "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL",
    )  # fmt: skip
    return any(os.environ.get(name, "").startswith("http://") for name in names)


def _cause(error: BaseException) -> str:
    """Return the first sentence of what the driver says; it appends its whole configuration, which is nobody's business."""
    text = " ".join(str(error).split("\n\nDebug source:")[0].split())
    return text[:300].rstrip(".") or type(error).__name__
