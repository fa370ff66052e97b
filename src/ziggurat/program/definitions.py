"""@task and @workflow: ordinary functions that a run can execute durably.

Awaiting a task or a workflow asks `current_run()` where it is. In a run it becomes a step: a task is put on a queue, a workflow starts
a child run. Anywhere else it just runs the function, so a unit test or a script needs no engine at all.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from ziggurat.codec import ArgumentsCodec, Codec, type_hints
from ziggurat.errors import ContinueAsNew, DefinitionError
from ziggurat.program.context import current_run
from ziggurat.program.options import Concurrent, Duration, Money, Retry, RunOptions, TaskOptions
from ziggurat.program.registry import define

P = ParamSpec("P")
R = TypeVar("R")


class Definition(Generic[P, R]):
    """What tasks and workflows share: a function, a name, and codecs made from its signature when first needed."""

    kind = "definition"

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        if not callable(fn) or inspect.isclass(fn):
            raise DefinitionError(f"@{self.kind} goes on a function, not on {fn!r}.")
        if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise DefinitionError(f"The {self.kind} {fn.__qualname__} is a generator; return a value, and use emit() to stream.")
        self.fn = fn
        self.name = name or fn.__name__
        #: "module:qualname", which tells two definitions of one name apart.
        self.entry = f"{fn.__module__}:{fn.__qualname__}"
        functools.update_wrapper(cast(Any, self), fn)
        # Now, while the frames in which local types are defined are alive; None if a later definition is still missing.
        self._hints = type_hints(fn)
        define(self)

    @property
    def what(self) -> str:
        """How errors call it: "the task 'classify'"."""
        return f"the {self.kind} {self.name!r}"

    @functools.cached_property
    def arguments(self) -> ArgumentsCodec:
        """The codec of the call's arguments. Raises DefinitionError if a type cannot travel as JSON."""
        return ArgumentsCodec(self.fn, self.what, self.hints)

    @functools.cached_property
    def result(self) -> Codec[Any]:
        """The codec of the result. Raises DefinitionError if its type cannot travel as JSON."""
        return Codec(self.hints.get("return", Any), f"The result of {self.what}")

    @functools.cached_property
    def hints(self) -> dict[str, Any]:
        """The function's resolved annotations. Raises DefinitionError if one names something undefined."""
        hints = self._hints if self._hints is not None else type_hints(self.fn)
        if hints is None:
            raise DefinitionError(
                f"An annotation of {self.what} names something that its module does not define at run time; "
                "import it outside TYPE_CHECKING."
            )
        return hints

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} at {self.entry}>"


class Task(Definition[P, R]):
    """A unit of work that a worker executes. Call it and await the call. `.fn` is the undecorated function."""

    kind = "task"

    def __init__(self, fn: Callable[..., Any], name: str = "", *, options: TaskOptions, process: bool = False) -> None:
        super().__init__(fn, name)
        self.options_ = options
        #: True when attempts run in a process of their own.
        self.process = process
        self.is_async = inspect.iscoroutinefunction(fn)
        if process and self.is_async:
            raise DefinitionError(f"{self.what} is async and process=True; a process runs plain functions. Drop one of the two.")
        for option, key in (("concurrency", getattr(options.concurrency, "key", "")), ("rate", (options.rate or (0, 0, ""))[2])):
            if key and key not in inspect.signature(fn).parameters:
                raise DefinitionError(f"The {option} of {self.what} is counted by {key!r}, which is none of its parameters.")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Return a coroutine that runs the task: as a durable step inside a run, as a plain function elsewhere."""
        return self._invoke(self.options_, args, kwargs)

    def options(self, **changes: Any) -> Callable[P, Coroutine[Any, Any, R]]:
        """Return the task with other options for one call, such as `classify.options(priority=1, timeout="10s")(text)`.

        Takes the options of `@task` except name and process. Raises DefinitionError.
        """
        options = _changed(self.options_, self.what, changes)
        return cast(Callable[P, Coroutine[Any, Any, R]], lambda *args, **kwargs: self._invoke(options, args, kwargs))

    async def _invoke(self, options: TaskOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        run = current_run()
        if run is None:
            return await self.run_here(args, kwargs)
        payload = self.arguments.encode(args, kwargs)
        result = await run.call_task(self.name, payload, options, self._bound_keys(options, args, kwargs))
        return cast(R, self.result.decode(result))

    async def run_here(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """Run the function itself, a plain one in a thread."""
        if self.is_async:
            return await cast(Awaitable[R], self.fn(*args, **kwargs))
        return await asyncio.to_thread(self.fn, *args, **kwargs)

    def _bound_keys(self, options: TaskOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
        """Return the concurrency and rate keys of a call: the task's name, and the value of the argument that is counted by."""
        if options.concurrency is None and options.rate is None:
            return _NO_KEYS
        bound = inspect.signature(self.fn).bind(*args, **kwargs)
        bound.apply_defaults()
        keys: dict[str, str] = {}
        for kind, name in (
            ("concurrency", options.concurrency.key if options.concurrency else None),
            ("rate", options.rate[2] if options.rate else None),
        ):
            if name is not None:
                keys[kind] = f"{self.name}:{bound.arguments.get(name)}" if name else self.name
        return keys


