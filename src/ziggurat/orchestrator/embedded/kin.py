"""What the driver of runs needs to know of their parents and children."""

from __future__ import annotations

from typing import Protocol

from ziggurat.orchestrator.embedded.resident import Resident
from ziggurat.orchestrator.embedded.steps import Step
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.records import Run


class Kin(Protocol):
    """What the driver needs to know of parents and children; `family.py` does it."""

    def begin_child(self, parent: Resident, step: Step) -> None:
        """Start the child run that a step asks for."""

    def tell_parent(self, child: Run, write: Write) -> None:
        """Add to the write that ends a child what its parent records of it."""

    def cancel_child(self, run_id: str, reason: str) -> None:
        """Ask a child run to stop whose parent no longer waits for it."""

    def end_parked(self, key: int, run: Run, reason: str) -> Write:
        """Return the write that ends a parked run as cancelled."""
