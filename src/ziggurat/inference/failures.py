"""HTTP answers as errors: one place that knows what each status, code and header of the providers means.

Statuses follow RFC 9110 and the providers' own pages: OpenAI (docs/guides/error-codes), DeepSeek (quick_start/error_codes), GMI, vLLM.
What they do not agree on is read from the message: a context that is too long is a 400 for most, a 413 or 422 for some.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from ziggurat.errors import (
    AuthenticationFailed,
    ContextTooLong,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    ModelNotFound,
    RateLimited,
    RequestRejected,
)
from ziggurat.inference.interface import Reported
from ziggurat.inference.wire import ErrorBody, error_body

#: A Retry-After above a day is taken as a day.
RETRY_AFTER_MAX = 86_400.0

_TOO_LONG = re.compile(
    r"context.{0,3}(length|window|size)|maximum.{0,20}(context|model|prompt|input) ?(length|tokens)|too many (input )?tokens|"
    r"(prompt|input|request|messages?) (is|are|was) too (long|large)|exceed\w* .{0,40}(context|token limit|max_model_len)|"
    r"reduce the length|max_model_len|token count .{0,40}exceeds|context_length_exceeded|string_above_max_length",
    re.IGNORECASE,
)
_BILLING = re.compile(
    r"insufficient_(quota|balance|funds|credits?)|billing|payment|exceeded your current quota|credit balance", re.IGNORECASE
)
_NO_MODEL = re.compile(
    r"model_not_found|no matching target server|model .{0,80}(not found|does not exist|not supported|unknown)|unknown model",
    re.IGNORECASE,
)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Failures:
    """Turns what one endpoint answers into errors that name it, and keeps its secrets out of them."""

    def __init__(self, endpoint: str, base_url: str, secrets: tuple[str, ...]) -> None:
        self.endpoint = endpoint
        self.base_url = base_url
        # Short values ("1", "true") are settings rather than secrets, and would mangle every sentence.
        self._secrets = tuple(s for s in secrets if len(s) >= 6)

    def clean(self, text: str) -> str:
        """Return the text without the endpoint's secrets: some providers quote the key that they refuse."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def make(
        self, kind: type[InferenceError], what: str, *, model: str = "", retry_after: float | None = None, sent: bool = False
    ) -> InferenceError:
        """Return an error of a kind; `what` ends the sentence "The endpoint X …"."""
        text = f"The endpoint {self.endpoint!r} ({self.base_url}) {self.clean(what).rstrip()}"
        if text[-1] not in ".!?…":
            text += "."
        error = kind(text, endpoint=self.endpoint, model=model, retry_after=retry_after)
        error.sent = sent
        return error

    def of_status(self, status: int, headers: Mapping[str, str], body: bytes, model: str, now: float) -> InferenceError:
        """Return the error of an HTTP answer that is not 200. `now` is the wall-clock time, for dates in headers."""
        if 300 <= status < 400:
            error = self.make(
                EndpointFailed,
                f"redirects to {headers.get('Location', 'nowhere')!r}; set base_url to where it leads.",
                model=model,
            )
            error.retryable = False
            return error
        said = error_body(body)
        text = said.message if said is not None else _page(body)
        code = said.code + " " + said.type if said is not None else ""
        return self._of(status, text, code, said is None, headers, model, now)

    def of_error(self, error: ErrorBody, model: str, now: float) -> InferenceError:
        """Return the error that a body reports inside a 200 or in the middle of a stream."""
        status = int(error.code) if error.code.isdigit() and 400 <= int(error.code) < 600 else 0
        if not status:
            status = next((s for word, s in _BY_WORD if word in f"{error.type} {error.code}".lower()), 500)
        return self._of(status, error.message, f"{error.code} {error.type}", False, {}, model, now)

    def _of(
        self, status: int, text: str, code: str, page: bool, headers: Mapping[str, str], model: str, now: float
    ) -> InferenceError:
        say: Callable[..., InferenceError] = self.make
        if status == 402 or (status in (403, 429) and _BILLING.search(code + " " + text)):
            return say(AuthenticationFailed, f"refuses us because the account has no credit ({status}): {text}", model=model)
        if status in (401, 403):
            return say(AuthenticationFailed, f"refuses our credentials ({status}): {text} Check its api_key.", model=model)
        if status == 429:
            wait = retry_after(headers, now)
            return say(RateLimited, f"limits our rate (429): {text}", model=model, retry_after=wait)
        if status in (400, 413, 422, 500) and _TOO_LONG.search(code + " " + text):
            return say(ContextTooLong, f"says that the request does not fit the model {model!r}: {text}", model=model)
        if status in (404, 405):
            if page and not _NO_MODEL.search(text):
                hint = "has no chat completions there; base_url must end before /chat/completions, most often in /v1"
                return say(ModelNotFound, f"{hint} ({status}: {text}).", model=model)
            return say(ModelNotFound, f"does not serve the model {model!r} ({status}): {text}", model=model)
        if status == 400 and _NO_MODEL.search(code + " " + text):
            return say(ModelNotFound, f"does not serve the model {model!r} ({status}): {text}", model=model)
        if status in (408, 504):
            return say(EndpointUnreachable, f"gave no answer in time ({status}): {text}", model=model, sent=True)
        if status in (409, 425) or status >= 500:
            wait = retry_after(headers, now)
            return say(EndpointFailed, f"failed ({status}): {text}", model=model, retry_after=wait)
        return say(RequestRejected, f"refuses this request ({status}): {text}", model=model)


