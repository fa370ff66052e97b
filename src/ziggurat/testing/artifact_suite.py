"""The conformance suite of artifact stores.

class TestMyStore(ArtifactStoreSuite):
    def make(self) -> ArtifactStore: ...    # over the same empty place each time it is called in one test
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import pytest

from ziggurat.artifacts import ArtifactStore, Keyring, Library, key_for
from ziggurat.artifacts.interface import CHUNK
from ziggurat.errors import ArtifactCorrupt, ArtifactMissing

#: Sizes at which stores and streams change their ways.
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 9 * CHUNK + 17)


def _key(number: int, *, encrypted: bool = False) -> str:
    return key_for("suite", number.to_bytes(4, "big"), encrypted=encrypted)


class ArtifactStoreSuite(ABC):
    """What every store promises."""

    @abstractmethod
    def make(self) -> ArtifactStore:
        """Return the store of this test."""

    @pytest.fixture
    def store(self) -> Iterator[ArtifactStore]:
        store = self.make()
        yield store
        store.close()

    @pytest.mark.parametrize("size", SIZES)
    def test_what_was_put_is_got_whole(self, store: ArtifactStore, size: int) -> None:
        data = os.urandom(size)
        store.put(_key(1), [data[at : at + 100_001] for at in range(0, size, 100_001)])
        assert b"".join(store.get(_key(1))) == data
        assert store.size(_key(1)) == size

    def test_an_object_that_is_not_there_is_missing_and_named(self, store: ArtifactStore) -> None:
        with pytest.raises(ArtifactMissing, match=_key(2)):
            list(store.get(_key(2)))
        assert store.size(_key(2)) is None

    def test_another_opening_sees_what_was_put(self, store: ArtifactStore) -> None:
        store.put(_key(1), [b"kept"])
        again = self.make()
        assert b"".join(again.get(_key(1))) == b"kept"
        again.close()

    def test_an_object_that_is_put_again_is_there_once(self, store: ArtifactStore) -> None:
        for _ in range(2):
            store.put(_key(1), [b"the same"])
        assert [found.key for found in store.list()] == [_key(1)]
        assert b"".join(store.get(_key(1))) == b"the same"

    def test_a_put_whose_source_fails_leaves_nothing(self, store: ArtifactStore) -> None:
        def source(size: int) -> Iterator[bytes]:
            for _ in range(size // CHUNK):
                yield b"x" * CHUNK
            raise RuntimeError("the source failed")

        for size in (CHUNK, 20 * CHUNK):
            with pytest.raises(RuntimeError, match="the source failed"):
                store.put(_key(1), source(size))
            assert store.size(_key(1)) is None
        assert list(store.list()) == []

    def test_deleted_objects_are_gone_and_deleting_unknown_ones_is_no_error(self, store: ArtifactStore) -> None:
        for number in range(3):
            store.put(_key(number), [b"x"])
        store.delete([_key(0), _key(2), _key(9)])
        assert [found.key for found in store.list()] == [_key(1)]
        store.delete([])
        store.delete([_key(0)])

    def test_a_listing_has_every_object_with_its_size_and_age(self, store: ArtifactStore) -> None:
        assert list(store.list()) == []
        before = time.time()
        keys = {_key(number): number for number in range(25)}
        for key, number in keys.items():
            store.put(key, [b"x" * number])
        store.claim("somebody")  # What a store keeps for itself is no object.
        listed = {found.key: found for found in store.list()}
        assert {key: found.size for key, found in listed.items()} == keys
        # Object stores tell whole seconds.
        assert all(before - 2 <= found.modified_at <= time.time() + 2 for found in listed.values())

    @pytest.mark.parametrize("key", ["", "..", "../../etc/passwd", "zga_../../x", "owner", "zga_" + "0" * 31, "zga_" + "Z" * 32])
    def test_what_is_no_key_reaches_no_path(self, store: ArtifactStore, key: str) -> None:
        store.claim("somebody")
        for verb in (lambda: list(store.get(key)), lambda: store.put(key, [b"x"]), lambda: store.delete([key])):
            with pytest.raises(ArtifactMissing, match="not the key"):
                verb()

    def test_the_first_claim_stands(self, store: ArtifactStore) -> None:
        assert store.claim("first") == "first"
        assert store.claim("second") == "first"
        again = self.make()
        assert again.claim("third") == "first"
        again.close()

    def test_many_threads_may_use_it(self, store: ArtifactStore) -> None:
        failures: list[Exception] = []

        def work(number: int) -> None:
            try:
                data = bytes([number]) * (number * 10_000)
                store.put(_key(number), [data])
                store.put(_key(100), [b"shared"])
                assert b"".join(store.get(_key(number))) == data
                assert b"".join(store.get(_key(100))) == b"shared"
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    @pytest.mark.parametrize("size", SIZES)
    def test_encrypted_objects_come_back_and_do_not_show_their_content(self, store: ArtifactStore, size: int) -> None:
        library = Library(store, Keyring({"k": os.urandom(32)}, "k"), cache_bytes=0)
        data = b"secret " * (size // 7 + 1)
        key = library.key_for("suite", b"x")
        library.put(key, data)
        assert library.get(key, "") == data
        assert b"secret" not in b"".join(store.get(key))

    def test_content_that_is_not_what_was_saved_is_told(self, store: ArtifactStore) -> None:
        library = Library(store, cache_bytes=0)
        library.put(_key(1), b"as saved")
        with pytest.raises(ArtifactCorrupt, match=_key(1)):
            library.get(_key(1), "00" * 32)
