"""The settings of layer 4: endpoints that serve models, and the aliases that programs name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ziggurat import units
from ziggurat.errors import ConfigurationError
from ziggurat.settings.batches import BatchSettings
from ziggurat.settings.limits import BudgetSettings, LimitSettings, SharingSettings
from ziggurat.settings.types import (
    Dollars,
    EndpointKind,
    Hours,
    PlainOrSecret,
    Positive,
    Seconds,
    SecretValue,
    Section,
    Shown,
    endpoint_url,
    headers_without_secrets,
    routes_well_formed,
)


class TimeoutSettings(Section):
    """How long to wait for an endpoint."""

    connect: Seconds = Field(10.0, description="Until the connection stands.")
    first_token: Seconds = Field(120.0, description="Until the first data, however many keep-alives come.")
    idle: Seconds = Field(60.0, description="Between two pieces of a stream.")
    total: Seconds = Field(600.0, description="For one call as a whole.")


class PriceSettings(Section):
    """What a model costs, in US dollars for a million tokens."""

    input: Dollars = Field(0.0, description="Input tokens.")
    output: Dollars = Field(0.0, description="Output tokens.")
    cached: Dollars | None = Field(None, description="Input tokens that the endpoint had cached; the input price by default.")
    reasoning: Dollars | None = Field(None, description="Output tokens spent on reasoning; the output price by default.")
    batch: float = Field(0.5, ge=0.0, description="What a call in a batch costs, as a share of these prices.")


class CapabilitySettings(Section):
    """What a model can do, where the built-in table is wrong or silent."""

    json_schema: bool | None = Field(None, description="It can be held to a JSON schema.")
    tools: bool | None = Field(None, description="It can ask for tools.")
    vision: bool | None = Field(None, description="It takes images as parts of messages.")
    files: bool | None = Field(None, description="It takes files, such as PDFs, as parts of messages.")
    context: Positive | None = Field(None, description="Tokens that input and output may have together.")


def _hedge(value: Any) -> Any:
    if value == "p95":
        return value
    try:
        return units.seconds(value)
    except ConfigurationError as error:
        raise ValueError(f'{error} Or write "p95".') from error


Hedge = Annotated[float | Literal["p95"], BeforeValidator(_hedge), Shown('duration \\| "p95"')]


class EndpointSettings(Section):
    """Layer 4: a place that serves models."""

    kind: EndpointKind = Field(
        "openai", description="How to speak with it: the OpenAI protocol, llama.cpp in process, or a script."
    )
    base_url: Annotated[str, AfterValidator(endpoint_url)] = Field("", description="The URL before /chat/completions.")
    api_key: SecretValue | None = Field(None, description="The variable that holds the key.")
    headers: Annotated[dict[str, PlainOrSecret], AfterValidator(headers_without_secrets)] = Field(
        {}, description="Headers sent with every call."
    )
    limits: LimitSettings = Field(LimitSettings(), description="What the endpoint allows, shared by all workers.")
    model_limits: dict[str, LimitSettings] = Field(
        {}, description="What it allows for one model, beside that, by the upstream name."
    )
    timeouts: TimeoutSettings = Field(TimeoutSettings(), description="How long to wait for it.")
    prices: dict[str, PriceSettings] = Field({}, description="What its models cost, by their upstream names.")
    price_per_hour: Dollars | None = Field(
        None, description="What an hour of one replica of a dedicated endpoint costs; by `gpu` if that is named."
    )
    gpu: str = Field("", description="The GPU of a replica, H100 or H200, whose price an hour is then known.")
    replicas: Positive | None = Field(None, description="How many replicas are rented; as many as `urls`, or 1.")
    urls: list[Annotated[str, AfterValidator(endpoint_url)]] = Field(
        [], description="The URLs of its replicas, in the place of `base_url`; calls are balanced among them."
    )
    balance: Literal["session", "load"] = Field(
        "session",
        description="Whether calls of one session are kept on one replica, whose cache knows their prefix, or all go by load.",
    )
    health: str = Field("/health", description="The path of a replica's health, from its root; empty asks for none.")
    probe: Seconds = Field(5.0, description="How often a replica in use is asked for its health.")
    region: str = Field("", description="Where it is, for calls that must stay in a region.")
    quality: dict[str, Annotated[int, Field(ge=1, le=5)]] = Field(
        {}, description='How good its models are, from 1 to 5, by their upstream names; "*" for each that is not named.'
    )
    batch: bool = Field(
        False, description="Calls with a deadline may wait and go into its batches (OpenAI's Batch API), which cost half."
    )
    off_peak: Hours = Field("", description="The hours in which it is cheaper, for which calls with a deadline wait.")
    off_peak_price: float = Field(0.5, ge=0.0, description="What a call costs then, as a share of its prices.")
    options: dict[str, Any] = Field({}, description="What only its kind knows; see the page of that kind.")


class ModelSettings(Section):
    """Layer 4: an alias that programs name, and where it is served."""

    routes: Annotated[list[str], AfterValidator(routes_well_formed)] = Field(
        min_length=1, description='Where it is served, best first: "endpoint:upstream model".'
    )
    policy: Literal["order", "price", "latency", "quality", "slack"] = Field(
        "order",
        description="Which route a call tries first: as they are written, the cheapest, the quickest by token of late, the best, or the "
        "cheapest that leaves the call time to spare.",
    )
    quality: Annotated[int, Field(ge=1, le=5)] | None = Field(None, description="Routes of a lower quality are not asked.")
    regions: list[str] = Field([], description="The regions that its calls must stay in; whatever fails, no other is asked.")
    prefer_regions: list[str] = Field([], description="The regions that are asked first.")
    hedge: Hedge | None = Field(
        None,
        description='How long a call may go without an answer until it is sent to a second place too; "p95" for longer than 95 % of late.',
    )
    hedge_budget: float = Field(0.05, gt=0.0, le=1.0, description="The share of calls that may be sent twice.")
    capabilities: CapabilitySettings = Field(
        CapabilitySettings(), description="What it can do, where the built-in table is wrong."
    )
    prices: PriceSettings | None = Field(None, description="What it costs, on every route.")


def local_endpoint() -> dict[str, EndpointSettings]:
    return {"local": EndpointSettings(kind="local")}


class AnswerSettings(Section):
    """Answers that need not be bought twice; with a Redis queue they are in Redis."""

    path: str = Field(".ziggurat/answers.db", description="The file of the journal and the cache.")
    journal: bool = Field(
        True, description="Note each answer, so that a worker which takes over from one that was killed does not buy it again."
    )


class ResidencySettings(Section):
    """Where the prompts of somebody may go: to endpoints of these regions and nowhere else, whatever fails."""

    tenants: dict[str, list[str]] = Field(
        {}, description='Regions that a tenant\'s calls must stay in, by namespace; "*" for each that is not named.'
    )
    workflows: dict[str, list[str]] = Field(
        {}, description="Regions that the calls of a workflow's runs must stay in, by its name."
    )


class InferenceSettings(Section):
    """Layer 4: models. The endpoint "local" always exists; "gmi", "openai", "deepseek" and "openrouter" do where their key is set, in
    GMI_API_KEY, OPENAI_API_KEY, DEEPSEEK_API_KEY and OPENROUTER_API_KEY."""

    endpoints: dict[str, EndpointSettings] = Field({}, description="Places that serve models, by name.")
    budgets: BudgetSettings = Field(BudgetSettings(), description="What may be spent.")
    limits: SharingSettings = Field(SharingSettings(), description="How limits are shared.")
    residency: ResidencySettings = Field(ResidencySettings(), description="Where prompts may go.")
    ledger: str = Field(
        ".ziggurat/ledger.db",
        description="The file of model calls that no run makes; those of runs are in the state file. `ziggurat costs` reads both.",
    )
    batches: BatchSettings = Field(BatchSettings(), description="Calls that may wait.")
    answers: AnswerSettings = Field(AnswerSettings(), description="What need not be bought twice.")
    switches: str = Field(
        ".ziggurat/models.json",
        description="The file in which `ziggurat models set` points aliases elsewhere; with a Redis queue they are in Redis instead.",
    )
    models: dict[str, ModelSettings] = Field(
        {}, description='Aliases, by name; "default" and "fast" mean the local model unless named.'
    )


#: What exists without being written: endpoints by the variable that makes them exist, and aliases.
BUILT_IN_ENDPOINTS: Mapping[str, tuple[str, str]] = {
    "gmi": ("GMI_API_KEY", "https://api.gmi-serving.com/v1"),
    "openai": ("OPENAI_API_KEY", "https://api.openai.com/v1"),
    "deepseek": ("DEEPSEEK_API_KEY", "https://api.deepseek.com/v1"),
    "openrouter": ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1"),
}
BUILT_IN_ALIASES = ("default", "fast")
LOCAL_ROUTE = "local:smollm2"
