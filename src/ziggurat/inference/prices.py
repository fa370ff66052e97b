"""What calls cost: the settings' prices, then the built-in overlay, then the genai-prices package (extra `prices`).

Every cost carries the name of the table it came from, so that a bill can be explained after prices have changed. A model that no table
knows costs nothing and says so: its `price_version` is "unpriced".
"""

from __future__ import annotations

import importlib
import importlib.metadata
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from ziggurat.inference.hours import OffPeak
from ziggurat.inference.interface import EndpointConfig, Price, is_loopback
from ziggurat.records import Usage

#: Names the overlay below; changes whenever a price in it does.
OVERLAY_VERSION = "overlay-2026-11-23"
UNPRICED, FREE, SETTINGS, HOURLY = "unpriced", "free", "settings", "hourly"

_MILLION = 1_000_000.0
#: What a batch costs as a share of the plain price, where only the library knows that price (OpenAI, Anthropic and Google: 50 %).
BATCH_SHARE = 0.5

#: What genai-prices does not have: GMI Cloud's models, by host and upstream name in lower case. The first two are the article's
#: prices (gmicloud.ai, "Hosting AI agent workflows at scale"): $1.39 is blended, so it holds for input and output alike. DeepSeek-V3.2
#: is from LiteLLM's table of GMI models.
OVERLAY: dict[str, dict[str, Price]] = {
    "api.gmi-serving.com": {
        "deepseek-ai/deepseek-v4-pro": Price(input=1.39, output=1.39),
        "openai/gpt-5.4-mini": Price(input=0.40, output=2.50),
        "deepseek-ai/deepseek-v3.2": Price(input=0.28, output=0.40),
    },
}

#: US dollars for an hour of one GPU at GMI Cloud (the article; GMI blog, 2026-05). Rented hours are paid whether or not calls are
#: made; `metering.py` says how calls bear them, and the planner compares them with prices per token.
GPU_HOUR: dict[str, float] = {"H100": 2.00, "H200": 2.60}


class Tariff(Struct, frozen=True, kw_only=True):
    """How one upstream model of one endpoint is billed."""

    #: None: ask genai-prices at each call, since its prices may depend on the hour or the size of the prompt.
    price: Price | None
    version: str
    provider_url: str = ""
    upstream: str = ""
    #: The hours in which a known price is lower; the library knows the hours of its own prices.
    off_peak: OffPeak | None = None

    def version_at(self, now: float) -> str:
        """Return the name of the table that a cost at a moment comes from."""
        return f"{self.version} off-peak" if self.off_peak is not None and self.off_peak.holds(now) else self.version

    def bill(self, usage: Usage, now: float, *, batch: bool = False) -> Usage:
        """Return the usage with its cost. `now` is the wall-clock time of the call; `batch` says that it went through a batch."""
        if self.price is not None:
            return _with_cost(usage, self._share(now, batch) * cost(usage, self.price, batch=batch))
        if self.provider_url:
            found = _library_cost(usage, self.provider_url, self.upstream, now) or 0.0
            return _with_cost(usage, found * (BATCH_SHARE if batch else 1.0))
        return usage

    def estimate(self, input_tokens: int, output_tokens: int, now: float, *, batch: bool = False) -> float:
        """Return what a call of so many tokens would cost, in US dollars, if none of its prompt is cached."""
        price = self.price
        if price is not None:
            whole = input_tokens * price.input + output_tokens * price.output
            return self._share(now, batch) * whole * (price.batch if batch else 1.0) / _MILLION
        return self.bill(Usage(calls=1, input_tokens=input_tokens, output_tokens=output_tokens), now, batch=batch).cost_usd

    def _share(self, now: float, batch: bool) -> float:
        """Return what of its price a call pays at this hour. A provider gives one discount or the other: a batch has its own."""
        off_peak = self.off_peak
        return off_peak.share if off_peak is not None and not batch and off_peak.holds(now) else 1.0

    def per_million(self, now: float) -> tuple[float, float] | None:
        """Return US dollars for a million tokens of input and of output; None if nobody knows."""
        if self.version == UNPRICED:
            return None
        if self.price is not None:
            return self.price.input, self.price.output
        # By calls of a usual length: the price of a model may grow with the length of its prompt.
        per_thousand = self.estimate(1_000, 0, now), self.estimate(0, 1_000, now)
        return round(per_thousand[0] * 1_000, 6), round(per_thousand[1] * 1_000, 6)


def cost(usage: Usage, price: Price, *, batch: bool = False) -> float:
    """Return US dollars for a usage.

    Cached tokens are part of the input tokens and reasoning tokens of the output tokens: each is billed once, at its own price.
    """
    cached = min(usage.cached_tokens, usage.input_tokens)
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    cached_price = price.input if price.cached is None else price.cached
    reasoning_price = price.output if price.reasoning is None else price.reasoning
    whole = (
        (usage.input_tokens - cached) * price.input
        + cached * cached_price
        + (usage.output_tokens - reasoning) * price.output
        + reasoning * reasoning_price
    )
    return whole * (price.batch if batch else 1.0) / _MILLION


def tariff(endpoint: EndpointConfig, upstream: str, *, alias_price: Price | None = None, free: bool = False) -> Tariff:
    """Return how a route is billed: the alias's price, the endpoint's, nothing for what is free, the overlay, genai-prices."""
    written = alias_price or endpoint.prices.get(upstream) or endpoint.prices.get("*")
    if written is not None:
        return Tariff(price=written, version=SETTINGS, off_peak=endpoint.off_peak)
    if endpoint.price_per_hour:
        # Paid by the hour, so its tokens are free; `metering.py` adds the call's part of the hour.
        return Tariff(price=Price(), version=HOURLY)
    if free:
        return Tariff(price=Price(), version=FREE)
    host = urlsplit(endpoint.base_url).hostname or ""
    known = OVERLAY.get(host, {}).get(upstream.lower())
    if known is not None:
        return Tariff(price=known, version=OVERLAY_VERSION, off_peak=endpoint.off_peak)
    if host and not is_loopback(host) and _library_cost(Usage(input_tokens=1), endpoint.base_url, upstream, 0.0) is not None:
        version = f"genai-prices-{importlib.metadata.version('genai-prices')}"
        return Tariff(price=None, version=version, provider_url=endpoint.base_url, upstream=upstream)
    return Tariff(price=None, version=UNPRICED)


def _with_cost(usage: Usage, cost_usd: float) -> Usage:
    return replace(usage, cost_usd=cost_usd) if cost_usd else usage


def _library_cost(usage: Usage, provider_url: str, upstream: str, now: float) -> float | None:
    """Return the cost by genai-prices, or None if it is not installed or does not know the model."""
    library = _library()
    if library is None:
        return None
    tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cache_read_tokens": usage.cached_tokens}
    at = datetime.fromtimestamp(now, UTC) if now else None
    try:
        found = library.calc_price(
            library.Usage(**tokens), model_ref=upstream, provider_api_url=provider_url, genai_request_timestamp=at
        )
    except (LookupError, ValueError):
        return None
    return float(found.total_price)


def _library() -> Any:
    """Return genai_prices, or None. Its import takes half a second, so only a route that needs it pays, once."""
    if not _loaded:
        try:
            _loaded.append(importlib.import_module("genai_prices"))
        except ImportError:
            _loaded.append(None)
    return _loaded[0]


_loaded: list[Any] = []
