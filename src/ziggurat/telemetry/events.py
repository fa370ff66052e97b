"""The catalogue of events: everything that the system logs, defined here and nowhere else.

An event is a name to search and alert by, a level, a sentence for people, and fields; a call gives the fields:

    events.LEASE_LOST(message=message.id, task=message.task)

Fields hold ids, names and numbers. What a program's arguments, results, prompts and answers hold is never a field, and neither is a secret;
`error` is the sentence of one of Ziggurat's own errors, which hold none.
"""

from __future__ import annotations

import logging
from string import Formatter
from typing import Any

from ziggurat.telemetry.catalogue import EVENTS as COUNTED

#: Every event, by name.
EVENTS: dict[str, LogEvent] = {}

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class LogEvent:
    """One line of the catalogue; calling it logs the event.

    Args:
        name: "layer.what_happened".
        level: debug, info, warning or error.
        sentence: with a `{field}` for each field that people read.
        also: fields that only machines read.
    """

    def __init__(self, name: str, level: str, sentence: str, *also: str) -> None:
        if name in EVENTS:
            raise ValueError(f"the event {name} is in the catalogue twice")
        EVENTS[name] = self
        self.name, self.level, self.sentence = name, level, sentence
        shown = [field for _, field, _, _ in Formatter().parse(sentence) if field]
        self.fields = (*dict.fromkeys(shown), *also)
        self._number = _LEVELS[level]
        self._logger = logging.getLogger(f"ziggurat.{name.partition('.')[0]}")

    def __call__(self, *, trace_of: BaseException | bool | None = None, **fields: Any) -> None:
        """Log the event. `trace_of` adds the traceback of an exception, of the current one if it is True."""
        if self._number >= logging.WARNING:
            COUNTED.labels(self.name).inc()
        if self._logger.isEnabledFor(self._number):
            extra = {"event": self.name, "fields": fields}
            self._logger.log(self._number, self.sentence.format_map(fields), exc_info=trace_of, stacklevel=2, extra=extra)