_NO_KEYS: dict[str, str] = {}


class Workflow(Definition[P, R]):
    """A durable async function. Call it and await the call. `.fn` is the undecorated function."""

    kind = "workflow"

    def __init__(self, fn: Callable[..., Any], name: str = "", *, options: RunOptions) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise DefinitionError(f"@workflow goes on an async function; write 'async def {getattr(fn, '__name__', fn)}'.")
        super().__init__(fn, name)
        self.options_ = options

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Return a coroutine that runs the workflow: as a child run inside a run, as a plain function elsewhere."""
        return self._invoke(self.options_, args, kwargs)

    def options(self, **changes: Any) -> Callable[P, Coroutine[Any, Any, R]]:
        """Return the workflow with other options for one child run, such as `analyze.options(id="doc-7")(document)`.

        Takes id, tags, priority, budget and on_parent_end ("cancel" or "abandon"). Raises DefinitionError.
        """
        if placed := sorted({"queue", "region"} & set(changes)):
            raise DefinitionError(f"The {placed[0]} of {self.what} belongs to all its runs; write it in @workflow(...).")
        options = _changed(self.options_, self.what, changes)
        return cast(Callable[P, Coroutine[Any, Any, R]], lambda *args, **kwargs: self._invoke(options, args, kwargs))

    async def _invoke(self, options: RunOptions, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        run = current_run()
        if run is not None:
            payload = self.arguments.encode(args, kwargs)
            return cast(R, self.result.decode(await run.start_child(self.name, self.entry, payload, options)))
        while True:
            try:
                return await cast(Awaitable[R], self.fn(*args, **kwargs))
            except ContinueAsNew as again:
                args, kwargs = again.args_, again.kwargs


@overload
def task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    *,
    name: str = ...,
    process: bool = ...,
    queue: str = ...,
    region: str = ...,
    priority: int | None = ...,
    retry: Retry | int | None = ...,
    timeout: Duration | None = ...,
    deadline: Duration | None = ...,
    heartbeat: Duration | None = ...,
    concurrency: Concurrent | int | None = ...,
    rate: str | None = ...,
) -> _TaskDecorator: ...
def task(fn: Callable[..., Any] | None = None, /, *, name: str = "", process: bool = False, **options: Any) -> Any:
    """Make a function a task.

    An async function runs on the worker's event loop, a plain one in a thread, and with `process=True` in a process of its own, which
    a timeout or a cancellation ends for certain and whose death fails only this attempt.

    Args:
        name: the name in histories and on queues; the function's own by default. Renaming a task breaks runs that recorded it.
        process: run attempts in a separate process.
        queue: which pool of workers takes it.
        region: where it must run; empty for anywhere.
        priority: 1 (served most often) to 5; the run's own by default.
        retry: a `Retry`, or a number of attempts; 3 attempts by default.
        timeout: how long one attempt may take, "1h" by default, None for no limit.
        deadline: how long all attempts and the waits between them may take together.
        heartbeat: the longest silence between calls of `heartbeat()`.
        concurrency: at most so many attempts at a time over all workers; `Concurrent(2, key="customer")` counts per argument value.
        rate: at most so many starts, such as "10/s", or "5/s by customer".

    Raises DefinitionError.
    """
    if fn is not None:
        return Task(fn, name, options=TaskOptions(), process=process)
    read = _changed(TaskOptions(), f"the task {name!r}" if name else "a task", options)
    return lambda function: Task(function, name, options=read, process=process)


@overload
def workflow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str = ...,
    tags: dict[str, str] = ...,
    priority: int | None = ...,
    budget: Money | None = ...,
    on_parent_end: str = ...,
    queue: str = ...,
    region: str = ...,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Workflow[P, R]]: ...
def workflow(fn: Callable[..., Any] | None = None, /, *, name: str = "", **options: Any) -> Any:
    """Make an async function a workflow: plain asyncio that survives crashes.

    Args:
        name: the name in histories; the function's own by default.
        tags: labels that every run gets, to search by.
        priority: 1 (served most often) to 5, for the tasks of a run.
        budget: what a run and its children may spend on models, such as "$0.05".
        on_parent_end: "cancel" (default) or "abandon": what becomes of a child run when its parent ends first.
        queue: where its tasks go that name no queue of their own, so that a pool can serve this kind of run alone.
        region: where its tasks must run that name no region of their own.

    Raises DefinitionError.
    """
    if fn is not None:
        return Workflow(fn, name, options=RunOptions())
    read = _changed(RunOptions(), f"the workflow {name!r}" if name else "a workflow", options)
    return lambda function: Workflow(function, name, options=read)


class _TaskDecorator:
    """Types `@task(...)`: a decorator for async and for plain functions. Never instantiated."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, fn: Any, /) -> Any: ...


def _changed(options: Any, what: str, changes: dict[str, Any]) -> Any:
    try:
        return options.changed(what, **changes)
    except TypeError as error:
        known = ", ".join(type(options).__struct_fields__)
        raise DefinitionError(f"{what} was given an unknown option ({error}); the options are: {known}.") from error
