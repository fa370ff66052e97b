"""/workflows/{name}/files: upload documents, and a run is started for each.

The whole upload is received before anything is done: one that is cut off leaves nothing. Then each file is stored as an artifact, and
its run started under an id made of the batch, the file's name and its content. So an upload whose answer was lost is sent again with the
same batch: files whose runs were started start nothing, the others start now.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.datastructures import FormData, UploadFile

from ziggurat.artifacts import Artifact
from ziggurat.doors.api import runs, shapes
from ziggurat.doors.api import system_shapes as views
from ziggurat.doors.api.gate import Guarded, guarded
from ziggurat.doors.api.hub import hub_of
from ziggurat.doors.api.looks import file_parameters
from ziggurat.doors.api.problems import status_of
from ziggurat.errors import InvalidData, LayerUnreachable, ZigguratError

router = APIRouter(route_class=Guarded, tags=["workflows"])

#: Files of one upload, and bytes of each other field.
FILES_MAX, FIELD_BYTES = 1_000, 1024 * 1024
_CHUNK = 1024 * 1024
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "The documents.",
                        },
                        "input": {"type": "string", "description": "The other arguments of each run, as a JSON object."},
                    },
                }
            }
        },
    }
}


@router.post("/workflows/{name}/files", openapi_extra={**guarded("operator"), **_FORM})
async def upload_files(
    request: Request,
    name: Annotated[str, Path(min_length=1, max_length=200)],
    parameter: Annotated[
        str, Query(description="Which parameter takes the file; the only one of type Artifact by default.")
    ] = "",
    batch: Annotated[shapes.NewId, Query(description="Names the upload, so that sending it again starts nothing twice.")] = "",
    tag: Annotated[list[str] | None, Query(description="KEY=VALUE; may be repeated.")] = None,
    priority: Annotated[int | None, Query(ge=1, le=5)] = None,
    namespace: str = "",
) -> views.UploadAnswer:
    """Upload files; each starts one run of the workflow, which takes it as an Artifact."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidData("The files must be sent as multipart/form-data, in the field `files`.")
    takes = file_parameters(hub_of(request).registry.workflow(name))
    if (parameter and parameter not in takes) or (not parameter and len(takes) != 1):
        known = ", ".join(takes) or "none; give it one of type Artifact"
        raise InvalidData(f"Say with ?parameter= which parameter of {name!r} takes the file; those that can: {known}.")
    tags = runs.tags_of(tag or [])
    async with request.form(max_files=FILES_MAX, max_fields=10, max_part_size=FIELD_BYTES) as form:
        files = [part for key, part in form.multi_items() if key == "files" and isinstance(part, UploadFile)]
        if not files:
            raise InvalidData("The upload holds no file in the field `files`.")
        rest = _other_arguments(form)
        batch = batch or f"{name}-{secrets.token_hex(6)}"
        options: dict[str, Any] = {"batch": batch, "tags": tags, "priority": priority, "namespace": namespace}
        # One after another: what one machine stores does not get quicker side by side, and the order is that of the upload.
        answer = [await _start(request, name, file, {**rest}, parameter or takes[0], **options) for file in files]
    return views.UploadAnswer(batch=batch, files=answer)


async def _start(
    request: Request, name: str, file: UploadFile, arguments: dict[str, Any], parameter: str, *, batch: str, **options: Any
) -> views.UploadedFile:
    label = plain_name(file.filename or "")
    stored = await Artifact.save(_chunks(file), name=label, media_type=_media_type(file))
    arguments[parameter] = asdict(stored)
    named = f"{label}\n{stored.sha256}"
    id = f"{batch}-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
    shown = views.UploadedFile(file=label, size=stored.size, sha256=stored.sha256, run=None, status="refused", error="")
    try:
        run = await runs.start(request, name, arguments, id=id, **options)
    except LayerUnreachable:
        raise
    except ZigguratError as error:
        return shown.model_copy(update={"error": status_of(error)[1]})
    return shown.model_copy(update={"run": run.id, "status": run.status})


def plain_name(name: str) -> str:
    """Return the last part of a file name, without what no name should hold; it is a label and never a path."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(" .")
    return kept[-200:] or "unnamed"


def _media_type(file: UploadFile) -> str:
    """Return what the sender says that it is, if that is well-formed."""
    given = (file.content_type or "").partition(";")[0].strip().lower()
    kind, slash, rest = given.partition("/")
    fine = slash and all(part and part.replace("-", "").replace(".", "").replace("+", "").isalnum() for part in (kind, rest))
    return given if fine and given.isascii() and len(given) < 100 else ""


def _other_arguments(form: FormData) -> dict[str, Any]:
    given = form.get("input")
    if given is None or given == "":
        return {}
    try:
        arguments = json.loads(given) if isinstance(given, str) else None
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidData("The field `input` must be a JSON object with the other arguments of each run.")
    return arguments


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK):
        yield chunk
