"""How a task or a run is to be executed: retries, limits, lanes. Values that people write are read here, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from ziggurat.errors import ConfigurationError, DefinitionError
from ziggurat.records import PRIORITY_HIGHEST, PRIORITY_LOWEST, PRIORITY_NORMAL
from ziggurat.units import Duration, Money, dollars, seconds

#: Seconds that an attempt may run when the task says nothing: everything has a bound.
DEFAULT_TIMEOUT = 3600.0


class Retry:
    """How often and how soon a failed task is tried again.

    The delay before attempt n+1 is `initial * factor**(n-1)`, at most `maximum`, spread by `jitter` (0.2 means ±20 %) so that tasks
    that failed together do not return together. A `retry_after` that the failure carries is honoured as a lower bound.

    Args:
        attempts: how many attempts in all, the first included; 1 means no retry. None means without end, until the deadline.
        initial: the first delay, such as "1s".
        factor: what each delay is multiplied by.
        maximum: the longest delay.
        jitter: the relative spread, 0 to 1.
        non_retryable: exception classes, or their names, after which another attempt is pointless; subclasses count when they are
            given as classes.

    Raises DefinitionError on values out of range.
    """

    __slots__ = ("_classes", "attempts", "factor", "initial", "jitter", "maximum", "non_retryable")

    def __init__(
        self,
        attempts: int | None = 3,
        *,
        initial: Duration = "1s",
        factor: float = 2.0,
        maximum: Duration = "60s",
        jitter: float = 0.2,
        non_retryable: Sequence[type[BaseException] | str] = (),
    ) -> None:
        if attempts is not None and (not isinstance(attempts, int) or attempts < 1):
            raise DefinitionError(f"Retry(attempts={attempts!r}) must be 1 or more, or None for no end.")
        if factor < 1 or not 0 <= jitter <= 1:
            raise DefinitionError("Retry needs a factor of 1 or more and a jitter between 0 and 1.")
        self.attempts = attempts
        self.initial = seconds(initial, what="initial delay of Retry")
        self.factor = factor
        self.maximum = seconds(maximum, what="maximum delay of Retry")
        self.jitter = jitter
        self._classes = tuple(c for c in non_retryable if isinstance(c, type))
        self.non_retryable = tuple(c if isinstance(c, str) else type_name(c) for c in non_retryable)

    def permits(self, error: BaseException) -> bool:
        """Say whether another attempt may help after this exception. The worker asks, where the class is at hand."""
        return not isinstance(error, self._classes) and type_name(type(error)) not in self.non_retryable

    def __repr__(self) -> str:
        return f"Retry(attempts={self.attempts}, initial={self.initial}, factor={self.factor}, maximum={self.maximum})"


class Concurrent:
    """A limit on attempts that run at a time, for each value of an argument.

    Args:
        limit: how many attempts at a time, over all workers.
        key: the name of the argument whose value separates the counts, such as "customer"; empty for one count.
    """

    __slots__ = ("key", "limit")

    def __init__(self, limit: int, key: str = "") -> None:
        if not isinstance(limit, int) or limit < 1:
            raise DefinitionError(f"Concurrent(limit={limit!r}) must be 1 or more.")
        self.limit, self.key = limit, key


#: The queue of a task that names none.
DEFAULT_QUEUE = "default"


class TaskOptions(Struct, frozen=True, kw_only=True):
    """Everything that decides how a task is executed. Durations are seconds."""

    queue: str = DEFAULT_QUEUE
    region: str = ""
    priority: int | None = None
    retry: Retry = Retry()
    timeout: float | None = DEFAULT_TIMEOUT
    deadline: float | None = None
    heartbeat: float | None = None
    concurrency: Concurrent | None = None
    rate: tuple[float, int, str] | None = None

    def changed(self, what: str, **changes: Any) -> TaskOptions:
        """Return a copy with the options that a person gave, read and checked. `what` names the task in errors."""
        return replace(self, **_read(what, changes))


class RunOptions(Struct, frozen=True, kw_only=True):
    """Everything that decides how a run is started. Durations are seconds."""

    id: str = ""
    tags: dict[str, str] = {}
    priority: int | None = None
    budget: float | None = None
    #: What becomes of a child run when its parent ends before it: "cancel" or "abandon".
    on_parent_end: Literal["cancel", "abandon"] = "cancel"
    #: Where the tasks of a run go that name no queue or no region of their own.
    queue: str = ""
    region: str = ""

    def changed(self, what: str, **changes: Any) -> RunOptions:
        """Return a copy with the options that a person gave, read and checked. `what` names the workflow in errors."""
        return replace(self, **_read(what, changes))

    def placed(self, options: TaskOptions) -> TaskOptions:
        """Return a task's options with the queue and the region of the workflow where it has none of its own."""
        queue = self.queue if self.queue and options.queue == DEFAULT_QUEUE else options.queue
        region = options.region or self.region
        return options if (queue, region) == (options.queue, options.region) else replace(options, queue=queue, region=region)


