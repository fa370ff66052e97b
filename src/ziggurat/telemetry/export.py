"""Sets tracing up: from the settings and the OTEL_* variables to a provider that sends spans by OTLP over HTTP.

A provider that the program has set already (`opentelemetry.trace.set_tracer_provider`, or `opentelemetry-instrument`) is used as it is:
where its spans go is the program's choice. Otherwise the SDK's provider is made with a batch processor, which sends from a thread of its
own, and is made known to the whole process, so that the spans of tasks go the same way.

What cannot be sent is dropped, counted and said once, until sending works again; a run never waits for it. The SDK's and the exporter's own
words about it, one for every batch, are kept back.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ziggurat.errors import MissingExtra
from ziggurat.settings import Secret, TelemetrySettings
from ziggurat.telemetry import events, tracing
from ziggurat.telemetry.catalogue import METRICS, SPANS_LOST

#: Seconds that a process waits at its end for spans to be sent; while sending fails, it does not wait.
FLUSH_LIMIT = 3.0
#: Seconds for one request to the endpoint, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise.
REQUEST_LIMIT = 5.0
#: Seconds for which spans are gathered, unless OTEL_BSP_SCHEDULE_DELAY says otherwise: what a process that is killed loses. The SDK takes
#: five.
GATHER = 1.0
_PATH = "/v1/traces"
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
#: Who speaks of every batch that could not be sent.
_LOUD = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "urllib3.connectionpool",
)

_exporting = threading.local()
_sending: _Sending | None = None
METRICS.failed = lambda metric, error: events.READER_FAILED(metric=metric, error=f"{type(error).__name__}: {error}")


def wanted(settings: TelemetrySettings, environ: Mapping[str, str] | None = None) -> bool:
    """Say whether runs are to be traced."""
    environ = os.environ if environ is None else environ
    if settings.enabled is not None:
        return settings.enabled
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return bool(settings.endpoint or any(environ.get(name) for name in _VARIABLES))


def ratio(settings: TelemetrySettings, environ: Mapping[str, str] | None = None) -> float:
    """Return the share of runs to trace: the setting, or what OTEL_TRACES_SAMPLER and its argument mean."""
    environ = os.environ if environ is None else environ
    if settings.sample is not None:
        return settings.sample
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().removeprefix("parentbased_")
    if sampler == "always_off":
        return 0.0
    if sampler == "traceidratio":
        try:
            return min(1.0, max(0.0, float(environ.get("OTEL_TRACES_SAMPLER_ARG", ""))))
        except ValueError:
            return 1.0
    return 1.0


def set_up(settings: TelemetrySettings) -> None:
    """Turn tracing on for this process if the settings want it, once; a second call changes nothing.

    Raises MissingExtra if the settings ask for it in so many words and the extra is not installed, SettingsError if the variable of a
    header is not set.
    """
    if tracing.current is not None or not wanted(settings):
        return
    try:
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            provider = _provider(settings)
            trace.set_tracer_provider(provider)
    except ImportError as error:
        if settings.enabled:
            raise MissingExtra("Tracing", "telemetry") from error
        events.TRACES_NOT_INSTALLED()
        return
    tracing.use(tracing.Tracing(provider.get_tracer("ziggurat", _version()), ratio=ratio(settings), content=settings.content))


def flush(limit: float = FLUSH_LIMIT) -> None:
    """Send what has gathered, waiting at most `limit` seconds. Blocks; raises nothing."""
    if _sending is not None:
        _sending.flush(limit)


def shut_down() -> None:
    """Send what has gathered and turn tracing off, in bounded time."""
    global _sending
    tracing.use(None)
    sending, _sending = _sending, None
    if sending is not None:
        sending.flush(FLUSH_LIMIT)
        sending.end()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ziggurat-agents")
    except PackageNotFoundError:
        return ""


def _provider(settings: TelemetrySettings) -> Any:
    global _sending
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    exporter = OTLPSpanExporter(
        endpoint=_endpoint(settings) or None,
        headers={name: _plain(value) for name, value in settings.headers.items()} or None,
        timeout=None if _has_timeout() else REQUEST_LIMIT,
    )
    attributes = {"service.instance.id": f"{socket.gethostname()}-{os.getpid()}", "service.version": _version()}
    if settings.service or not os.environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = settings.service or _named_resource() or "ziggurat"
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(ratio(settings)), resource=Resource.create(attributes), shutdown_on_exit=False
    )
    shown = shown_endpoint(settings)
    sending = _Sending(exporter, shown)
    delay = None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else GATHER * 1000
    sending.processor = BatchSpanProcessor(sending, schedule_delay_millis=delay)  # type: ignore[arg-type]
    provider.add_span_processor(sending.processor)
    _sending = sending
    _hush()
    atexit.register(shut_down)
    events.TRACES_ON(endpoint=shown)
    return provider


def _endpoint(settings: TelemetrySettings) -> str:
    if not settings.endpoint:
        return ""
    return settings.endpoint if settings.endpoint.endswith(_PATH) else settings.endpoint + _PATH


def shown_endpoint(settings: TelemetrySettings) -> str:
    """Return where spans go, without a name, password or query, which may be secrets."""
    url = settings.endpoint or next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), "http://localhost:4318")
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _plain(value: str | Secret) -> str:
    return value.resolve() if isinstance(value, Secret) else value


def _has_timeout() -> bool:
    return any(os.environ.get(name) for name in ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"))


def _named_resource() -> str:
    """Return the service name that OTEL_RESOURCE_ATTRIBUTES holds, which a name of ours must not hide."""
    pairs = (pair.partition("=") for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    return next((value.strip() for name, _, value in pairs if name.strip() == "service.name"), "")


class _Sending:
    """An exporter (as `opentelemetry.sdk.trace.export.SpanExporter`) around the one that sends: it says once what is wrong."""

    def __init__(self, exporter: Any, endpoint: str) -> None:
        self._exporter, self._endpoint = exporter, endpoint
        self.processor: Any = None
        self._failing = False
        self._lost = 0
        #: What is wrong with the sending that is under way.
        self.why = ""

    def export(self, spans: Sequence[Any]) -> Any:
        _exporting.by = self
        self.why = ""
        try:
            result = self._exporter.export(spans)
            sent = getattr(result, "name", "") == "SUCCESS"
        except Exception as error:
            result, sent = None, False
            self.why = f"{type(error).__name__}: {error}"
        finally:
            _exporting.by = None
        if sent:
            if self._failing:
                events.EXPORT_WORKS(endpoint=self._endpoint, spans=self._lost)
            self._failing, self._lost, self.why = False, 0, ""
            return result
        self.lost(len(spans), self.why or "the endpoint refused them")
        return result

    def lost(self, spans: int, why: str) -> None:
        """Count spans that are dropped, and say so if it is the first time since sending worked."""
        SPANS_LOST.inc(spans)
        self._lost += spans
        if not self._failing:
            self._failing = True
            events.EXPORT_FAILED(endpoint=self._endpoint, error=why[:300])

    def flush(self, limit: float) -> None:
        """Send what has gathered, in a thread, because the SDK's own flush knows no limit."""
        flushing = threading.Thread(target=self.processor.force_flush, name="ziggurat-spans", daemon=True)
        flushing.start()
        began = time.monotonic()
        # While sending fails nobody waits for its retries; one attempt may show that it works again.
        while flushing.is_alive() and time.monotonic() - began < (min(limit, 0.3) if self._failing or self.why else limit):
            flushing.join(0.05)
        if flushing.is_alive() and not self._failing:
            self.lost(0, self.why or f"no answer within {limit:g} s at the end of the process")

    def end(self) -> None:
        """Stop for good. The exporter first: it may be waiting to try again."""
        _exporting.by = self
        self._exporter.shutdown()
        _exporting.by = None
        threading.Thread(target=self.processor.shutdown, args=(), daemon=True).start()

    def shutdown(self) -> None:
        """Called by the processor at its end; `end` has done it."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Called by the SDK; nothing gathers here."""
        return True


class _Hush(logging.Filter):
    """Keeps back what is said about batches, and takes its words for the one time that we say it."""

    def filter(self, record: logging.LogRecord) -> bool:
        sending: _Sending | None = getattr(_exporting, "by", None)
        if sending is not None:
            if record.levelno >= logging.WARNING and not sending.why:
                sending.why = _cause(record)
            return False
        if record.name == "opentelemetry.sdk._shared_internal":
            if _sending is not None and "dropping" in str(record.msg):
                _sending.lost(1, "more spans than can be sent")
            return False
        return True


def _cause(record: logging.LogRecord) -> str:
    """Return what the exporter's words are about: a status, or what the system said, without URLs, which may hold secrets."""
    text = record.getMessage()
    if found := re.search(r"batch code: (\d+)", text):
        return f"it answered with status {found[1]}"
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return found[1].lower()
    if "timed out" in text or "Timeout" in text:
        return "it does not answer in time"
    return text.partition(" with url")[0]


def _hush() -> None:
    for name in _LOUD:
        logger = logging.getLogger(name)
        if not any(isinstance(there, _Hush) for there in logger.filters):
            # First, so that the SDK's filter against repetition does not keep drops from being counted.
            logger.filters.insert(0, _Hush())
