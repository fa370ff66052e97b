"""The settings: one table of models, read from ziggurat.toml and from ZIGGURAT_SECTION__KEY variables, and the source of its own reference.

A variable wins over the file, the file over the defaults. Without either, the system runs embedded: state in .ziggurat/state.db, a queue
in memory, one pool of workers in this process, and a small local model. Relative paths are relative to the file's folder.

Secrets are never written down. Where one is due, the file holds "env:NAME"; the variable is read when the secret is used, and what is
kept, printed and logged is the name.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from ziggurat import units
from ziggurat.errors import ConfigurationError, SettingsError

FILE_NAME = "ziggurat.toml"
PREFIX = "ZIGGURAT_"
#: Names the settings file when no path is given.
FILE_VARIABLE = "ZIGGURAT_CONFIG"

ORCHESTRATORS = ("embedded", "temporal")
QUEUES = ("memory", "sqlite", "redis", "rabbitmq", "sqs", "cloud-tasks", "temporal")
ENDPOINT_KINDS = ("openai", "local", "scripted")


class Secret:
    """A secret that lives in an environment variable. Only its name is ever held, compared or shown."""

    __slots__ = ("variable",)

    def __init__(self, variable: str) -> None:
        self.variable = variable

    def resolve(self, environ: Mapping[str, str] | None = None) -> str:
        """Return the secret itself. Raises SettingsError if the variable is not set."""
        value = (os.environ if environ is None else environ).get(self.variable, "")
        if not value:
            raise SettingsError(
                f"The environment variable {self.variable} is not set, and the settings take a secret from it; set it."
            )
        return value

    def present(self, environ: Mapping[str, str] | None = None) -> bool:
        """Say whether the variable is set."""
        return bool((os.environ if environ is None else environ).get(self.variable))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.variable == self.variable

    def __hash__(self) -> int:
        return hash(self.variable)

    def __repr__(self) -> str:
        return f"Secret(env:{self.variable})"

    __str__ = __repr__


# -- the types of the table -----------------------------------------------------------------------------------------


def _read_with(reader: Any, shown: str) -> Any:
    """A pydantic type whose values are read by one of `units`; `shown` is its name in the reference."""

    def read(value: Any) -> Any:
        try:
            return reader(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error

    return [BeforeValidator(read), Shown(shown)]


class Shown(str):
    """How the reference names a type."""

    __slots__ = ()


VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")


def _secret(value: Any) -> Any:
    if isinstance(value, Secret):
        return value
    match = VARIABLE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('a secret is never written here; put it into an environment variable and write "env:NAME"')
    return Secret(match.group(1))


def _secret_or_plain(value: Any) -> Any:
    match = VARIABLE.fullmatch(value) if isinstance(value, str) else None
    return Secret(match.group(1)) if match else value


def _url(value: Any) -> Any:
    """Read a URL, or the variable that holds one. A password inside would be a secret on disk."""
    value = _secret_or_plain(value)
    if isinstance(value, str) and "://" in value and urlsplit(value).password:
        raise ValueError('it holds a password; put the whole URL into an environment variable and write "env:NAME"')
    return value


def _headers(value: dict[str, Any]) -> dict[str, Any]:
    for name, content in value.items():
        if re.search(r"authorization|api-?key|token|secret|cookie", name, re.IGNORECASE) and not isinstance(content, Secret):
            raise ValueError(f'the header {name!r} is a secret; put it into an environment variable and write "env:NAME"')
    return value


def _backend(known: tuple[str, ...]) -> Any:
    """A backend's name, or "package.module:factory" for one that is not part of Ziggurat."""

    def check(value: str) -> str:
        if value in known or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            return value
        raise ValueError(f"it is {value!r} and must be one of: {', '.join(known)}.{did_you_mean(value, known)}")

    return [AfterValidator(check), Shown(" \\| ".join(f'"{name}"' for name in known) + ' \\| "module:factory"')]


def _endpoint_url(value: str) -> str:
    if value and not re.match(r"https?://[^/\s]+", value):
        raise ValueError(f"it is {value!r} and must be a URL such as https://api.example.com/v1")
    return value.rstrip("/")


