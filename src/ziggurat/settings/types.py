"""The types that the settings are made of: durations, sizes, money, names of backends, and secrets that are never written down."""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ziggurat import units
from ziggurat.errors import ConfigurationError, SettingsError

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


def headers_without_secrets(value: dict[str, Any]) -> dict[str, Any]:
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


def endpoint_url(value: str) -> str:
    if value and not re.match(r"https?://[^/\s]+", value):
        raise ValueError(f"it is {value!r} and must be a URL such as https://api.example.com/v1")
    return value.rstrip("/")


_HOURS = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]):([0-5]\d)(?:\s+(\S+))?")


def hours_of_day(value: str) -> tuple[int, int, str]:
    """Return "22:00-06:00 Asia/Shanghai" as minutes past midnight and a time zone. Raises ValueError."""
    match = _HOURS.fullmatch(value.strip())
    if match is None:
        raise ValueError(
            f'it is {value!r} and must be hours such as "22:00-06:00 Asia/Shanghai"; without a time zone they are UTC'
        )
    zone = match[5] or "UTC"
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {zone!r}; write one such as Asia/Shanghai or UTC") from error
    return int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4]), zone


def _hours(value: str) -> str:
    if value:
        hours_of_day(value)
    return value


def routes_well_formed(value: list[str]) -> list[str]:
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
Hours = Annotated[str, AfterValidator(_hours), Shown('"HH:MM-HH:MM Time/Zone"')]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of the file. Unknown keys are mistakes; values have their own types, numbers are not written as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, hide_input_in_errors=True)


def did_you_mean(given: str, known: typing.Iterable[str]) -> str:
    """Return a sentence that suggests the nearest known name, or nothing."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