#: Words in the type or code of an error without a status, and the status they stand for.
_BY_WORD = (
    ("rate_limit", 429),
    ("insufficient_quota", 402),
    ("overloaded", 503),
    ("server_error", 500),
    ("authentication", 401),
    ("permission", 403),
    ("not_found", 404),
    ("context_length", 400),
    ("exceed_context", 400),
    ("invalid_request", 400),
    ("timeout", 408),
)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that the headers ask us to wait, or None.

    Reads `retry-after-ms` (OpenAI), `Retry-After` as seconds or an HTTP date (RFC 9110 §10.2.3), then `x-ratelimit-reset-*` as a
    duration such as "12ms" or "1m30s", of those limits of which nothing remains. `now` is the wall-clock time.
    """
    if (ms := _number(headers.get("retry-after-ms", ""))) is not None:
        return _bounded(ms / 1000)
    if value := headers.get("Retry-After", "").strip():
        if (number := _number(value)) is not None:
            return _bounded(number)
        try:
            return _bounded(parsedate_to_datetime(value).timestamp() - now)
        except (ValueError, TypeError, OverflowError):
            pass
    resets = [
        wait
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0"
        and (wait := _duration(headers.get(f"x-ratelimit-reset-{what}", ""))) is not None
    ]
    return max(resets) if resets else None


def reported(headers: Mapping[str, str]) -> Reported | None:
    """Return what the headers of an answer say of limits, or None.

    `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` (OpenAI, and many who follow it). The headers do not say of what time a limit
    is: what was used and when it will be back tells. A limit of a day is not taken for one of a minute.
    """
    found: dict[str, Any] = {}
    for what in ("requests", "tokens"):
        limit = _number(headers.get(f"x-ratelimit-limit-{what}", ""))
        if limit is None or limit < 1:
            continue
        left = _number(headers.get(f"x-ratelimit-remaining-{what}", ""))
        reset = _duration(headers.get(f"x-ratelimit-reset-{what}", ""))
        used = limit - left if left is not None else 0.0
        # Headers round: less than a tenth of a second tells nothing.
        if used > 0 and reset is not None and reset > 0.1 and reset / used * limit > 2 * _MINUTE:
            continue
        found[f"{what}_per_minute"] = int(limit)
        found[f"{what}_left"] = left
    return Reported(**found) if found else None


_MINUTE = 60.0


def _duration(text: str) -> float | None:
    parts = _DURATION.findall(text.strip())
    if not parts or "".join(a + b for a, b in parts) != text.strip():
        return _number(text)
    return _bounded(sum(float(a) * _UNITS[b] for a, b in parts))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if -RETRY_AFTER_MAX * 400 < number < RETRY_AFTER_MAX * 400 * 1000 else None


def _bounded(wait: float) -> float:
    return min(max(0.0, wait), RETRY_AFTER_MAX)


def _page(body: bytes) -> str:
    """Return what a body that is not JSON says: an HTML page's title, or the beginning of the text."""
    if match := _TITLE.search(body[:65536]):
        return f"an HTML page titled {' '.join(match.group(1).decode(errors='replace').split())[:120]!r}."
    text = " ".join(body[:200].decode(errors="replace").split())
    return f"{text!r}." if text else "no text."
