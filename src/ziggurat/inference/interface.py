"""What an endpoint must do, and the small records that configure endpoints and models.

An endpoint makes one attempt at one call, and nothing more: it does not retry, does not fall back, does not limit and does not bill.
The router (`ziggurat.inference.router`) owns all of that, once, for every kind of endpoint. A new kind is one file in `backends/`, one
line in assembly and one parameter of the conformance suite (`ziggurat.testing.endpoint_suite`).
"""

from __future__ import annotations

import ipaddress
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct

from ziggurat.errors import EndpointUnreachable, ModelNotFound
from ziggurat.inference.hours import OffPeak
from ziggurat.inference.policies import Policy
from ziggurat.records import Chunk, Completion, EmbeddingPrompt, Embeddings, Prompt

#: "1" lets model requests leave this machine, "0" forbids it, whatever runs.
NETWORK_VARIABLE = "ZIGGURAT_ALLOW_MODEL_REQUESTS"

#: How an answer is held to a schema, from the strongest to the weakest: the endpoint's own decoder; a tool that must be called; JSON
#: of any shape, with the schema in the prompt; the prompt alone.
Structured = Literal["json_schema", "tool", "json_object", "prompt"]
#: How tools are offered: in the endpoint's own way, or by a schema that fits either a call or an answer.
ToolSupport = Literal["native", "schema"]


class Capabilities(Struct, frozen=True, kw_only=True):
    """What one upstream model can do. The router shapes a prompt to it, and passes a route by that cannot serve a prompt."""

    structured: Structured = "json_schema"
    #: The schema must name every property as required and allow no others (OpenAI's strict mode).
    strict: bool = False
    tools: ToolSupport = "native"
    #: Images as content parts, and files such as PDFs. Where nothing is known the endpoint is asked, and its refusal is remembered.
    vision: bool = True
    files: bool = True
    #: Tokens that the prompt and the answer may have together; 0 if unknown.
    context: int = 0
    #: Takes temperature and top_p; reasoning models refuse them.
    sampling: bool = True
    #: The field that bounds the answer.
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    #: The field that takes the session name, which keeps what shares a prefix on one replica; empty if there is none.
    session_field: str = ""


class Limits(Struct, frozen=True, kw_only=True):
    """What an endpoint allows; None is no known limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    #: Seconds of a per-minute limit that may be spent at once. Providers count in windows of their own, so a full minute's burst could
    #: meet two of them.
    burst: float = 10.0

    @property
    def any(self) -> bool:
        """True if something is limited."""
        return bool(self.requests_per_minute or self.tokens_per_minute or self.concurrency)


class Reported(Struct, frozen=True, kw_only=True):
    """What a provider says of its limits with an answer; None where it says nothing."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    #: What is left of them now.
    requests_left: float | None = None
    tokens_left: float | None = None


class Timeouts(Struct, frozen=True, kw_only=True):
    """Seconds to wait for an endpoint."""

    #: Until the connection stands.
    connect: float = 10.0
    #: Until the first data event of a stream. Keep-alive comments and blank lines are not data: some providers send them for
    #: minutes while a request waits in their queue.
    first_token: float = 120.0
    #: Between two data events of a stream.
    idle: float = 60.0
    #: For one attempt as a whole.
    total: float = 600.0


class Price(Struct, frozen=True, kw_only=True):
    """What a model costs, in US dollars for a million tokens."""

    input: float = 0.0
    output: float = 0.0
    #: Input tokens that came from the endpoint's prefix cache; the input price if None.
    cached: float | None = None
    #: Output tokens spent on reasoning; the output price if None.
    reasoning: float | None = None
    #: What a call of a batch costs, as a share of all that; OpenAI and most others bill half.
    batch: float = 0.5


