"""What a limit store must do, and the requests that it takes.

A store keeps three kinds of numbers for all processes that share it, and changes them by whole requests: all of it or nothing.

    flow     so many units a second (tokens, requests), up to `burst` at once. Taken before a call, corrected after it.
    slots    so many at a time. A holder's slots are free again once it has not been heard of for LEASE seconds.
    purse    so many dollars. A reservation counts until it is settled; one whose holder died counts as spent, for the call may have
             been billed.

A holder is a process. Whatever it asks says that it is alive. Times are the store's own: one clock for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from msgspec import Struct

from ziggurat.errors import LayerUnreachable

#: Seconds after which a holder that was not heard of is dead. A `kill -9` costs others its slots for no longer.
LEASE = 10.0
#: Seconds between two signs of life.
BEAT = 2.0
#: Seconds for which a flow may be taken ahead of its time: the answer says when to start. It spares a second question.
LOOKAHEAD = 0.25
#: Seconds for which numbers of runs and days are kept after their last use.
KEPT = 30 * 86_400.0
#: The share of a flow's burst, and of slots, that each priority leaves for the ones above it.
RESERVE = 0.1
#: Seconds after which slots are no longer kept free for a priority that nobody has asked with.
REMEMBERED = 10.0


class StoreDown(LayerUnreachable):
    """The limit store cannot be used now. Calls go on with a safe share of the limits; see `keeper.py`."""


class Flow(Struct, frozen=True, kw_only=True):
    """A draw upon so many units a second."""

    key: str
    #: Units a second, and the most that gathers while nobody draws.
    rate: float
    burst: float
    #: Units that must be had, and that would be welcome.
    need: float
    want: float = 0.0
    #: What the provider says is left; the store then knows no more than that.
    left: float | None = None


class Slots(Struct, frozen=True, kw_only=True):
    """A draw upon so many at a time."""

    key: str
    limit: int
    need: int = 1
    want: int = 1


class Take(Struct, frozen=True, kw_only=True):
    """Take from several flows and slots at once: all that is needed or nothing."""

    #: Names what may be cooling down after a 429.
    gate: str
    flows: tuple[Flow, ...] = ()
    slots: tuple[Slots, ...] = ()
    #: 1 (highest) to 5, lowered by waiting. What it leaves is RESERVE for each step below 1.
    priority: float = 1.0


class Taken(Struct, frozen=True, kw_only=True):
    """What came of a Take."""

    #: False: nothing was taken; ask again after `wait` seconds, and `short` names the key that had too little ("" for a cool-down).
    granted: bool
    wait: float = 0.0
    short: str = ""
    #: What was taken, in the order of the request.
    flows: tuple[float, ...] = ()
    slots: tuple[int, ...] = ()
    #: Seconds after which the call may start.
    delay: float = 0.0
    #: Holders that are alive, this one included.
    holders: int = 1
    #: True if another holder wanted slots that were not free, lately.
    contended: bool = False


class Give(Struct, frozen=True, kw_only=True):
    """Put back what was not used, or, with a negative amount, take what was used beyond it."""

    #: (key, rate, burst, amount)
    flows: tuple[tuple[str, float, float, float], ...] = ()
    slots: tuple[tuple[str, int], ...] = ()


class Cool(Struct, frozen=True, kw_only=True):
    """Let nobody start at a gate for so many seconds: it answered 429."""

    gate: str
    seconds: float


class Purse(Struct, frozen=True, kw_only=True):
    """A draw upon so many dollars."""

    key: str
    limit: float
    #: From where on a cheaper model should be used; the limit itself for never.
    soft: float
    #: What is known to be spent, from the history; the store never believes less.
    spent: float = 0.0


class Hold(Struct, frozen=True, kw_only=True):
    """Reserve dollars in several purses at once: in all or in none.

    `most` is what the call can cost, `likely` what it probably will. It is granted if `most` fits beside what others have reserved; or,
    if nothing is reserved, if `likely` fits: so only one call at a time can overshoot, by the error of its own estimate.
    """

    id: str
    purses: tuple[Purse, ...]
    most: float
    likely: float
    #: False: answer "soft" rather than reserve, once a purse is past its soft limit.
    past_soft: bool = True


class Held(Struct, frozen=True, kw_only=True):
    """What came of a Hold: "granted", "wait" (others must settle first), "soft" or "hard"; `key` names the purse that is in the way."""

    answer: str
    key: str = ""
    #: What is spent in that purse, or in the first.
    spent: float = 0.0


class Settle(Struct, frozen=True, kw_only=True):
    """Replace a reservation by what the call cost. Settling twice changes nothing."""

    id: str
    cost: float


class Load(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a process has at one endpoint, for people to look at."""

    endpoint: str
    #: Calls under way, and calls that wait, by priority.
    in_flight: int = 0
    waiting: dict[int, int] = {}
    #: Calls at a time that 429s have taught it; None where it learned nothing.
    learned: float | None = None
    #: The limits that it draws on, those that a provider reported too: flows by key, as (rate, burst), and slots by key.
    flows: dict[str, tuple[float, float]] = {}
    slots: dict[str, int] = {}


