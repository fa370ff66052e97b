"""Tasks and workflows as plain functions, their options, and what crosses a wire when they fail."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat import (
    Concurrent,
    Retry,
    SignalTimeout,
    TaskError,
    continue_as_new,
    emit,
    heartbeat,
    last_heartbeat,
    now,
    patched,
    random,
    run_info,
    signal,
    state,
    task,
    task_info,
    uuid4,
    workflow,
)
from ziggurat.errors import ConfigurationError, DefinitionError, InferenceError, RateLimited, UnknownName
from ziggurat.orchestrator.retry import next_attempt
from ziggurat.program.failures import child_error, describe, task_error
from ziggurat.program.options import RunOptions, TaskOptions
from ziggurat.program.primitives import waiting_signals
from ziggurat.program.registry import Registry, load_workflow
from ziggurat.records import ErrorInfo, Outcome
from ziggurat.units import dollars, human_dollars, human_seconds, seconds, size


async def test_outside_a_run_a_task_just_runs_and_a_plain_one_runs_in_a_thread() -> None:
    @task
    async def double(x: int) -> int:
        return 2 * x

    @task(timeout="1s")
    def where() -> int:
        return threading.get_ident()

    assert await double(4) == 8
    assert await where() != threading.get_ident()
    assert double.fn.__name__ == "double"


async def test_outside_a_run_a_workflow_just_runs_through_all_its_generations() -> None:
    @workflow
    async def count(left: int, done: int = 0) -> int:
        if left:
            state(left=left)
            emit({"left": left})
            continue_as_new(left - 1, done + 1)
        return done

    assert await count(3) == 3


async def test_the_primitives_have_their_plain_meaning_outside_a_run() -> None:
    assert patched("anything")
    assert 0 <= random() < 1
    assert random.choice([5]) == 5
    assert now().tzinfo is not None
    assert uuid4() != uuid4()
    heartbeat({"page": 1})
    assert last_heartbeat() is None
    for outside in (run_info, task_info):
        with pytest.raises(ConfigurationError, match="outside"):
            outside()
    with pytest.raises(AttributeError, match="seeded by its id"):
        random.seed(1)


async def test_a_signal_outside_a_run_is_laid_out_or_explained() -> None:
    with pytest.raises(ConfigurationError, match="Start the workflow through a client"):
        await signal("review", str)
    token = waiting_signals.set({"review": ["yes"]})
    try:
        assert await signal("review", str) == "yes"
        with pytest.raises(SignalTimeout):
            await signal("review", str, timeout="3d")
    finally:
        waiting_signals.reset(token)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": "soon"}, "cannot be read"),
        ({"timeout": 0}, "must be more than zero"),
        ({"priority": 9}, "whole number from 1"),
        ({"retry": "often"}, "must be a Retry"),
        ({"rate": "fast"}, "must be written like '10/s'"),
        ({"colour": "red"}, "unknown option"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        task(**options)


@pytest.mark.parametrize(
    ("decorate", "says"),
    [
        (lambda: workflow(cast(Any, lambda: None)), "goes on an async function"),
        (lambda: task(type("C", (), {})), "goes on a function"),
        (lambda: task(concurrency=Concurrent(2, key="customer"))(lambda x: x), "none of its parameters"),
        (lambda: Retry(0), "must be 1 or more"),
        (lambda: Retry(2, factor=0.5), "factor of 1 or more"),
        (lambda: Concurrent(0), "must be 1 or more"),
    ],
)
def test_wrong_definitions_are_one_sentence(decorate: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        decorate()


def test_generators_and_async_processes_are_refused() -> None:
    with pytest.raises(DefinitionError, match="is a generator"):

        @task
        async def stream() -> Any:
            yield 1

    with pytest.raises(DefinitionError, match="async and process=True"):

        @task(process=True)
        async def both() -> None: ...


class Refused(ValueError):
    """An error of a program's own."""


def outcome_of(error: BaseException, status: Any = "failed") -> Outcome:
    return Outcome(message="m", task="t", status=status, step=3, attempt=2, error=describe(error, Retry()))


def test_a_failure_keeps_its_class_over_the_wire() -> None:
    raised = task_error(outcome_of(Refused("no")))
    assert isinstance(raised, TaskError)
    assert isinstance(raised, Refused)
    assert str(raised) == "no"
    assert (raised.task, raised.step, raised.attempt) == ("t", 3, 2)
    assert "Refused: no" in raised.info.traceback


def test_a_class_that_this_process_does_not_know_is_a_plain_task_error_and_nothing_is_imported() -> None:
    info = ErrorInfo(type="antigravity.Flight", message="up")
    raised = task_error(Outcome(message="m", task="t", status="failed", error=info))
    assert type(raised) is TaskError


