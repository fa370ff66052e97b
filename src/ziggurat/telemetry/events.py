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
            text = self.sentence.format_map(fields)
            if not text.isascii():
                # Lone surrogates, as in undecodable file names, are not UTF-8: a stream would fail on the line and lose it.
                text = text.encode(errors="backslashreplace").decode()
            self._logger.log(self._number, text, exc_info=trace_of, stacklevel=2, extra=extra)


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
RUNS_NOT_PURGED = LogEvent(
    "orchestrator.runs_not_purged", "warning", "Runs past their retention could not be purged and will be later: {error}"
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

RUN_STALLED = LogEvent("orchestrator.run_stalled", "warning", "The run {run} waits for the artifact store: {error}")
PAYLOAD_WAITS = LogEvent("orchestrator.payload_waits", "warning", "The payload of {what} waits for the artifact store: {error}")
HAND_ON_WAITS = LogEvent(
    "orchestrator.hand_on_waits", "warning", "What the run {run} hands on cannot be stored now and will be tried again: {error}"
)
ARTIFACTS_LEFT = LogEvent(
    "orchestrator.artifacts_left", "warning", "Artifacts of runs that were purged are left for the next sweep: {error}"
)
ARTIFACTS_NOT_SWEPT = LogEvent(
    "orchestrator.artifacts_not_swept", "warning", "The artifact store could not be swept and will be again: {error}"
)
ARTIFACTS_SWEPT = LogEvent("orchestrator.artifacts_swept", "info", "{objects} stored objects that no run refers to were deleted.")
ARTIFACTS_OF_ANOTHER = LogEvent(
    "orchestrator.artifacts_of_another",
    "warning",
    "The artifact store {store} is cleaned up by another system, which takes what runs here have stored for left behind, and nothing is "
    "deleted from it here; give each system a place of its own in [artifacts] url.",
)
SCHEDULE_FAILED = LogEvent("orchestrator.schedule_failed", "error", "The schedule {schedule} could not start a run: {error}")
SCHEDULE_UNDECIDED = LogEvent(
    "orchestrator.schedule_undecided",
    "error",
    "The schedule {schedule} could not be decided on; it is looked at again at its next moment.",
)
RELAY_FAILED = LogEvent("orchestrator.relay_failed", "error", "Outcomes could not be brought back; trying again.")
UPKEEP_BROKE = LogEvent("orchestrator.upkeep_failed", "error", "What is on the queue could not be looked after; trying again.")
TEMPORAL_BUSY = LogEvent(
    "orchestrator.temporal_busy",
    "warning",
    "The Temporal server did not take the outcome of {message} and will be asked again: {error}",
)
TEMPORAL_REFUSES = LogEvent(
    "orchestrator.temporal_refuses", "error", "The Temporal server refuses the {what} of {message}: {error}"
)
NO_SEARCH_ATTRIBUTES = LogEvent(
    "orchestrator.no_search_attributes",
    "warning",
    "The namespace {namespace} has no search attributes {attributes} and does not let us make them ({error}), so lists filter by tag and "
    "tenant slowly and Temporal's own search does not know them; create them by hand.",
)
WORKFLOW_WORKER_FAILED = LogEvent(
    "orchestrator.workflow_worker_failed", "error", "A workflow worker failed, and runs are not driven here any more: {error}"
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

TASK_QUEUE_LEFT = LogEvent(
    "queue.task_queue_left", "error", "A Temporal worker failed; its task queue is not served any more: {error}"
)

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

ORPHAN_ENDS = LogEvent(
    "worker.orphan_ends",
    "error",
    "This worker did not end within {seconds:.0f} s after its pool was gone, and ends itself; its leases run out.",
)

# -- pool ------------------------------------------------------------------------------------------------------------

POOL_WANTS = LogEvent("pool.wants", "info", "The pool {pool} wants {workers} workers ({constraint}): {explanation}")
POOL_NOT_SCALED = LogEvent("pool.not_scaled", "warning", "The pool {pool} is not scaled while its queue is unavailable: {error}")
POOL_FAILED = LogEvent("pool.scaling_failed", "error", "The pool {pool} could not be scaled; trying again.")
POOL_LOOK_FAILED = LogEvent("pool.look_failed", "error", "The pool {pool} could not look for new queues.")
WORKER_REPLACED = LogEvent("pool.worker_replaced", "error", "A worker of the pool {pool} failed, and is replaced.")
WORKER_ENDED = LogEvent("pool.worker_ended", "info", "The worker {worker} ended with code {code} and is started anew.")
WORKER_CRASHED = LogEvent("pool.worker_crashed", "warning", "{what} The next one is started in {seconds:g} s.", "pool")
WORKER_BABBLES = LogEvent("pool.worker_babbles", "warning", "The worker {worker} said something that is not a status.")
METRICS_NOT_SERVED = LogEvent(
    "worker.metrics_not_served", "warning", "No port of {host} can be had for metrics ({error}); this worker shows none."
)

# -- inference -------------------------------------------------------------------------------------------------------

REPLICA_ILL = LogEvent(
    "inference.replica_ill",
    "warning",
    "The replica {replica} of the endpoint {endpoint} is ill, and its sessions move to others until it is well: {error}",
)
REPLICA_WELL = LogEvent("inference.replica_well", "info", "The replica {replica} of the endpoint {endpoint} is well again.")
LEDGER_WAITS = LogEvent(
    "inference.ledger_waits",
    "warning",
    "The ledger {path} cannot be written now ({error}); calls are kept in memory until it can.",
)
LEDGER_LOST = LogEvent(
    "inference.ledger_lost", "error", "{calls} calls were not written to the ledger {path}, which cannot be written ({error})."
)

SPENT_UNKNOWN = LogEvent(
    "inference.spent_unknown",
    "warning",
    "{error} What was spent today before is not known, and budgets of the day begin at nothing.",
)
LIMITS_NOT_TOLD = LogEvent(
    "inference.limits_not_told", "debug", "The limit store was not told that this process ends; it will notice."
)
LIMITS_ANSWER_UNUSABLE = LogEvent("inference.limits_answer_unusable", "error", "An answer of the limit store could not be used.")
LIMITS_ALONE = LogEvent("inference.limits_alone", "warning", "{error} Until then this process goes on with {share}.")
LIMITS_SHARED = LogEvent("inference.limits_shared", "info", "The limit store is back; limits are shared again.")

ANSWERS_NOT_KEPT = LogEvent("inference.answers_not_kept", "warning", "Answers of models are not kept at present: {error}")
BATCH_SENT = LogEvent("inference.batch_sent", "info", "The batch {batch} went to {endpoint}, with {calls} calls of {model}.")
BATCH_ENDED = LogEvent(
    "inference.batch_ended", "info", "The batch {batch} at {endpoint} is {how}; it answered {answered} calls.", "reason"
)
BATCH_TROUBLE = LogEvent(
    "inference.batch_trouble",
    "warning",
    "A batch at {endpoint} could not be looked after and will be again: {error}",
    "batch",
    "what",
)
SHADOW_FAILED = LogEvent("inference.shadow_failed", "info", "A shadow call to {model} failed: {error}")
SWITCHES_NOT_READ = LogEvent("inference.switches_not_read", "warning", "{error} Calls go on by what was read last.")
SWITCH_NOT_FOLLOWED = LogEvent("inference.switch_not_followed", "warning", "A model switch cannot be followed here: {error}")

# -- gateway and server ----------------------------------------------------------------------------------------------

KEYS_NOT_READ = LogEvent("gateway.keys_not_read", "warning", "The gateway goes on with the keys that it knows. {error}")
GATEWAY_FAILED = LogEvent(
    "gateway.request_failed", "error", "The request {request} ended with an error that the gateway did not expect."
)
REQUEST_FAILED = LogEvent("server.request_failed", "error", "{method} {path} failed.")
STREAM_CUT = LogEvent("server.stream_cut", "warning", "The stream of the run {run} was cut off: {error}")
STREAM_FAILED = LogEvent("server.stream_failed", "error", "The stream of the run {run} failed.")
BULK_WAITS = LogEvent("server.bulk_waits", "warning", "The bulk order {order} waits: {error}")
BULK_FAILED = LogEvent("server.bulk_failed", "error", "The bulk order {order} met an unexpected error, and waits.")
NOT_READY = LogEvent("server.not_ready", "warning", "The server is not ready: {error}")
WEBHOOKS_WAIT = LogEvent("server.webhooks_wait", "warning", "Webhooks wait: {error}")
WEBHOOKS_FAILED = LogEvent("server.webhooks_failed", "error", "Webhooks met an unexpected error, and go on.")
WEBHOOK_GIVEN_UP = LogEvent("server.webhook_given_up", "warning", "The webhook {webhook} gave up the message {message}. {error}")
NO_API_KEY = LogEvent(
    "server.no_api_key",
    "warning",
    "Nobody can call {url} yet: there is no API key. Make one with `ziggurat keys create NAME --role admin`.",
)
LOOK_FAILED = LogEvent("server.look_failed", "error", "The system could not be looked at.")

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
