"""The deterministic event loop on which a workflow's coroutine runs.

It has no clock, no sockets and no threads. Time stands still while callbacks run and moves only when the engine applies the next event
of the history; timers are durable steps; callbacks run strictly in the order in which they were scheduled. So the same program with the
same history does the same things in the same order, which is all that a replay needs.

asyncio itself is used unchanged. One thing in it is not deterministic: `asyncio.wait`, `as_completed` and `TaskGroup` keep tasks in sets,
whose order follows the objects' hashes, which follow their addresses. Tasks and futures of this loop therefore hash by a number that
counts up, and `as_completed`, which makes a set of bare coroutines first, is given tasks instead (`guard.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from ziggurat.errors import NotDurable

#: Callbacks that one event may cause before the run is parked: a workflow that spins on `sleep(0)` would otherwise hold the process.
CALLBACKS_MAX = 1_000_000

#: What a run's loop displaces while it runs: the loop, its current task and the hooks of async generators.
_Outer = tuple[asyncio.AbstractEventLoop | None, Any, Any]
_swap_current_task: Callable[[Any, Any], Any] | None = (
    getattr(asyncio.tasks, "_swap_current_task", None) if sys.version_info >= (3, 14) else None
)

#: How often a coroutine that goes on waiting is closed, before it is left to the garbage collector.
_CLOSE_TRIES = 100

_REMEDY = "Do this in a task: `await my_task(...)` runs it on a worker and records its result."


class RunFuture(asyncio.Future[Any]):
    """A future of a run, with a hash that is the same in every replay."""

    def __init__(self, *, loop: RunLoop) -> None:
        super().__init__(loop=loop)
        self._number = loop.next_number()

    def __hash__(self) -> int:
        return self._number


class RunTask(asyncio.Task[Any]):
    """An asyncio task of a run, with a hash that is the same in every replay."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: RunLoop, **options: Any) -> None:
        self._number = loop.next_number()
        super().__init__(coro, loop=loop, **options)
        # An evicted run leaves its tasks pending on purpose.
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._number


class RunTimer(asyncio.TimerHandle):
    """A timer of a run: the durable step that will call back."""

    __slots__ = ("step",)

    def __init__(
        self, when: float, callback: Callable[..., Any], args: Any, loop: RunLoop, context: contextvars.Context | None
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self.step: Any = None


class RunLoop(asyncio.AbstractEventLoop):
    """The loop of one run.

    Args:
        seed: names the run; what hashes by number starts to count from there, so that the tasks of many runs, which all share asyncio's
            one table of tasks, do not hash alike.
        start_timer: called for every timer that the program sets; makes it a step.
        stop_timer: called for every timer that the program cancels before it fired.
    """

    def __init__(self, seed: str, start_timer: Callable[[RunTimer], None], stop_timer: Callable[[RunTimer], None]) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self._now = 0.0
        self._numbers = zlib.crc32(seed.encode()) << 8
        self._start_timer = start_timer
        self._stop_timer = stop_timer
        #: Tasks that are not done, oldest first.
        self.tasks: dict[RunTask, contextvars.Context | None] = {}
        #: The first error that no one can be told of, such as one raised by a callback.
        self.lost_error: BaseException | None = None
        self.closing = False

    # -- the engine's side ----------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Move the time; it never goes back."""
        if now > self._now:
            self._now = now

    def fire(self, timer: RunTimer) -> None:
        """Let a timer call back in the next drain."""
        if not timer.cancelled():
            self._ready.append(timer)

    def drain(self) -> None:
        """Run callbacks until none is left. Raises NotDurable if they do not come to an end."""
        outer = self.enter()
        left = CALLBACKS_MAX
        ready = self._ready
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
                left -= 1
                if not left:
                    ready.clear()
                    raise NotDurable(
                        f"The workflow made {CALLBACKS_MAX:,} passes without waiting for anything. "
                        "Wait with `await asyncio.sleep(seconds)` or an asyncio.Event instead of spinning on sleep(0)."
                    )
        finally:
            self.leave(outer)

    def enter(self) -> _Outer:
        """Become the thread's running loop; returns what `leave` puts back."""
        loop = asyncio._get_running_loop()
        # Since Python 3.14 a thread has one current task, whatever its loop; before, every loop has its own.
        task = _swap_current_task(loop, None) if _swap_current_task is not None and loop is not None else None
        hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        # The outer loop must not finalise a run's async generators: it would run their `finally` blocks outside the run.
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._finalize)
        return loop, task, hooks

    def leave(self, outer: _Outer) -> None:
        """Undo `enter`."""
        loop, task, hooks = outer
        asyncio._set_running_loop(loop)
        sys.set_asyncgen_hooks(*hooks)
        if task is not None and _swap_current_task is not None:
            _swap_current_task(loop, task)

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close an async generator that the program has let go of, as asyncio does; not one that is freed with its run."""
        if not self.closing and asyncio._get_running_loop() is self:
            self.create_task(generator.aclose())

    def discard(self) -> None:
        """Close all coroutines without letting them act: nothing that their `finally` blocks ask for is done.

        Cycles are undone as far as they are known, so that a run that leaves memory leaves it now: with 10,000 runs in memory, one
        collection by the garbage collector stops everything for a quarter of a second.
        """
        self.closing = True
        outer = self.enter()
        try:
            # Closing one may create others; those have not begun, so closing them runs no code.
            while self.tasks:
                task, context = self.tasks.popitem()
                coro, awaited = task.get_coro(), getattr(task, "_fut_waiter", None)
                if context is not None and coro is not None:
                    context.run(_close, coro)
                # A future and the task that awaits it hold each other. Nothing is called back any more, so this only parts them.
                if isinstance(awaited, RunFuture):
                    awaited.cancel()
        finally:
            self.leave(outer)
            self._ready.clear()
            self._start_timer = self._stop_timer = _ignore

    def next_number(self) -> int:
        """Return the next number to hash by."""
        self._numbers += 1
        return self._numbers

    # -- what asyncio asks of a loop --------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.closing:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = RunTimer(when, callback, args, self, context)
        if not self.closing:
            self._start_timer(timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if not self.closing and isinstance(handle, RunTimer):
            self._stop_timer(handle)

    def create_future(self) -> asyncio.Future[Any]:
        return RunFuture(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        # Every task gets a context object of its own that is known here, so that `discard` can close its coroutine inside it.
        if context is None:
            context = contextvars.copy_context()
        # An eager start would run the coroutine before the caller has the task; the order must not depend on a factory's mood.
        options.pop("eager_start", None)
        task = RunTask(coro, loop=self, name=name, context=context, **options)
        self.tasks[task] = context
        task.add_done_callback(self._forget, context=context)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)  # type: ignore[call-overload]

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.lost_error is None and isinstance(error, BaseException) and not self.closing:
            self.lost_error = error

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    async def shutdown_asyncgens(self) -> None:
        return None


def _ignore(timer: RunTimer) -> None:
    """What a loop that is discarded does about timers; its owner's methods would keep the owner."""


