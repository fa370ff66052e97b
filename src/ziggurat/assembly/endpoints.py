"""From settings to endpoints and the router over them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import NoReturn, cast

from msgspec.structs import replace

from ziggurat.assembly.backends import load_backend
from ziggurat.assembly.limiting import build_keeper, limits_of
from ziggurat.assembly.secrets import plain
from ziggurat.errors import AuthenticationFailed, ConfigurationError, MissingExtra, SettingsError
from ziggurat.inference.hours import OffPeak
from ziggurat.inference.interface import (
    Capabilities,
    CapabilityOverrides,
    Endpoint,
    EndpointConfig,
    ModelConfig,
    Price,
    Timeouts,
)
from ziggurat.inference.limits.budgets import Baseline, BudgetOptions
from ziggurat.inference.needs import Residency
from ziggurat.inference.prices import GPU_HOUR
from ziggurat.inference.replicas import Replicated
from ziggurat.inference.router import Recorder, Router
from ziggurat.records import Chunk, Completion, Prompt
from ziggurat.settings import EndpointSettings, ModelSettings, PriceSettings, Settings
from ziggurat.settings.types import hours_of_day

ENDPOINTS: Mapping[str, str] = {
    "openai": "ziggurat.inference.backends.openai_compatible:create",
    "local": "ziggurat.inference.backends.local:create",
    "scripted": "ziggurat.inference.backends.scripted:create",
}
#: One replica of an endpoint that has several URLs.
DEDICATED = "ziggurat.inference.backends.dedicated:create"


def build_models(
    settings: Settings,
    *,
    aliases: Mapping[str, Sequence[str]] | None = None,
    ledger: Recorder | None = None,
    baseline: Baseline | None = None,
) -> Router:
    """Return the router over the configured endpoints. `aliases` replaces the configured ones, for a check; `ledger`
    receives the record of every attempt; `baseline` knows what was spent of a day's budgets before.

    An endpoint whose key or extra is missing does not stop the others: it says so when it is called. Raises ConfigurationError.
    """
    wanted = settings.inference
    endpoints = {name: build_endpoint(name, endpoint) for name, endpoint in wanted.endpoints.items()}
    if aliases is None:
        models = {alias: _model(model) for alias, model in wanted.models.items()}
    else:
        models = {alias: ModelConfig(routes=list(routes)) for alias, routes in aliases.items()}
    tenants = {name: limits_of(limits) for name, limits in wanted.limits.tenants.items()}
    return Router(
        endpoints,
        models,
        ledger=ledger,
        keeper=build_keeper(settings),
        tenants=tenants,
        budgets=BudgetOptions(**wanted.budgets.model_dump()),
        baseline=baseline,
        residency=Residency(tenants=wanted.residency.tenants, workflows=wanted.residency.workflows),
    )


def build_endpoint(name: str, wanted: EndpointSettings) -> Endpoint:
    """Return an endpoint; one that cannot be used says why when it is called. Raises ConfigurationError."""
    config = EndpointConfig(
        name=name,
        kind=wanted.kind,
        base_url=wanted.base_url or next(iter(wanted.urls), ""),
        limits=limits_of(wanted.limits),
        model_limits={model: limits_of(limits) for model, limits in wanted.model_limits.items()},
        timeouts=Timeouts(**wanted.timeouts.model_dump()),
        prices={model: price_of(price) for model, price in wanted.prices.items()},
        price_per_hour=_price_per_hour(name, wanted),
        replicas=wanted.replicas or len(wanted.urls) or 1,
        urls=tuple(wanted.urls),
        balance=wanted.balance,
        health=wanted.health,
        probe=wanted.probe,
        region=wanted.region,
        quality=dict(wanted.quality),
        off_peak=_off_peak(wanted),
        options=wanted.options,
    )
    try:
        config = _with_secrets(config, wanted)
        if wanted.urls:
            made = load_backend("inference", "dedicated", {"dedicated": DEDICATED})
            return Replicated(config, [cast(Endpoint, made(replace(config, base_url=url))) for url in wanted.urls])
        made = load_backend("inference", wanted.kind, ENDPOINTS)
        return cast(Endpoint, made(config))
    except ConfigurationError as error:
        return UnusableEndpoint(config, error)


def _with_secrets(config: EndpointConfig, wanted: EndpointSettings) -> EndpointConfig:
    headers = {header: plain(value) for header, value in wanted.headers.items()}
    return replace(config, api_key=plain(wanted.api_key), headers=headers)


def _off_peak(wanted: EndpointSettings) -> OffPeak | None:
    if not wanted.off_peak:
        return None
    begin, end, zone = hours_of_day(wanted.off_peak)
    return OffPeak(begin=begin, end=end, zone=zone, share=wanted.off_peak_price)


def price_of(wanted: PriceSettings) -> Price:
    """Return prices as the inference layer reads them."""
    return Price(**wanted.model_dump())


def _price_per_hour(name: str, wanted: EndpointSettings) -> float:
    if wanted.price_per_hour is not None or not wanted.gpu:
        return wanted.price_per_hour or 0.0
    price = GPU_HOUR.get(wanted.gpu.upper())
    if price is None:
        known = ", ".join(GPU_HOUR)
        raise SettingsError(
            f"inference.endpoints.{name}.gpu is {wanted.gpu!r}, whose price is not known (known are: {known}); set price_per_hour instead."
        )
    return price


def _model(wanted: ModelSettings) -> ModelConfig:
    return ModelConfig(
        routes=list(wanted.routes),
        policy=wanted.policy,
        quality=wanted.quality or 0,
        regions=tuple(wanted.regions),
        prefer_regions=tuple(wanted.prefer_regions),
        hedge=wanted.hedge,
        hedge_budget=wanted.hedge_budget,
        capabilities=CapabilityOverrides(**wanted.capabilities.model_dump()),
        price=price_of(wanted.prices) if wanted.prices is not None else None,
    )


class UnusableEndpoint(Endpoint):
    """Stands for an endpoint that cannot be used as things are: a variable is not set, or an extra is not installed."""

    def __init__(self, config: EndpointConfig, cause: ConfigurationError) -> None:
        super().__init__(config)
        self._cause: ConfigurationError | None = cause

    def _refuse(self) -> NoReturn:
        if isinstance(self._cause, MissingExtra):
            raise MissingExtra(f"The endpoint {self.name!r}", self._cause.extra) from self._cause
        text = f"The endpoint {self.name!r} cannot be called: {self._cause}"
        if isinstance(self._cause, SettingsError):
            # An inference error, so that a call falls back to its next route.
            raise AuthenticationFailed(text, endpoint=self.name) from self._cause
        raise ConfigurationError(text) from self._cause

    def capabilities(self, upstream: str) -> Capabilities:
        return Capabilities()

    async def complete(self, prompt: Prompt, upstream: str) -> Completion:
        self._refuse()

    async def stream(self, prompt: Prompt, upstream: str) -> AsyncGenerator[Chunk, None]:
        if self._cause is not None:
            self._refuse()
        yield Chunk()  # Makes this a generator; never reached.

    async def models(self) -> list[str]:
        self._refuse()

    async def check(self) -> str:
        self._refuse()
