"""What the queue does not have yet: messages in the order in which they are sent, and how much room their lanes have shown.

    open ──refused──▶ tight: a lane that is sent alone, no more at a time than it seems to have room for
      ▲                 │
      └─ took it all ───┘      taken: twice as much at the next try · refused: half · refused one: the lane is full, try later

A queue takes a batch whole or not at all, and a lane is bounded (`QueueOptions.capacity`). Without the halving, more messages than a lane
holds would be refused for ever; without a batch for each tight lane, one full lane would hold up all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain, islice

from ziggurat.records import Lane, Message


class _Tight:
    """A lane that refused."""

    __slots__ = ("messages", "room")

    def __init__(self, messages: dict[str, Message], room: int) -> None:
        self.messages = messages
        self.room = room


class Outbox:
    """Messages on their way to the queue, by id."""

    def __init__(self) -> None:
        self._open: dict[str, Message] = {}
        self._tight: dict[Lane, _Tight] = {}

    def __len__(self) -> int:
        return len(self._open) + sum(len(tight.messages) for tight in self._tight.values())

    def __bool__(self) -> bool:
        return bool(self._open) or bool(self._tight)

    def put(self, message: Message) -> None:
        """Add a message behind those of its lane."""
        tight = self._tight.get(message.lane) if self._tight else None
        (self._open if tight is None else tight.messages)[message.id] = message

    def drop(self, id_: str) -> None:
        """Take a message out, if it is there."""
        if self._open.pop(id_, None) is None and self._tight:
            for lane, tight in list(self._tight.items()):
                if tight.messages.pop(id_, None) is not None and not tight.messages:
                    del self._tight[lane]

    def ids(self) -> set[str]:
        """Return the ids of all that is here."""
        return set(chain(self._open, *(tight.messages for tight in self._tight.values())))

    def batches(self, limit: int) -> Iterator[list[Message]]:
        """Yield what to send next: a batch of all open lanes, then one of each tight lane, each of at most `limit`."""
        if self._open:
            yield list(islice(self._open.values(), limit))
        for tight in list(self._tight.values()):
            if tight.messages:  # They may have been dropped since.
                yield list(islice(tight.messages.values(), min(tight.room, limit)))

    def taken(self, messages: Collection[Message], limit: int) -> None:
        """Take in that the queue has these messages. One that was replaced meanwhile by another of its id stays."""
        for message in messages:
            if self._open.get(message.id) is message:
                del self._open[message.id]
                continue
            tight = self._tight.get(message.lane)
            if tight is not None and tight.messages.get(message.id) is message:
                del tight.messages[message.id]
        if not self._tight:
            return
        for lane in {message.lane for message in messages} & self._tight.keys():
            tight = self._tight[lane]
            tight.room = max(tight.room, 2 * len(messages))
            if tight.room > limit or not tight.messages:
                self._open.update(tight.messages)
                del self._tight[lane]

    def refused(self, messages: Collection[Message]) -> None:
        """Take in that a lane of these messages is full, and none of them was taken."""
        lanes = {message.lane for message in messages}
        for lane in lanes - self._tight.keys():
            held = {id_: message for id_, message in self._open.items() if message.lane == lane}
            for id_ in held:
                del self._open[id_]
            if held:
                # Among several it may be another that is full; it is asked again with all that it was to get.
                self._tight[lane] = _Tight(held, 2 * sum(message.lane == lane for message in messages))
        if len(lanes) == 1:
            for lane in lanes & self._tight.keys():
                self._tight[lane].room = max(1, len(messages) // 2)
