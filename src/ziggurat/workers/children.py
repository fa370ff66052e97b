"""Child processes for process=True tasks: one task at a time each, reused, and killed when a task must end.

A child is a Python of its own (`python -m ziggurat.workers.child_main`), so a task that segfaults, eats memory or calls os._exit takes
down nothing but its attempt. Parent and child speak JSON lines over pipes; secrets reach the child in its environment, as they reached
the parent.

    parent → child   {"bootstrap": …} once, then {"run": …} for each task
    child → parent   {"ready": true} or {"unusable": sentence} once, then for each task any number of {"beat": …}, {"emit": …},
                     {"call": …}, and one {"result": …} or {"error": …}

A child dies with its parent: the kernel kills it (Linux), and the end of its standard input ends it (everywhere).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ziggurat.errors import ConfigurationError, DefinitionError
from ziggurat.program.context import TaskInfo
from ziggurat.records import CallRecord, ErrorInfo, MaybeRaw, Outcome
from ziggurat.workers.attempt import Attempt

#: Seconds between SIGTERM, at which a task's `finally` blocks run, and SIGKILL.
TERM_GRACE = 1.0
#: Seconds until a child whose pipe is closed counts as one that goes on all the same: the kernel may be busy with its core.
EXIT_LIMIT = 20.0
#: Seconds that a child may take to start: Python, Ziggurat and the app's modules.
START_LIMIT = 120.0
#: Longest line in bytes: a result at the payload limit, escaped.
LINE_LIMIT = 512 * 1024 * 1024


class Bootstrap(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a child makes itself ready. It travels over a pipe, but holds no secrets: the environment does."""

    #: Modules to import.
    modules: tuple[str, ...] = ()
    #: "package.module:function", called with `config`; it makes models usable in the child.
    call: str = ""
    config: dict[str, Any] = {}
    #: Bytes of address space that a child may use; 0 for no limit.
    memory_limit: int = 0


class Start(Struct, frozen=True, kw_only=True):
    """The first line to a child."""

    bootstrap: Bootstrap
    parent: int
    path: list[str]
    #: The script that the parent runs, or the module run by `python -m`: tasks defined there are of the module "__main__".
    main_file: str = ""
    main_module: str = ""


