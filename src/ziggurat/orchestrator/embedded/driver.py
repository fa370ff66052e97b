"""Drives resident runs: records what happens, applies it after the commit, and carries out what the program then asks for.

    outcome, timer, signal ─▶ record() ─▶ Writer ─▶ (commit) ─▶ _recorded() ─▶ Execution.apply() ─▶ harvest()
                                                                                                    ├─ send tasks, cancel dropped ones
                                                                                                    ├─ set timers, start child runs
                                                                                                    └─ finish, or rest, or be evicted

Everything here happens on one event loop, in plain callbacks, so there are no locks. What a callback changes in memory it changes before
it returns, and what must survive it hands to the writer in the order in which it happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

from msgspec.structs import replace

from ziggurat.artifacts import INLINE, Payloads
from ziggurat.clock import Clock
from ziggurat.errors import ArtifactsUnreachable, ZigguratError
from ziggurat.inference.ledger import call_row
from ziggurat.orchestrator.embedded.dispatch import Dispatcher
from ziggurat.orchestrator.embedded.execution import INFORMATIVE, Execution, Mismatch, contradiction
from ziggurat.orchestrator.embedded.guard import forbidden_names
from ziggurat.orchestrator.embedded.kin import Kin
from ziggurat.orchestrator.embedded.options import EngineOptions
from ziggurat.orchestrator.embedded.references import FORGET_OLDER
from ziggurat.orchestrator.embedded.resident import Resident, attribution, rest_of, total_usage
from ziggurat.orchestrator.embedded.spending import Spending
from ziggurat.orchestrator.embedded.steps import Finished, Step
from ziggurat.orchestrator.embedded.store import Reader, event_row, run_row
from ziggurat.orchestrator.embedded.stowing import Stowing
from ziggurat.orchestrator.embedded.surgery import current_generation
from ziggurat.orchestrator.embedded.telling import Telling
from ziggurat.orchestrator.embedded.timers import Timers
from ziggurat.orchestrator.embedded.watching import Watchers
from ziggurat.orchestrator.embedded.writer import Write
from ziggurat.program.registry import Registry
from ziggurat.records import STOPPED, ErrorInfo, Event, Run
from ziggurat.telemetry.catalogue import RUNS_EVICTED

#: Events that are not lost when a run continues as new while they are on the way to the disk.
ARRIVING = frozenset({"signal_received", "cancel_requested"})


class Driver:
    """The runs in memory, and everything that happens to them.

    Args:
        reader: reads of the state file on the event loop's thread.
        write: hands a write to the writer.
        dispatcher: the hand on the queue.
        due: called with (run, step) when a moment has come that a run waits for.
        registry, options, clock, payloads: as for the engine.
    """

    def __init__(
        self,
        reader: Reader,
        write: Callable[[Write], None],
        dispatcher: Dispatcher,
        due: Callable[[str, int], None],
        registry: Registry,
        options: EngineOptions,
        clock: Clock,
        payloads: Payloads = INLINE,
    ) -> None:
        self.reader, self.write, self.dispatcher = reader, write, dispatcher
        self.registry, self.options, self.clock = registry, options, clock
        self.kin: Kin
        #: The highest key of a row of `runs`.
        self.last_key = reader.last_key()
        self.watchers = Watchers()
        self.spending = Spending(self, clock.time)
        dispatcher.allowances = self.spending.allowances
        self.telling = Telling(self.watchers)
        self.timers = Timers(clock, due)
        self._evicting = False
        #: By id; the order is that of last use, oldest first.
        self.residents: dict[str, Resident] = {}
        #: Steps of parked runs that were on the queue: their outcomes were paid for and are recorded still.
        self.parked: dict[str, tuple[Resident, dict[int, Step]]] = {}
        self.stowing = Stowing(payloads, self.park, self.harvest)
        self._stopped: dict[str, list[Callable[[Run], None]]] = {}

    # -- recording ------------------------------------------------------------------------------------------------

    def event(self, resident: Resident, kind: Any, **fields: Any) -> Event:
        """Return the run's next event."""
        now = self.clock.time()
        if now > resident.at:
            resident.at = now
        event = Event(seq=resident.next_seq, kind=kind, at=resident.at, **fields)
        resident.next_seq += 1
        return event

    def record(
        self,
        resident: Resident,
        event: Event,
        after: Callable[[], None] | None = None,
        statements: list[tuple[str, tuple[Any, ...]]] | None = None,
    ) -> None:
        """Write an event, and apply it once it is on the disk; `after` is called then too. `statements` are written with it."""
        resident.writes += 1
        if event.kind in ARRIVING:
            resident.arriving.append(event)
            resident.asked_to_stop |= event.kind == "cancel_requested"
        runs = None
        if resident.row_status == "waiting":
            # The row says that nothing has to be done before `wake_at`; with this event that is no longer true.
            resident.run = replace(resident.run, status="running", wake_at=None, reason="")
            runs = [self.row(resident)]
        done = partial(self.recorded, resident, event, after)
        calls = [call_row(call, attribution(resident.run, event.step, event.attempt)) for call in event.calls] or None
        self.write(Write([event_row(resident.key, event)], runs, statements, done, calls))

    def recorded(self, resident: Resident, event: Event, after: Callable[[], None] | None) -> None:
        """An event is on the disk: apply it, and see what the program does."""
        resident.writes -= 1
        if event.kind in ARRIVING:
            resident.arriving.remove(event)
        if after is not None:
            after()
        self.telling.event(resident.run, event)
        execution = resident.execution
        if execution is None:
            return
        if event.kind in INFORMATIVE:
            execution.applied = event.seq
        elif not self._or_park(resident, partial(execution.apply, event)):
            return
        self.harvest(resident)

    def row(self, resident: Resident) -> tuple[Any, ...]:
        """Return the run's row, which is about to be written."""
        resident.row_status, resident.row_wake, resident.row_state = resident.run.status, resident.run.wake_at, resident.run.state
        return run_row(resident.key, resident.run)

    # -- after the program has run ----------------------------------------------------------------------------------

    def harvest(self, resident: Resident) -> None:
        """Carry out what the program asked for, and see whether it ended, rests or can be evicted."""
        execution = resident.execution
        if execution is None or resident.finishing or resident.storing:
            return
        if execution.new_patches:
            for patch in execution.new_patches:
                self.record(resident, self.event(resident, "patched", name=patch))
            execution.new_patches = []
        if execution.dropped:
            self._drop(resident, execution.dropped)
            execution.dropped = []
        if execution.finished is not None and not resident.paused:
            self._finish(resident, execution.finished)
            return
        if execution.requests and not resident.paused:
            requests, execution.requests = execution.requests, []
            for step in requests:
                if resident.execution is not execution:
                    return  # it was parked on the way
                if execution.steps.get(step.number) is step:
                    self._carry_out(resident, step)
        if execution.length >= self.options.history_limit:
            self.park(
                resident,
                f"The history has {execution.length:,} events, over the limit of {self.options.history_limit:,}. "
                "Let the workflow call continue_as_new() before, or raise [orchestrator] history_limit and resume the run.",
            )
        elif resident.writes == 0:
            self._rest(resident)

    def _carry_out(self, resident: Resident, step: Step) -> None:
        if step.kind == "task":
            if (spent := self.spending.over(resident.run)) is not None:
                self.spending.park(resident, spent)
                return
            deadline = step.options.deadline
            if step.retry_at is not None and step.retry_at > self.clock.time():
                self.timers.add(step.retry_at, resident.run.id, step.number)
            else:
                self.dispatcher.send(resident.run, step)
                if deadline is not None:
                    self.timers.add(step.requested_at + deadline, resident.run.id, step.number)
        elif step.kind == "timer":
            self.timers.add(step.due, resident.run.id, step.number)
        elif step.kind == "child":
            self.kin.begin_child(resident, step)
        if self.watchers:
            self.watchers.step(resident.run, step)

    def _drop(self, resident: Resident, dropped: list[Step]) -> None:
        for step in dropped:
            self.dispatcher.tell_dropped(resident.run, step)
            if step.kind == "task" and (step.dispatched or step in resident.execution.requests):  # type: ignore[union-attr]
                self.dispatcher.cancel(resident.run, step)
            elif step.kind == "timer":
                self.timers.forget(resident.run.id, step.number)
            elif step.kind == "child" and step.options.on_parent_end == "cancel":
                self.kin.cancel_child(step.child, f"the parent run {resident.run.id} no longer waits for it")

    def _rest(self, resident: Resident) -> None:
        """Note in the file what a run without writes on the way waits for, so that it can be forgotten until then."""
        execution = resident.execution
        if execution is None:
            return
        if not resident.paused:
            rest, run = rest_of(execution), resident.run
            if rest is not None and (
                resident.row_status != "waiting" or resident.row_wake != rest["wake_at"] or run.state is not execution.state
            ):
                resident.run = replace(run, **rest, state=execution.state, events=execution.applied)
                self.write(Write(runs=[self.row(resident)]))
                self.watchers.status(resident.run)
            elif run.state is not execution.state:
                resident.run = replace(run, state=execution.state)
        # Not at once: whoever brought the run into memory, or another one, is about to use it.
        if self.options.evict_always:
            asyncio.get_running_loop().call_soon(self._evict_idle, [resident])
        elif len(self.residents) > self.options.max_resident_runs and not self._evicting:
            self._evicting = True
            asyncio.get_running_loop().call_soon(self._evict_oldest)

    def _evict_idle(self, residents: Iterable[Resident], limit: int = 1) -> None:
        idle = (
            r
            for r in residents
            if r.writes == 0 and not (r.finishing or r.paused or r.stalled) and self.residents.get(r.run.id) is r
        )
        for resident in list(islice(idle, limit)):
            self.evict(resident)

    def _evict_oldest(self) -> None:
        self._evicting = False
        self._evict_idle(self.residents.values(), max(0, len(self.residents) - self.options.max_resident_runs))

    def evict(self, resident: Resident) -> None:
        """Forget a run; its history brings it back when something happens to it."""
        del self.residents[resident.run.id]
        RUNS_EVICTED.inc()
        execution, resident.execution = resident.execution, None
        if resident.run.state != resident.row_state:
            self.write(Write(runs=[self.row(resident)]))
        if execution is not None:
            wake = min((s.retry_at for s in execution.steps.values() if s.retry_at is not None), default=None)
            if wake is not None:
                self.timers.add(wake, resident.run.id, 0)
            execution.discard()

    # -- loading --------------------------------------------------------------------------------------------------

    def resident(self, run_id: str) -> Resident | None:
        """Return a run in memory, replaying its history if need be; None if it does not exist or has ended or is parked."""
        found = self.residents.get(run_id)
        if found is not None:
            # Last used goes last.
            self.residents[run_id] = self.residents.pop(run_id)
            return found
        row = self.reader.run(run_id)
        if row is None or row[1].status in STOPPED:
            return None
        return self.load(*row)

    def load(self, key: int, run: Run, *, warmed: bool = False) -> Resident | None:
        """Bring a run into memory and go on with it, at once or when its large payloads are at hand. Returns None if it was parked."""
        events = self.reader.events(key)
        resident = Resident(key, run, events[-1].seq + 1 if events else 1)
        resident.at = events[-1].at if events else run.created_at
        self.residents[run.id] = resident
        current = current_generation(events)
        resident.asked_to_stop = any(event.kind == "cancel_requested" for event in current)
        self.telling.replayed(len(current))
        resident.run = replace(run, usage=total_usage(run.carried, current))
        if not warmed and self.stowing.warm(resident, current, self._again):
            return resident
        if not self._bring_up(resident, current) and not resident.stalled:
            return None
        return resident if self.residents.get(run.id) is resident else None

    def _bring_up(self, resident: Resident, events: list[Event]) -> bool:
        """Build the program from its history and go on with it; returns False if the run had to be parked instead."""
        built = self._or_park(resident, partial(self.build, resident, events))
        if built:
            self.harvest(resident)
        return built

    def _or_park(self, resident: Resident, move: Callable[[], None]) -> bool:
        """Make a move, or park the run if its code contradicts its history or a payload cannot be had. Says whether it went well."""
        try:
            move()
        except Mismatch as mismatch:
            self.park(resident, contradiction(resident.run, mismatch))
        except ArtifactsUnreachable as error:
            self.stowing.stall(resident, error, self._again)
        except ZigguratError as error:
            self.park(resident, str(error))
        else:
            return True
        return False

    def _again(self, resident: Resident, warmed: bool) -> None:
        """Build a program anew that had stalled."""
        if self.residents.get(resident.run.id) is resident:
            del self.residents[resident.run.id]
            row = self.reader.run(resident.run.id)
            if row is not None and row[1].status not in STOPPED:
                self.load(*row, warmed=warmed)

    def build(self, resident: Resident, events: list[Event]) -> None:
        """Make the execution and replay these events into it. Raises Mismatch, UnknownName, DefinitionError."""
        run = resident.run
        workflow = self.registry.workflow(run.workflow, run.entry)
        if wrong := forbidden_names(workflow.fn):
            raise ZigguratError(wrong)
        execution = Execution(
            workflow,
            run,
            base=events[0].seq - 1 if events else 0,
            passed=max((e.requested for e in events if e.step), default=0) if len(events) > 1 else 0,
            patches=[e.name for e in events if e.kind == "patched"],
            suggest_at=self.options.history_suggest,
            payloads=self.stowing.payloads,
            show=partial(self.watchers.emitted, run.id, self.clock),
        )
        resident.execution = execution
        ended = False
        for index, event in enumerate(events):
            if event.kind in INFORMATIVE:
                execution.applied = event.seq
                execution.note(event)
                continue
            if ended:
                execution.come_late(event)
                continue
            execution.apply(event)
            ended = execution.finished is not None
            if ended:
                execution.check_end(events[index + 1 :])
        execution.replaying = False

    def admit(self, run: Run) -> tuple[Resident, Write]:
        """Take a new run into memory, and return with it the write that starts it: the program runs once that is on the disk."""
        self.last_key += 1
        resident = Resident(self.last_key, run, 1)
        resident.writes = 1
        self.residents[run.id] = resident
        event = self.event(resident, "run_started", detail=run.entry)
        return resident, Write([event_row(resident.key, event)], [self.row(resident)], done=partial(self._begin, resident, event))

    def _begin(self, resident: Resident, event: Event) -> None:
        resident.writes -= 1
        self.telling.event(resident.run, event)
        self._bring_up(resident, [event])

    def go_on(self, resident: Resident) -> None:
        """Let a run that was paused ask for what it held back."""
        execution = resident.execution
        if execution is None:
            return
        now = self.clock.time()
        for step in list(execution.steps.values()):
            moment = step.due if step.kind == "timer" else step.retry_at
            if step.kind == "task" and moment is None and step.options.deadline is not None:
                moment = step.requested_at + step.options.deadline
            if moment is not None and moment <= now:
                self.timers.add(moment, resident.run.id, step.number)
        self.harvest(resident)

    # -- endings --------------------------------------------------------------------------------------------------

    def _finish(self, resident: Resident, ended: Finished) -> None:
        finished = self.stowing.finished(resident, ended, self._finish)
        if finished is None:
            return
        if finished.status == "parked":
            self.park(resident, finished.reason)
            return
        if finished.status == "continued":
            self._continue(resident, finished)
            return
        resident.finishing = True
        execution = resident.execution
        assert execution is not None
        leftovers = list(execution.steps.values())
        self._drop(resident, leftovers)
        event = self.event(resident, f"run_{finished.status}", error=finished.error)
        resident.run = replace(
            resident.run,
            status=finished.status,
            result=finished.result,
            error=finished.error,
            reason="",
            ended_at=event.at,
            wake_at=None,
            state=execution.state,
            events=event.seq,
        )
        write = Write([event_row(resident.key, event)], [self.row(resident)], done=partial(self._ended, resident, event))
        resident.writes += 1
        self.kin.tell_parent(resident.run, write)
        self.write(write)

    def _ended(self, resident: Resident, event: Event) -> None:
        resident.writes -= 1
        self.telling.event(resident.run, event)
        self._leave(resident)

    def _leave(self, resident: Resident) -> None:
        """Take a run that ended or is parked out of memory, and tell those who wait for it."""
        execution, resident.execution = resident.execution, None
        if execution is not None:
            execution.discard()
        self.spending.forget(resident.run)
        if self.residents.get(resident.run.id) is resident:
            del self.residents[resident.run.id]
        self.watchers.status(resident.run)
        for call in self._stopped.pop(resident.run.id, ()):
            call(resident.run)

    def _continue(self, resident: Resident, finished: Finished) -> None:
        """Begin the run's next generation: the same id, new arguments, an empty history but for signals not taken yet."""
        execution = resident.execution
        assert execution is not None
        assert finished.result is not None
        leftovers = list(execution.steps.values())
        self._drop(resident, leftovers)
        events = [
            self.event(resident, "run_continued", detail=str(resident.run.generation + 1)),
            self.event(resident, "run_started", result=execution.signal_ids()),
        ]
        for late in resident.arriving:
            execution.come_late(late)
        for kind, name, payload in execution.unclaimed():
            events.append(self.event(resident, kind, name=name, result=payload))
        execution.discard()
        resident.execution = None
        resident.asked_to_stop = any(e.kind == "cancel_requested" for e in events)
        resident.run = replace(
            resident.run,
            carried=resident.run.usage,
            generation=resident.run.generation + 1,
            epoch=resident.run.epoch + 1,
            payload=finished.result,
            events=events[0].seq,
            status="running",
        )
        # The generation that just ended stays readable; the one before it goes, so that an endless run has a bounded history.
        older = (
            "DELETE FROM events WHERE run = ? AND seq < coalesce("
            "(SELECT max(seq) FROM events WHERE run = ? AND json_extract(data, '$.kind') = 'run_continued'), 0)"
        )
        resident.writes += 1
        self.write(
            Write(
                [event_row(resident.key, e) for e in events],
                [self.row(resident)],
                [(older, (resident.key, resident.key)), (FORGET_OLDER, (resident.key, resident.key))],
                done=partial(self._continued, resident, events),
            )
        )

    def _continued(self, resident: Resident, events: list[Event]) -> None:
        resident.writes -= 1
        self._bring_up(resident, events[1:])

    def park(self, resident: Resident, reason: str, error: ErrorInfo | None = None) -> None:
        """Stop a run that cannot go on as things are, and say why. Its history is untouched; `resume` tries again."""
        resident.finishing = True
        event = self.event(resident, "run_parked", detail=reason)
        resident.run = replace(resident.run, status="parked", reason=reason, error=error, events=event.seq, wake_at=None)
        execution, resident.execution = resident.execution, None
        if execution is not None:
            self.parked[resident.run.id] = (
                resident,
                {n: s for n, s in execution.steps.items() if s.kind == "task" and s.dispatched},
            )
            execution.discard()
        resident.writes += 1
        self.write(Write([event_row(resident.key, event)], [self.row(resident)], done=partial(self._ended, resident, event)))

    def when_stopped(self, run_id: str, call: Callable[[Run], None]) -> Callable[[], None]:
        """Call once the run has ended or is parked. Returns a function that takes the wish back."""
        calls = self._stopped.setdefault(run_id, [])
        calls.append(call)

        def take_back() -> None:
            if call in calls:
                calls.remove(call)
            if not calls and self._stopped.get(run_id) is calls:
                del self._stopped[run_id]

        return take_back