def events_reference() -> str:
    """Return the catalogue as Markdown: a table for each layer."""
    layers: dict[str, list[LogEvent]] = {}
    for event in EVENTS.values():
        layers.setdefault(event.name.partition(".")[0], []).append(event)
    parts = []
    for layer, events in layers.items():
        rows = [
            f"| `{e.name}` | {e.level} | {', '.join(f'`{field}`' for field in e.fields)} | {e.sentence.replace('|', chr(92) + '|')} |"
            for e in events
        ]
        parts.append("\n".join([f"## {layer}", "", "| Event | Level | Fields | Sentence |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


# -- orchestrator ----------------------------------------------------------------------------------------------------

RUN_LEFT = LogEvent("orchestrator.run_left", "error", "The run {run} could not be driven on; it is left as recorded.")
DRIVING_FAILED = LogEvent("orchestrator.driving_failed", "error", "A run could not be driven on; it is left as recorded.")
RUN_PARKED = LogEvent(
    "orchestrator.run_parked", "info", "The run {run} of {workflow!r} is parked; `ziggurat show {run}` says why.", "namespace"
)
DEAD_LETTER = LogEvent(
    "orchestrator.dead_letter",
    "warning",
    "The queue gave the task {task!r} of run {run} up after its last delivery; `ziggurat deadletters` says why.",
    "step",
    "attempt",
)
RUNS_PURGED = LogEvent("orchestrator.runs_purged", "info", "{runs} runs that ended more than {age} ago were purged.")
STATE_FAILED = LogEvent("orchestrator.state_failed", "error", "{error} The engine stops; what was recorded is safe.")
SEND_REFUSED = LogEvent(
    "orchestrator.send_refused", "warning", "The queue does not take messages now and will be asked again: {error}"
)
SEND_FAILED = LogEvent("orchestrator.send_failed", "error", "The queue failed in an unforeseen way and will be asked again.")
NO_OUTCOMES = LogEvent("orchestrator.no_outcomes", "warning", "The queue gives no outcomes now and will be asked again: {error}")
OUTCOME_LEFT = LogEvent("orchestrator.outcome_left", "error", "The outcome of {message} could not be recorded.", "run", "task")
MESSAGES_LOST = LogEvent("orchestrator.messages_lost", "warning", "The queue has lost {messages} messages; they are sent again.")
SWEEP_FAILED = LogEvent("orchestrator.sweep_failed", "warning", "The queue cannot be swept now and will be asked again: {error}")
CALLS_UNREADABLE = LogEvent(
    "orchestrator.calls_unreadable",
    "warning",
    "What a worker said of the model calls of run {run} cannot be read and is dropped.",
)

# -- queue -----------------------------------------------------------------------------------------------------------

REDIS_EVICTS = LogEvent(
    "queue.redis_evicts",
    "warning",
    "The Redis server at {address} evicts keys when its memory is full ({policy}), messages among them; they are sent again, late. "
    "Set maxmemory-policy noeviction.",
)
WAKES_FAILED = LogEvent("queue.wakes_failed", "debug", "Nothing wakes waiting calls now, they look by themselves: {error}")
WAKES_BROKE = LogEvent("queue.wakes_broke", "debug", "The connection that wakes waiting calls broke and is made anew: {error}")
OUTCOME_UNREADABLE = LogEvent(
    "queue.outcome_unreadable", "warning", "An outcome that this version cannot read is left on the queue: {error}"
)
PRESENCE_UNREADABLE = LogEvent(
    "queue.presence_unreadable", "warning", "A worker shows itself in a way that this version cannot read; it is left out."
)
UPKEEP_FAILED = LogEvent("queue.upkeep_failed", "warning", "Leases and delays are not looked after now: {error}")
LEFT_TO_LEASE = LogEvent("queue.left_to_lease", "debug", "Left to the lease's end: {error}")

# -- worker ----------------------------------------------------------------------------------------------------------

QUEUE_LOST = LogEvent("worker.queue_lost", "warning", "The worker {worker} cannot use its queue and keeps trying: {error}")
QUEUE_BACK = LogEvent("worker.queue_back", "warning", "The worker {worker} can use its queue again, after {seconds:.1f} s.")
MESSAGE_RETURNED = LogEvent(
    "worker.message_returned",
    "warning",
    "The message {message} goes back to the queue for {seconds:.0f} s: {error}",
    "task",
    "run",
)
OUTCOME_REFUSED = LogEvent(
    "worker.outcome_refused", "warning", "The queue refuses the outcome of {message}: {error}", "task", "run"
)
OUTCOME_GIVEN_UP = LogEvent(
    "worker.outcome_given_up", "error", "The queue refuses the outcome of {message}; its lease will run out.", "task", "run"
)
RELEASE_FAILED = LogEvent(
    "worker.release_failed", "error", "{messages} messages could not be handed back; they return when their leases run out."
)
LEASE_LOST = LogEvent(
    "worker.lease_lost",
    "warning",
    "The lease of {message} (task {task!r}) is lost, so this attempt's outcome is dropped; another worker has the message.",
    "run",
    "step",
    "worker",
)
LEASE_RAN_OUT = LogEvent(
    "worker.lease_ran_out",
    "warning",
    "The lease of {message} (task {task!r}) ran out before it began; it is left to others.",
    "run",
    "step",
)
LEASES_NOT_RENEWED = LogEvent(
    "worker.leases_not_renewed", "error", "Leases could not be renewed; trying again in {seconds:.1f} s."
)
PROGRESS_DROPPED = LogEvent("worker.progress_dropped", "error", "Progress could not be published; {records} records are dropped.")
UNSETTLED = LogEvent(
    "worker.unsettled",
    "error",
    "The worker {worker} ends with {messages} messages that it could not settle; they return when their leases run out.",
)
ATTEMPT_ABANDONED = LogEvent(
    "worker.attempt_abandoned",
    "warning",
    "The task {task!r} of run {run} runs on in {where}; its attempt {attempt} was given up ({reason}). {abandoned} such attempts are "
    "running.",
    "step",
)
LATE_THREAD = LogEvent(
    "worker.late_thread",
    "info",
    "A task ended in its thread in process {process} after its worker had stopped; its result is dropped.",
)
MEMORY_CEILING = LogEvent(
    "worker.memory_ceiling",
    "warning",
    "The worker {worker} uses {used} MiB, over its ceiling of {ceiling} MiB; it finishes what it has and asks for a fresh process.",
)
DRAINING = LogEvent("worker.draining", "info", "This worker process drains: {reason}.")

# -- pool ------------------------------------------------------------------------------------------------------------

POOL_WANTS = LogEvent("pool.wants", "info", "The pool {pool} wants {workers} workers ({constraint}): {explanation}")
POOL_NOT_SCALED = LogEvent("pool.not_scaled", "warning", "The pool {pool} is not scaled while its queue is unavailable: {error}")
POOL_FAILED = LogEvent("pool.scaling_failed", "error", "The pool {pool} could not be scaled; trying again.")
POOL_LOOK_FAILED = LogEvent("pool.look_failed", "error", "The pool {pool} could not look for new queues.")
WORKER_REPLACED = LogEvent("pool.worker_replaced", "error", "A worker of the pool {pool} failed, and is replaced.")
WORKER_ENDED = LogEvent("pool.worker_ended", "info", "The worker {worker} ended with code {code} and is started anew.")
WORKER_CRASHED = LogEvent("pool.worker_crashed", "warning", "{what} The next one is started in {seconds:g} s.", "pool")
WORKER_BABBLES = LogEvent("pool.worker_babbles", "warning", "The worker {worker} said something that is not a status.")

# -- inference -------------------------------------------------------------------------------------------------------

LEDGER_WAITS = LogEvent(
    "inference.ledger_waits",
    "warning",
    "The ledger {path} cannot be written now ({error}); calls are kept in memory until it can.",
)
LEDGER_LOST = LogEvent(
    "inference.ledger_lost", "error", "{calls} calls were not written to the ledger {path}, which cannot be written ({error})."
)

# -- telemetry -------------------------------------------------------------------------------------------------------

TRACES_ON = LogEvent("telemetry.traces_on", "info", "Runs are traced to {endpoint}.")
TRACES_NOT_INSTALLED = LogEvent(
    "telemetry.traces_not_installed",
    "warning",
    "Runs are not traced although an OTLP endpoint is configured: install it with pip install 'ziggurat-agents[telemetry]', "
    "or set [telemetry] enabled = false.",
)
EXPORT_FAILED = LogEvent(
    "telemetry.export_failed",
    "warning",
    "Traces cannot be sent to {endpoint} now ({error}); they are dropped until they can. Runs go on.",
)
EXPORT_WORKS = LogEvent("telemetry.export_works", "info", "Traces are sent to {endpoint} again; {spans} spans were dropped.")
READER_FAILED = LogEvent("telemetry.reader_failed", "warning", "The metric {metric} cannot be read now and is left out: {error}")
