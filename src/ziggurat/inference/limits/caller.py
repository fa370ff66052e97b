"""On whose behalf a call waits and spends: its priority, its own limits, the budgets that it draws on.

A task's calls take these from the message that carried the task; a door that makes calls for others says them with `calling`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar

from msgspec import Struct

from ziggurat.inference.interface import Limits
from ziggurat.program.context import current_attempt
from ziggurat.records import PRIORITY_NORMAL, Allowance


class Caller(Struct, frozen=True, kw_only=True):
    """What a caller may use and spend."""

    #: 1 (served most often) to 5.
    priority: int = PRIORITY_NORMAL
    #: Names `limits`, which are the caller's own.
    key: str = ""
    limits: Limits | None = None
    budgets: tuple[Allowance, ...] = ()
    #: Seconds that a call may wait for limits, before Overloaded is raised; None: as long as the call may take.
    patience: float | None = None


ANYONE = Caller()

_caller: ContextVar[Caller | None] = ContextVar("ziggurat_caller", default=None)


class _Calling:
    __slots__ = ("_caller", "_token")

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __enter__(self) -> None:
        self._token = _caller.set(self._caller)

    def __exit__(self, *error: object) -> None:
        _caller.reset(self._token)


def calling(caller: Caller) -> AbstractContextManager[None]:
    """Make the calls of this block, and of the asyncio tasks that it starts, this caller's."""
    return _Calling(caller)


def current_caller() -> Caller:
    """Return who makes calls here: what `calling` says, else the attempt that the code is part of."""
    said = _caller.get()
    if said is not None:
        return said
    attempt = current_attempt()
    if attempt is None:
        return ANYONE
    return Caller(priority=attempt.info.priority, budgets=attempt.info.budgets)
