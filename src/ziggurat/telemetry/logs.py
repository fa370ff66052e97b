"""How log lines look: one JSON object a line for machines, with the fields of the event and the span that it happened in."""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec

from ziggurat.telemetry import tracing

#: Characters of a traceback; its end says most.
TRACEBACK_LENGTH = 8_000


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON.

        {"time": "2026-11-26T06:30:00.123456Z", "level": "warning", "event": "worker.lease_lost", "text": "The lease of …",
         "logger": "ziggurat.worker", "run": "…", "trace_id": "…", "span_id": "…"}

    A record that is no event of the catalogue has no `event` and no fields. An exception is `error`, with `type` and `traceback`.
    """

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower()}
        if event := getattr(record, "event", None):
            line["event"] = event
        line["text"] = record.getMessage()
        line["logger"] = record.name
        for field, value in (getattr(record, "fields", None) or {}).items():
            # The line's own keys are not to be overwritten by a field of the same name.
            line.setdefault(field, value if isinstance(value, (str, int, float, bool, type(None))) else str(value))
        place = tracing.current.here() if tracing.current is not None else None
        if place is not None:
            line["trace_id"], line["span_id"] = f"{place.trace:032x}", f"{place.span:016x}"
        if record.exc_info and record.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*record.exc_info))
            line["exception"] = {"type": record.exc_info[0].__qualname__, "traceback": text[-TRACEBACK_LENGTH:]}
        return _encode(line)


def _encode(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except UnicodeEncodeError:
        # Lone surrogates, as in undecodable file names, are no JSON.
        return msgspec.json.encode(_printable(line)).decode()


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in value.items()}
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
