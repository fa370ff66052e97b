"""Names of stored objects, and how they are found again in JSON.

A key is "zga_" (as it was given) or "zge_" (encrypted) and 32 characters of base 32: 160 bits. It is the object's whole address in the
store, so a string in JSON that looks like a key is a reference to the object; that is how the owner of a store knows what is still needed,
without knowing the types that the JSON was made from.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

#: Begins the keys of objects that are stored as they were given, and of those that are encrypted.
PLAIN, ENCRYPTED = "zga_", "zge_"
_KEY = re.compile(r"zg[ae]_[0-9a-v]{32}")
_IN_JSON = re.compile(rb'"(zg[ae]_[0-9a-v]{32})"')


def is_key(text: str) -> bool:
    """Say whether a text is a key. Whoever makes a path of a key asks this first."""
    return _KEY.fullmatch(text) is not None


def key_for(scope: str, digest: bytes, *, encrypted: bool) -> str:
    """Return the key of content with this SHA-256 within a scope, such as a run: stored twice there, it is one object.

    The scope keeps runs apart: an object that one run has stored is never taken away from another that stored the same. Without a scope
    the key is random.
    """
    chosen = hashlib.sha256(scope.encode() + b"\0" + digest).digest() if scope else secrets.token_bytes(20)
    return (ENCRYPTED if encrypted else PLAIN) + base64.b32hexencode(chosen[:20]).decode().lower()


def artifact_keys(data: bytes | memoryview) -> list[str]:
    """Return the keys that JSON refers to, each once."""
    if isinstance(data, bytes) and b'"zg' not in data:  # Far quicker than the expression, and nearly always the answer.
        return []
    return list(dict.fromkeys(match.decode() for match in _IN_JSON.findall(data)))