class RunTask(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task for a child."""

    task: str
    #: The module that defines the task; "__main__" for the parent's script.
    module: str
    payload: Raw
    info: TaskInfo
    heartbeat: MaybeRaw = None
    #: W3C traceparent of the attempt's span; empty while nothing traces.
    trace: str = ""


class Said(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line from a child; exactly one field is set."""

    ready: bool = False
    unusable: str = ""
    beat: MaybeRaw = None
    emit: tuple[str, Raw] | None = None
    call: CallRecord | None = None
    result: MaybeRaw = None
    error: ErrorInfo | None = None


_said = msgspec.json.Decoder(Said)


class ChildDied(Exception):
    """A child process ended, or spoke nonsense, in the middle of a task."""


class Child:
    """One child process, seen from the parent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.tasks_done = 0

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    async def hear(self) -> Said:
        """Return the child's next line. Raises ChildDied at the end of the pipe."""
        assert self.process.stdout is not None
        try:
            line = await self.process.stdout.readline()
        except ValueError as error:
            raise ChildDied(f"sent a line of more than {LINE_LIMIT:,} bytes") from error
        if not line.endswith(b"\n"):
            raise ChildDied("")
        try:
            return _said.decode(line)
        except msgspec.MsgspecError as error:
            raise ChildDied(f"sent something that is not of the protocol ({error})") from error

    async def tell(self, record: Struct) -> None:
        """Send one line. A child that is dead is noticed by `hear`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.process.stdin.write(msgspec.json.encode(record) + b"\n")
            await self.process.stdin.drain()

    async def exit_code(self, limit: float = EXIT_LIMIT) -> int | None:
        """Return the exit code once the process has ended, or None if it goes on for so many seconds."""
        # Not wait_for, here and below, which before Python 3.12 loses a cancellation that comes as the awaited is done.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self.process.wait()
        return self.process.returncode

    async def end(self, *, politely: bool) -> None:
        """End the process: by closing its input, or by SIGTERM; a second later by SIGKILL. Never raises.

        The child leads a process group of its own; what a task started there ends with it.
        """
        process = self.process
        if politely and process.stdin is not None:
            process.stdin.close()
        elif self.alive:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await self.exit_code(TERM_GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        transport = getattr(process, "_transport", None)
        if transport is not None:
            transport.close()  # Process has no close of its own, and an open pipe is a ResourceWarning.


class ChildPool:
    """Children, made when needed and kept for reuse. The executor sees to it that no more run at a time than it wants.

    Args:
        bootstrap: what each child imports and calls first.
        tasks_each: after so many tasks a child is replaced, which bounds what leaks.
    """

    def __init__(self, bootstrap: Bootstrap, *, tasks_each: int = 100) -> None:
        self._bootstrap = bootstrap
        self._tasks_each = tasks_each
        self._idle: list[Child] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, attempt: Attempt, task: Any, begin: Callable[[], None]) -> Outcome:
        """Run one attempt in a child and return its outcome; a cancellation ends the child.

        `begin` is called once a child is ready, so that a cold start is not charged to the attempt's time. Raises ConfigurationError if
        no child can be made ready, DefinitionError if no child could find the task.
        """
        if "<locals>" in task.fn.__qualname__:
            raise DefinitionError(
                f"The task {task.name!r} is defined inside a function, where a child process cannot find it; a process=True task stands at "
                "the top of its module."
            )
        child = await self._take()
        try:
            begin()
            outcome = await self._converse(child, attempt, task)
        except BaseException:
            # The child may be anywhere inside the task. The task's end is certain only once the process has ended.
            await self._end(child, politely=False)
            raise
        child.tasks_done += 1
        if outcome.status == "crashed" or not child.alive:
            await self._end(child, politely=False)
        elif child.tasks_done >= self._tasks_each:
            self._end(child, politely=True)
        else:
            self._idle.append(child)
        return outcome

    async def close(self) -> None:
        """End all children."""
        for child in self._idle:
            self._end(child, politely=True)
        self._idle.clear()
        while self._ending:
            await asyncio.wait(self._ending)

    def _end(self, child: Child, *, politely: bool) -> asyncio.Future[None]:
        """End a child in a task of its own, which a cancelled caller does not interrupt."""
        ending = asyncio.get_running_loop().create_task(child.end(politely=politely))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return asyncio.shield(ending)

    async def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            self._end(child, politely=True)
        return await self._start()

    async def _start(self) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ziggurat.workers.child_main",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            # So that a Ctrl-C at the terminal reaches the worker only, which then drains.
            start_new_session=True,
            env=_environment(),
        )
        child = Child(process)
        try:
            await child.tell(_start(self._bootstrap))
            async with asyncio.timeout(START_LIMIT):
                said = await child.hear()
        except TimeoutError:
            await self._end(child, politely=False)
            raise ConfigurationError(f"A child process for process=True tasks was not ready after {START_LIMIT:g} s.") from None
        except ChildDied as died:
            how = str(died) or _how_it_ended(await child.exit_code())
            await self._end(child, politely=False)
            raise ConfigurationError(
                f"A child process for process=True tasks {how} before it was ready; what it wrote to standard error says why."
            ) from None
        except BaseException:
            await self._end(child, politely=False)
            raise
        if not said.ready:
            await self._end(child, politely=True)
            raise ConfigurationError(f"A child process for process=True tasks could not make itself ready: {said.unusable}")
        return child

    async def _converse(self, child: Child, attempt: Attempt, task: Any) -> Outcome:
        """Send the task and pass on what the child says until it is done."""
        run = RunTask(
            task=task.name,
            module=task.fn.__module__,
            payload=attempt.arguments,
            info=attempt.info,
            heartbeat=attempt.last_heartbeat(),
            trace=attempt.trace.place.header() if attempt.trace is not None else "",
        )
        await child.tell(run)
        try:
            while True:
                said = await child.hear()
                if said.result is not None:
                    return attempt.outcome("completed", result=said.result)
                if said.error is not None:
                    return attempt.outcome("failed", error=said.error)
                if said.beat is not None:
                    attempt.heartbeat(None if said.beat == b"null" else bytes(said.beat))
                elif said.emit is not None:
                    attempt.emit(said.emit[0], bytes(said.emit[1]))
                elif said.call is not None:
                    attempt.record_call(said.call)
        except ChildDied as died:
            how = str(died) or _how_it_ended(await child.exit_code())
            text = f"The child process that ran the task {task.name!r} {how}."
            return attempt.outcome("crashed", error=ErrorInfo(type="ziggurat.errors.TaskCrashed", message=text))


def _start(bootstrap: Bootstrap) -> Start:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return Start(
        bootstrap=bootstrap,
        parent=os.getpid(),
        path=[os.path.abspath(entry) for entry in sys.path],
        main_file=getattr(main, "__file__", None) or "",
        main_module=spec.name if spec is not None else "",
    )


def _how_it_ended(code: int | None) -> str:
    """Say how a process ended, as a phrase: "exited with code 3", "was killed by SIGKILL, possibly out of memory"."""
    if code is None:
        return "closed its pipe"
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hints = {
        "SIGKILL": ", possibly because the machine was out of memory",
        "SIGSEGV": ", a crash in native code",
        "SIGABRT": ", an abort in native code",
        "SIGBUS": ", a crash in native code",
        "SIGILL": ", a crash in native code",
    }
    return f"was killed by {name}{hints.get(name, '')}"


def _environment() -> dict[str, str]:
    """The parent's own environment. Output is unbuffered, so that what a task printed before it died is seen."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