def _close(coro: Any) -> None:
    """Close a coroutine for certain. Each `finally` block on its stack may await once more; all that remains is ended too."""
    for _ in range(_CLOSE_TRIES):
        try:
            coro.close()
            return
        except RuntimeError:  # "coroutine ignored GeneratorExit": a `finally` block awaits something
            continue
        except BaseException:  # a `finally` block raised; the run's state is its history, not this
            return


def _refuse(name: str, what: str) -> Callable[..., Any]:
    def refused(self: RunLoop, *args: Any, **kwargs: Any) -> Any:
        if asyncio.iscoroutine(args[0] if args else None):
            args[0].close()
        error = NotDurable(f"{what} cannot be repeated by a replay, so a workflow may not use it. {_REMEDY}")
        self.lost_error = self.lost_error or error
        raise error

    refused.__name__ = name
    return refused


_REFUSED = {
    "run_in_executor": "A thread (asyncio.to_thread, run_in_executor)",
    "call_soon_threadsafe": "A callback from another thread",
    "create_connection": "A network connection",
    "create_server": "A network server",
    "create_unix_connection": "A socket",
    "create_unix_server": "A socket server",
    "create_datagram_endpoint": "A datagram socket",
    "connect_accepted_socket": "A socket",
    "connect_read_pipe": "A pipe",
    "connect_write_pipe": "A pipe",
    "subprocess_shell": "A subprocess",
    "subprocess_exec": "A subprocess",
    "sendfile": "A file",
    "start_tls": "A network connection",
    "getaddrinfo": "A name look-up",
    "getnameinfo": "A name look-up",
    "sock_recv": "A socket",
    "sock_recv_into": "A socket",
    "sock_recvfrom": "A socket",
    "sock_recvfrom_into": "A socket",
    "sock_sendall": "A socket",
    "sock_sendto": "A socket",
    "sock_connect": "A socket",
    "sock_accept": "A socket",
    "sock_sendfile": "A socket",
    "add_reader": "A file descriptor",
    "remove_reader": "A file descriptor",
    "add_writer": "A file descriptor",
    "remove_writer": "A file descriptor",
    "add_signal_handler": "An operating system signal",
    "remove_signal_handler": "An operating system signal",
    "run_forever": "A nested event loop",
    "run_until_complete": "A nested event loop",
    "stop": "Stopping the event loop",
    "close": "Closing the event loop",
    "set_task_factory": "A task factory",
    "set_default_executor": "A thread pool",
    "set_exception_handler": "An exception handler of the event loop",
    "shutdown_default_executor": "A thread pool",
    "set_debug": "The debug mode of the event loop",
}
for _name, _what in _REFUSED.items():
    setattr(RunLoop, _name, _refuse(_name, _what))
# The names above are set after the class statement, when its abstractness has been computed; none of them is abstract in asyncio.
