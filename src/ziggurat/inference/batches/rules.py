"""When to send a batch, to look at it, and to leave it: pure choices with the time passed in."""

from __future__ import annotations

from ziggurat.inference.batches.interface import Batch, BatchOptions, Line

#: Seconds between two looks at a batch that is being cancelled: its answers so far are waited for.
LOOK_CANCELLING = 15.0
#: Seconds after which a request to create a batch that brought no answer can be taken for one that came to nothing.
UNCERTAIN = 60.0
#: Times that a batch is tried to be created, and batches that a call may go into.
CREATE_TRIES, LINE_TRIES = 5, 3


def may_wait(line: Line, options: BatchOptions, now: float) -> bool:
    """Say whether a call has time for a batch that is still to be made."""
    return line.tries < LINE_TRIES and line.due - now >= options.least


def leaves_at(line: Line, options: BatchOptions) -> float:
    """Return when a call begins to leave its batch: the batch is cancelled, and what it has answered is waited for."""
    return line.due - options.margin


def gone_at(line: Line, options: BatchOptions) -> float:
    """Return when a call has left its batch, whatever becomes of that: a third of the margin is for the call itself."""
    return line.due - options.margin / 3


def is_full(count: int, first: float, options: BatchOptions, now: float) -> bool:
    """Say whether waiting calls are to be sent, of which the first came at `first`."""
    return count >= options.lines or (count > 0 and now - first >= options.window)


def next_look(batch: Batch, options: BatchOptions, now: float) -> float:
    """Return when to look at a sent batch again: after a fifth of its age, so that a quick one is seen soon and a slow one seldom."""
    if batch.state == "cancelling":
        return now + LOOK_CANCELLING
    return now + min(options.look_most, max(options.look, (now - batch.made_at) / 5))


def wait_of(line: Line, batch: Batch | None, first: float, options: BatchOptions, now: float, *, busy: bool = False) -> float:
    """Return the seconds until a call that waits is to be looked at again; `busy` says that somebody is at its batch now."""
    moments = [gone_at(line, options) if now >= leaves_at(line, options) else leaves_at(line, options)]
    if batch is None:
        moments.append(first + options.window)
    else:
        # A second later than whoever looks: then the answer is there. Where somebody is at it now, it may be there soon.
        moments.append(now + options.look if busy else batch.look_at + 1.0)
    return max(1.0, min(moments) - now)