def _read(what: str, given: dict[str, Any]) -> dict[str, Any]:
    """Turn options as people write them into fields. An unknown name fails in `replace` and is reported by the caller."""
    read = dict(given)
    for name in ("timeout", "deadline", "heartbeat"):
        if read.get(name) is not None:
            read[name] = seconds(read[name], what=f"{name} of {what}")
            if read[name] == 0:
                raise DefinitionError(f"The {name} of {what} must be more than zero.")
    priority = read.get("priority")
    if priority is not None and not (isinstance(priority, int) and PRIORITY_HIGHEST <= priority <= PRIORITY_LOWEST):
        raise DefinitionError(
            f"The priority of {what} must be a whole number from {PRIORITY_HIGHEST} (served most often) to {PRIORITY_LOWEST}, "
            f"{PRIORITY_NORMAL} being normal; it is {priority!r}."
        )
    if "retry" in read and not isinstance(read["retry"], Retry):
        attempts = read["retry"]
        if attempts is not None and (not isinstance(attempts, int) or isinstance(attempts, bool)):
            raise DefinitionError(f"The retry of {what} must be a Retry(...) or a number of attempts; it is {attempts!r}.")
        read["retry"] = Retry(attempts)
    if isinstance(read.get("concurrency"), int):
        read["concurrency"] = Concurrent(read["concurrency"])
    if read.get("rate") is not None:
        read["rate"] = _rate(what, read["rate"])
    if read.get("budget") is not None:
        read["budget"] = dollars(read["budget"], what=f"budget of {what}")
    if read.get("on_parent_end", "cancel") not in ("cancel", "abandon"):
        raise DefinitionError(f"on_parent_end of {what} must be 'cancel' or 'abandon'.")
    return read


def _rate(what: str, value: Any) -> tuple[float, int, str]:
    """Read "10/s", "600/m" or "5/s by customer" as (per second, burst, key argument)."""
    text, _, key = str(value).partition(" by ")
    number, _, unit = text.partition("/")
    try:
        count = float(number)
        if count <= 0:
            raise ValueError
        length = seconds("1" + (unit.strip() or "s"))
    except (ValueError, ConfigurationError) as error:
        raise DefinitionError(
            f"The rate of {what} must be written like '10/s', '600/m' or '5/s by customer'; it is {value!r}."
        ) from error
    return count / length, max(1, int(count / length)), key.strip()


def type_name(class_: type[BaseException]) -> str:
    """Return an exception class's name as failures record it: bare for builtins, qualified by module otherwise."""
    return class_.__qualname__ if class_.__module__ == "builtins" else f"{class_.__module__}.{class_.__qualname__}"


__all__ = ["DEFAULT_TIMEOUT", "Concurrent", "Duration", "Money", "Retry", "RunOptions", "TaskOptions", "type_name"]
