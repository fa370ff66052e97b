"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from ziggurat.doors.gateway import answers
from ziggurat.doors.gateway.exchange import Exchange
from ziggurat.doors.gateway.refusals import Refusal
from ziggurat.doors.gateway.requests import decode, extra_of, positive
from ziggurat.inference.router import Router
from ziggurat.records import EmbeddingPrompt, Embeddings

#: Inputs of one request at most (platform.openai.com/docs/api-reference/embeddings).
INPUTS_MAX = 2048


class EmbeddingRequest(Struct):
    """The body, as far as it is understood here."""

    model: str
    input: str | list[Any]
    encoding_format: str | None = None
    dimensions: int | None = None


_decoder = msgspec.json.Decoder(EmbeddingRequest)
_KNOWN = frozenset(EmbeddingRequest.__struct_fields__)


async def embeddings(x: Exchange, models: Router) -> web.StreamResponse:
    """Answer with one vector for each input."""
    data = await x.body()
    asked = decode(data, _decoder)
    if asked.encoding_format not in (None, "float", "base64"):
        raise Refusal(400, "The encoding_format is float or base64.", param="encoding_format")
    prompt = EmbeddingPrompt(
        inputs=_inputs(asked.input),
        model=asked.model,
        dimensions=positive(asked.dimensions, "dimensions"),
        extra=extra_of(data, _KNOWN),
    )
    x.admit(prompt.model)
    found = await models.embed(prompt)
    return x.served(_body(found, prompt.model, packed=asked.encoding_format == "base64"), found.call)


def _inputs(given: str | list[Any]) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if given and all(type(item) is int for item in given):
        return [given]
    fits = all(isinstance(i, str) or (isinstance(i, list) and i and all(type(t) is int for t in i)) for i in given)
    if not fits or not 0 < len(given) <= INPUTS_MAX:
        raise Refusal(400, f"The input is a text, a list of tokens, or a list of 1 to {INPUTS_MAX} of these.", param="input")
    return given


def _body(found: Embeddings, model: str, *, packed: bool) -> bytes:
    data = [
        {"object": "embedding", "index": number, "embedding": _packed(vector) if packed else vector}
        for number, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.usage.input_tokens, "total_tokens": found.usage.input_tokens}
    return answers.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _packed(vector: list[float]) -> str:
    """Return a vector as base64 of little-endian float32, which OpenAI's Python client asks for by default."""
    numbers = array("f", vector)
    if _BIG_ENDIAN:
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


_BIG_ENDIAN = array("H", [1]).tobytes()[0] == 0
