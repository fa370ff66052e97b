"""What the gateway answers when it does not answer: errors in OpenAI's shape, with the status that its clients act on.

The shape is {"error": {"message", "type", "param", "code"}} (platform.openai.com/docs/guides/error-codes). OpenAI's clients retry 408,
409, 429 and 5xx on their own, twice by default. Behind this door the router has already retried, within one budget for all callers, so
what it gave up on carries `x-should-retry: false`, which those clients obey; what another moment or another replica may serve does not.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ziggurat.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    ContextTooLong,
    EndpointFailed,
    EndpointUnreachable,
    InferenceError,
    ModelNotFound,
    OutputRefused,
    Overloaded,
    RateLimited,
    RequestRejected,
    ZigguratError,
)

_encode = msgspec.json.Encoder().encode


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        again: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code, self.param = status, message, type, code, param
        #: Seconds after which the same request may be welcome.
        self.retry_after = retry_after
        #: Whether the client should try again by itself; None leaves that to what it makes of the status.
        self.again = again

    def body(self) -> bytes:
        """Return the error as JSON."""
        return _encode({"error": self.shape()})

    def shape(self) -> dict[str, Any]:
        """Return the value of `error`."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        found = {}
        if self.retry_after is not None:
            # Whole seconds, rounded up: RFC 9110 §10.2.3 knows no fractions, and asking early would be refused again.
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.again is not None:
            found["x-should-retry"] = "true" if self.again else "false"
        return found


#: Which error is answered how: status, type, code, whether the client should try again by itself. The first line that fits.
_ANSWERS: tuple[tuple[type[ZigguratError], int, str, str, bool | None], ...] = (
    (BudgetExceeded, 429, "insufficient_quota", "insufficient_quota", False),
    (RateLimited, 429, "rate_limit_error", "rate_limit_exceeded", None),
    (ModelNotFound, 404, "invalid_request_error", "model_not_found", False),
    (ContextTooLong, 400, "invalid_request_error", "context_length_exceeded", False),
    (RequestRejected, 400, "invalid_request_error", "request_rejected", False),
    (OutputRefused, 400, "invalid_request_error", "content_filter", False),
    # The caller's own key was good: 401 would send them looking for a mistake that is not theirs.
    (AuthenticationFailed, 502, "upstream_error", "upstream_authentication_failed", False),
    (EndpointFailed, 502, "upstream_error", "upstream_failed", False),
    # Our own limits, or the key's, left no room for as long as the gateway lets a request wait.
    (Overloaded, 429, "rate_limit_error", "rate_limit_exceeded", None),
    (ConfigurationError, 500, "server_error", "misconfigured", False),
    (InferenceError, 502, "upstream_error", "upstream_failed", False),
)


def refusal_of(error: ZigguratError) -> Refusal:
    """Return how an error of the layers below is answered."""
    wait = getattr(error, "retry_after", None)
    if isinstance(error, EndpointUnreachable):
        # An answer that did not come in time, or nobody there to ask.
        status, code = (504, "upstream_timeout") if error.sent else (503, "upstream_unreachable")
        return Refusal(status, str(error), type="upstream_error", code=code, retry_after=wait, again=False)
    for kind, status, type_, code, again in _ANSWERS:
        if isinstance(error, kind):
            wait = 1.0 if wait is None and status == 429 and again is None else wait
            return Refusal(status, str(error), type=type_, code=code, retry_after=wait, again=again)
    return Refusal(500, str(error), type="server_error", code="internal_error", again=False)


def internal(request_id: str) -> Refusal:
    """Return the answer for a mistake of ours; its cause is in the log, under the request's id."""
    text = f"The gateway met an error that it did not expect; the log has it under the request id {request_id}."
    return Refusal(500, text, type="server_error", code="internal_error", again=False)
