"""Whether the program as it is still fits a history on Temporal: Temporal's own Replayer, with our machine inside."""

from __future__ import annotations

import msgspec
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.worker import Replayer

from ziggurat.artifacts import Payloads
from ziggurat.orchestrator.embedded import guard
from ziggurat.orchestrator.recording import Recording
from ziggurat.orchestrator.temporal.carriage import Carriage
from ziggurat.orchestrator.temporal.commands import Placement
from ziggurat.orchestrator.temporal.options import TemporalOptions
from ziggurat.orchestrator.temporal.program import Surroundings
from ziggurat.orchestrator.temporal.reading import Reading
from ziggurat.orchestrator.temporal.runner import AnyWorkflow, MachineRunner
from ziggurat.program.registry import Registry
from ziggurat.queues.temporal_link import quiet_runtime


async def replay(recording: Recording, registry: Registry, payloads: Payloads) -> str:
    """Return how the program contradicts the history, as a sentence without its end, or "" if it fits."""
    assert recording.temporal is not None
    history = WorkflowHistory.from_json(recording.run.id, msgspec.json.decode(recording.temporal))
    parked: list[str] = []
    options = TemporalOptions()
    surroundings = Surroundings(
        registry=registry,
        place=Placement(),
        payloads=payloads,
        history_suggest=options.history_suggest,
        history_limit=10**9,
        show=lambda run, kind, data: None,
        parked=lambda run, why: parked.append(why),
    )
    runner = MachineRunner(surroundings)
    replayer = Replayer(
        workflows=[AnyWorkflow],
        workflow_runner=runner,
        unsandboxed_workflow_runner=runner,
        data_converter=DataConverter(payload_codec=Carriage(payloads)),
        runtime=quiet_runtime(),
    )
    guard.install()
    try:
        result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    finally:
        runner.close()
        guard.uninstall()
    if parked:
        return parked[0].rstrip(".")
    if result.replay_failure is None:
        return ""
    return in_our_words(str(result.replay_failure), list(history.events))


def in_our_words(message: str, events: list[HistoryEvent]) -> str:
    """Return what the SDK says of a contradiction, with the step of the program that it is about."""
    reading = Reading(None)
    for event in events:
        reading.feed(event)
    return reading.explain(message).rstrip(".")
