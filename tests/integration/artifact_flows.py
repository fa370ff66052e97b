"""Workflows for the tests of large payloads: in a module, so that worker processes can import them."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel

from ziggurat import Artifact, task, workflow


class Page(BaseModel):
    file: Artifact
    number: int = 0


@task(name="flows.twice")
async def twice(text: str) -> str:
    return text + text


@task(name="flows.worker_of")
def worker_of(text: str) -> str:
    return f"{os.getpid()}:{len(text)}"


@task(name="flows.backwards", process=True)
def backwards(text: str) -> str:
    return text[::-1]


@workflow(name="flows.large")
async def large(text: str) -> str:
    """Pass a large text through a coroutine, a thread and a child process, and back."""
    doubled = await twice(text)
    assert (await worker_of(doubled)).endswith(f":{len(doubled)}")
    assert await backwards(text) == text[::-1]
    return doubled


@task(name="flows.cut")
async def cut(document: Artifact, number: int) -> Page:
    data = await document.read()
    return Page(file=await Artifact.save(data[number::2], name=f"{number}.bin"), number=number)


@task(name="flows.join")
def join(pages: list[Page]) -> Artifact:
    odd, even = (page.file.read_bytes() for page in sorted(pages, key=lambda page: -page.number))
    whole = bytearray(len(odd) + len(even))
    whole[1::2], whole[0::2] = odd, even
    return Artifact.save_now(bytes(whole), name="whole.bin")


@workflow(name="flows.through_files")
async def through_files(document: Artifact) -> Artifact:
    """Cut a file in two, on whichever workers, and join it again."""
    return await join([await cut(document, 0), await cut(document, 1)])


@task(name="flows.dies_once", retry=5)
def dies_once(marker: str) -> str:
    """Store a result, and take the process down between that and the queue's hearing of it."""
    if not Path(marker).exists():
        from ziggurat.artifacts import Library

        put = Library.put

        def put_and_die(self: Library, key: str, data: bytes) -> None:
            put(self, key, data)
            Path(marker).touch()
            os._exit(9)

        Library.put = put_and_die  # type: ignore[method-assign]
    return "x" * 300_000


@workflow(name="flows.survives")
async def survives(marker: str) -> int:
    return len(await dies_once(marker))
