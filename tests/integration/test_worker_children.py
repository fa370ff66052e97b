"""Child processes for process=True tasks: their limits, their ends, and their parent's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from ziggurat import task
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import ErrorInfo, Message, Outcome
from ziggurat.testing.worker_harness import order
from ziggurat.workers.children import Bootstrap
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker

MIB = 1024 * 1024


@asynccontextmanager
async def working(bootstrap: Bootstrap | None = None, **options: Any) -> AsyncIterator[Any]:
    """Run a worker over a memory queue, and yield a function that runs one message on it."""
    queue = MemoryQueue()
    await queue.open()
    worker = Worker(
        queue,
        Registry(["ziggurat.testing.worker_tasks"]),
        options=WorkerOptions(**{"poll": 0.05, "processes": 1, **options}),
        bootstrap=bootstrap,
    )
    running = asyncio.create_task(worker.run())

    async def run(message: Message) -> Outcome:
        await queue.send([message])
        async with asyncio.timeout(60.0):
            while True:
                for outcome in await queue.outcomes(1, 1.0):
                    await queue.ack_outcomes([outcome])
                    return outcome

    try:
        yield run
    finally:
        worker.stop(0.0)
        await running
        await queue.close()


def failure(outcome: Outcome) -> ErrorInfo:
    assert outcome.status == "failed", outcome
    assert outcome.error is not None
    return outcome.error


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return sys.platform != "linux" or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # It may go between any two looks.
        return False


async def until_dead(pid: int) -> None:
    async with asyncio.timeout(90.0):
        while is_alive(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_child_is_replaced_after_so_many_tasks() -> None:
    async with working(tasks_per_process=2) as run:
        pids = [(await run(order("child", kind="pid"))).result for _ in range(4)]
        texts = [bytes(pid) for pid in pids]
        assert texts[0] == texts[1] != texts[2] == texts[3]
        await until_dead(int(texts[0]))


async def test_children_end_with_their_worker() -> None:
    async with working() as run:
        pid = int(bytes((await run(order("child", kind="pid"))).result))
        assert is_alive(pid)
    assert not is_alive(pid)


async def test_a_memory_hog_is_told_so_and_harms_nobody() -> None:
    async with working(process_memory=1024 * MIB) as run:
        error = failure(await run(order("child", kind="memory", number=4096 * MIB)))
        assert error.type == "MemoryError"
        assert (await run(order("child", kind="add", number=1))).result == Raw(b"2")


async def test_a_large_result_crosses_the_pipe_and_a_larger_one_is_refused() -> None:
    async with working() as run:
        outcome = await run(order("child", kind="noise", number=7 * MIB))
        assert len(bytes(outcome.result)) == 7 * MIB + 2
        error = failure(await run(order("child", kind="noise", number=9 * MIB)))
        assert (error.type, error.retryable) == ("ziggurat.errors.PayloadTooLarge", False)


async def test_a_result_and_arguments_that_do_not_fit_are_final() -> None:
    async with working() as run:
        error = failure(await run(order("child", kind="result")))
        assert (error.type, error.retryable) == ("ziggurat.errors.InvalidData", False)
        error = failure(await run(order("child", number=3)))
        assert (error.type, error.retryable) == ("ziggurat.errors.InvalidData", False)
        assert "kind" in error.message


async def test_an_exit_in_a_child_is_told_from_its_death() -> None:
    async with working() as run:
        assert failure(await run(order("child", kind="exit", number=3))).message == "The task 'suite.child' called sys.exit(3)."
        assert (await run(order("child", kind="_exit", number=0))).status == "crashed"


async def test_a_bootstrap_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with working(Bootstrap(modules=("no_such_module_anywhere",))) as run:
        error = failure(await run(order("child", kind="pid")))
        assert "could not make itself ready" in error.message
        assert "no_such_module_anywhere" in error.message
    (tmp_path / "dying_app.py").write_text("import os\ndef hook(config):\n    os._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with working(Bootstrap(call="dying_app:hook")) as run:
        error = failure(await run(order("child", kind="pid")))
        assert "exited with code 9 before it was ready" in error.message


async def test_the_bootstrap_calls_its_hook_with_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooked_app.py").write_text(
        textwrap.dedent(
            """
            from ziggurat import task
            seen = {}
            def hook(config):
                seen.update(config)
            @task(name="hooked.seen", process=True)
            def tell() -> dict[str, int]:
                return seen
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import hooked_app  # type: ignore[import-not-found]

    async with working(Bootstrap(call="hooked_app:hook", config={"a": 1})) as run:
        outcome = await run(Message(id="m", task=hooked_app.tell.name, payload=Raw(b"{}"), run="r", step=1))
        assert outcome.result == Raw(b'{"a":1}')


async def test_a_task_that_no_child_can_find_is_named() -> None:
    @task(name="suite.local", process=True)
    def local() -> int:
        return 1

    async with working() as run:
        error = failure(await run(order("local")))
        assert "inside a function" in error.message
        assert local.name in error.message


async def test_a_grandchild_does_not_keep_the_worker_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forking_app.py").write_text(
        textwrap.dedent(
            """
            import os, time
            from ziggurat import task
            @task(name="forking.die", process=True)
            def die(path: str) -> int:
                pid = os.fork()
                if pid == 0:
                    time.sleep(600)
                    os._exit(0)
                with open(path, "w") as file:
                    file.write(str(pid))
                os._exit(5)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import forking_app  # type: ignore[import-not-found]

    async with working() as run:
        payload = Raw(msgspec.json.encode({"path": str(tmp_path / "pid")}))
        outcome = await run(Message(id="m", task=forking_app.die.name, payload=payload, run="r", step=1))
        assert outcome.status == "crashed"
        assert outcome.error is not None
        assert "exited with code 5" in outcome.error.message
        await until_dead(int((tmp_path / "pid").read_text()))


SCRIPT = """
    import asyncio, os, sys
    from msgspec import Raw
    from ziggurat import task
    from ziggurat.program.registry import Registry
    from ziggurat.queues.backends.memory import MemoryQueue
    from ziggurat.records import Message
    from ziggurat.workers.options import WorkerOptions
    from ziggurat.workers.worker import Worker

    @task(process=True)
    def in_script(wait: bool) -> int:
        if wait:
            print(os.getpid(), file=sys.stderr, flush=True)
            while True:
                pass
        return os.getpid()

    async def main(wait: bool) -> None:
        queue = MemoryQueue()
        await queue.open()
        worker = Worker(queue, Registry(), options=WorkerOptions(poll=0.05))
        running = asyncio.create_task(worker.run())
        await queue.send([Message(id="m", task="in_script", payload=Raw(b'{"wait":true}' if wait else b'{"wait":false}'))])
        (outcome,) = await queue.outcomes(1, 60.0)
        print(outcome.status, bytes(outcome.result or b"").decode(), os.getpid())
        worker.stop(0.0)
        await running

    if __name__ == "__main__":
        asyncio.run(main(len(sys.argv) > 1))
"""


def script(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    path = tmp_path / "a_script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(path), *arguments], stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)


def test_tasks_of_a_script_are_found_by_its_children(tmp_path: Path) -> None:
    with script(tmp_path) as process:
        output, errors = process.communicate(timeout=120)
    status, child, parent = output.split()
    assert (status, errors, process.returncode) == ("completed", "", 0)
    assert child != parent


async def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with script(tmp_path, "wait") as process:
        assert process.stderr is not None
        pid = int(process.stderr.readline())
        process.kill()
        process.wait()
        await until_dead(pid)
