"""From settings to the artifact store, the keys, and the seam through which payloads pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from ziggurat.artifacts import ArtifactStore, Keyring, Library, Payloads, read_key, use_library
from ziggurat.assembly.backends import load_backend
from ziggurat.settings import Settings, load_settings

STORES: Mapping[str, str] = {
    "folder": "ziggurat.artifacts.backends.folder:FolderStore",
    "objects": "ziggurat.artifacts.backends.objects:ObjectStore",
}


def build_store(settings: Settings) -> ArtifactStore:
    """Return the configured artifact store. Raises ConfigurationError, MissingExtra."""
    url = settings.artifacts.url
    scheme = urlsplit(url).scheme if "://" in url else "file"
    if scheme != "file":
        return cast(ArtifactStore, load_backend("artifacts", "objects", STORES)(url))
    folder = unquote(urlsplit(url).path) if "://" in url else url
    return cast(ArtifactStore, load_backend("artifacts", "folder", STORES)(settings.resolve(folder)))


def build_keyring(settings: Settings) -> Keyring | None:
    """Return the configured keys, read from their variables, or None if there are none. Raises SettingsError, MissingExtra."""
    wanted = settings.encryption
    if not wanted.keys:
        return None
    keys = {name: read_key(secret.resolve(), f"The variable {secret.variable}") for name, secret in wanted.keys.items()}
    return Keyring(keys, wanted.use)


def build_payloads(settings: Settings) -> Payloads:
    """Return the seam through which all payloads of a system pass. Raises ConfigurationError, MissingExtra."""
    keyring = build_keyring(settings)
    return Payloads(build_library(settings, keyring), keyring=keyring, inline_limit=settings.artifacts.inline_limit)


def build_library(settings: Settings, keyring: Keyring | None = None) -> Library:
    """Return the configured artifact store with its keys. Raises ConfigurationError, MissingExtra."""
    return Library(build_store(settings), keyring if keyring is not None else build_keyring(settings))


#: The libraries that are open in this process; artifacts are read and saved in the newest.
_open: list[Callable[[], Library]] = []


def open_library(make: Callable[[], Library]) -> Callable[[], None]:
    """Let artifacts of this process be read and saved in the library that `make` returns, until the function that is returned is called.

    It is made when the first artifact is touched: a command that only looks needs neither the store's driver nor the keys.
    """
    made: list[Library] = []

    def library() -> Library:
        if not made:
            made.append(make())
        return made[0]

    def close() -> None:
        _open.remove(library)
        use_library(_open[-1] if _open else None)
        for opened in made:
            opened.close()

    _open.append(library)
    use_library(library)
    return close


def script_library() -> Library:
    """Return the artifacts of a plain script: those of ./ziggurat.toml, or of the defaults. Raises SettingsError, MissingExtra."""
    return build_library(load_settings())


def child_settings(settings: Settings) -> dict[str, Any]:
    """Return what a child process needs to reach the same artifacts: places and names of variables, never secrets."""
    wanted = settings.encryption
    url = settings.artifacts.url
    return {
        "artifacts": {
            "url": url if "://" in url else str(settings.resolve(url)),
            "inline_limit": settings.artifacts.inline_limit,
        },
        "encryption": {"use": wanted.use, "keys": {name: f"env:{secret.variable}" for name, secret in wanted.keys.items()}},
    }
