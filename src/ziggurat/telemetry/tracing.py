"""Spans, told to whatever OpenTelemetry provider the process has. This module needs opentelemetry-api only, and only once tracing is on.

    current          the process's tracing, or None: then nothing below costs more than looking
    emit             a span that is over, with the id that it must have
    begin ─▶ Live    a span that is under way; the code that runs in it sees it as the current span, so its own instrumentation nests

Who tells of what: the orchestrator of runs and steps, when their events are on the disk; workers of attempts and of the wait before them;
inference of model calls. A span may be lost with its process; its children then name a parent that never came, and the trace stays one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from ziggurat.telemetry.ids import Place, parse

Attribute = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Attribute]
Kind = Literal["internal", "consumer", "client", "server"]

#: The tracing of this process; None while it is off.
current: Tracing | None = None


def use(tracing: Tracing | None) -> None:
    """Make this the tracing of the process; None turns it off."""
    global current
    current = tracing


def caller() -> str:
    """Return the traceparent of the calling context's span, for what is started from here; empty if there is none."""
    # Also where Ziggurat itself does not trace, such as in a web server that starts runs elsewhere.
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return ""
    found = api.get_current_span().get_span_context()
    return Place(found.trace_id, found.span_id, bool(found.trace_flags.sampled)).header() if found.is_valid else ""


@contextmanager
def within(header: str | None) -> Iterator[None]:
    """Make the span that a traceparent header names the current one, for a door that serves somebody else's call."""
    place = parse(header) if current is not None and header else None
    if current is None or place is None:
        yield
        return
    span = current.resume(place)
    token = span.enter()
    try:
        yield
    finally:
        span.leave(token)


def reason(kind: str, text: str) -> str:
    """Return why something failed, for a span: the error's class, and its text only where content may be recorded.

    The text of an exception often quotes what it could not use: a document, a model's answer, a row of somebody's data.
    """
    return f"{kind}: {text}" if current is not None and current.content else kind


class Live:
    """A span that is under way."""

    __slots__ = ("_span", "_tracing", "context", "place")

    def __init__(self, tracing: Tracing, span: Any, context: Any, place: Place) -> None:
        self._tracing, self._span, self.context, self.place = tracing, span, context, place

    def enter(self) -> Any:
        """Make it the current span of the calling context; returns what `leave` takes."""
        return self._tracing.attach(self.context)

    def leave(self, token: Any) -> None:
        """Make the span before it the current one."""
        self._tracing.detach(token)

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def name(self, name: str) -> None:
        """Give it another name."""
        self._span.update_name(name)

    def end(self, at: float, error: str | None = None) -> None:
        """End it, as failed with `error` as the reason if that is not None."""
        if error is not None:
            self._span.set_status(self._tracing.failed(error))
        self._span.end(_ns(at))


