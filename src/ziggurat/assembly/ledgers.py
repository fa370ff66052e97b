"""Where model calls are recorded, and which files hold them."""

from __future__ import annotations

from pathlib import Path

from ziggurat.inference.ledger import Ledger, current_attribution
from ziggurat.inference.router import Recorder
from ziggurat.records import CallRecord
from ziggurat.settings import Settings


def ledger_files(settings: Settings) -> list[Path]:
    """Return the files that hold calls: the state file of the embedded engine, and the ledger's own."""
    state = [settings.state_path] if settings.orchestrator.backend == "embedded" else []
    return [*state, settings.ledger_path]


def recorder(settings: Settings, ledger: Ledger) -> Recorder:
    """Return what the router tells of its calls: those that no step of a run will record are written to the ledger.

    A call of a run's attempt travels with the outcome, and the embedded engine records it with the step: a second row, in another
    file, would be a second truth. Other orchestrators keep no such rows, so theirs are written here.
    """
    embedded = settings.orchestrator.backend == "embedded"

    def record(call: CallRecord) -> None:
        by = current_attribution()
        if (call.usage.calls or call.status == "unanswered") and not (embedded and by.run and by.step):
            ledger.record(call, by)

    return record
