"""Encryption of payloads and stored objects: AES-256-GCM (NIST SP 800-38D) under keys that only the environment holds.

What is encrypted names its key as "name:mark"; the mark is 32 bits of a fingerprint. So a key is found again although it was renamed, and
another key under an old name is told from damage.

No key of the settings encrypts anything itself. Each run has a subkey of its own, HMAC-SHA256(key, "ziggurat payload" and the run's id),
and each stored object one of its key and a salt. So a payload that is moved to another run cannot be opened there, and the random 96-bit
nonces of one subkey stay far below the 2**32 that GCM allows, however many steps a system records.

An object is a sequence of chunks, each sealed by itself, so that it can be read as a stream; the nonce counts them and marks the last, so
that none can be dropped, doubled or moved (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015):

    "ZGE1" | length of the key's name, 1 byte | the key's name | salt, 16 bytes | chunk … | chunk
    chunk = AES-GCM(up to 1 MiB of content), nonce = number of the chunk, 11 bytes | 1 if it is the last, 1 byte
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ziggurat.artifacts.interface import CHUNK
from ziggurat.errors import ArtifactCorrupt, KeyMissing, MissingExtra, SettingsError

_MAGIC = b"ZGE1"
_SALT, _NONCE, _TAG = 16, 12, 16
#: Subkeys kept: one for each run that is being worked on.
_SUBKEYS_KEPT = 4096


class Keyring:
    """Keys by name. The one that `use` names encrypts; every one decrypts. May be used from several threads.

    Args:
        keys: 32 bytes each.
        use: the name of the key that encrypts; "" encrypts nothing, and still decrypts.

    Raises MissingExtra if `cryptography` is not installed.
    """

    def __init__(self, keys: Mapping[str, bytes], use: str = "") -> None:
        self._cipher, self._invalid = _cryptography()
        #: By mark: the name and the key.
        self._keys = {_mark(key): (name, key) for name, key in keys.items()}
        #: How what is encrypted now names its key; "" while nothing is.
        self.use = f"{use}:{_mark(keys[use])}" if use else ""
        self._subkeys: dict[tuple[str, bytes], Any] = {}

    def __repr__(self) -> str:
        return f"<Keyring of {', '.join(name for name, _ in self._keys.values()) or 'nothing'}, using {self.use or 'none'}>"

    def check(self, name: str) -> None:
        """Raise KeyMissing unless the key that a payload or object names is here."""
        self._key(name)

    def _key(self, name: str) -> bytes:
        known, _, mark = name.rpartition(":")
        found = self._keys.get(mark)
        if found is not None:
            return found[1]
        if any(known == other for other, _ in self._keys.values()):
            raise KeyMissing(
                f"This was encrypted with another key than the one that [encryption.keys] has as {known!r}; add the old one under a name "
                "of its own, and set its variable. Nothing is lost meanwhile."
            )
        raise no_key(known)

    # -- payloads ------------------------------------------------------------------------------------------------

    def seal(self, data: bytes, run: str, beside: bytes) -> bytes:
        """Return a payload encrypted with the key in use, for one run, and bound to what stands beside it in the open."""
        nonce = os.urandom(_NONCE)
        sealed: bytes = self._for_run(self.use, run).encrypt(nonce, data, beside)
        return nonce + sealed

    def open(self, name: str, sealed: bytes, run: str, beside: bytes) -> bytes:
        """Return what was sealed for that run. Raises KeyMissing, ArtifactCorrupt."""
        try:
            data: bytes = self._for_run(name, run).decrypt(sealed[:_NONCE], sealed[_NONCE:], beside)
        except (self._invalid, ValueError):
            raise ArtifactCorrupt(
                f"A payload of the run {run} cannot be opened: it was changed, or belongs to another run. Restore it from a copy."
            ) from None
        return data

    def blind(self, text: str) -> str:
        """Return a text's pseudonym under the key in use."""
        return hmac.digest(self._key(self.use), b"ziggurat name\0" + text.encode(), "sha256").hex()

    def _for_run(self, name: str, run: str) -> Any:
        return self._subkey(name, b"ziggurat payload\0" + run.encode())

    # -- objects -------------------------------------------------------------------------------------------------

    def seal_object(self, key: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the encrypted form of an object's content."""
        name = self.use.encode()
        header = _MAGIC + bytes([len(name)]) + name + os.urandom(_SALT)
        cipher = self._for_object(self.use, key, header[-_SALT:])
        yield header
        number = 0
        held = b""
        for whole in _rechunk(chunks):
            if held:
                yield cipher.encrypt(_nonce(number, last=False), held, header)
                number += 1
            held = whole
        yield cipher.encrypt(_nonce(number, last=True), held, header)

    def open_object(self, key: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield an object's content from its encrypted form. Raises KeyMissing, ArtifactCorrupt; what came before is authentic."""
        source = _Reader(chunks)
        start = source.read(len(_MAGIC) + 1)
        if len(start) != len(_MAGIC) + 1 or start[:-1] != _MAGIC:
            raise _broken(key)
        header = start + source.read(start[-1] + _SALT)
        if len(header) != len(start) + start[-1] + _SALT:
            raise _broken(key)
        name = header[5:-_SALT].decode(errors="replace")
        cipher = self._for_object(name, key, header[-_SALT:])
        number = 0
        while True:
            piece = source.read(CHUNK + _TAG)
            last = source.at_end
            try:
                yield cipher.decrypt(_nonce(number, last=last), piece, header)
            except (self._invalid, ValueError):
                raise _broken(key) from None
            if last:
                return
            number += 1

    def _for_object(self, name: str, key: str, salt: bytes) -> Any:
        return self._subkey(name, b"ziggurat object\0" + key.encode() + salt)

    def _subkey(self, name: str, context: bytes) -> Any:
        known = self._subkeys.get((name, context))
        if known is not None:
            return known
        key = self._key(name)
        if len(self._subkeys) >= _SUBKEYS_KEPT:
            self._subkeys.clear()
        made = self._subkeys[name, context] = self._cipher(hmac.digest(key, context, "sha256"))
        return made


def no_key(name: str) -> KeyMissing:
    """Return the error for a key that is not here."""
    return KeyMissing(
        f"This was encrypted with the key {name!r}, which is not in [encryption.keys]; add it there, and set its variable. Nothing is lost "
        "meanwhile."
    )


def _mark(key: bytes) -> str:
    return hmac.digest(key, b"ziggurat mark", "sha256")[:4].hex()


def read_key(text: str, what: str) -> bytes:
    """Return a key from its text, base 64 of 32 bytes. Raises SettingsError, which never shows it."""
    try:
        key = base64.b64decode(text.strip().replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise SettingsError(f"{what} is not a key: it must be base 64 of 32 bytes. Make one with: openssl rand -base64 32")
    return key


class _Reader:
    """Reads exact lengths from pieces of any length, and sees the end one piece ahead."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._source = iter(chunks)
        self._held = bytearray()
        self._ended = False

    def read(self, count: int) -> bytes:
        self._fill(count)
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    @property
    def at_end(self) -> bool:
        self._fill(1)
        return not self._held

    def _fill(self, count: int) -> None:
        while len(self._held) < count and not self._ended:
            piece = next(self._source, None)
            if piece is None:
                self._ended = True
            else:
                self._held += piece


def _rechunk(chunks: Iterable[bytes]) -> Iterator[bytes]:
    reader = _Reader(chunks)
    while not reader.at_end:
        yield reader.read(CHUNK)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(_NONCE - 1, "big") + (b"\x01" if last else b"\x00")


def _broken(key: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(f"The artifact {key} is damaged: its encryption does not hold together. Restore it from a copy.")


def _cryptography() -> tuple[Any, type[Exception]]:
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError as error:
        raise MissingExtra("Encryption of payloads", "crypto") from error
    return AESGCM, InvalidTag
