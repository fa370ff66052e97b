"""What a run shows of itself on Temporal: its state and whether it is held, in its memo, and what it cost, to be searched by."""

from __future__ import annotations

from msgspec import Raw
from temporalio.bridge.proto.workflow_commands.workflow_commands_pb2 import WorkflowCommand

from ziggurat.orchestrator.temporal import wire
from ziggurat.orchestrator.temporal.commands import keep_memo, keep_searchable
from ziggurat.orchestrator.temporal.wire import Held, Origin


class Told:
    """What was shown last, so that only changes become commands."""

    def __init__(self, origin: Origin) -> None:
        self.held = Held()
        self._searchable = origin.about.searchable
        self._state, self._cost = origin.state, origin.carried.cost_usd

    def changes(self, held: Held, state: Raw | None, cost_usd: float) -> list[WorkflowCommand]:
        """Return the commands that show what changed."""
        made: list[WorkflowCommand] = []
        if held != self.held:
            self.held = held
            made.append(keep_memo(**{wire.HELD_KEY: wire.record_payload(held)}))
            if self._searchable:
                made.append(keep_searchable(**{wire.SEARCH_STATUS: wire.search_payload(held.status or "running", "Keyword")}))
        if state is not None and state != self._state:
            self._state = state
            made.append(keep_memo(**{wire.STATE_KEY: wire.json_payload(state)}))
        if self._searchable and cost_usd != self._cost:
            self._cost = cost_usd
            made.append(keep_searchable(**{wire.SEARCH_COST: wire.search_payload(cost_usd, "Double")}))
        return made
