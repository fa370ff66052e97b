"""A collector on loopback: takes spans by OTLP over HTTP, as protobuf, and hands them out as they were told."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


@dataclass(frozen=True)
class Span:
    """A span as it arrived. Times are nanoseconds."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start: int
    end: int
    attributes: dict[str, Any]
    #: The status code (2 is an error) and its text.
    status: int
    why: str
    events: dict[str, int]
    links: list[tuple[str, str]]
    #: Of the process that told it.
    resource: dict[str, Any]
    scope: str


@dataclass
class Collector:
    """What arrived."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: int = 0
    #: What to answer instead of taking spans.
    refuse: int = 0

    def named(self, name: str) -> list[Span]:
        """Return the spans of a name, oldest first."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    def one(self, name: str) -> Span:
        """Return the only span of a name."""
        found = self.named(name)
        assert len(found) == 1, f"{len(found)} spans are named {name!r}; there are {sorted({span.name for span in self.spans})}"
        return found[0]

    def children(self, span: Span) -> list[Span]:
        """Return the spans directly below one, oldest first."""
        return sorted((s for s in self.spans if s.parent == span.id and s.trace == span.trace), key=lambda s: s.start)

    def tree(self, span: Span, depth: int = 0) -> str:
        """Return a span and what is below it as text, for people who read why a test failed."""
        lines = ["  " * depth + span.name]
        return "\n".join([*lines, *(self.tree(child, depth + 1) for child in self.children(span))])


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector while the block runs."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.requests += 1
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if collector.refuse or self.path != "/v1/traces":
                self.send_response(collector.refuse or 404)
                self.end_headers()
                return
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    kind=span.kind,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    status=span.status.code,
                    why=span.status.message,
                    events={event.name: event.time_unix_nano for event in span.events},
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    resource=about,
                    scope=scope.scope.name,
                )


def _attributes(found: Any) -> dict[str, Any]:
    values = {}
    for pair in found:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        values[pair.key] = [getattr(v, v.WhichOneof("value")) for v in value.values] if kind == "array_value" else value
    return values
