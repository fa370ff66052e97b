"""Files on the command line: "@report.pdf" stands for an artifact wherever the input's type asks for one."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import mimetypes
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel
from typing_extensions import is_typeddict

from ziggurat.artifacts import Artifact, key_for
from ziggurat.errors import InvalidData

if TYPE_CHECKING:
    from ziggurat.client import Client

#: Makes an artifact of a file.
Convert = Callable[[Path], Artifact]


async def with_saved_files(client: Client, workflow: Any, value: Any) -> tuple[Any, Any]:
    """Return the workflow and its input, with every file that the input names saved as an artifact.

    Raises UnknownName, InvalidData, ArtifactsUnreachable.
    """
    definition = client.attachment.load_workflow(workflow) if isinstance(workflow, str) else workflow
    return definition, await asyncio.to_thread(with_files, definition, value, Artifact.save_now)


def with_files(definition: Any, value: Any, convert: Convert) -> Any:
    """Return a workflow's input with the artifact of its file in place of every "@path" where an Artifact is due.

    Raises InvalidData for a file that cannot be read.
    """
    fields = definition.arguments.fields
    if not isinstance(value, dict):
        return value
    if len(fields) == 1:
        ((name, type_),) = fields.items()
        if name not in value:  # One model's own fields.
            return _fill(type_, value, convert)
    return {name: _fill(fields[name], item, convert) if name in fields else item for name, item in value.items()}


def file_input(definition: Any, path: str) -> Any:
    """Return the input that gives a file to a workflow, or None unless exactly one place in its parameters takes an artifact."""
    fields = definition.arguments.fields
    if len(fields) == 1:
        (type_,) = fields.values()
        inner = _fields_of(_plain(type_)) if not _takes_artifact(type_) else {}
        fields = inner or fields
    takes = [name for name, type_ in fields.items() if _takes_artifact(type_)]
    return {takes[0]: f"@{path}"} if len(takes) == 1 else None


def describe_file(path: Path) -> Artifact:
    """Return what a file's artifact would look like, the same every time, without saving it: names a run by its input."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(1024 * 1024):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise InvalidData(f"The file {path} cannot be read: {error.strerror or error}.") from error
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Artifact(key_for("file", digest.digest(), encrypted=False), size, digest.hexdigest(), media_type, path.name)


def _fill(type_: Any, value: Any, convert: Convert) -> Any:
    if isinstance(value, str):
        if value.startswith("@") and _takes_artifact(type_):
            return dataclasses.asdict(convert(Path(value[1:]).expanduser()))
        return value
    plain = _plain(type_)
    origin, arguments = typing.get_origin(plain), typing.get_args(plain)
    if _is_union(origin):
        for argument in arguments:
            filled = _fill(argument, value, convert)
            if filled != value:
                return filled
        return value
    if isinstance(value, list) and arguments:
        item = arguments[0]
        return [_fill(item, one, convert) for one in value]
    if isinstance(value, dict):
        if origin is not None and len(arguments) == 2:
            return {key: _fill(arguments[1], one, convert) for key, one in value.items()}
        fields = _fields_of(plain)
        return {key: _fill(fields[key], one, convert) if key in fields else one for key, one in value.items()}
    return value


def _fields_of(type_: Any) -> dict[str, Any]:
    """Return the fields of a model, dataclass, TypedDict or Struct by the names that JSON has."""
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        return {field.alias or name: field.annotation for name, field in type_.model_fields.items()}
    is_struct = isinstance(type_, type) and issubclass(type_, msgspec.Struct)
    if is_struct or dataclasses.is_dataclass(type_) or is_typeddict(type_):
        return typing.get_type_hints(type_)
    return {}


def _takes_artifact(type_: Any) -> bool:
    plain = _plain(type_)
    return plain is Artifact or (_is_union(typing.get_origin(plain)) and any(map(_takes_artifact, typing.get_args(plain))))


def _plain(type_: Any) -> Any:
    """Return a type without what is annotated around it."""
    while typing.get_origin(type_) in (typing.Annotated, typing.Required, typing.NotRequired):
        type_ = typing.get_args(type_)[0]
    return type_


def _is_union(origin: Any) -> bool:
    return origin in (typing.Union, types.UnionType)
