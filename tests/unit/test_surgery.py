"""What forks and retries keep of a history."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import Conflict
from ziggurat.orchestrator.embedded.surgery import current_generation, fork_events, retry_events
from ziggurat.records import ErrorInfo, Event, Run, Usage


def _history(*events: tuple[str, dict[str, Any]]) -> list[Event]:
    return [Event(seq=seq, kind=kind, at=float(seq), **fields) for seq, (kind, fields) in enumerate(events, 1)]  # type: ignore[arg-type]


def _step(step: int, requested: int, kind: str = "step_completed", **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {
        "step": step,
        "step_kind": fields.pop("step_kind", "task"),
        "name": f"t{step}",
        "requested": requested,
        **fields,
    }


#: Steps 1 and 2 asked for at once, 2 recorded first; a signal; step 3; a timer, step 4.
HISTORY = _history(
    ("run_started", {}),
    _step(2, 1),
    _step(1, 1, "attempt_failed", attempt=1),
    _step(1, 1, usage=Usage(calls=1)),
    ("signal_received", {"name": "go"}),
    ("patched", {"name": "p"}),
    _step(3, 5),
    _step(4, 7, "timer_fired", step_kind="timer"),
    ("run_completed", {}),
)


def _kept(events: list[Event]) -> list[int]:
    return [e.seq for e in events]


@pytest.mark.parametrize(
    ("step", "kept"),
    [(1, [1, 6]), (2, [1, 3, 4, 6]), (3, [1, 2, 3, 4, 5, 6]), (4, [1, 2, 3, 4, 5, 6, 7]), (5, [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_a_fork_keeps_what_was_settled_before_the_step(step: int, kept: list[int]) -> None:
    assert _kept(fork_events(HISTORY, step)) == kept


def test_a_fork_does_not_pay_again() -> None:
    assert all(e.usage is None and not e.calls for e in fork_events(HISTORY, 5))


@pytest.mark.parametrize("step", [-1, 0, 6, 99])
def test_a_fork_before_a_step_that_never_was_is_a_conflict(step: int) -> None:
    with pytest.raises(Conflict, match="steps 1 to 4"):
        fork_events(HISTORY, step)


def test_a_fork_starts_from_the_current_generation() -> None:
    history = _history(
        ("run_started", {}), _step(1, 1), ("run_continued", {}), ("run_started", {}), _step(1, 4), ("run_completed", {})
    )
    assert _kept(current_generation(history)) == [4, 5, 6]
    assert _kept(fork_events(history, 2)) == [4, 5]


def test_a_fork_takes_no_cancellation_along() -> None:
    history = _history(("run_started", {}), ("cancel_requested", {}), _step(1, 2), ("run_cancelled", {}))
    assert _kept(fork_events(history, 2)) == [1, 3]


def _failed(**error: Any) -> Run:
    return Run(id="r", workflow="w", status="failed", error=ErrorInfo(type="ValueError", message="no", **error))


def test_a_retry_takes_the_fatal_failure_back_and_keeps_what_was_under_way() -> None:
    history = _history(
        ("run_started", {}),
        _step(1, 1),
        _step(3, 2, "step_failed", attempt=3),  # Fatal.
        _step(2, 2),  # Asked for beside it.
        _step(5, 2, "step_failed"),  # Asked for beside it, failed as well.
        _step(4, 3),  # Asked for because of the failure.
        ("signal_received", {"name": "go"}),
        ("patched", {"name": "p"}),
        ("run_failed", {}),
    )
    kept = retry_events(_failed(step=3), history)
    assert [(e.seq, e.kind) for e in kept] == [
        (1, "run_started"),
        (2, "step_completed"),
        (3, "attempt_failed"),
        (4, "step_completed"),
        (7, "signal_received"),
        (8, "patched"),
    ]
    assert kept[2].retry_at is None


def test_a_retry_of_a_workflow_that_raised_takes_only_the_end_back() -> None:
    history = _history(("run_started", {}), _step(1, 1, "step_failed"), _step(2, 2), ("run_failed", {}))
    assert _kept(retry_events(_failed(), history)) == [1, 2, 3]


def test_a_retry_keeps_earlier_generations() -> None:
    history = _history(
        ("run_started", {}),
        _step(1, 1),
        ("run_continued", {}),
        ("run_started", {}),
        _step(1, 4, "step_failed"),
        ("run_failed", {}),
    )
    kept = retry_events(_failed(step=1), history)
    assert [(e.seq, e.kind) for e in kept] == [
        (1, "run_started"),
        (2, "step_completed"),
        (3, "run_continued"),
        (4, "run_started"),
        (5, "attempt_failed"),
    ]


def test_a_retry_finds_the_child_that_failed() -> None:
    history = _history(
        ("run_started", {}), _step(1, 1, "step_failed"), _step(2, 2, "step_failed", step_kind="child"), ("run_failed", {})
    )
    kept = retry_events(_failed(run_id="r/2"), history)
    assert [e.kind for e in kept] == ["run_started", "step_failed", "attempt_failed"]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12), st.integers(1, 13))
def test_no_kept_event_was_asked_for_after_what_was_cut(shape: list[tuple[int, bool]], at: int) -> None:
    """Whatever the history: a fork keeps only steps that the program asks for without the steps that were cut."""
    events = [Event(seq=1, kind="run_started", at=1.0)]
    for number, (back, signal) in enumerate(shape, 1):
        seq = len(events) + 1
        requested = max(1, seq - 1 - back)
        if signal:
            events.append(Event(seq=seq, kind="signal_received", at=1.0, name="s"))
        events.append(
            Event(seq=len(events) + 1, kind="step_completed", at=1.0, step=number, step_kind="task", requested=requested)
        )
    if at > len(shape) + 1:
        with pytest.raises(Conflict):
            fork_events(events, at)
        return
    kept = fork_events(events, at)
    assert [e.seq for e in kept] == sorted(e.seq for e in kept)
    assert {e.step for e in kept if e.step} == set(range(1, at))
