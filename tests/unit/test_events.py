"""The catalogue of events: that everything logged is in it, that calls and catalogue agree, and how a line looks."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import ziggurat
from ziggurat.telemetry import catalogue, events, export, tracing
from ziggurat.telemetry.events import EVENTS, LogEvent
from ziggurat.telemetry.logs import JsonLines

SOURCE = Path(ziggurat.__file__).parent
NAMES = {name: value for name, value in vars(events).items() if isinstance(value, LogEvent)}


def _calls() -> Iterator[tuple[str, str, set[str]]]:
    """Every call of an event in the source: where, which, and with what fields."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "events":
                assert isinstance(node, ast.Call)
                given = {keyword.arg or "**" for keyword in node.keywords} - {"trace_of"}
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", called.attr, given


def test_every_call_gives_the_fields_of_its_event() -> None:
    wrong = [
        f"{where}: {name} takes {sorted(NAMES[name].fields)}, not {sorted(given)}"
        for where, name, given in _calls()
        if name in NAMES and given != set(NAMES[name].fields)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_event_happens_somewhere() -> None:
    assert {name for _, name, _ in _calls()} >= set(NAMES), "an event that nobody logs is no event"


def test_nothing_is_logged_past_the_catalogue() -> None:
    allowed = {SOURCE / "telemetry" / "events.py", SOURCE / "telemetry" / "export.py", SOURCE / "doors" / "cli" / "logs.py"}
    loggers = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: log an event of ziggurat.telemetry.events instead"
        for path in SOURCE.rglob("*.py")
        if path not in allowed
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "getLogger"
    ]
    assert not loggers, "\n".join(loggers)


def test_sentences_and_names_keep_their_form() -> None:
    for event in EVENTS.values():
        assert event.sentence.endswith((".", "{error}", "{explanation}")), event.name
        layer, _, what = event.name.partition(".")
        assert layer.isalpha(), event.name
        assert what.replace("_", "").isalnum(), event.name
        assert not {"payload", "result", "prompt", "answer", "input", "key", "password", "token"} & set(event.fields), event.name


# -- lines -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the logger of the system writes as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("ziggurat")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield stream
    logger.setLevel(level)


def test_a_line_is_json_with_the_fields_of_the_event(written: io.StringIO) -> None:
    events.LEASE_LOST(message="r~0.1.1", task="extract", run="r", step=1, worker="w")
    line = json.loads(written.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "worker.lease_lost",
        "message": "r~0.1.1",
        "text": "The lease of r~0.1.1 (task 'extract') is lost, so this attempt's outcome is dropped; another worker has the message.",
        "logger": "ziggurat.worker",
        "task": "extract",
        "run": "r",
        "step": 1,
        "worker": "w",
    }


def test_an_exception_is_part_of_its_line(written: io.StringIO) -> None:
    try:
        raise ValueError("with\nlines")
    except ValueError:
        events.RUN_LEFT(trace_of=True, run="r")
    (text,) = written.getvalue().splitlines()
    line = json.loads(text)
    assert line["exception"]["type"] == "ValueError"
    assert "with\nlines" in line["exception"]["traceback"]


def test_whatever_a_field_holds_the_line_is_one_line_of_json(written: io.StringIO) -> None:
    events.RUN_LEFT(run='a "quoted"\nid % {x} \udcff \x00')
    (text,) = written.getvalue().splitlines()
    assert json.loads(text)["run"].startswith('a "quoted"\nid % {x}')


def test_a_line_of_no_event_is_written_too(written: io.StringIO) -> None:
    logging.getLogger("ziggurat.plugin").warning("%d things", 3)
    line = json.loads(written.getvalue())
    assert (line["text"], line["logger"], "event" in line) == ("3 things", "ziggurat.plugin", False)


def test_a_line_names_the_span_that_it_was_written_in(written: io.StringIO) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracing.use(tracing.Tracing(TracerProvider(shutdown_on_exit=False).get_tracer("t")))
    try:
        current = tracing.current
        assert current is not None
        span = current.begin("x", parent=None, start=1.0, attributes={})
        token = span.enter()
        events.RUN_LEFT(run="r")
        span.leave(token)
    finally:
        tracing.use(None)
    line = json.loads(written.getvalue())
    assert (line["trace_id"], line["span_id"]) == (f"{span.place.trace:032x}", f"{span.place.span:016x}")


def test_warnings_are_counted_by_name(written: io.StringIO) -> None:
    before = catalogue.EVENTS.value("worker.queue_back")
    events.QUEUE_BACK(worker="w", seconds=1.0)
    assert catalogue.EVENTS.value("worker.queue_back") == before + 1


# -- sending traces --------------------------------------------------------------------------------------------------


class _Exporter:
    """An exporter that answers as it is told, and speaks as the SDK's does."""

    def __init__(self) -> None:
        self.works = True
        self.raises: Exception | None = None

    def export(self, spans: object) -> object:
        if self.raises is not None:
            raise self.raises
        if not self.works:
            logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
            logger.error("Failed to export %s batch code: %s, reason: %s", "spans", 401, "no")
        return type("Result", (), {"name": "SUCCESS" if self.works else "FAILURE"})()


def test_what_cannot_be_sent_is_said_once_and_again_when_it_can(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ziggurat.telemetry")
    export._hush()
    exporter = _Exporter()
    sending = export._Sending(exporter, "http://c:4318")
    lost = catalogue.SPANS_LOST.value()
    sending.export([1, 2])
    assert caplog.messages == []
    exporter.works = False
    sending.export([1, 2])
    sending.export([1])
    exporter.raises = OSError("no route")
    sending.export([1])
    assert caplog.messages == [
        "Traces cannot be sent to http://c:4318 now (it answered with status 401); they are dropped until they can. Runs go on."
    ]
    assert catalogue.SPANS_LOST.value() == lost + 4
    exporter.raises, exporter.works = None, True
    sending.export([1])
    assert caplog.messages[1:] == ["Traces are sent to http://c:4318 again; 4 spans were dropped."]


def test_a_metric_that_cannot_be_read_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[tuple[str, ...], float]:
        raise OSError("gone")

    stop = catalogue.RUNS_RESIDENT.watch(broken)
    try:
        with caplog.at_level(logging.WARNING, "ziggurat.telemetry"):
            assert b"process_open_fds" in catalogue.metrics_text()
    finally:
        stop()
    assert "The metric ziggurat_runs_resident cannot be read now and is left out: OSError: gone" in caplog.text
