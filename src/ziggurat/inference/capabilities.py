"""What models can do: a table by host and model, a person's corrections, and what an endpoint's refusals teach.

The dialect has no way to ask. So the table says what the providers' pages said on 2026-11-23, the settings correct it, and a 400 that
names a field which was shaped by the table weakens that field for the rest of the process, after which the call is made again.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from msgspec.structs import replace

from ziggurat.errors import ContextTooLong, InferenceError, RequestRejected
from ziggurat.inference.interface import Capabilities, CapabilityOverrides

#: (host, model, what differs from the default). All lines that match apply, in this order; names are matched in lower case.
TABLE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    # platform.openai.com/docs/guides/structured-outputs: strict schemas since gpt-4o-2024-08-06.
    (
        "api.openai.com",
        "*",
        {"strict": True, "max_tokens_field": "max_completion_tokens", "session_field": "prompt_cache_key"},
    ),
    ("*.openai.azure.com", "*", {"strict": True, "max_tokens_field": "max_completion_tokens"}),
    (
        "api.openai.com",
        "gpt-3.5*",
        {"structured": "json_object", "strict": False, "context": 16_385, "vision": False, "files": False},
    ),
    ("api.openai.com", "gpt-4", {"structured": "tool", "strict": False, "context": 8_192, "vision": False, "files": False}),
    ("api.openai.com", "gpt-4-*", {"structured": "json_object", "strict": False, "context": 128_000}),
    ("api.openai.com", "gpt-4o*", {"context": 128_000}),
    # Reasoning models take no temperature, wherever they are served.
    ("*", "*o1*", {"sampling": False}),
    ("*", "*o3*", {"sampling": False}),
    ("*", "*o4-mini*", {"sampling": False}),
    ("*", "*gpt-5", {"sampling": False, "max_tokens_field": "max_completion_tokens"}),
    ("*", "*gpt-5-*", {"sampling": False, "max_tokens_field": "max_completion_tokens"}),
    # api-docs.deepseek.com/guides/json_mode: json_object only; json_schema is refused.
    ("api.deepseek.com", "*", {"structured": "json_object", "vision": False, "files": False}),
    # LiteLLM's page on GMI lists json_object alone; some of its models take more, which the settings can say.
    ("api.gmi-serving.com", "*", {"structured": "json_object"}),
    ("api.groq.com", "*", {"structured": "json_object"}),
    # docs.anthropic.com/en/api/openai-sdk: response_format is ignored, tools are honoured.
    ("api.anthropic.com", "*", {"structured": "tool", "context": 200_000}),
)

_WEAKER = {"json_schema": "json_object", "tool": "json_object", "json_object": "prompt"}

_FORMAT = re.compile(r"response_?format|json[_ ]?schema|json[_ ]?object|structured.?output|guided", re.IGNORECASE)
_TOOL_CHOICE = re.compile(r"tool_?choice", re.IGNORECASE)
_SAMPLING = re.compile(r"['\"`]?(temperature|top_p)['\"`]?", re.IGNORECASE)
_IMAGES = re.compile(
    r"unknown variant .{0,3}image_url|not a multimodal model|(does not|doesn't|cannot|can't) (support|accept|process|take|read) "
    r"(image|vision|multimodal)|support (image|vision) input|image(s| inputs?| content)? (is|are) not (supported|accepted|allowed)",
    re.IGNORECASE,
)
_FILES = re.compile(
    r"unknown variant .{0,3}(file|input_audio)\b|(does not|doesn't|cannot|can't) (support|accept|process|take|read) "
    r"(file|pdf|document|audio)|(file|pdf|document|audio)(s| inputs?| content)? (is|are) not (supported|accepted|allowed)",
    re.IGNORECASE,
)
_COMPLETION_TOKENS = re.compile(r"max_completion_tokens", re.IGNORECASE)


def of(host: str, upstream: str) -> Capabilities:
    """Return what the table knows of a model at a host."""
    host, upstream = host.lower(), upstream.lower()
    known: dict[str, Any] = {}
    for host_pattern, model_pattern, differs in TABLE:
        if fnmatchcase(host, host_pattern) and fnmatchcase(upstream, model_pattern):
            known |= differs
    return Capabilities(**known)


def corrected(capabilities: Capabilities, overrides: CapabilityOverrides) -> Capabilities:
    """Return the capabilities with a person's corrections."""
    changes: dict[str, Any] = {}
    if overrides.json_schema is not None:
        changes["structured"] = "json_schema" if overrides.json_schema else "json_object"
    if overrides.tools is not None:
        changes["tools"] = "native" if overrides.tools else "schema"
    for name in ("vision", "files"):
        if (said := getattr(overrides, name)) is not None:
            changes[name] = said
    if overrides.context is not None:
        changes["context"] = overrides.context
    return replace(capabilities, **changes) if changes else capabilities


def weakened(capabilities: Capabilities, error: InferenceError) -> Capabilities | None:
    """Return what a refusal teaches about a model, or None if it teaches nothing. Repeated, it ends."""
    if not isinstance(error, RequestRejected) or isinstance(error, ContextTooLong):
        return None
    text = str(error)
    if capabilities.max_tokens_field == "max_tokens" and _COMPLETION_TOKENS.search(text):
        return replace(capabilities, max_tokens_field="max_completion_tokens")
    if capabilities.structured == "tool" and _TOOL_CHOICE.search(text):
        return replace(capabilities, structured="json_object")
    if capabilities.structured != "prompt" and _FORMAT.search(text):
        if capabilities.strict and "strict" in text.lower():
            return replace(capabilities, strict=False)
        return replace(capabilities, structured=_WEAKER[capabilities.structured], strict=False)
    if capabilities.vision and _IMAGES.search(text):
        return replace(capabilities, vision=False)
    if capabilities.files and _FILES.search(text):
        return replace(capabilities, files=False)
    if capabilities.sampling and _SAMPLING.search(text):
        return replace(capabilities, sampling=False)
    return None
