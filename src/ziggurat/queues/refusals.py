"""How every backend words its refusals."""

from __future__ import annotations

from ziggurat.errors import Overloaded, PayloadTooLarge
from ziggurat.records import Lane, Message


def too_large(message: Message, largest: int) -> PayloadTooLarge:
    """Return the refusal of a message whose payload is over the backend's limit, in bytes."""
    return PayloadTooLarge(
        f"The message {message.id!r} carries {len(message.payload):,} bytes, and the queue takes {largest:,}; store the bulk "
        "as an artifact or a file and pass a reference."
    )


def lane_full(lane: Lane, capacity: int) -> Overloaded:
    """Return the refusal of messages for a lane that holds its capacity."""
    return Overloaded(
        f"The lane {lane.namespace}/{lane.queue} at priority {lane.priority} is full: it holds up to {capacity:,} messages. "
        "Send again later, or add workers."
    )
