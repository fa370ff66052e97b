"""The suite of limit stores over every store: in the process, in a file, in Redis and Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("ziggurat.testing.limit_suite")

from tests.conformance.redis_servers import REDIS_8, RedisServer, patient, redis_server, running_cluster  # noqa: E402, F401
from tests.conftest import missing_service  # noqa: E402
from ziggurat.errors import SettingsError  # noqa: E402
from ziggurat.inference.backends.limits_redis import RedisStore  # noqa: E402
from ziggurat.inference.backends.limits_sqlite import SqliteStore  # noqa: E402
from ziggurat.inference.limits.interface import Beat, Held, LimitStore, Settle, StoreDown, Taken  # noqa: E402
from ziggurat.inference.limits.process import ProcessStore  # noqa: E402
from ziggurat.testing.clock import FakeClock  # noqa: E402
from ziggurat.testing.limit_suite import LimitStoreSuite, flow, hold, take  # noqa: E402


class TestProcess(LimitStoreSuite):
    stores: dict[str, LimitStore] = {}  # noqa: RUF012

    def make_store(self, clock: FakeClock, name: str) -> LimitStore:
        if name not in self.stores:
            self.stores[name] = ProcessStore(clock)
        return self.stores[name]


class TestSqlite(LimitStoreSuite):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        self.made: list[SqliteStore] = []
        yield
        for store in self.made:
            store.close()

    def make_store(self, clock: FakeClock, name: str) -> LimitStore:
        store = SqliteStore(self.folder / "deep" / f"{name}.db", clock)
        self.made.append(store)
        return store

    def test_a_file_that_cannot_be_used_is_one_sentence(self) -> None:
        broken = self.folder / "broken.db"
        broken.write_bytes(b"no database, but long enough to be looked at" * 100)
        for path in (broken, self.folder / "broken.db" / "limits.db"):
            with pytest.raises(StoreDown, match=r"cannot be used \(.*\)\. Check its folder"):
                SqliteStore(path).run("a", [Beat()])
            with pytest.raises(StoreDown):
                SqliteStore(path).purse("p")


class TestRedis(LimitStoreSuite):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # noqa: F811
        self.server = redis_server
        patient(monkeypatch)
        self.made: list[RedisStore] = []
        yield
        for store in self.made:
            store.close()

    def make_store(self, clock: FakeClock, name: str) -> LimitStore:
        store = RedisStore(f"{self.server.url}?prefix={name}", clock)
        self.made.append(store)
        return store

    def test_the_servers_clock_is_the_clock(self) -> None:
        store = RedisStore(f"{self.server.url}?prefix=clocked")
        self.made.append(store)
        [first, second] = store.run("a", [take(flow(100.0)), take(flow(50.0))])
        assert first is not None and second is not None
        assert store.run("b", [take(flow(1.0, rate=1e9))])[0] is not None
        # Another server of the same name forgets nothing of ours: it has not seen the script, and takes it.
        self.server.command("SCRIPT", "FLUSH")
        store.run("a", [Beat()])

    def test_a_server_that_is_not_there_is_one_sentence_without_secrets(self) -> None:
        store = RedisStore("redis://me:secret@127.0.0.1:1/0")
        with pytest.raises(StoreDown, match=r"The limit store at 127\.0\.0\.1:1 cannot be used") as caught:
            store.run("a", [Beat()])
        assert "secret" not in str(caught.value)
        with pytest.raises(StoreDown):
            store.purse("p")
        with pytest.raises(SettingsError, match=r"inference\.limits\.store has the scheme 'http'"):
            RedisStore("http://127.0.0.1")


def test_a_cluster_keeps_all_that_a_request_needs_in_one_slot() -> None:
    with running_cluster(REDIS_8, missing_service, 2) as servers:
        store = RedisStore("redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers))
        [taken, held, _] = store.run("a", [take(flow(100.0)), hold("x", 0.5), Settle(id="x", cost=0.2)])
        assert isinstance(taken, Taken)
        assert taken.granted
        assert isinstance(held, Held)
        assert held.answer == "granted"
        assert store.purse("p") == (0.2, 0.0)
        store.close()
