"""Images and files in what is asked of a model: artifacts, paths and bytes as parts of a message.

    llm.text(["What does this invoice come to?", artifact])
        ─▶ {"type": "text", …}, {"type": "artifact", "artifact": {key, size, sha256, media_type, name}}    histories, journals, queues
        ─▶ {"type": "text", …}, {"type": "image_url", …data URL…}                                          the endpoint, at the last moment

What travels and is recorded is the artifact's description; the content is read where the call is made. Bytes and paths that a task gives
are saved as an artifact of its step, once for all its attempts; outside runs nothing is left behind, and they go out as they are.
The dialect's parts are those of OpenAI's chat completions (platform.openai.com/docs/guides/images, …/guides/pdf-files).
"""

from __future__ import annotations

import asyncio
import base64
import mimetypes
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ziggurat.artifacts import Artifact
from ziggurat.errors import InvalidData, NotDurable
from ziggurat.program.context import current_attempt, current_run
from ziggurat.records import ChatMessage

#: Bytes of one part: OpenAI takes 50 MB in a request, most others less.
PART_BYTES_MAX = 50 * 1024 * 1024
#: The type of a part that stands for an artifact.
ARTIFACT = "artifact"
_UNKNOWN = "application/octet-stream"
#: How content begins that says itself what it is (en.wikipedia.org/wiki/List_of_file_signatures).
_BEGINNINGS: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"GIF8", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"%PDF-", 0, "application/pdf"),
    (b"WAVE", 8, "audio/wav"),
    (b"ID3", 0, "audio/mpeg"),
)
#: Media types beside text/* whose content is text, which every model reads.
_TEXTS = frozenset({"application/json", "application/xml", "application/yaml", "application/x-yaml", "application/toml"})


async def with_parts(messages: Any) -> Any:
    """Return a conversation whose parts are all JSON: artifacts described, paths and bytes saved or, outside runs, written out.

    A list of parts that are no messages is one user's message. Raises InvalidData, NotDurable, ArtifactsUnreachable.
    """
    if isinstance(messages, str):
        return messages
    if isinstance(messages, (Artifact, Path, bytes)):
        messages = [messages]
    if any(_is_part(item) for item in messages):
        return [ChatMessage(role="user", content=[await _part(item) for item in messages])]
    return [await _message(item) for item in messages]


def _is_part(item: Any) -> bool:
    return isinstance(item, (str, Artifact, Path, bytes)) or (isinstance(item, dict) and "type" in item and "role" not in item)


async def _message(message: Any) -> Any:
    content = message.content if isinstance(message, ChatMessage) else message.get("content") if type(message) is dict else None
    if content is None or isinstance(content, str):
        return message
    parts = [await _part(part) for part in (content if isinstance(content, (list, tuple)) else [content])]
    return replace(message, content=parts) if isinstance(message, ChatMessage) else {**message, "content": parts}


async def _part(part: Any) -> dict[str, Any]:
    """Return one part as JSON."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Artifact):
        return _described(part)
    if isinstance(part, (bytes, Path)):
        return await _given(part)
    if not isinstance(part, dict):
        raise InvalidData(
            f"A part of a message is text, an Artifact, a path, bytes or a part in OpenAI's form, not {type(part).__name__}."
        )
    image = part.get("image_url")
    found = part.get(ARTIFACT) if part.get("type") == ARTIFACT else image.get("url") if isinstance(image, dict) else None
    detail = part.get("detail") or (image.get("detail") if isinstance(image, dict) else None)
    if isinstance(found, Artifact):
        return _described(found) | ({"detail": detail} if detail else {})
    if part.get("type") == ARTIFACT:
        artifact_of(part)
    return part


def _described(artifact: Artifact) -> dict[str, Any]:
    _check_size(artifact.size, artifact.name)
    return {"type": ARTIFACT, ARTIFACT: msgspec.to_builtins(artifact)}


async def _given(content: bytes | Path) -> dict[str, Any]:
    if current_run() is not None:
        raise NotDurable(
            "The workflow gave a model a file's content, which its history would have to hold. Save it in a task with "
            "Artifact.save, return the artifact, and give the model that."
        )
    attempt = current_attempt()
    name = content.name if isinstance(content, Path) else ""
    data = content if isinstance(content, bytes) else await asyncio.to_thread(_content_of, content)
    media_type = media_type_of(data, name)
    if media_type == _UNKNOWN:
        raise InvalidData(
            f"Nobody can tell what the {'file ' + repr(name) if name else 'bytes'} given to a model are. Save them as an artifact "
            "that says so: Artifact.save(data, media_type=…)."
        )
    _check_size(len(data), name)
    if attempt is not None and attempt.info.run:
        return _described(await Artifact.save(data, name=name, media_type=media_type))
    return written_out(data, media_type, name)


def _content_of(path: Path) -> bytes:
    try:
        _check_size(path.stat().st_size, path.name)
        return path.read_bytes()
    except OSError as error:
        raise InvalidData(f"The file {path} cannot be given to a model: {error.strerror or error}.") from error


def _check_size(size: int, name: str) -> None:
    if size > PART_BYTES_MAX:
        what = f"file {name!r}" if name else "file"
        raise InvalidData(
            f"The {what} of {size:,} bytes is too large for a model; the limit is {PART_BYTES_MAX:,}. Give it a part, or a smaller copy."
        )


# -- what parts are --------------------------------------------------------------------------------------------------


def artifact_of(part: dict[str, Any]) -> Artifact:
    """Return the artifact that a part stands for. Raises InvalidData."""
    try:
        return msgspec.convert(part.get(ARTIFACT), Artifact)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidData(f"A part of type {ARTIFACT!r} holds no artifact: {error}.") from error


def is_text(media_type: str) -> bool:
    """Say whether content of a media type is text, which goes to the model as such."""
    kind = media_type.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in _TEXTS


def media_type_of(data: bytes, name: str) -> str:
    """Return what content is, by its beginning or else by its name; "application/octet-stream" if neither says."""
    for beginning, at, media_type in _BEGINNINGS:
        if data[at : at + len(beginning)] == beginning:
            return media_type
    return mimetypes.guess_type(name)[0] or _UNKNOWN


def written_out(data: bytes, media_type: str, name: str, detail: str = "") -> dict[str, Any]:
    """Return content as a part of the dialect: an image's or a file's data URL, sound in base64, or text.

    Raises InvalidData for a text that is not UTF-8.
    """
    if media_type == _UNKNOWN:
        media_type = media_type_of(data, name)
    if is_text(media_type):
        try:
            return {"type": "text", "text": data.decode()}
        except UnicodeDecodeError as error:
            what = f"file {name!r}" if name else "text"
            raise InvalidData(f"The {what} given to a model is not UTF-8: {error.reason} at byte {error.start}.") from error
    kind, _, subtype = media_type.partition(";")[0].strip().lower().partition("/")
    packed = base64.b64encode(data).decode("ascii")
    if kind == "image":
        image = {"url": f"data:{media_type};base64,{packed}"} | ({"detail": detail} if detail else {})
        return {"type": "image_url", "image_url": image}
    if kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": packed, "format": _SOUNDS.get(subtype, subtype)}}
    # A file without a name is refused by OpenAI.
    name = name or "file" + (mimetypes.guess_extension(media_type) or "")
    return {"type": "file", "file": {"filename": name, "file_data": f"data:{media_type};base64,{packed}"}}


#: Names of sound formats that differ from their media types.
_SOUNDS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}
