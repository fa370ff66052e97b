"""Servers of one's own, vLLM and SGLang among them: OpenAI's dialect, and beside it their health, their load and their context.

A server that has none of these is an endpoint like any other: what it does not answer is not asked again.

    GET /health        vLLM and SGLang: 200 while the engine lives (docs.vllm.ai, "OpenAI-Compatible Server")
    GET /metrics       vllm:num_requests_running and _waiting; sglang:num_running_reqs and num_queue_reqs
    GET /v1/models     max_model_len, in both
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from ziggurat.errors import AuthenticationFailed, InferenceError, ModelNotFound, RateLimited, RequestRejected
from ziggurat.inference.backends.openai_compatible import OpenAICompatible
from ziggurat.inference.interface import Endpoint, EndpointConfig, Look

#: Seconds that a metrics page or a list of models is waited for; the health, which has `timeouts.connect`, said that the server is there.
_PATIENCE = 5.0
#: Looks between two readings of the list of models, which changes when the server is started anew.
_MODELS_EVERY = 12

_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
_SAMPLE = re.compile(
    rb"^(vllm:num_requests_(?:running|waiting)|sglang:num_(?:running|queue)_reqs)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE
)


def create(config: EndpointConfig) -> Endpoint:
    """Return one replica of a dedicated endpoint. Options as for `openai_compatible`. Raises SettingsError."""
    return Dedicated(config)


class Dedicated(OpenAICompatible):
    """One server."""

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config)
        parts = urlsplit(self._models_url)
        self._root = urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix("/models").removesuffix("/v1"), "", ""))
        self._has_health, self._has_metrics = bool(config.health), True
        self._contexts: dict[str, int] = {}
        self._looks = 0

    async def look(self) -> Look:
        if self._has_health:
            self._has_health = await self._asked(self._root + self.config.health) is not None
        if not self._has_health:
            # Whatever it says, it is there.
            await self._asked(self._models_url)
        running, waiting = await self._load() if self._has_metrics else (None, None)
        if self._looks % _MODELS_EVERY == 0:
            self._contexts = await self._read_contexts()
        self._looks += 1
        return Look(running=running, waiting=waiting, contexts=self._contexts)

    async def _asked(self, url: str) -> bytes | None:
        """Return the answer to a GET, or None if the server refuses it and so is there. Raises InferenceError if it is not well."""
        try:
            return await self._fetch("GET", url, None, "", self.config.timeouts.connect)
        except (ModelNotFound, AuthenticationFailed, RequestRejected, RateLimited):
            return None

    async def _load(self) -> tuple[int | None, int | None]:
        """Return the calls that the server runs and that wait in it, from all callers, or None where it does not tell."""
        try:
            async with asyncio.timeout(_PATIENCE):
                page = await self._asked(self._root + "/metrics")
        except (InferenceError, TimeoutError):
            return None, None
        if page is None:
            self._has_metrics = False
            return None, None
        return load_of(page)

    async def _read_contexts(self) -> dict[str, int]:
        try:
            async with asyncio.timeout(_PATIENCE):
                return contexts_of(await self._asked(self._models_url) or b"")
        except (InferenceError, TimeoutError):
            return self._contexts


def load_of(page: bytes) -> tuple[int | None, int | None]:
    """Return the calls that run and that wait by a metrics page of vLLM or SGLang; None where it has no such line."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(page):
        try:
            # One line for each engine of the server.
            sums[name.decode()] = sums.get(name.decode(), 0.0) + float(value)
        except ValueError:
            continue
    running = next((int(sums[name]) for name in _RUNNING if name in sums), None)
    waiting = next((int(sums[name]) for name in _WAITING if name in sums), None)
    return running, waiting


def contexts_of(listed: bytes) -> dict[str, int]:
    """Return the context of each model in a list of models that tells of it."""
    try:
        entries: Any = msgspec.json.decode(listed)["data"]
        return {
            str(e["id"]): int(e["max_model_len"])
            for e in entries
            if isinstance(e.get("max_model_len"), int) and e["max_model_len"] > 0
        }
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return {}
