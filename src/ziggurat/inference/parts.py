"""Parts of messages that are no text, as the inference layer sees them: what they ask of a model, what they take, when they are read.

Everything up to the endpoint sees a stored file as a reference (`ziggurat.program.contents`), so a call that waits in a line, a journal or
a batch holds no megabytes. `materialised` reads the content at the last moment before an attempt.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec.structs import replace

from ziggurat.artifacts import Artifact
from ziggurat.program.contents import ARTIFACT, artifact_of, is_text, written_out
from ziggurat.records import ChatMessage, Prompt

Kind = Literal["text", "image", "file"]

#: An image's usual cost, where nothing is said of its size; and one that is looked at coarsely
#: (platform.openai.com/docs/guides/images, "calculating costs").
TOKENS_PER_IMAGE, TOKENS_PER_COARSE_IMAGE = 1000, 85
#: A page of a PDF is read as text and as an image; of pages that were printed rather than scanned, one takes about so many bytes.
TOKENS_PER_PAGE, BYTES_PER_PAGE = 1500, 60_000


def kind_of(part: dict[str, Any]) -> Kind:
    """Return what a part asks of a model."""
    kind = part.get("type")
    if kind in (None, "text"):
        return "text"
    if kind == ARTIFACT:
        media_type = str((part.get(ARTIFACT) or {}).get("media_type", ""))
        return "text" if is_text(media_type) else "image" if media_type.startswith("image/") else "file"
    return "image" if kind in ("image_url", "input_image") else "file"


def kinds_in(prompt: Prompt) -> set[Kind]:
    """Return what the parts of a prompt ask of a model; empty where all of it is plain text."""
    return {kind_of(part) for m in prompt.messages if type(m.content) is list for part in m.content}


def part_tokens(part: dict[str, Any]) -> int:
    """Return about how many tokens a part without a text of its own is."""
    kind, size = kind_of(part), 0
    if part.get("type") == ARTIFACT:
        size = int((part.get(ARTIFACT) or {}).get("size", 0))
    elif isinstance(file := part.get("file") or part.get("input_audio"), dict):
        # Base64 is four bytes for three.
        size = len(str(file.get("file_data") or file.get("data") or "")) * 3 // 4
    if kind == "text":
        return size // 4
    if kind == "image":
        image = part.get("image_url")
        detail = part.get("detail") or (image.get("detail") if isinstance(image, dict) else None)
        return TOKENS_PER_COARSE_IMAGE if detail == "low" else TOKENS_PER_IMAGE
    return TOKENS_PER_PAGE * max(1, round(size / BYTES_PER_PAGE))


def refers(prompt: Prompt) -> bool:
    """Say whether a prompt refers to stored content."""
    return any(type(m.content) is list and any(p.get("type") == ARTIFACT for p in m.content) for m in prompt.messages)


async def materialised(prompt: Prompt) -> Prompt:
    """Return the prompt with what it refers to, as an endpoint takes it.

    Raises ArtifactMissing, ArtifactCorrupt, ArtifactsUnreachable, InvalidData.
    """
    if not refers(prompt):
        return prompt
    return replace(prompt, messages=[await _read(m) for m in prompt.messages])


async def _read(m: ChatMessage) -> ChatMessage:
    if type(m.content) is not list:
        return m
    parts: list[dict[str, Any]] = []
    for part in m.content:
        if part.get("type") == ARTIFACT:
            found: Artifact = artifact_of(part)
            part = written_out(await found.read(), found.media_type, found.name, str(part.get("detail") or ""))
        parts.append(part)
    return replace(m, content=parts)


def by_content(prompt: Prompt) -> Prompt:
    """Return the prompt with stored content named by its checksum alone: equal content of two steps has two keys."""
    if not refers(prompt):
        return prompt

    def named(part: dict[str, Any]) -> dict[str, Any]:
        if part.get("type") != ARTIFACT:
            return part
        return {**part, ARTIFACT: {key: value for key, value in (part.get(ARTIFACT) or {}).items() if key != "key"}}

    messages = [replace(m, content=[named(p) for p in m.content]) if type(m.content) is list else m for m in prompt.messages]
    return replace(prompt, messages=messages)
