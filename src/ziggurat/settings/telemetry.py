"""The settings of telemetry: traces and logs. Metrics need none."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ziggurat.settings.types import PlainOrSecret, Section, Shown, endpoint_url, headers_without_secrets


class TelemetrySettings(Section):
    """What the system says of itself. Traces need the extra "telemetry"; logs and metrics need nothing."""

    enabled: bool | None = Field(
        None,
        description="Trace runs. Without it: if `endpoint` or OTEL_EXPORTER_OTLP_ENDPOINT is set, and OTEL_SDK_DISABLED is not.",
    )
    endpoint: Annotated[str, AfterValidator(endpoint_url)] = Field(
        "",
        description="Where traces go, by OTLP over HTTP: the URL before /v1/traces; that of OTEL_EXPORTER_OTLP_ENDPOINT by default.",
    )
    headers: Annotated[dict[str, PlainOrSecret], AfterValidator(headers_without_secrets)] = Field(
        {}, description="Headers sent with traces, such as the key of a provider."
    )
    service: str = Field("", description='The name of this system in traces; OTEL_SERVICE_NAME, or "ziggurat", by default.')
    sample: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="The share of runs that are traced; that of OTEL_TRACES_SAMPLER_ARG, or all, by default."
    )
    content: bool = Field(False, description="Record in traces what models were asked and what they answered.")
    logs: Annotated[Literal["text", "json"], Shown('"text" \\| "json"')] = Field(
        "text", description="How processes that stay write their logs."
    )
