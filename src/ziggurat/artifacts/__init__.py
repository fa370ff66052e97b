"""Stored payloads and files: `Artifact` for programs, `Payloads` for whoever carries payloads, and the stores behind both.

`payloads.py` describes the seam between programs and the wire; `interface.py` what a store promises.
"""

from __future__ import annotations

from ziggurat.artifacts.artifact import Artifact, Surroundings, ask_surroundings, current_library, use_library
from ziggurat.artifacts.encryption import Keyring, read_key
from ziggurat.artifacts.interface import ArtifactStore, StoredObject
from ziggurat.artifacts.keys import artifact_keys, is_key, key_for
from ziggurat.artifacts.library import Library
from ziggurat.artifacts.payloads import INLINE, Payloads, is_sealed

__all__ = [
    "INLINE",
    "Artifact",
    "ArtifactStore",
    "Keyring",
    "Library",
    "Payloads",
    "StoredObject",
    "Surroundings",
    "artifact_keys",
    "ask_surroundings",
    "current_library",
    "is_key",
    "is_sealed",
    "key_for",
    "read_key",
    "use_library",
]