def _routes(value: list[str]) -> list[str]:
    for route in value:
        endpoint, _, upstream = route.partition(":")
        if not endpoint or not upstream:
            raise ValueError(
                f'the route {route!r} must name an endpoint and its model, such as "gmi:deepseek-ai/DeepSeek-V4-Pro"'
            )
    return value


Seconds = Annotated[float, *_read_with(units.seconds, "duration")]
Bytes = Annotated[int, *_read_with(units.size, "size")]
Dollars = Annotated[float, *_read_with(units.dollars, "US dollars")]
SecretValue = Annotated[Secret, BeforeValidator(_secret), Shown('"env:NAME"')]
PlainOrSecret = Annotated[str | Secret, BeforeValidator(_secret_or_plain), Shown('string \\| "env:NAME"')]
Url = Annotated[str | Secret, BeforeValidator(_url), Shown('URL \\| "env:NAME"')]
OrchestratorBackend = Annotated[str, *_backend(ORCHESTRATORS)]
QueueBackend = Annotated[str, *_backend(QUEUES)]
EndpointKind = Annotated[str, *_backend(ENDPOINT_KINDS)]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of the file. Unknown keys are mistakes; values have their own types, numbers are not written as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True)


# -- the table ------------------------------------------------------------------------------------------------------


class AppSettings(Section):
    """The program."""

    modules: list[str] = Field([], description="Modules that define the tasks and workflows; they are imported at start.")
    namespace: str = Field("default", description="The tenant that new runs belong to.")


class OrchestratorSettings(Section):
    """Layer 1: who keeps the runs."""

    backend: OrchestratorBackend = Field("embedded", description="Who keeps the runs.")
    path: str = Field(".ziggurat/state.db", description="The state file of the embedded engine.")
    url: Url = Field("localhost:7233", description="The address of the Temporal server.")
    history_limit: Positive = Field(
        50_000, description="Events after which a run is parked instead of growing; it should continue as new before."
    )
    max_resident_runs: Positive = Field(10_000, description="Waiting runs kept in memory; more are evicted and replayed on wake.")
    retention: Seconds | None = Field(None, description="How long ended runs are kept; without it, until `ziggurat purge`.")
    payload_limit: Bytes = Field(8 * 1024 * 1024, description="Largest arguments or result, as JSON.")


class QueueSettings(Section):
    """Layer 2: what carries tasks to workers."""

    backend: QueueBackend = Field("memory", description="What carries tasks to workers.")
    url: Url | None = Field(None, description="The broker's address, for backends that have a server.")
    path: str = Field(".ziggurat/queue.db", description="The file of the sqlite backend.")
    lease: Seconds = Field(
        30.0, description="How long a delivery is leased before it must be renewed; independent of how long tasks take."
    )
    max_deliveries: Positive = Field(5, description="Deliveries without an outcome after which a message is a dead letter.")
    capacity: Positive = Field(1_000_000, description="Messages that a lane holds before it refuses more.")


class WorkerSettings(Section):
    """Layer 3: one pool of workers. The pool "default" exists when no other is named."""

    queues: list[str] = Field(["*"], description='Queues that the pool serves; "*" stands for all that the tasks name.')
    concurrency: Positive = Field(64, description="Tasks that one worker runs at a time.")
    min: Count = Field(0, description="Fewest workers.")
    max: Positive = Field(1, description="Most workers.")
    region: str = Field("", description="The region that the workers are in; empty for none.")
    grace: Seconds = Field(30.0, description="How long running tasks may go on after SIGTERM before they are handed back.")
    memory_ceiling: Bytes | None = Field(
        None, description="Memory at which a worker takes no more tasks, and at which a process=True attempt is ended."
    )


class LimitSettings(Section):
    """What an endpoint allows, shared by all workers."""

    requests_per_minute: Positive | None = Field(None, description="Calls that may start in a minute.")
    tokens_per_minute: Positive | None = Field(None, description="Input and output tokens in a minute.")
    concurrency: Positive | None = Field(None, description="Calls under way at a time.")


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


class CapabilitySettings(Section):
    """What a model can do, where the built-in table is wrong or silent."""

    json_schema: bool | None = Field(None, description="It can be held to a JSON schema.")
    tools: bool | None = Field(None, description="It can ask for tools.")
    context: Positive | None = Field(None, description="Tokens that input and output may have together.")


