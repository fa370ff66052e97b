"""When nobody reads what a command prints any more, as in `ziggurat show RUN | head`.

Other tools are ended by SIGPIPE then, without a word, and the shell calls that 141. Python ignores the signal, for its sockets' sake, and
raises BrokenPipeError; what prints for us (click, rich) makes a SystemExit(1) of it. Here all of these come to the same end as elsewhere:
no word, and 141. Not 0, because with `set -o pipefail` that would say that a run went well of which nobody saw the end.
"""

from __future__ import annotations

import errno
import os
import select
import sys

#: The exit code: 128 + SIGPIPE, as shells have it.
CUT = 141


def is_cut(error: BaseException) -> bool:
    """Say whether an error comes of printing to a reader that is gone; a broken pipe to a server, say, is something else."""
    if not _is_broken_pipe(error, set()):
        return False
    # Rich and click have put something else in stdout's place by the time they raise SystemExit; nobody else makes one of a broken pipe.
    return isinstance(error, SystemExit) or bool(_unread())


def end_quietly() -> int:
    """Let what is still to be printed go nowhere, the interpreter's own last words included; returns the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _unread():
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return CUT


def _is_broken_pipe(error: BaseException | None, seen: set[int]) -> bool:
    if error is None or id(error) in seen:
        return False
    seen.add(id(error))
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return True
    within = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return any(_is_broken_pipe(other, seen) for other in (*within, error.__cause__, error.__context__))


def _unread() -> list[int]:
    """Return which of stdout and stderr nobody reads."""
    found = []
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            descriptor = stream.fileno() if stream is not None else -1
        except (OSError, ValueError):
            continue
        if descriptor >= 0 and hasattr(select, "poll"):
            poll = select.poll()
            poll.register(descriptor, 0)  # Only what is wrong, which need not be asked for.
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                found.append(descriptor)
    return found
