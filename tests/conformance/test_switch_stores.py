"""The book of model switches over every place where it can lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.redis_servers import FLAVOURS, patient, running
from tests.conftest import missing_service
from ziggurat.errors import LayerUnreachable
from ziggurat.inference.backends.switches_redis import RedisSwitches
from ziggurat.inference.switches import Book, FileSwitches, Switch, SwitchStore

Open = Callable[[], SwitchStore]
A, B = Switch(routes=["x:a"]), Switch(routes=["x:b", "y:c"], weights=[0.25, 0.75], shadow="z:d")


@pytest.fixture(params=["file", *FLAVOURS])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Return what opens the same book again."""
    patient(monkeypatch)
    if request.param == "file":
        yield lambda: FileSwitches(tmp_path / "deep" / "models.json")
        return
    with running(request.param, missing_service) as server:
        yield lambda: RedisSwitches(server.url, "queue.url")


def test_an_empty_book_has_no_switches(place: Open) -> None:
    assert place().read() == Book()


def test_a_change_is_seen_by_all(place: Open) -> None:
    mine, yours = place(), place()
    assert yours.read().standing() == {}
    mine.change(lambda book: book.switched("fast", B, at=7.0, by="ada"))
    found = yours.read().standing()["fast"]
    assert (found.routes, found.weights, found.shadow) == (B.routes, B.weights, B.shadow)
    assert (found.version, found.at, found.by) == (1, 7.0, "ada")
    yours.change(lambda book: book.switched("slow", A, at=8.0, by="bob"))
    assert set(mine.read().standing()) == {"fast", "slow"}


def test_a_write_over_another_is_refused(place: Open) -> None:
    mine, yours = place(), place()
    book = mine.read()
    yours.change(lambda other: other.switched("fast", A, at=1.0, by="bob"))
    assert not mine.write(book.switched("fast", B, at=2.0, by="ada"), book.version)
    assert mine.read().standing()["fast"].routes == A.routes


def test_changes_at_the_same_time_all_count(place: Open) -> None:
    def change(who: int) -> None:
        store = place()
        for _ in range(5):
            store.change(lambda book: book.switched(f"m{who}", A, at=1.0, by=str(who)))
        store.close()

    threads = [threading.Thread(target=change, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    book = place().read()
    assert book.version == 20
    assert {alias: len(past) for alias, past in book.aliases.items()} == {f"m{who}": 5 for who in range(4)}


def test_a_book_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text("{ not json")
    with pytest.raises(LayerUnreachable, match="Remove the file to go by the settings"):
        FileSwitches(path).read()
    with pytest.raises(LayerUnreachable, match="cannot be reached"):
        RedisSwitches("redis://127.0.0.1:1", "queue.url").read()


def test_a_redis_with_something_else_in_its_place_is_one_sentence_and_one_that_comes_back_is_read() -> None:
    with running(FLAVOURS[0], missing_service) as server:
        store = RedisSwitches(server.url, "queue.url")
        store.change(lambda book: book.switched("fast", A, at=1.0, by="ada"))
        for wrong in (("SET", "{ziggurat:models}", "no book"), ("HSET", "{ziggurat:models}", "a", "b")):
            server.command("DEL", "{ziggurat:models}")
            server.command(*wrong)
            with pytest.raises(LayerUnreachable, match=r"model switches in Redis at .* \(queue\.url\)"):
                store.read()
        server.kill()
        with pytest.raises(LayerUnreachable, match="cannot be reached"):
            store.read()
        server.start()
        assert store.read() == Book()
        store.close()
