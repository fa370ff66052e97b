"""The settings of telemetry: traces, metrics and logs."""

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
    metrics: bool = Field(
        True,
        description="Let every worker process serve /metrics, /healthz and /readyz on a port of its own, any free one without "
        "`--health-port`, and name it in `ziggurat workers` and `GET /metrics/targets`. Where queues cannot show workers, only "
        "`--health-port` does.",
    )
    metrics_host: str = Field(
        "127.0.0.1",
        description="The address of such ports, and of `--health-port`; 0.0.0.0 for probes and a Prometheus elsewhere. "
        "No key is asked for.",
    )
    logs: Annotated[Literal["text", "json"], Shown('"text" \\| "json"')] = Field(
        "text", description="How processes that stay write their logs."
    )
