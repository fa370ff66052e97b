"""Large, secret and stored payloads in the embedded engine: through every door of a run, after replays, and until they are purged."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from ziggurat import Artifact, continue_as_new, emit, heartbeat, last_heartbeat, signal, state, task, workflow
from ziggurat.artifacts import ArtifactStore, Keyring, Library, Payloads, artifact_keys, use_library
from ziggurat.artifacts.backends.folder import FolderStore
from ziggurat.errors import ArtifactMissing, ArtifactsUnreachable, Conflict, InvalidData
from ziggurat.orchestrator.embedded import carrying, stowing
from ziggurat.orchestrator.embedded.engine import EmbeddedOrchestrator
from ziggurat.orchestrator.embedded.options import EngineOptions
from ziggurat.orchestrator.sealing import SealedOrchestrator
from ziggurat.program.registry import Registry
from ziggurat.queues.backends.memory import MemoryQueue
from ziggurat.records import Event, Run, RunFilter, StartRequest
from ziggurat.workers.options import WorkerOptions
from ziggurat.workers.worker import Worker

PATIENCE = 60.0
KEYS = {"a": b"a" * 32, "b": b"b" * 32}
LIMIT = 200
SECRET = "secret-" * 100


@task
async def twice(text: str) -> str:
    return text * 2


@task
def length(text: str) -> int:
    return len(text)


@workflow(name="artifact_runs.child")
async def child(text: str) -> str:
    return await twice(text)


@workflow
async def everything(text: str) -> str:
    state(text=text)
    doubled = await twice(text)
    assert await length(doubled) == 2 * len(text)
    assert await child(text) == doubled
    assert await signal("more", str) == text
    return doubled


@workflow
async def rounds(text: str, left: int) -> str:
    grown = await twice(text)
    if left:
        continue_as_new(grown[: len(text)], left - 1)
    return grown


@task
async def reply(messages: list[str]) -> str:
    return f"{len(messages)} " + "r" * 10_000


@workflow
async def conversation(turns: int) -> int:
    messages: list[str] = []
    for turn in range(turns):
        messages.append(f"{turn} " + "q" * 10_000)
        messages.append(await reply(messages))
    return len(messages)


class Place:
    """One state file with its store: opened, closed and opened again."""

    def __init__(self, folder: Path, use: str = "", *, keys: dict[str, bytes] | None = None, **options: Any) -> None:
        self.path = folder / "state.db"
        self.options = options
        self.store: ArtifactStore = FolderStore(folder / "artifacts")
        self.payloads = self.seam(use, keys)
        self.for_workers = self.payloads
        self.registry = Registry()

    def seam(self, use: str = "", keys: dict[str, bytes] | None = None, **options: Any) -> Payloads:
        keyring = Keyring(keys if keys is not None else KEYS, use) if use or keys is not None else None
        return Payloads(Library(self.store, keyring, **options), keyring=keyring, inline_limit=LIMIT)

    @asynccontextmanager
    async def open(self, *, works: bool = True, **options: Any) -> AsyncIterator[Opened]:
        queue = MemoryQueue()
        await queue.open()
        engine = EmbeddedOrchestrator(
            self.path, queue, self.registry, options=EngineOptions(**{**self.options, **options}), payloads=self.payloads
        )
        await engine.open()
        assert self.for_workers.library is not None
        use_library(self.for_workers.library)
        worker = Worker(queue, self.registry, options=WorkerOptions(poll=0.2, cleanup=1.0), payloads=self.for_workers)
        working = asyncio.create_task(worker.run() if works else asyncio.sleep(0))
        try:
            yield Opened(SealedOrchestrator(engine, self.payloads), engine, self)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await engine.close()
            await queue.close()
            use_library(None)

    def stored(self) -> set[str]:
        return {found.key for found in self.store.list()}

    def on_disk(self) -> bytes:
        """Return all that anybody who has the disk can read."""
        return b"".join(path.read_bytes() for path in self.path.parent.rglob("*") if path.is_file())


@dataclass
class Opened:
    orchestrator: SealedOrchestrator
    engine: EmbeddedOrchestrator
    place: Place

    async def start(self, workflow: Any, *args: Any, id: str = "") -> str:
        self.place.registry.add(workflow)
        payload = Raw(workflow.arguments.encode(args, {}))
        return (await self.orchestrator.start(StartRequest(workflow=workflow.name, payload=payload, id=id))).id

    async def ended(self, run: str) -> Run:
        return await self.orchestrator.wait(run, PATIENCE)

    async def result(self, run: str) -> Any:
        found = await self.ended(run)
        assert found.status == "completed", (found.status, found.reason, found.error)
        return msgspec.json.decode(found.result or b"null")

    async def rests(self, run: str) -> Run:
        """Wait until a run waits for a signal."""
        async with asyncio.timeout(PATIENCE):
            while "the signal" not in (found := await self.orchestrator.get(run)).reason:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        return found

    async def send(self, run: str, name: str, value: Any) -> None:
        await self.orchestrator.signal(run, name, Raw(msgspec.json.encode(value)))

    async def history(self, run: str) -> list[Event]:
        return await self.orchestrator.history(run)


@pytest.fixture(params=["", "a"], ids=["plain", "encrypted"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, request.param)


# -- through every door ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evict", [False, True])
async def test_large_payloads_pass_every_door_of_a_run(place: Place, evict: bool) -> None:
    text = SECRET * 3
    async with place.open(evict_always=evict) as s:
        run = await s.start(everything, text)
        found = await s.rests(run)
        assert found.state is not None
        assert msgspec.json.decode(found.state) == {"text": text}
        await s.send(run, "more", text)
        assert await s.result(run) == text * 2
        child_run = (await s.orchestrator.list(RunFilter(parent=run)))[0].id
        assert await s.result(child_run) == text * 2
        # A history names what is stored; it does not fetch it.
        for event in await s.history(run):
            assert len(event.result or b"") < 500, event
    async with place.open() as s:
        assert await s.result(run) == text * 2


async def test_a_long_conversation_is_stored_about_once_and_goes_with_its_run(place: Place) -> None:
    async with place.open(evict_always=True) as s:
        run = await s.start(conversation, 40)
        assert await s.result(run) == 80
        # All of it is handed on at each of forty turns, which is twenty times what was said.
        said = 80 * 10_000
        assert sum(found.size for found in place.store.list()) < 4.5 * said
        assert await s.orchestrator.purge(RunFilter()) == 1
        assert not place.stored()


async def test_with_a_key_nothing_of_a_payload_is_on_the_disk(tmp_path: Path) -> None:
    place = Place(tmp_path, "a")
    for text in ("secret-", SECRET):
        async with place.open(evict_always=True) as s:
            run = await s.start(everything, text)
            await s.rests(run)
            await s.send(run, "more", text)
            assert await s.result(run) == text * 2
            inputs = [msgspec.json.decode(event.input) for event in await s.history(run) if event.input is not None]
            assert {"text": text} in inputs
    assert b"secret-" not in place.on_disk()


async def test_encryption_turned_on_and_keys_changed_in_the_middle_of_a_run(tmp_path: Path) -> None:
    place = Place(tmp_path)

    @workflow
    async def in_stages(text: str) -> list[str]:
        seen = []
        for _ in range(4):
            seen.append(await twice(text))
            seen.append(await signal("next", str))
        return seen

    async with place.open() as s:
        run = await s.start(in_stages, SECRET)
        await s.rests(run)
    for use in ("a", "b", ""):
        place.payloads = place.for_workers = place.seam(use, KEYS)
        async with place.open() as s:
            await s.send(run, "next", SECRET)
            await s.rests(run)
    async with place.open() as s:
        await s.send(run, "next", SECRET)
        assert await s.result(run) == [SECRET * 2, SECRET] * 4


async def test_a_missing_key_parks_the_run_and_the_key_brings_it_back(tmp_path: Path) -> None:
    place = Place(tmp_path, "a")
    async with place.open() as s:
        run = await s.start(everything, "small")
        await s.rests(run)
    place.payloads = place.for_workers = place.seam("b", {"b": KEYS["b"]})
    async with place.open() as s:
        with pytest.raises(Conflict, match=r"parked.*key 'a'.*\[encryption.keys\].*Nothing is lost"):
            await s.send(run, "more", "small")
        found = await s.ended(run)
        assert found.status == "parked"
    place.payloads = place.for_workers = place.seam("a")
    async with place.open() as s:
        await s.orchestrator.resume(run)
        await s.rests(run)
        await s.send(run, "more", "small")
        assert await s.result(run) == "smallsmall"


async def test_a_worker_without_the_key_hands_the_message_back_for_one_that_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path, "a")
    place.for_workers = place.seam()
    async with place.open() as s:
        run = await s.start(child, "small")
        async with asyncio.timeout(PATIENCE):
            while "goes back to the queue" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    assert "encrypted with the key 'a', which is not in [encryption.keys]" in caplog.text
    place.for_workers = place.payloads
    async with place.open() as s:
        assert await s.result(run) == "smallsmall"


async def test_heartbeats_and_progress_are_sealed_on_the_way(tmp_path: Path) -> None:
    place = Place(tmp_path, "a")

    @task(retry=2)
    async def beats() -> str:
        left = last_heartbeat()
        if left is None:
            emit({"said": "secret-"})
            heartbeat({"at": "secret-"})
            raise ValueError("again")
        return str(left["at"])

    @workflow
    async def watched() -> str:
        await signal("go")
        return await beats()

    async with place.open() as s:
        run = await s.start(watched)
        await s.rests(run)
        seen: list[Any] = []

        async def watch() -> None:
            shown = [happening.progress async for happening in s.orchestrator.watch(run) if happening.progress is not None]
            seen.extend(msgspec.json.decode(progress.data) for progress in shown if progress.kind == "emit")

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await s.send(run, "go", None)
        assert await s.result(run) == "secret-"
        await watching
    assert seen == [{"said": "secret-"}]
    assert b"secret-" not in place.on_disk()


async def test_a_fork_and_a_retry_have_what_their_origin_stored(place: Place) -> None:
    broken = True

    @workflow
    async def fails(text: str) -> str:
        doubled = await twice(text)
        if broken:
            raise ValueError("not yet")
        return doubled + await twice("x")

    async with place.open() as s:
        run = await s.start(fails, SECRET)
        assert (await s.ended(run)).status == "failed"
        broken = False
        await s.orchestrator.retry(run)
        assert await s.result(run) == SECRET * 2 + "xx"
        other = Raw(fails.arguments.encode((SECRET + "!",), {}))
        forks = [await s.orchestrator.fork(run, 2), await s.orchestrator.fork(run, 2, payload=other)]
        assert [await s.result(fork.id) for fork in forks] == [SECRET * 2 + "xx"] * 2
        assert await s.orchestrator.purge(RunFilter(search=run)) == 1
    async with place.open() as s:
        assert await s.result(forks[0].id) == SECRET * 2 + "xx"
        again = await s.orchestrator.fork(forks[0].id, 2)
        assert await s.result(again.id) == SECRET * 2 + "xx"


# -- when the store does not do its part ------------------------------------------------------------------------------


class Unreliable(FolderStore):
    """A folder that loses or refuses what a test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lose = self.refuse_puts = self.refuse_gets = 0

    def put(self, key: str, chunks: Iterable[bytes]) -> None:
        if self.refuse_puts:
            self.refuse_puts -= 1
            raise ArtifactsUnreachable("The artifact store is full. Free some space.")
        super().put(key, chunks)
        if self.lose:
            self.lose -= 1
            self.delete([key])

    def get(self, key: str) -> Iterator[bytes]:
        if self.refuse_gets:
            self.refuse_gets -= 1
            raise ArtifactsUnreachable("The artifact store is down. Start it.")
        return super().get(key)


