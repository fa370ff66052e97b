"""The shapes of the HTTP API and of its client, beside the records that they carry."""

from __future__ import annotations

import msgspec

from ziggurat.doors.api import shapes
from ziggurat.orchestrator.http.wire import WireEvent
from ziggurat.records import CallRecord, Event, Usage

CALL = CallRecord(
    id="c1",
    model="fast",
    endpoint="gmi",
    upstream="m",
    usage=Usage(1, 10, 5, 2, 1, 0.25, 3),
    price_version="v1",
    started_at=1.7e9,
    latency=1.5,
    first_token=0.5,
    switch=7,
    status="unanswered",
    held_usd=0.125,
    replica="http://gpu-1:8000/v1",
    hedge=True,
)


def test_a_call_of_the_ledger_comes_over_the_wire_with_all_that_it_holds() -> None:
    known = Event(seq=3, kind="step_completed", at=1.7e9, step=1, calls=[CALL])
    body = shapes.event_of(known).model_dump_json().encode()
    assert msgspec.json.decode(body, type=WireEvent).record().calls == [CALL]
    # A field that is added to the record and forgotten here would be lost in silence.
    assert set(CallRecord.__struct_fields__) == set(shapes.Call.model_fields)
