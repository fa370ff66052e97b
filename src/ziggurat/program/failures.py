"""Exceptions to JSON and back, so that `except ValueError` means the same inside and outside a run."""

from __future__ import annotations

import sys
import traceback
from functools import lru_cache
from typing import Any

from ziggurat.errors import (
    ArtifactError,
    BudgetExceeded,
    ChildRunError,
    DeadLettered,
    InferenceError,
    TaskCrashed,
    TaskError,
    TaskTimeout,
)
from ziggurat.program.options import Retry, type_name
from ziggurat.records import ErrorInfo, Outcome

#: Characters of a traceback that are kept; its end is the part that tells.
TRACEBACK_LIMIT = 8_000
#: Characters of an exception's text that are kept.
MESSAGE_LIMIT = 4_000


def describe(error: BaseException, retry: Retry | None = None) -> ErrorInfo:
    """Return an exception as a record. `retry` decides whether another attempt may help.

    An ExceptionGroup is described by its first member, which is what went wrong first.
    """
    message = str(error) or type(error).__name__
    retryable = retry.permits(error) if retry is not None else True
    if isinstance(error, (InferenceError, ArtifactError)) and not error.retryable:
        retryable = False
    text = "".join(traceback.format_exception(error))
    first = _first_step_failure(error)
    return ErrorInfo(
        type=type_name(type(error)),
        message=message[:MESSAGE_LIMIT],
        traceback=text[-TRACEBACK_LIMIT:],
        retryable=retryable,
        retry_after=getattr(error, "retry_after", None),
        step=first.step if isinstance(first, TaskError) and first.step else None,
        run_id=first.run_id if isinstance(first, ChildRunError) else error.run_id if isinstance(error, BudgetExceeded) else "",
        budget=error.budget if isinstance(error, BudgetExceeded) else "",
    )


def task_error(outcome: Outcome) -> TaskError:
    """Return the exception that awaiting the task raises in the workflow."""
    info = outcome.error or ErrorInfo(type="Exception", message=f"The attempt ended as {outcome.status}.")
    message = info.message
    base: type[TaskError] = {"timeout": TaskTimeout, "crashed": TaskCrashed, "dead": DeadLettered}.get(outcome.status, TaskError)
    cls = base if base is not TaskError else _class_for(info.type)
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.task, error.step, error.attempt, error.info = outcome.task, outcome.step, outcome.attempt, info
    if isinstance(error, InferenceError):
        error.endpoint = error.model = ""
        error.retry_after = info.retry_after
    return error


def child_error(run_id: str, workflow: str, info: ErrorInfo | None, status: str) -> ChildRunError:
    """Return the exception that awaiting a child run raises in the workflow."""
    message = info.message if info is not None else f"it was {status}"
    return ChildRunError(f"The child run {run_id} of {workflow!r} {status}: {message}", run_id=run_id, info=info)


@lru_cache(maxsize=1024)
def _class_for(name: str) -> type[TaskError]:
    """Return a class that is both TaskError and the named exception class, if this process has loaded that class.

    Nothing is imported for it: a name in a record must not decide what code is loaded.
    """
    module_name, _, qualname = name.rpartition(".")
    found: Any = sys.modules.get(module_name or "builtins")
    for part in (qualname or name).split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        return TaskError
    if issubclass(found, TaskError):
        return found
    try:
        joined: type[TaskError] = type(
            found.__name__, (TaskError, found), {"__module__": found.__module__, "__doc__": found.__doc__}
        )
        joined.__new__(joined, "")
        return joined
    except Exception:  # The memory layouts differ, or the class must be made in a way of its own, as MemoryError must.
        return TaskError


def _first_step_failure(error: BaseException | None) -> BaseException | None:
    """Return the task or child failure that an exception is, was raised from, or groups first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (TaskError, ChildRunError)):
            return error
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                found = _first_step_failure(member)
                if found is not None:
                    return found
        error = error.__cause__ or error.__context__
    return None