class Beat(Struct, frozen=True, kw_only=True):
    """Say that the holder is alive, and what it has at its endpoints; that counts until the next Beat."""

    loads: tuple[Load, ...] = ()


class Leave(Struct, frozen=True, kw_only=True):
    """Say that the holder ends in order: its slots are free, and it has settled what it reserved."""


Request = Take | Give | Cool | Hold | Settle | Beat | Leave
Answer = Taken | Held | None


class Wanted(Struct, frozen=True, kw_only=True):
    """What to look at in a store. Looking makes nobody a holder and changes nothing."""

    #: Flows by key, as (rate, burst).
    flows: dict[str, tuple[float, float]] = {}
    slots: tuple[str, ...] = ()
    purses: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()


class Levels(Struct, frozen=True, kw_only=True):
    """What a store knows of what was asked for; what it has not met is left out."""

    #: By key: units that are there now, and units used within the last minute.
    flows: dict[str, tuple[float, float]] = {}
    #: By key: how many are taken.
    slots: dict[str, int] = {}
    #: By key: dollars spent and reserved.
    purses: dict[str, tuple[float, float]] = {}
    #: By gate: seconds for which nobody may start.
    cooling: dict[str, float] = {}
    #: By holder that is alive: what it last told.
    loads: dict[str, list[Load]] = {}


class LimitStore(ABC):
    """Numbers that several holders share. Used by one thread at a time."""

    #: True if a request may take time and had better not be made on an event loop; more is then taken at once.
    remote: bool = True

    @abstractmethod
    def run(self, holder: str, requests: Sequence[Request]) -> list[Answer]:
        """Carry out requests in their order, each as a whole, and return an answer to each. Raises StoreDown."""

    @abstractmethod
    def look(self, wanted: Wanted) -> Levels:
        """Return how things stand, for people. Raises StoreDown."""

    @abstractmethod
    def purse(self, key: str) -> tuple[float, float]:
        """Return what is spent and what is reserved in a purse, for people and tests. Raises StoreDown."""

    def close(self) -> None:
        """Let go of the store."""
        return


def used_lately(minute: int, used: float, before: float, now: float) -> float:
    """Return the units used within the last minute, from what was counted in a minute of the clock and in the one before.

    The minute before counts by the share of it that is not over yet: a sliding window from two counters, which is off by no more than
    how unevenly that minute was used.
    """
    current = int(now // 60)
    if current != minute:
        used, before = 0.0, used if current == minute + 1 else 0.0
    return max(0.0, used + before * (1.0 - now % 60.0 / 60.0))


def leaves(priority: float) -> float:
    """Return the share that a draw of a priority leaves for higher ones."""
    return RESERVE * max(0.0, min(priority, 6.0) - 1.0)
