"""What records of every layer hold: payloads, failures, and what model calls consumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw, Struct, UnsetType

if TYPE_CHECKING:
    #: A payload or None, for fields that are left out of the JSON when there is none.
    MaybeRaw = Raw | None
else:
    # msgspec decodes `Raw | None` as null only; with UnsetType a missing field takes its default, None, and any JSON is kept raw.
    MaybeRaw = Raw | UnsetType

#: The version of the records on the wire. A reader refuses a message of a newer version and returns it to others.
WIRE_VERSION = 1

#: Priority levels, 1 is served most often. Weights are the queue's business; no level starves.
PRIORITY_HIGHEST, PRIORITY_NORMAL, PRIORITY_LOWEST = 1, 3, 5


class ErrorInfo(Struct, frozen=True, omit_defaults=True):
    """A failure as JSON: what is left of an exception once it has crossed a wire."""

    #: The exception's class name, qualified by module unless it is a builtin: "ValueError", "my_agents.Rejected".
    type: str
    #: The exception's text.
    message: str
    #: The traceback's text, for people; empty when there is none.
    traceback: str = ""
    #: False when another attempt cannot help.
    retryable: bool = True
    #: Seconds that the failing party asked us to wait before another attempt.
    retry_after: float | None = None
    #: The step whose failure this is, when a step's failure ended the run.
    step: int | None = None
    #: The id of the child run whose failure this is.
    run_id: str = ""
    #: The budget that the call would have passed: "run:ID", "call", "step", "day", "workflow:NAME" or "tenant:NAMESPACE".
    budget: str = ""


class Usage(Struct, frozen=True, omit_defaults=True):
    """What model calls consumed."""

    #: Calls that the endpoint answered.
    calls: int = 0
    #: Tokens of the prompt, cached ones included.
    input_tokens: int = 0
    #: Tokens of the answer, reasoning included.
    output_tokens: int = 0
    #: Those of the input tokens that the endpoint served from its prefix cache.
    cached_tokens: int = 0
    #: Those of the output tokens spent on reasoning.
    reasoning_tokens: int = 0
    #: What it cost, in US dollars.
    cost_usd: float = 0.0
    #: Those of all tokens that were estimated, because the endpoint did not report them.
    estimated_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.cost_usd + other.cost_usd,
            self.estimated_tokens + other.estimated_tokens,
        )

    def negated(self) -> Usage:
        """Return this usage as something to take away."""
        return Usage(
            -self.calls,
            -self.input_tokens,
            -self.output_tokens,
            -self.cached_tokens,
            -self.reasoning_tokens,
            -self.cost_usd,
        )


class Allowance(Struct, frozen=True, omit_defaults=True):
    """A budget that calls draw on, and what is known to be spent of it when it is handed out."""

    #: Names the purse: "run:ID" for a run and its children.
    key: str
    limit_usd: float
    spent_usd: float = 0.0


class CallRecord(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One model call in the ledger. `id` is unique, so that a call recorded twice is billed once."""

    id: str
    #: The alias that the program named.
    model: str
    #: The endpoint and the upstream model that served it.
    endpoint: str
    upstream: str
    usage: Usage
    #: Names the price table that the cost was computed with.
    price_version: str = ""
    started_at: float = 0.0
    #: Seconds from the request to the last byte, and to the first token.
    latency: float = 0.0
    first_token: float | None = None
    #: Of the switch that chose the route; 0 where the alias means what the settings say.
    switch: int = 0
    #: "ok", or the class name of the error; "unanswered" calls may have been billed by the provider; "stopped" is a stream that its
    #: reader left.
    status: str = "ok"
    #: What an unanswered call may have cost, by its estimate. It is held against budgets and shown apart from the costs.
    held_usd: float = 0.0
    #: The replica that served it; empty for an endpoint of one place.
    replica: str = ""
    #: True for a second request that was sent because the first one took long.
    hedge: bool = False


def encode(record: Struct) -> bytes:
    """Return a record as JSON."""
    return _encoder.encode(record)


_encoder = msgspec.json.Encoder()
