"""The shelf of batches over every place where it can lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.redis_servers import FLAVOURS, patient, running
from tests.conftest import missing_service
from ziggurat.errors import LayerUnreachable
from ziggurat.inference.backends.shelf_redis import RedisShelf
from ziggurat.inference.backends.shelf_sqlite import SqliteShelf
from ziggurat.inference.batches.interface import Doc, Shelf
from ziggurat.testing import FakeClock

Open = Callable[[], Shelf]
NOW = FakeClock().time()
LATER = NOW + 3600.0


@pytest.fixture(params=["sqlite", *FLAVOURS])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Return what opens the same shelf again."""
    patient(monkeypatch)
    opened: list[Shelf] = []

    def keep(shelf: Shelf) -> Shelf:
        opened.append(shelf)
        return shelf

    if request.param == "sqlite":
        yield lambda: keep(SqliteShelf(tmp_path / "deep" / "batches.db", FakeClock()))
    else:
        with running(request.param, missing_service) as server:
            yield lambda: keep(RedisShelf(server.url, "queue.url", FakeClock()))
            for shelf in opened:
                shelf.close()
            return
    for shelf in opened:
        shelf.close()


def put(shelf: Shelf, key: str, data: bytes = b"x", version: int = 0, group: str = "", at: float = 1.0) -> bool:
    return shelf.put(key, data, version=version, group=group, at=at, until=LATER)


def test_what_one_puts_another_reads(place: Open) -> None:
    mine, yours = place(), place()
    assert mine.get("a") is None
    assert put(mine, "a", b"\x00\xff")
    assert yours.get("a") == Doc("a", 1, b"\x00\xff")


def test_a_change_is_made_to_the_version_that_was_read_or_not_at_all(place: Open) -> None:
    mine, yours = place(), place()
    assert put(mine, "a", b"1")
    assert not put(yours, "a", b"2"), "it exists"
    assert put(yours, "a", b"2", version=1)
    assert not put(mine, "a", b"3", version=1)
    assert mine.get("a") == Doc("a", 2, b"2")
    assert not mine.delete("a", 1)
    assert mine.delete("a", 2)
    assert yours.get("a") is None
    assert not put(mine, "a", b"3", version=2), "it is gone"


def test_a_document_is_in_one_group_by_its_place(place: Open) -> None:
    shelf = place()
    for key, at in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        put(shelf, key, key.encode(), group="g", at=at)
    assert [doc.key for doc in shelf.group("g", 10)] == ["a", "b", "c"]
    assert [doc.data for doc in shelf.group("g", 2)] == [b"a", b"b"]
    assert shelf.count("g") == (3, 1.0)
    put(shelf, "a", version=1, group="h", at=9.0)
    assert (shelf.count("g"), shelf.count("h")) == ((2, 2.0), (1, 9.0))
    put(shelf, "a", version=2)
    shelf.delete("b", 1)
    assert (shelf.count("g"), shelf.count("h")) == ((1, 3.0), (0, 0.0))
    assert shelf.group("h", 10) == []


def test_what_is_in_no_group_is_in_no_group(place: Open) -> None:
    shelf = place()
    put(shelf, "a")
    assert (shelf.count(""), shelf.group("", 10)) == ((0, 0.0), [])


def test_of_changes_at_the_same_time_one_is_made(place: Open) -> None:
    put(place(), "n", b"0")

    def add(times: int) -> None:
        shelf = place()
        for _ in range(times):
            while True:
                doc = shelf.get("n")
                assert doc is not None
                if put(shelf, "n", str(int(doc.data) + 1).encode(), version=doc.version):
                    break

    threads = [threading.Thread(target=add, args=(20,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert place().get("n") == Doc("n", 81, b"80")


def test_a_shelf_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(LayerUnreachable, match="cannot be used"):
        SqliteShelf(blocked / "batches.db").get("a")
    with pytest.raises(LayerUnreachable, match="cannot be reached"):
        RedisShelf("redis://127.0.0.1:1", "queue.url").get("a")


def test_a_file_forgets_what_is_past_its_time(tmp_path: Path) -> None:
    clock = FakeClock()
    shelf = SqliteShelf(tmp_path / "batches.db", clock)
    shelf.put("old", b"x", version=0, group="", at=0.0, until=clock.time() + 10.0)
    clock.advance(20.0)
    for number in range(501):
        shelf.put(f"new{number}", b"x", version=0, group="", at=0.0, until=clock.time() + 10.0)
    assert shelf.get("old") is None
    shelf.close()
