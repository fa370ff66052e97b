"""Replays of recorded runs against the code as it is, whoever kept the histories."""

from __future__ import annotations

from ziggurat.artifacts import Payloads
from ziggurat.errors import MissingExtra
from ziggurat.orchestrator.embedded.replaying import replay
from ziggurat.orchestrator.recording import Recording, read_recording
from ziggurat.program.registry import Registry


async def check_recording(recording: Recording, registry: Registry, payloads: Payloads) -> str:
    """Return how the program contradicts a recorded history, or "" if it fits. Raises MissingExtra."""
    if recording.temporal is None:
        return replay(recording, registry, payloads)
    try:
        from ziggurat.orchestrator.temporal.replaying import replay as replay_on_temporal
    except ModuleNotFoundError as error:
        raise MissingExtra("A history that Temporal kept", "temporal") from error
    return await replay_on_temporal(recording, registry, payloads)


__all__ = ["Recording", "check_recording", "read_recording"]
