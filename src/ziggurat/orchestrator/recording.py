"""Recorded runs taken out of their store, to be replayed against the code as it is: by a test, or by `ziggurat check-replay`."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ziggurat.errors import InvalidData
from ziggurat.records import Event, MaybeRaw, Run

VERSION = 1


class Recording(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A run and its history, as they are kept: payloads that were sealed still are."""

    ziggurat: int = VERSION
    run: Run
    events: list[Event] = []
    #: The history as Temporal keeps it, where it does: in the JSON form of Temporal's own tools.
    temporal: MaybeRaw = None


def read_recording(data: bytes, what: str) -> Recording:
    """Return a recording from JSON. `what` names it in errors. Raises InvalidData."""
    try:
        found = msgspec.json.decode(data, type=Recording)
    except msgspec.MsgspecError as error:
        raise InvalidData(
            f"{what} is no recorded run ({error}); make one with: ziggurat check-replay RUN --export FOLDER"
        ) from error
    if found.ziggurat > VERSION:
        raise InvalidData(f"{what} was recorded by a newer Ziggurat. Upgrade with: pip install -U ziggurat-agents")
    return found
