"""Ids for calls and reservations: unique without asking the system for randomness at every call, which costs more than a call's bill."""

from __future__ import annotations

import itertools
import os
import secrets

_prefix = secrets.token_hex(12)
_count = itertools.count()


def new_id() -> str:
    """Return 32 hexadecimal digits that nobody else has: 96 random bits of this process, and a count."""
    return f"{_prefix}{next(_count) & 0xFFFFFFFF:08x}"


def _renew() -> None:
    global _prefix
    _prefix = secrets.token_hex(12)


# A forked process would go on counting under its parent's name.
os.register_at_fork(after_in_child=_renew)
