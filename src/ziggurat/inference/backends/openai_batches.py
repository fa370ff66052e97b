"""OpenAI's Batch API, which other providers speak as well: a file of requests goes up, a batch is made of it, files of answers come down.

https://platform.openai.com/docs/api-reference/batch and /docs/guides/batch: lines `{"custom_id", "method", "url", "body"}` of one model,
50,000 of them and 200 MB at most; `completion_window` "24h"; statuses validating, failed, in_progress, finalizing, completed, expired,
cancelling, cancelled. What was answered before an end of any kind is in the output file and is billed; the rest is not. There is no
idempotency key, so a batch carries our id in its metadata, and is looked for by that, or by the file that it was made of.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from ziggurat.errors import EndpointFailed, InferenceError
from ziggurat.inference import wire
from ziggurat.inference.backends.openai_compatible import OpenAICompatible
from ziggurat.inference.batches.interface import Batch, BatchApi, Remote
from ziggurat.inference.failures import Failures
from ziggurat.inference.interface import Endpoint
from ziggurat.records import Completion

#: Seconds for one request, and for one that carries a file.
ASK, CARRY = 60.0, 300.0
#: The metadata that holds our id.
MARK = "ziggurat_batch"
#: Batches of one page, and pages, that are looked through for one that may have been made.
_PAGE, _PAGES = 100, 20


class Fetch(Protocol):
    """One HTTP request of the endpoint: method, URL, body and its content type; returns the body of a 2xx. Raises InferenceError."""

    def __call__(
        self, method: str, url: str, body: bytes | None, seconds: float, content_type: str = "application/json"
    ) -> Awaitable[bytes]: ...


class _Error(Struct):
    code: str | None = None
    message: str | None = None


class _Errors(Struct):
    data: list[_Error] | None = None


class _Batch(Struct):
    id: str
    status: str = ""
    input_file_id: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Errors | None = None
    metadata: dict[str, Any] | None = None


class _Page(Struct):
    data: list[_Batch]
    has_more: bool = False


class _File(Struct):
    id: str


class _Response(Struct):
    status_code: int = 0
    body: Raw = Raw(b"null")


class _Answered(Struct):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


def create(endpoint: Endpoint) -> BatchApi | None:
    """Return the batches of an endpoint of the kind "openai"; None if it cannot be called as things are.

    The endpoint's option `batch_window` is what is asked for as `completion_window`, "24h" by default.
    """
    if not isinstance(endpoint, OpenAICompatible):
        return None
    return OpenAIBatches(endpoint.url, endpoint.ask, endpoint.failures, str(endpoint.config.options.get("batch_window", "24h")))


class OpenAIBatches(BatchApi):
    """The batches of one base URL.

    Args:
        url: returns the URL of a path below the base URL, with a query.
        fetch: makes a request there.
        failures: words for errors.
        window: the `completion_window` that is asked for.
    """

    def __init__(self, url: Callable[[str, str], str], fetch: Fetch, failures: Failures, window: str) -> None:
        self._url, self._fetch, self._failures, self._window = url, fetch, failures, window

    def request(self, id: str, body: bytes) -> bytes:
        return msgspec.json.encode({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": Raw(body)})

    async def upload(self, name: str, lines: bytes) -> str:
        mark = secrets.token_hex(16)
        form = (
            f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/jsonl\r\n\r\n"
        )
        body = form.encode() + lines + f"\r\n--{mark}--\r\n".encode()
        data = await self._fetch("POST", self._url("/files", ""), body, CARRY, f"multipart/form-data; boundary={mark}")
        return str(self._read(data, _File).id)

    async def create(self, id: str, file: str) -> Remote:
        asked = {
            "input_file_id": file,
            "endpoint": "/v1/chat/completions",
            "completion_window": self._window,
            "metadata": {MARK: id},
        }
        data = await self._fetch("POST", self._url("/batches", ""), msgspec.json.encode(asked), ASK)
        return _remote(self._read(data, _Batch))

    async def find(self, id: str, file: str) -> Remote | None:
        after = ""
        for _ in range(_PAGES):
            data = await self._fetch("GET", self._url("/batches", f"limit={_PAGE}{after}"), None, ASK)
            page = self._read(data, _Page)
            for batch in page.data:
                if (batch.metadata or {}).get(MARK) == id or (file and batch.input_file_id == file):
                    return _remote(batch)
            if not page.has_more or not page.data:
                return None
            after = f"&after={page.data[-1].id}"
        return None

    async def look(self, remote: str) -> Remote:
        return _remote(self._read(await self._fetch("GET", self._url(f"/batches/{remote}", ""), None, ASK), _Batch))

    async def cancel(self, remote: str) -> None:
        await self._fetch("POST", self._url(f"/batches/{remote}/cancel", ""), b"{}", ASK)

    async def answers(self, remote: Remote) -> Mapping[str, Completion | InferenceError]:
        found: dict[str, Completion | InferenceError] = {}
        for file in remote.files:
            data = await self._fetch("GET", self._url(f"/files/{file}/content", ""), None, CARRY)
            # Some thousands of answers take a second to read.
            found.update(await asyncio.to_thread(self._answers_in, data))
        return found

    async def tidy(self, batch: Batch, remote: Remote | None) -> None:
        for file in dict.fromkeys((batch.file, *(remote.files if remote is not None else ()))):
            if not file:
                continue
            try:
                await self._fetch("DELETE", self._url(f"/files/{file}", ""), None, ASK)
            except InferenceError:
                return  # The provider's own retention takes it.

    def _answers_in(self, data: bytes) -> dict[str, Completion | InferenceError]:
        found: dict[str, Completion | InferenceError] = {}
        for row in data.splitlines():
            if not row.strip():
                continue
            answered = self._read(row, _Answered)
            found[answered.custom_id] = self._answer(answered)
        return found

    def _answer(self, answered: _Answered) -> Completion | InferenceError:
        response, now = answered.response, time.time()
        if response is None:
            error = answered.error or _Error()
            return self._failures.make(EndpointFailed, f"did not answer: {error.message or error.code or 'no reason given'}")
        if not 200 <= response.status_code < 300:
            return self._failures.of_status(response.status_code, {}, bytes(response.body), "", now)
        try:
            return wire.decode_completion(bytes(response.body))
        except wire.ErrorBody as error:
            return self._failures.of_error(error, "", now)
        except wire.Nonsense as error:
            return self._failures.make(EndpointFailed, f"sent something that is no answer: {error}.")

    def _read(self, data: bytes, type_: Any) -> Any:
        try:
            return msgspec.json.decode(data, type=type_)
        except msgspec.MsgspecError as error:
            raise self._failures.make(
                EndpointFailed, f"answered about a batch with something else: {error}.", sent=True
            ) from None


def _remote(batch: _Batch) -> Remote:
    errors = (batch.errors.data or []) if batch.errors is not None else []
    first = errors[0] if errors else _Error()
    files = tuple(file for file in (batch.output_file_id, batch.error_file_id) if file)
    return Remote(id=batch.id, status=batch.status, files=files, reason=first.message or first.code or "")
