"""Images and files as parts of messages: stored once, referred to in histories, written out for the endpoint, and nowhere else."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_inference_router import SkippingRouter, always, router, scripted
from ziggurat import Artifact, Client, llm, task, workflow
from ziggurat.artifacts import Library, current_library, use_library
from ziggurat.artifacts.backends.folder import FolderStore
from ziggurat.errors import ArtifactMissing, InvalidData, RequestRejected
from ziggurat.inference.backends.openai_compatible import create
from ziggurat.inference.interface import CapabilityOverrides, EndpointConfig, ModelConfig
from ziggurat.inference.parts import TOKENS_PER_COARSE_IMAGE, TOKENS_PER_IMAGE, TOKENS_PER_PAGE, kinds_in
from ziggurat.inference.router import Router
from ziggurat.inference.tokens import raw_tokens
from ziggurat.program.contents import PART_BYTES_MAX, media_type_of, with_parts, written_out
from ziggurat.program.llm import models, use_models
from ziggurat.records import ChatMessage, Prompt
from ziggurat.testing.models import FaultyUpstream

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
PDF = b"%PDF-1.4 " + bytes(range(256)) * 20
PACKED = base64.b64encode(PNG).decode()


@pytest.fixture
def library(tmp_path: Path) -> Any:
    made = Library(FolderStore(tmp_path / "artifacts"))
    use_library(made)
    yield made
    use_library(None)


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "dot"
    path.write_bytes(PNG)
    return path


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with FaultyUpstream(always(text="a red dot")) as running:
        config = EndpointConfig(name="up", base_url=running.base_url)
        made = Router({"up": create(config)}, {"default": ModelConfig(routes=["up:m"])})
        use_models(made)
        yield running
        await made.close()
        use_models(None)


def asked(upstream: FaultyUpstream) -> Any:
    """The content of the last message that the upstream got."""
    return upstream.bodies[-1]["messages"][-1]["content"]


# -- what the endpoint sees ------------------------------------------------------------------------------------------


async def test_artifacts_are_written_out_for_the_endpoint(library: Library, upstream: FaultyUpstream) -> None:
    image = await Artifact.save(PNG, name="dot.png")
    invoice = await Artifact.save(PDF, name="invoice.pdf")
    notes = await Artifact.save("Grüße", name="notes.txt")
    assert await llm.text(["What is this?", image, invoice, notes]) == "a red dot"
    assert asked(upstream) == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PACKED}"}},
        {
            "type": "file",
            "file": {"filename": "invoice.pdf", "file_data": f"data:application/pdf;base64,{base64.b64encode(PDF).decode()}"},
        },
        {"type": "text", "text": "Grüße"},
    ]


async def test_parts_may_stand_in_messages_of_any_form(library: Library, upstream: FaultyUpstream) -> None:
    image = await Artifact.save(PNG, name="dot.png")
    part = {"type": "image_url", "image_url": {"url": image, "detail": "low"}}
    written = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PACKED}", "detail": "low"}}
    await llm.chat([{"role": "user", "content": ["Look:", part]}])
    assert asked(upstream) == [{"type": "text", "text": "Look:"}, written]
    await llm.chat([ChatMessage(role="user", content=[part])])
    assert asked(upstream) == [written]
    assert [piece async for piece in llm.stream(["Look:", image])]
    assert asked(upstream)[1]["image_url"]["url"].endswith(PACKED)
    # A part of the dialect's own goes out as it is.
    theirs = {"type": "image_url", "image_url": {"url": "https://example.com/dot.png"}}
    await llm.text([theirs], system="Be brief.")
    assert asked(upstream) == [theirs]


async def test_paths_and_bytes_outside_runs_leave_nothing_behind(
    library: Library, upstream: FaultyUpstream, tmp_path: Path, image_file: Path
) -> None:
    await llm.text(["Look:", image_file, PNG])
    assert [part["type"] for part in asked(upstream)] == ["text", "image_url", "image_url"]
    assert list(library.store.list()) == []
    with pytest.raises(InvalidData, match=r"The file .*nothing.* cannot be given to a model: No such file"):
        await llm.text([tmp_path / "nothing"])
    with pytest.raises(InvalidData, match=r"Nobody can tell what the bytes given to a model are\. Save them as an artifact"):
        await llm.text([b"\x00\x01"])
    with pytest.raises(InvalidData, match=r"is text, an Artifact, a path, bytes .* not int"):
        await llm.text([{"role": "user", "content": [3]}])
    with pytest.raises(InvalidData, match="holds no artifact"):
        await llm.text([{"type": "artifact", "artifact": {"key": "../../etc/passwd", "size": 1, "sha256": ""}}])


async def test_what_is_too_large_or_gone_is_one_sentence(library: Library, upstream: FaultyUpstream) -> None:
    image = await Artifact.save(PNG, name="dot.png")
    with pytest.raises(InvalidData, match=r"The file 'big\.png' of .* bytes is too large for a model"):
        await llm.text([Artifact(image.key, PART_BYTES_MAX + 1, image.sha256, "image/png", "big.png")])
    current_library().delete([image.key])
    with pytest.raises(ArtifactMissing):
        await llm.text([image])
    with pytest.raises(ArtifactMissing):
        assert [piece async for piece in llm.stream([image])]
    assert upstream.requests == 0


# -- runs ------------------------------------------------------------------------------------------------------------


@workflow(name="contents.describe")
async def describe(image: Artifact) -> str:
    return await llm.text(["What is this?", image])


LOOKED: set[str] = set()


@task(name="contents.look", retry=3)
async def look(name: str) -> str:
    said = await llm.text(["What is this?", PNG])
    if name not in LOOKED:
        LOOKED.add(name)
        raise ValueError("once more")
    return said


@workflow(name="contents.looks")
async def looks(name: str) -> str:
    return await look(name)


@workflow(name="contents.gives")
async def gives() -> str:
    return await llm.text(["What is this?", PNG])


def state_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("state.db*"))


async def test_a_history_refers_to_files_and_holds_none(tmp_path: Path, upstream: FaultyUpstream) -> None:
    ours = models()
    async with Client.local(tmp_path / "state.db") as client:
        use_models(ours)
        image = await Artifact.save(PNG, name="dot.png")
        assert await client.run(describe, image) == "a red dot"
        assert asked(upstream)[1]["image_url"]["url"].endswith(PACKED)
        handle = await client.start(looks, str(tmp_path))
        assert await handle.result(30) == "a red dot"
        assert upstream.requests == 3
        # Two attempts gave the same bytes: one object.
        assert len(list(current_library().store.list())) == 2
        parked = await client.start(gives)
        with pytest.raises(Exception, match="which its history would have to hold"):
            await parked.result(30)
    kept = state_of(tmp_path)
    assert b"contents.describe" in kept
    assert PACKED.encode() not in kept
    assert PNG not in kept


# -- which models take them ------------------------------------------------------------------------------------------


def with_content(*content: Any) -> Prompt:
    return Prompt(messages=[ChatMessage(role="user", content=list(content))])


IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PACKED}"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + "A" * 240_000}}


@pytest.mark.parametrize(("part", "setting"), [(IMAGE, "vision"), (FILE, "files")])
async def test_a_route_that_takes_no_such_part_is_passed_by_or_named(part: dict[str, Any], setting: str) -> None:
    blind_to: dict[str, Any] = {setting: False}
    blind, able = scripted("blind", always(text="no"), **blind_to), scripted("able", always(text="yes"))
    assert (await router(blind, able).complete(with_content(part))).text == "yes"
    what = "images" if setting == "vision" else "files"
    with pytest.raises(
        RequestRejected, match=rf"blind:m: it was not asked, since it takes no {what}; name a route that does, or set"
    ):
        await router(blind).complete(with_content(part))
    corrected = router(blind, capabilities=CapabilityOverrides(**{setting: True}))
    assert (await corrected.complete(with_content(part))).text == "no"
    # A text file is text to everybody.
    text = {"type": "artifact", "artifact": {"key": "zga_" + "0" * 32, "size": 8, "media_type": "text/csv"}}
    assert kinds_in(with_content(text, {"type": "text", "text": "x"})) == {"text"}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (IMAGE, "Failed to deserialize the JSON body: unknown variant `image_url`, expected `text`"),
        (IMAGE, "meta/llama is not a multimodal model"),
        (IMAGE, "This model does not support image input."),
        (FILE, "File inputs are not supported by this model."),
    ],
)
async def test_a_refusal_teaches_that_a_model_takes_none(
    part: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind, able = scripted("blind"), scripted("able", always(text="yes"))
    calls = 0

    async def refuse(prompt: Prompt, upstream: str) -> Any:
        nonlocal calls
        calls += 1
        raise RequestRejected(f"The endpoint 'blind' refuses this request (400): {said}", endpoint="blind", model=upstream)

    monkeypatch.setattr(blind, "complete", refuse)
    tried = router(blind, able)
    for _ in range(3):
        assert (await tried.complete(with_content(part))).text == "yes"
    assert calls == 1
    alone: SkippingRouter = router(blind)
    with pytest.raises(RequestRejected, match="refuses this request"):
        await alone.complete(with_content(part))


async def test_an_image_that_is_bad_is_the_callers_fault_and_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blind, able = scripted("blind"), scripted("able", always(text="yes"))

    async def refuse(prompt: Prompt, upstream: str) -> Any:
        raise RequestRejected(
            "refuses this request (400): Invalid image_url: the image format bmp is not supported", model=upstream
        )

    monkeypatch.setattr(blind, "complete", refuse)
    tried = router(blind, able)
    with pytest.raises(RequestRejected, match="bmp"):
        await tried.complete(with_content(IMAGE))
    assert tried.routes("default")[0].capabilities.vision


async def test_estimates_know_images_and_files() -> None:
    plain = raw_tokens(with_content({"type": "text", "text": "x"}))
    stored = {"key": "zga_" + "0" * 32, "size": 180_000}
    for part, tokens in (
        (IMAGE, TOKENS_PER_IMAGE),
        ({"type": "image_url", "image_url": {"url": "https://x", "detail": "low"}}, TOKENS_PER_COARSE_IMAGE),
        (FILE, 3 * TOKENS_PER_PAGE),
        ({"type": "artifact", "artifact": {**stored, "media_type": "application/pdf"}}, 3 * TOKENS_PER_PAGE),
        ({"type": "artifact", "artifact": {**stored, "media_type": "image/png"}}, TOKENS_PER_IMAGE),
        ({"type": "artifact", "artifact": {**stored, "media_type": "text/plain"}}, 45_000),
    ):
        assert raw_tokens(with_content({"type": "text", "text": "x"}, part)) - plain == tokens


# -- what parts are --------------------------------------------------------------------------------------------------


def test_content_says_what_it_is_or_its_name_does() -> None:
    assert media_type_of(PNG, "a.jpg") == "image/png"
    assert media_type_of(b"RIFF....WEBPVP8 ", "") == "image/webp"
    assert media_type_of(PDF, "") == "application/pdf"
    assert media_type_of(b"a,b", "table.csv") == "text/csv"
    assert media_type_of(b"a,b", "") == "application/octet-stream"
    assert written_out(PNG, "application/octet-stream", "")["type"] == "image_url"
    assert written_out(b"ID3...", "audio/mpeg", "")["input_audio"]["format"] == "mp3"
    assert written_out(PDF, "application/pdf", "")["file"]["filename"] == "file.pdf"
    with pytest.raises(InvalidData, match=r"'a\.txt' given to a model is not UTF-8"):
        written_out(b"\xff", "text/plain", "a.txt")


async def test_conversations_without_parts_are_left_alone() -> None:
    for messages in ("hi", [ChatMessage(role="user", content="hi")], [{"role": "user", "content": "hi"}, {"role": "assistant"}]):
        assert await with_parts(messages) == messages