class EndpointSettings(Section):
    """Layer 4: a place that serves models."""

    kind: EndpointKind = Field(
        "openai", description="How to speak with it: the OpenAI protocol, llama.cpp in process, or a script."
    )
    base_url: Annotated[str, AfterValidator(_endpoint_url)] = Field("", description="The URL before /chat/completions.")
    api_key: SecretValue | None = Field(None, description="The variable that holds the key.")
    headers: Annotated[dict[str, PlainOrSecret], AfterValidator(_headers)] = Field(
        {}, description="Headers sent with every call."
    )
    limits: LimitSettings = Field(LimitSettings(), description="What the endpoint allows, shared by all workers.")
    timeouts: TimeoutSettings = Field(TimeoutSettings(), description="How long to wait for it.")
    prices: dict[str, PriceSettings] = Field({}, description="What its models cost, by their upstream names.")
    options: dict[str, Any] = Field({}, description="What only its kind knows; see the page of that kind.")


class ModelSettings(Section):
    """Layer 4: an alias that programs name, and where it is served."""

    routes: Annotated[list[str], AfterValidator(_routes)] = Field(
        min_length=1, description='Where it is served, best first: "endpoint:upstream model".'
    )
    capabilities: CapabilitySettings = Field(
        CapabilitySettings(), description="What it can do, where the built-in table is wrong."
    )
    prices: PriceSettings | None = Field(None, description="What it costs, on every route.")


def local_endpoint() -> dict[str, EndpointSettings]:
    return {"local": EndpointSettings(kind="local")}


class InferenceSettings(Section):
    """Layer 4: models. The endpoint "local" always exists; "gmi" and "openai" do where GMI_API_KEY and OPENAI_API_KEY are set."""

    endpoints: dict[str, EndpointSettings] = Field({}, description="Places that serve models, by name.")
    models: dict[str, ModelSettings] = Field(
        {}, description='Aliases, by name; "default" and "fast" mean the local model unless named.'
    )


class Settings(Section):
    """All settings of a system."""

    app: AppSettings = AppSettings()
    orchestrator: OrchestratorSettings = OrchestratorSettings()
    queue: QueueSettings = QueueSettings()
    workers: dict[str, WorkerSettings] = Field({}, description="Pools of workers, by name.")
    inference: InferenceSettings = InferenceSettings()

    _source: Path | None = PrivateAttr(None)

    @property
    def source(self) -> Path | None:
        """The file that was read, or None."""
        return self._source

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self._source.parent if self._source is not None else Path.cwd()

    def resolve(self, path: str) -> Path:
        """Return a path of the settings as an absolute one."""
        return (self.folder / Path(path).expanduser()).absolute()

    @property
    def state_path(self) -> Path:
        """The state file of the embedded engine."""
        return self.resolve(self.orchestrator.path)


#: What exists without being written: endpoints by the variable that makes them exist, and aliases.
BUILT_IN_ENDPOINTS: Mapping[str, tuple[str, str]] = {
    "gmi": ("GMI_API_KEY", "https://api.gmi-serving.com/v1"),
    "openai": ("OPENAI_API_KEY", "https://api.openai.com/v1"),
}
BUILT_IN_ALIASES = ("default", "fast")
LOCAL_ROUTE = "local:smollm2"


# -- the shape of the table, for those that walk it ------------------------------------------------------------------


def leaves(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the plain types that an annotation allows, each with what is attached to it; None is left out."""
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        yield from leaves(inner, [*metadata, *extra])
    elif get_origin(annotation) in (typing.Union, types.UnionType):
        for argument in get_args(annotation):
            yield from leaves(argument, metadata)
    elif annotation is not type(None):
        yield annotation, metadata


def model_of(annotation: Any) -> type[Section] | None:
    """Return the table that an annotation means, or None."""
    for leaf, _ in leaves(annotation, []):
        if isinstance(leaf, type) and issubclass(leaf, Section):
            return leaf
    return None


def value_type(annotation: Any) -> Any:
    """Return the type of the values of a dict annotation, or None."""
    for leaf, _ in leaves(annotation, []):
        if get_origin(leaf) is dict:
            return get_args(leaf)[1]
    return None


def did_you_mean(given: str, known: typing.Iterable[str]) -> str:
    """Return a sentence that suggests the nearest known name, or nothing."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