class Tracing:
    """Makes spans.

    Args:
        tracer: of a provider, as `opentelemetry.trace.get_tracer` returns it.
        ratio: the share of runs that are traced; decided by the trace id, so every process decides alike.
        content: True records what models were asked and answered.
    """

    def __init__(self, tracer: Any, *, ratio: float = 1.0, content: bool = False) -> None:
        from opentelemetry import context, trace

        self._trace, self._context = trace, context
        self._bound = round(ratio * (1 << 64))
        self.content = content
        self.attach, self.detach = context.attach, context.detach
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "consumer": trace.SpanKind.CONSUMER,
            "client": trace.SpanKind.CLIENT,
            "server": trace.SpanKind.SERVER,
        }
        self._tracer = tracer
        self._preset: _Preset | None = None
        if hasattr(tracer, "id_generator"):
            # The SDK's tracer. A tracer of another make gives spans ids of its own; the trace is one all the same.
            self._preset = tracer.id_generator = _Preset(getattr(tracer.id_generator, "inner", tracer.id_generator))

    def samples(self, trace: int) -> bool:
        """Say whether a trace that begins here is recorded: the rule of the SDK's TraceIdRatioBased."""
        return trace & 0xFFFF_FFFF_FFFF_FFFF < self._bound

    def emit(
        self,
        name: str,
        *,
        place: Place,
        parent: Place | None,
        start: float,
        end: float,
        attributes: Attributes,
        kind: Kind = "internal",
        error: str | None = None,
        links: Sequence[Place] = (),
        moments: Mapping[str, float] | None = None,
    ) -> None:
        """Tell of a span that is over.

        Args:
            place: its own place; a span id of 0 lets the provider choose one.
            parent: None for the root of a trace.
            error: why it failed; None if it did not.
            links: other spans that it has to do with.
            moments: what happened in it, and when.
        """
        if not place.sampled:
            return
        if self._preset is not None:
            self._preset.next(place.trace, place.span)
        try:
            span = self._tracer.start_span(
                name,
                context=self._parent(parent),
                kind=self._kinds[kind],
                attributes=attributes,
                links=[self._trace.Link(self._span_context(link)) for link in links],
                start_time=_ns(start),
            )
        finally:
            if self._preset is not None:
                self._preset.next(0, 0)
        for moment, at in (moments or {}).items():
            span.add_event(moment, timestamp=_ns(at))
        if error is not None:
            span.set_status(self.failed(error))
        # Clocks of two machines may differ; a span that ends before it begins is refused by some backends.
        span.end(_ns(max(start, end)))

    def begin(self, name: str, *, parent: Place | None, start: float, attributes: Attributes, kind: Kind = "internal") -> Live:
        """Begin a span under a parent, or under the current span of the calling context if that is None."""
        if parent is not None and not parent.sampled:
            span = self._trace.NonRecordingSpan(self._span_context(parent))
        else:
            span = self._tracer.start_span(
                name,
                context=None if parent is None else self._parent(parent),
                kind=self._kinds[kind],
                attributes=attributes,
                start_time=_ns(start),
            )
        found = span.get_span_context()
        place = Place(found.trace_id, found.span_id, found.trace_flags.sampled)
        return Live(self, span, self._trace.set_span_in_context(span, self._context.get_current()), place)

    def resume(self, place: Place) -> Live:
        """Return a span of another process, for code that goes on inside it here."""
        span = self._trace.NonRecordingSpan(self._span_context(place))
        return Live(self, span, self._trace.set_span_in_context(span, self._context.get_current()), place)

    def here(self) -> Place | None:
        """Return the place of the calling context's current span, or None."""
        found = self._trace.get_current_span().get_span_context()
        return Place(found.trace_id, found.span_id, found.trace_flags.sampled) if found.is_valid else None

    def failed(self, why: str) -> Any:
        """Return the status of a span that failed."""
        return self._trace.Status(self._trace.StatusCode.ERROR, why)

    def _span_context(self, place: Place) -> Any:
        flags = self._trace.TraceFlags(1 if place.sampled else 0)
        return self._trace.SpanContext(place.trace, place.span, True, flags)

    def _parent(self, parent: Place | None) -> Any:
        empty = self._context.Context()
        if parent is None:
            return empty
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(self._span_context(parent)), empty)


class _Preset:
    """An id generator (as `opentelemetry.sdk.trace.id_generator.IdGenerator`) that gives the next span the ids that it must have."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self._next = threading.local()

    def next(self, trace: int, span: int) -> None:
        """Set the ids of the next span that this thread starts; 0 leaves them to the generator before this one."""
        self._next.trace, self._next.span = trace, span

    def generate_trace_id(self) -> int:
        return getattr(self._next, "trace", 0) or int(self.inner.generate_trace_id())

    def generate_span_id(self) -> int:
        return getattr(self._next, "span", 0) or int(self.inner.generate_span_id())

    def is_trace_id_random(self) -> bool:
        """A hash is as good as chance for whoever samples by it."""
        return True


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