@pytest.fixture
def unreliable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Place, Unreliable]:
    monkeypatch.setattr(stowing, "PAUSES", (0.01,))
    monkeypatch.setattr(stowing, "STALL", 0.01)
    monkeypatch.setattr(carrying, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr("ziggurat.workers.carrying.PAUSES", (0.01, 0.01))
    place, store = Place(tmp_path), Unreliable(tmp_path / "artifacts")
    place.store = store
    # Each side with a memory of its own, as in processes of their own, and that holds nothing.
    place.payloads, place.for_workers = place.seam(cache_bytes=0), place.seam(cache_bytes=0)
    return place, store


async def test_a_result_that_the_store_lost_is_made_again_before_anything_is_recorded(
    unreliable: tuple[Place, Unreliable],
) -> None:
    place, store = unreliable
    store.lose = 1
    async with place.open() as s:
        run = await s.start(child, "x" * 150)  # Arguments that travel inline, and a result that does not.
        assert await s.result(run) == "x" * 300
        failed = [event for event in await s.history(run) if event.kind == "attempt_failed"]
        assert [event.error.type for event in failed if event.error] == ["ziggurat.errors.ArtifactMissing"]


async def test_arguments_that_the_store_lost_are_stored_again_for_the_next_attempt(unreliable: tuple[Place, Unreliable]) -> None:
    place, store = unreliable

    @workflow
    async def asks() -> int:
        await signal("go")
        return await length("x" * 300)

    async with place.open() as s:
        run = await s.start(asks)
        await s.rests(run)
        store.lose = 1
        await s.send(run, "go", None)
        assert await s.result(run) == 300
        failed = [event for event in await s.history(run) if event.kind == "attempt_failed"]
        assert [event.error.type for event in failed if event.error] == ["ziggurat.errors.ArtifactMissing"]


async def test_a_store_that_is_down_for_a_moment_costs_no_attempt(unreliable: tuple[Place, Unreliable]) -> None:
    place, store = unreliable
    async with place.open() as s:
        store.refuse_gets = store.refuse_puts = 2
        with pytest.raises(ArtifactsUnreachable):
            await s.start(everything, "x" * 300)
        run = ""
        while not run:
            try:
                run = await s.start(everything, "x" * 300)
            except ArtifactsUnreachable:
                continue
        await s.rests(run)
        for refuse in (1, 2, 3):
            store.refuse_gets = refuse
            await s.orchestrator.pause(run)
            await s.orchestrator.resume(run)
        await s.send(run, "more", "x" * 300)
        assert await s.result(run) == "x" * 600
        assert not [event for event in await s.history(run) if event.kind == "attempt_failed"]


class OffTheLoop(FolderStore):
    """A folder that is only read and written beside the event loop."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.wrong: list[str] = []
        self.reads = 0

    def _note(self, verb: str) -> None:
        if threading.current_thread() is threading.main_thread():
            self.wrong.append(verb)

    def put(self, key: str, chunks: Iterable[bytes]) -> None:
        self._note("put")
        super().put(key, chunks)

    def get(self, key: str) -> Iterator[bytes]:
        self._note("get")
        self.reads += 1
        return super().get(key)


@pytest.mark.parametrize("evict", [False, True])
async def test_a_replay_fetches_what_it_needs_beside_the_event_loop(tmp_path: Path, evict: bool) -> None:
    @workflow
    async def long_lived(text: str) -> str:
        first = await child(text)
        await asyncio.sleep(0.05)
        second = await twice(first)
        assert await signal("more", str) == text
        return second + await child(text)

    store = OffTheLoop(tmp_path / "artifacts")
    place = Place(tmp_path)
    place.store = store
    run = ""
    for stage in range(4):
        # Each time a process that has nothing in memory.
        place.payloads, place.for_workers = place.seam(), place.seam(cache_bytes=0)
        async with place.open(evict_always=evict) as s:
            if not run:
                run = await s.start(long_lived, SECRET)
            if stage < 2:
                await s.rests(run)
            elif stage == 2:
                await s.send(run, "more", SECRET)
            if stage >= 2:
                assert await s.result(run) == SECRET * 6
    assert store.reads > 4
    assert store.wrong == []


async def test_a_result_of_a_run_that_cannot_be_stored_parks_it_with_the_reason(unreliable: tuple[Place, Unreliable]) -> None:
    place, store = unreliable

    @workflow
    async def large() -> str:
        await signal("go")
        return "x" * 300

    async with place.open() as s:
        run = await s.start(large)
        await s.rests(run)
        store.refuse_puts = 2
        await s.send(run, "go", None)
        found = await s.ended(run)
        assert (found.status, found.reason) == ("parked", "The artifact store is full. Free some space.")
        await s.orchestrator.resume(run)
        assert await s.result(run) == "x" * 300


async def test_a_recorded_result_that_is_gone_parks_the_run_and_names_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place.open() as s:
        run = await s.start(everything, SECRET)
        await s.rests(run)
    place.payloads = place.for_workers = place.seam(cache_bytes=0)
    lost = sorted(place.stored())
    place.store.delete(lost)
    async with place.open() as s:
        await s.send(run, "more", SECRET)  # Recorded, whatever becomes of the program.
        found = await s.ended(run)
        assert found.status == "parked"
        assert any(key in found.reason for key in lost)


# -- what is kept, and for how long -----------------------------------------------------------------------------------


async def test_stored_objects_go_with_the_last_run_that_refers_to_them(place: Place) -> None:
    async with place.open() as s:
        run = await s.start(everything, SECRET)
        await s.rests(run)
        await s.send(run, "more", SECRET)
        await s.result(run)
        assert len(place.stored()) >= 4
        (found,) = await s.orchestrator.list(RunFilter(parent=run))
        assert await s.orchestrator.purge(RunFilter(search=found.id)) == 1
        assert len(place.stored()) >= 4  # The parent recorded the child's result.
    async with place.open() as s:
        fork = await s.orchestrator.fork(run, 4)
        await s.rests(fork.id)
        await s.orchestrator.cancel(fork.id)
        assert (await s.ended(fork.id)).status == "cancelled"
        assert await s.orchestrator.purge(RunFilter()) == 2
        assert place.stored() == set()


async def test_an_artifact_lives_as_long_as_any_run_names_it(place: Place) -> None:
    @task
    async def make() -> Artifact:
        return await Artifact.save(b"content", name="a.txt")

    @task
    def read(artifact: Artifact) -> str:
        return artifact.read_text()

    @workflow
    async def makes() -> Artifact:
        return await make()

    @workflow
    async def takes(artifact: Artifact) -> str:
        await signal("go")
        return await read(artifact)

    async with place.open() as s:
        first = await s.start(makes)
        made = msgspec.convert(await s.result(first), Artifact)
        second = await s.start(takes, made)
        await s.rests(second)
        assert await s.orchestrator.purge(RunFilter()) == 1
        assert place.stored() == {made.key}
        await s.send(second, "go", None)
        assert await s.result(second) == "content"
        assert await s.orchestrator.purge(RunFilter()) == 1
        assert place.stored() == set()
        with pytest.raises(InvalidData, match=f"{made.key} is not in"):
            await s.start(takes, made)


async def test_a_run_that_continues_lets_go_of_what_only_older_generations_had(place: Place) -> None:
    async with place.open() as s:
        run = await s.start(rounds, SECRET, 8)
        assert await s.result(run) == SECRET * 2
        names = set()
        for event in s.engine._journal.reader.events(1):
            names |= set(artifact_keys(event.result or b""))
        kept = set(s.engine._journal.reader.artifacts_of([1]))
        assert names <= kept
        assert len(kept) <= 4  # Input, arguments and result of this generation and the one before are the same texts.
        assert await s.orchestrator.purge(RunFilter()) == 1


async def test_what_nobody_refers_to_is_swept_after_the_grace_period_and_nothing_else(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with place.open(artifact_grace=0.0) as s:
        run = await s.start(everything, SECRET)
        await s.rests(run)
        needed = set(s.engine._journal.reader.artifacts_of([1, 2]))
        orphan = Artifact.save_now(b"left behind")
        assert orphan.key in place.stored()
        await asyncio.sleep(0.02)
        await s.engine._cleaner.sweep()
        assert place.stored() == needed
        await s.send(run, "more", SECRET)
        assert await s.result(run) == SECRET * 2
    async with place.open(artifact_grace=3600.0) as s:
        young = Artifact.save_now(b"on its way")
        assert await s.engine._cleaner.sweep() == 0
        assert young.key in place.stored()


async def test_a_store_that_belongs_to_another_system_is_not_cleaned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = Place(tmp_path)
    place.store.claim("somebody else")
    async with place.open(artifact_grace=0.0) as s:
        run = await s.start(child, SECRET)
        await s.result(run)
        Artifact.save_now(b"left behind")
        await asyncio.sleep(0.02)
        with caplog.at_level(logging.WARNING):
            assert await s.engine._cleaner.sweep() == 0
        before = place.stored()
        assert await s.orchestrator.purge(RunFilter()) == 1
        assert place.stored() == before
    assert "cleaned up by another system" in caplog.text


# -- artifacts in programs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "touch",
    [
        lambda artifact: artifact.read(),
        lambda artifact: artifact.text(),
        lambda artifact: artifact.read_bytes(),
        lambda artifact: list(artifact.iter_chunks()),
        lambda artifact: Artifact.save(b"x"),
        lambda artifact: Artifact.save_now(b"x"),
        lambda artifact: artifact.download_now("x"),
    ],
)
async def test_a_workflow_that_touches_content_is_parked_and_told_to_use_a_task(
    tmp_path: Path, touch: Callable[[Artifact], Any]
) -> None:
    @workflow
    async def curious(artifact: Artifact) -> None:
        done = touch(artifact)
        if asyncio.iscoroutine(done):
            await done

    place = Place(tmp_path)
    async with place.open() as s:
        run = await s.start(curious, Artifact.save_now(b"x", name="x.txt"))
        found = await s.ended(run)
        assert found.status == "parked"
        assert "which a replay cannot repeat. Do it in a task" in found.reason


async def test_attempts_of_one_step_save_one_artifact(tmp_path: Path) -> None:
    saved: list[str] = []

    @task(retry=3)
    async def make_again() -> Artifact:
        artifact = await Artifact.save("the same")
        saved.append(artifact.key)
        if len(saved) < 3:
            raise ValueError("again")
        return artifact

    @workflow
    async def makes_once() -> Artifact:
        return await make_again()

    place = Place(tmp_path)
    async with place.open() as s:
        await s.result(await s.start(makes_once))
        assert len(saved) == 3
        assert len(set(saved)) == 1
        await s.result(await s.start(makes_once))
        assert len(set(saved)) == 2


async def test_a_missing_artifact_is_the_tasks_failure_and_is_not_tried_again(tmp_path: Path) -> None:
    @task
    async def read_missing(artifact: Artifact) -> bytes:
        return await artifact.read()

    @workflow
    async def reads_missing(artifact: Artifact) -> str:
        try:
            await read_missing(artifact)
        except ArtifactMissing as error:
            return str(error)
        return ""

    place = Place(tmp_path)
    place.payloads = place.for_workers = place.seam(cache_bytes=0)
    async with place.open() as s:
        artifact = Artifact.save_now(b"x")
        run = await s.start(reads_missing, artifact)
        place.store.delete([artifact.key])
        said = await s.result(run)
        assert artifact.key in said or said == ""
        if said:
            assert [event.attempt for event in await s.history(run) if event.name == "read_missing"] == [1]
