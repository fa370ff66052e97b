"""A program on Temporal, and what is around it: what differs from the embedded engine in its own eyes."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from ziggurat.artifacts import Payloads
from ziggurat.orchestrator.embedded.execution import Execution
from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.orchestrator.temporal.commands import Placement
from ziggurat.program.context import RunInfo
from ziggurat.program.registry import Registry
from ziggurat.records import Run


class Surroundings(Struct, frozen=True, kw_only=True):
    """What machines share in a process."""

    registry: Registry
    place: Placement
    payloads: Payloads
    #: Our events after which `continue_as_new` is suggested, beside Temporal's own suggestion, and after which a run is parked.
    history_suggest: int
    history_limit: int
    #: Shows what a live program emitted: (run, kind, JSON). Called from any thread.
    show: Callable[[str, str, bytes], None]
    #: Says whether this process wants a task now, that Temporal may hand over in its answer to a run. Called from any thread.
    hungry: Callable[[], bool] = lambda: False
    #: Is told that a run is parked, and why. Called from any thread.
    parked: Callable[[str, str], None] = lambda run, why: None
    #: Is told of a step that waited for a model's answer and is wanted no more, by its idempotency key. Called from any thread.
    dropped: Callable[[str], None] | None = None

    def tell_dropped(self, run: Run, step: Step, replaying: bool) -> None:
        """Tell of a step that is wanted no more, if it waited for a model's answer."""
        if step.waiting.count and not replaying and self.dropped is not None:
            self.dropped(f"{run.id}~{run.epoch}.{step.number}")


class Parked(Exception):
    """The run cannot go on with the program as it is. The text says why."""


class Program(Execution):
    """A program on Temporal: what differs from the embedded engine is how a patch is remembered, and what a long history is."""

    #: Temporal's advice.
    continue_suggested = False

    def info(self) -> RunInfo:
        found = super().info()
        suggested = found.continue_as_new_suggested or self.continue_suggested
        return replace(found, continue_as_new_suggested=suggested)

    def patched(self, patch: str) -> bool:
        decided = self._decided.get(patch)
        if decided is None:
            # A marker in the history comes before the activation in which it was made; a replay without one took the old branch.
            decided = patch in self._known_patches or not self.replaying
            self._decided[patch] = decided
            if decided:
                # Temporal wants the marker's command in every replay, and writes the marker once.
                self.new_patches.append(patch)
        return decided

    def learn_patch(self, patch: str) -> None:
        """Take in a patch that the history has recorded."""
        self._known_patches.add(patch)
