"""Payloads that grow are stored in blocks: what a conversation hands on at each turn is stored once, and comes back byte for byte."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.artifacts import Keyring, Library, Payloads, artifact_keys, is_sealed
from ziggurat.artifacts.backends.folder import FolderStore
from ziggurat.artifacts.blocks import HEAD, SIZES, cut
from ziggurat.errors import ArtifactCorrupt, ArtifactMissing

RUN = "chat-1"
KEYS = {"new": bytes(range(32))}


def payloads(folder: Path, use: str = "", *, limit: int = 128 * 1024, cache: int = 0) -> Payloads:
    keyring = Keyring(KEYS, use) if use else None
    return Payloads(Library(FolderStore(folder), keyring, cache_bytes=cache), keyring=keyring, inline_limit=limit)


def turns(count: int, size: int = 20_000) -> list[bytes]:
    """Return what a conversation hands on at each turn: all messages so far, in front of what does not change."""
    messages = [f"{n} " + chr(97 + n % 26) * size for n in range(count)]
    return [msgspec.json.encode({"messages": messages[: n + 1], "model": "fast"}) for n in range(count)]


def stored(folder: Path) -> int:
    return sum(found.size for found in FolderStore(folder).list())


@given(length=st.integers(0, 40 << 20))
def test_blocks_cover_a_payload_but_for_a_small_rest_and_are_few(length: int) -> None:
    blocks = list(cut(length))
    at = 0
    for begin, end in blocks:
        assert begin == at and end - begin in SIZES and begin % (end - begin) == 0
        at = end
    assert 0 <= length - at < HEAD
    assert len(blocks) <= 3 * 8 + 5


@given(length=st.integers(0, 4 << 20), more=st.integers(0, 4 << 20))
def test_a_payload_that_grew_shares_what_it_can(length: int, more: int) -> None:
    before, after = set(cut(length)), set(cut(length + more))
    whole = [b for b in before if b[1] - b[0] == SIZES[1]]
    assert set(whole) <= after or length + more >= SIZES[0]
    # What is not shared has become part of a larger block.
    for begin, end in before - after:
        assert any(b <= begin and end <= e for b, e in after)


@pytest.mark.parametrize("use", ["", "new"], ids=["plain", "encrypted"])
async def test_a_conversation_is_stored_about_once(tmp_path: Path, use: str) -> None:
    seam = payloads(tmp_path, use)
    travelled = []
    for turn in turns(60):
        sealed = await seam.seal_sparingly(turn, RUN)
        assert await seam.open(sealed, RUN) == turn
        travelled.append(len(sealed))
    conversation = 60 * 20_000
    # Whole, it would be thirty times the conversation; each byte is in a block of each of three sizes at most.
    assert stored(tmp_path) < 3.5 * conversation
    # What travels does not grow with the conversation: a rest, and the keys of a few blocks.
    assert max(travelled[30:]) < 2.5 * HEAD


async def test_twice_the_conversation_is_twice_the_objects(tmp_path: Path) -> None:
    sizes = []
    for count in (80, 160):
        folder = tmp_path / str(count)
        seam = payloads(folder)
        travelled = sum([len(await seam.seal_sparingly(turn, RUN)) for turn in turns(count, 2_000)])
        sizes.append((stored(folder), travelled))
    (few, short), (many, long) = sizes
    assert many < 2.6 * few
    assert long < 2.6 * short


async def test_what_does_not_grow_travels_as_it_did(tmp_path: Path) -> None:
    seam = payloads(tmp_path)
    for n in range(5):
        small = msgspec.json.encode(f"{n}" + "x" * 100_000)
        assert await seam.seal_sparingly(small, RUN) == small
        again = msgspec.json.encode("y" * 1_000)
        assert await seam.seal_sparingly(again, RUN) == again
    large = msgspec.json.encode("z" * 200_000)
    sealed = await seam.seal_sparingly(large, RUN)
    assert len(artifact_keys(sealed)) == 1 and b'"stored"' in sealed


async def test_runs_share_no_blocks(tmp_path: Path) -> None:
    seam = payloads(tmp_path)
    first, second = turns(8)[-2:]
    keys = []
    for run in ("a", "b"):
        await seam.seal_sparingly(first, run)
        keys.append(set(artifact_keys(await seam.seal_sparingly(second, run))))
    assert keys[0] and not keys[0] & keys[1]


async def test_what_is_over_the_limit_is_stored_in_blocks_by_everyone(tmp_path: Path) -> None:
    seam = payloads(tmp_path, limit=HEAD)
    first, second = turns(3)[1:]
    assert b'"stored"' in seam.seal_now(first, RUN)
    sealed = seam.seal_now(second, RUN)
    assert b'"blocks"' in sealed and is_sealed(sealed)
    assert seam.open_now(sealed, RUN) == second
    shown = msgspec.json.decode(seam.outline(sealed, RUN))
    assert shown["artifacts"] == artifact_keys(sealed) and shown["size"] == len(second)


@pytest.mark.parametrize("use", ["", "new"], ids=["plain", "encrypted"])
async def test_blocks_are_passed_to_another_run_by_reference(tmp_path: Path, use: str) -> None:
    seam = payloads(tmp_path, use, cache=1 << 24)
    *_, first, second = turns(8)
    await seam.seal_sparingly(first, RUN)
    sealed = seam.rebind(await seam.seal_sparingly(second, RUN), RUN, "child")
    assert not seam.must_wait(sealed)
    cold = payloads(tmp_path, use)
    assert cold.must_wait(sealed)
    assert await cold.open(sealed, "child") == second


async def test_a_block_that_was_changed_or_is_gone_is_named(tmp_path: Path) -> None:
    seam = payloads(tmp_path)
    *_, first, second = turns(8)
    await seam.seal_sparingly(first, RUN)
    sealed = await seam.seal_sparingly(second, RUN)
    key = artifact_keys(sealed)[-1]
    store = FolderStore(tmp_path)
    (whole,) = store.get(key)
    store.put(key, [bytes([whole[0] ^ 1]) + bytes(whole[1:])])
    with pytest.raises(ArtifactCorrupt, match="blocks"):
        await payloads(tmp_path).open(sealed, RUN)
    store.delete([key])
    with pytest.raises(ArtifactMissing, match=key):
        await payloads(tmp_path).open(sealed, RUN)