class EndpointConfig(Struct, frozen=True, kw_only=True):
    """A place that serves models: where it is, how to speak with it, what it allows and costs."""

    name: str
    #: "openai", "local", "scripted", or whatever assembly knows.
    kind: str = "openai"
    #: The URL before /chat/completions.
    base_url: str = ""
    #: The key itself. It is masked in the repr and is never logged or raised.
    api_key: str = ""
    headers: dict[str, str] = {}
    limits: Limits = Limits()
    #: By upstream model, beside those of the endpoint as a whole.
    model_limits: dict[str, Limits] = {}
    timeouts: Timeouts = Timeouts()
    #: By upstream model.
    prices: dict[str, Price] = {}
    #: US dollars for an hour of one replica, rented whether it is asked or not, and how many replicas there are.
    price_per_hour: float = 0.0
    replicas: int = 1
    #: Of the replicas, one URL each; empty where `base_url` is the only place.
    urls: tuple[str, ...] = ()
    #: "session" keeps what shares a prefix on one replica, "load" takes the less busy of two.
    balance: Literal["session", "load"] = "session"
    #: The path of a replica's health, from its root, and the seconds between two looks at it.
    health: str = "/health"
    probe: float = 5.0
    #: Where it is, for calls that must not leave a region; empty if nobody said.
    region: str = ""
    #: From 1 to 5, by upstream model; "*" for each that is not named.
    quality: dict[str, int] = {}
    #: The hours in which it is cheaper.
    off_peak: OffPeak | None = None
    #: What only the kind knows.
    options: dict[str, Any] = {}

    def rated(self, upstream: str) -> int:
        """Return the quality of a model, from 1 to 5; 0 if nobody said."""
        return self.quality.get(upstream) or self.quality.get("*", 0)

    def __repr__(self) -> str:
        # Headers may carry secrets too, so only their names are shown.
        shown = {
            "name": self.name,
            "kind": self.kind,
            "base_url": shown_url(self.base_url),
            "api_key": "***" if self.api_key else "",
        }
        return f"EndpointConfig({shown!r}, headers={list(self.headers)!r})"


def shown_url(url: str) -> str:
    """Return a URL without its name, password and query, which may be secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


class CapabilityOverrides(Struct, frozen=True, kw_only=True):
    """What a person knows better than the built-in table; None leaves the table's word."""

    json_schema: bool | None = None
    tools: bool | None = None
    vision: bool | None = None
    files: bool | None = None
    context: int | None = None


class ModelConfig(Struct, frozen=True, kw_only=True):
    """An alias that programs name: its routes, best first, each "endpoint:upstream model"."""

    routes: list[str]
    capabilities: CapabilityOverrides = CapabilityOverrides()
    #: What it costs on every route; the endpoint's prices and the built-in tables if None.
    price: Price | None = None
    #: In which order the routes are tried, unless shares say so: as written, the cheapest or the quickest first.
    policy: Policy = "order"
    #: Routes of a lower quality are not asked; 0 for any.
    quality: int = 0
    #: The regions that its calls must stay in; empty for anywhere. Then those that are asked first.
    regions: tuple[str, ...] = ()
    prefer_regions: tuple[str, ...] = ()
    #: When a call that has no answer yet is sent to a second place: after so many seconds, at the 95th percentile of the route, or never.
    hedge: float | Literal["p95"] | None = None
    #: The share of calls that may be sent twice.
    hedge_budget: float = 0.05
    #: The share of calls that begin with each route; empty for all with the first.
    weights: list[float] = []
    #: A route that gets a copy of each whole call; empty for none.
    shadow: str = ""
    #: Of the switch that made it so; 0 for what the settings say.
    version: int = 0


class ReplicaView(Struct, frozen=True, kw_only=True):
    """One replica of an endpoint as people look at it."""

    url: str
    #: "well", "ill" (its health or its calls say so), "trying" (one call looks whether it is back), or "unknown" until it was looked at.
    health: str
    #: Calls of this process that are there now.
    in_flight: int = 0
    #: What the server itself says of its load, from all callers; None if it says nothing.
    running: int | None = None
    waiting: int | None = None
    #: Why it is ill, in a sentence.
    trouble: str = ""


class Look(Struct, frozen=True, kw_only=True):
    """What a server that is well tells of itself."""

    #: Calls that it runs and that wait in it, from all callers; None if it does not tell.
    running: int | None = None
    waiting: int | None = None
    #: Tokens that a prompt and its answer may have together, by upstream model, as far as it tells.
    contexts: dict[str, int] = {}