def test_inference_errors_say_whether_another_attempt_may_help() -> None:
    limited = describe(RateLimited("slow down", retry_after=7.0), Retry())
    assert (limited.retryable, limited.retry_after) == (True, 7.0)
    assert not describe(InferenceError("no"), Retry()).retryable
    assert isinstance(task_error(outcome_of(RateLimited("slow down", retry_after=7.0))), RateLimited)


def test_a_group_names_the_step_that_failed_first() -> None:
    inner = task_error(outcome_of(ValueError("x")))
    assert describe(ExceptionGroup("g", [inner])).step == 3
    child = child_error("c", "w", None, "cancelled")
    assert describe(child).run_id == "c"


def test_non_retryable_classes_count_with_their_subclasses() -> None:
    policy = Retry(non_retryable=[ValueError, "KeyError"])
    assert not policy.permits(Refused())
    assert not policy.permits(KeyError())
    assert policy.permits(OSError())


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 1000))
def test_delays_grow_up_to_their_maximum_and_stay_in_their_jitter(failures: int, jitter: float, seed: int) -> None:
    import random as chance

    policy = Retry(None, initial=1, factor=2, maximum=60, jitter=jitter)
    due = next_attempt(policy, failures, None, 100.0, None, chance.Random(seed))
    assert due is not None
    base = min(60, 2.0 ** min(failures - 1, 64))
    assert base * (1 - jitter) - 1e-6 <= due - 100.0 <= base * (1 + jitter) + 1e-6


def test_there_is_no_attempt_after_the_last_or_the_deadline_or_a_hopeless_failure() -> None:
    import random as chance

    die = chance.Random(1)
    assert next_attempt(Retry(3), 3, None, 0, None, die) is None
    assert next_attempt(Retry(3), 1, None, 0, 0.5, die) is None
    assert next_attempt(Retry(3), 1, ErrorInfo(type="E", message="", retryable=False), 0, None, die) is None
    assert next_attempt(Retry(3), 1, ErrorInfo(type="E", message="", retry_after=30.0), 0, None, die) == 30.0


def test_registries_name_what_there_is_and_refuse_what_is_ambiguous() -> None:
    def one() -> Any:
        @workflow(name="twin")
        async def first() -> None: ...

        return first

    def two() -> Any:
        @workflow(name="twin")
        async def second() -> None: ...

        return second

    held = [one()]
    assert Registry().workflow("twin") is held[0]
    held.append(two())
    with pytest.raises(ConfigurationError, match="Two workflows are named 'twin'"):
        Registry().workflow("twin")
    registry = Registry()
    registry.add(held[1])
    assert registry.workflow("twin") is held[1]
    with pytest.raises(UnknownName, match="Add its module"):
        registry.task("no_such_task")
    for reference, says in [
        ("no_module_here:x", "no module 'no_module_here'"),
        ("json:x", "has no workflow 'x'"),
        ("a.py:x", "no file a.py"),
    ]:
        with pytest.raises(ConfigurationError, match=says):
            load_workflow(reference, registry)


@pytest.mark.parametrize(
    ("text", "value"), [("250ms", 0.25), ("1h30m", 5400), ("3d", 259200), (2, 2), ("1.5s", 1.5), ("10", 10), ("2w", 1209600)]
)
def test_durations_are_read_as_people_write_them(text: Any, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "5x", "-3s", "h", "1e9999", True, float("nan")])
def test_durations_that_cannot_be_read_are_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError):
        seconds(text)


def test_money_and_sizes() -> None:
    assert (dollars("$0.05"), dollars(1), size("20mb"), size("1GiB")) == (0.05, 1.0, 20_000_000, 2**30)
    for wrong in ("five", "-1"):
        with pytest.raises(ConfigurationError):
            dollars(wrong)
    with pytest.raises(ConfigurationError):
        size("big")
    assert (human_dollars(0), human_dollars(0.00042), human_dollars(1.5)) == ("$0", "$0.00042", "$1.50")
    assert (human_seconds(0.004), human_seconds(2), human_seconds(95)) == ("4 ms", "2.0 s", "1m35s")


async def test_calls_in_a_gather_start_together() -> None:
    started = asyncio.Event()

    @task
    async def first() -> None:
        await started.wait()

    @task
    async def second() -> None:
        started.set()

    async with asyncio.timeout(60):
        await asyncio.gather(first(), second())


def test_a_workflow_places_the_tasks_that_name_no_place_of_their_own() -> None:
    placing = RunOptions(queue="reports", region="eu")
    placed = placing.placed(TaskOptions())
    assert (placed.queue, placed.region) == ("reports", "eu")
    own = placing.placed(TaskOptions(queue="gpu", region="us", timeout=5.0))
    assert (own.queue, own.region, own.timeout) == ("gpu", "us", 5.0)
    options = TaskOptions(queue="gpu")
    assert RunOptions().placed(options) is options

    @workflow(queue="reports")
    async def report() -> None: ...

    with pytest.raises(DefinitionError, match=r"belongs to all its runs; write it in @workflow"):
        report.options(queue="other")
