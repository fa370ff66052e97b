"""What the engine says of itself once something is on the disk: to watchers, as metrics and as spans.

Only what happens is told, never what is replayed: whatever calls `event` does so after the commit that recorded the event.
"""

from __future__ import annotations

from ziggurat.orchestrator.embedded.watching import Watchers
from ziggurat.orchestrator.tracing import tell
from ziggurat.records import Event, Run
from ziggurat.telemetry import catalogue, events, tracing
from ziggurat.telemetry.metrics import CountChild, HistogramChild

_STEP = {"step_completed": "completed", "step_failed": "failed", "timer_fired": "completed"}
_STOPPED = {"run_completed": "completed", "run_failed": "failed", "run_cancelled": "cancelled", "run_parked": "parked"}


class Telling:
    """Tells of recorded events. Used on the engine's event loop."""

    def __init__(self, watchers: Watchers) -> None:
        self._watchers = watchers
        # Every step passes here: children of labels are looked up once.
        self._steps: dict[str, dict[str, tuple[CountChild, HistogramChild]]] = {
            event: {
                kind: (catalogue.STEPS.labels(kind, status), catalogue.STEP_SECONDS.labels(kind))
                for kind in ("task", "timer", "child")
            }
            for event, status in _STEP.items()
        }

    def event(self, run: Run, event: Event) -> None:
        """Tell of an event of a run's history that is on the disk."""
        if self._watchers:
            self._watchers.event(run, event)
        if tracing.current is not None:
            tell(run, event)
        kind = event.kind
        steps = self._steps.get(kind)
        counted = steps.get(event.step_kind) if steps is not None else None
        if counted is not None:
            counter, seconds = counted
            counter.value += 1.0
            if event.requested_at:
                seconds.observe(event.at - event.requested_at)
            if event.detail == "dead" and kind == "step_failed":
                catalogue.DEAD_LETTERS.labels(event.name).inc()
                events.DEAD_LETTER(run=run.id, task=event.name, step=event.step, attempt=event.attempt)
        elif kind in ("run_started", "run_forked"):
            catalogue.RUNS_STARTED.labels(run.workflow).inc()
        elif kind == "attempt_failed":
            catalogue.STEP_RETRIES.labels(event.name).inc()
        elif kind == "signal_received":
            catalogue.SIGNALS.inc()
        elif kind in _STOPPED:
            catalogue.RUNS_STOPPED.labels(run.workflow, _STOPPED[kind]).inc()
            if kind == "run_parked":
                events.RUN_PARKED(run=run.id, workflow=run.workflow, namespace=run.namespace)
            else:
                catalogue.RUN_SECONDS.labels(run.workflow).observe(max(0.0, event.at - run.created_at))

    def replayed(self, events: int) -> None:
        """Tell of a run that was brought back from a history of so many events."""
        catalogue.REPLAYS.inc()
        catalogue.REPLAYED_EVENTS.inc(events)