class Endpoint(ABC):
    """One place that serves models. Safe to use from several event loops, each in its own thread."""

    #: Names the replica that this is; empty for an endpoint that is no replica.
    replica = ""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.name = config.name

    @abstractmethod
    def capabilities(self, upstream: str) -> Capabilities:
        """Return what the upstream model can do, as far as is known without asking."""

    @abstractmethod
    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        """Return the whole answer of one attempt.

        The prompt is already shaped to the capabilities. The completion names the text, tool calls, finish and usage; where the endpoint
        reports no usage, `usage.calls` is 0 and the router estimates. Cancelling closes the upstream call.

        Raises InferenceError, of the most specific kind; `sent` is True on it when the provider may bill the call.
        """

    @abstractmethod
    def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        """Yield the answer as it is written; the end has a finish reason, and with it or after it a usage where there is one.

        Closing the iterator closes the upstream call. A stream that ends early raises EndpointFailed. Raises as `complete`.
        """

    async def embed(self, prompt: EmbeddingPrompt, upstream: str) -> Embeddings:
        """Return the vectors of one attempt, one for each input, in order. Usage and errors as for `complete`.

        Not every kind of endpoint has embeddings; one that has none says that it does not serve the model, so that another route is asked.
        """
        raise ModelNotFound(f"The endpoint {self.name!r} has no embeddings.", endpoint=self.name, model=upstream)

    @abstractmethod
    async def models(self) -> list[str]:
        """Return the upstream models that the endpoint lists. Raises InferenceError."""

    @abstractmethod
    async def check(self) -> str:
        """Return one sentence on the endpoint's health, for people, without buying anything. Raises InferenceError."""

    def reported(self, upstream: str) -> Reported | None:
        """Return what the provider said of its limits for a model since this was last asked, or None."""
        return None

    def free(self, upstream: str) -> bool:
        """Say whether calls cost nothing by their nature, as on one's own machine."""
        return False

    def context(self, upstream: str) -> int:
        """Return the tokens that a prompt and its answer may have together, as the endpoint itself said of late; 0 if it did not."""
        return 0

    def place(self, prompt: Prompt, upstream: str, avoid: Collection[str] = ()) -> Endpoint:
        """Return where one attempt is made: the endpoint itself, or one of its replicas.

        `avoid` are the names of replicas that the call was at before; they are chosen only if no other is well.
        """
        return self

    def spare(self) -> bool:
        """Say whether a call that failed here may be answered by another replica."""
        return False

    def choices(self, avoid: Collection[str]) -> bool:
        """Say whether a replica is well that is not one of these."""
        return False

    async def look(self) -> Look:
        """Return what the server tells of itself, without buying anything. Raises InferenceError if it is not well."""
        await self.check()
        return Look()

    def replicas(self) -> list[ReplicaView]:
        """Describe the replicas among which calls are balanced; none if there is one place only."""
        return []

    async def close(self) -> None:
        """Give back connections and memory, if there are any. A later call opens them anew."""
        return


_network_allowed: list[bool] = []


def allow_network(allowed: bool | None) -> None:
    """Let model requests of this process leave this machine, or forbid it; None returns to the default.

    The default allows them, except under pytest: a test that spends money by accident is wrong. The environment variable
    ZIGGURAT_ALLOW_MODEL_REQUESTS ("0" or "1") is stronger than the default and weaker than this switch.
    """
    _network_allowed[:] = [] if allowed is None else [allowed]


def network_allowed() -> bool:
    """Say whether model requests may leave this machine."""
    if _network_allowed:
        return _network_allowed[0]
    variable = os.environ.get(NETWORK_VARIABLE, "")
    # pytest (8.2 and newer) sets PYTEST_VERSION for the whole session.
    return variable.lower() not in ("0", "false", "no") if variable else "PYTEST_VERSION" not in os.environ


def require_network(endpoint: str, url: str) -> None:
    """Raise EndpointUnreachable if the URL is not on this machine and model requests may not leave it."""
    if not network_allowed() and not is_loopback(urlsplit(url).hostname or ""):
        error = EndpointUnreachable(
            f"The endpoint {endpoint!r} ({url}) was not called: model requests to other machines are off in tests. Use a scripted or "
            f"local model, or allow them with {NETWORK_VARIABLE}=1.",
            endpoint=endpoint,
        )
        error.retryable = False
        raise error


def is_loopback(host: str) -> bool:
    """Say whether a host name means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
