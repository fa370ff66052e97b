"""The catalogue of metrics: every metric that a process of Ziggurat can show, defined here and nowhere else.

A new metric is one line here and a call where its event happens; `make reference` then writes it into docs/reference/metrics.md, and a test
holds that everything listed is emitted. Names end in their unit and, for counters, in `_total` (https://prometheus.io/docs/practices/naming/).
Labels hold names that people chose once (workflows, tasks, queues, endpoints), never ids of runs or text of users.
"""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.telemetry.metrics import COUNTS, SECONDS, Counter, Gauge, Histogram, Registry
from ziggurat.telemetry.process import STARTED, cpu_seconds, open_files, resident_bytes

#: The metrics of this process.
METRICS = Registry()


def _counter(name: str, help: str, *labels: str) -> Counter:
    return METRICS.add(Counter(name, help, labels, layer=_layer))


def _gauge(name: str, help: str, *labels: str) -> Gauge:
    return METRICS.add(Gauge(name, help, labels, layer=_layer))


def _oldest(name: str, help: str, *labels: str) -> Gauge:
    """An age: of several readers' values the largest counts."""
    return METRICS.add(Gauge(name, help, labels, layer=_layer, merge=max))


def _histogram(name: str, help: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
    return METRICS.add(Histogram(name, help, labels, buckets=buckets, layer=_layer))


_layer = "Orchestrator"

RUNS = _gauge("ziggurat_runs", "Runs in the state, by status; counted at most every 15 s.", "status")
RUNS_STARTED = _counter("ziggurat_runs_started_total", "Runs started, child runs and forks included.", "workflow")
RUNS_STOPPED = _counter(
    "ziggurat_runs_stopped_total", "Runs that completed, failed, were cancelled or were parked.", "workflow", "status"
)
RUN_SECONDS = _histogram("ziggurat_run_seconds", "Time from a run's start to its end.", "workflow")
RUNS_RESIDENT = _gauge("ziggurat_runs_resident", "Runs in memory.")
RUNS_EVICTED = _counter("ziggurat_runs_evicted_total", "Runs that were put out of memory while they waited.")
REPLAYS = _counter("ziggurat_replays_total", "Runs brought back into memory from their history.")
REPLAYED_EVENTS = _counter("ziggurat_replayed_events_total", "Events of histories that were applied again by replays.")
STEPS = _counter("ziggurat_steps_total", "Steps recorded, by kind (task, timer, child) and how they ended.", "kind", "status")
STEP_SECONDS = _histogram("ziggurat_step_seconds", "Time from the moment a step was asked for to its record.", "kind")
STEP_RETRIES = _counter("ziggurat_step_retries_total", "Attempts that failed and are followed by another.", "task")
SIGNALS = _counter("ziggurat_signals_total", "Signals recorded.")
COMMITS = _histogram("ziggurat_commit_writes", "Writes that shared one commit of the state file.", buckets=COUNTS)
COMMIT_SECONDS = _histogram("ziggurat_commit_seconds", "Time of one commit of the state file.")
DISPATCH_SECONDS = _histogram(
    "ziggurat_dispatch_seconds",
    "Time from the moment a step's message was made until the queue had it; the oldest of each batch.",
)
OUTBOX = _gauge("ziggurat_outbox_messages", "Messages that wait here until the queue takes them.")
IN_FLIGHT = _gauge("ziggurat_in_flight_messages", "Messages that were sent and whose outcome has not come.")
OUTCOMES = _counter("ziggurat_outcomes_total", "Outcomes that came from the queue, by status.", "status")
RESENT = _counter("ziggurat_messages_resent_total", "Messages that the queue had lost and that were sent again.")

_layer = "Queue"

QUEUE_MESSAGES = _gauge(
    "ziggurat_queue_messages",
    "Messages by state: ready, leased, delayed, dead. Shown by the process that orchestrates.",
    "queue",
    "state",
)
QUEUE_OLDEST = _oldest("ziggurat_queue_oldest_age_seconds", "How long the oldest ready message has waited.", "queue")
QUEUE_SENT = _counter("ziggurat_queue_sent_total", "Messages that the orchestrator sent.", "queue")
QUEUE_WAIT = _histogram("ziggurat_queue_wait_seconds", "Time from the sending of a message to the start of its attempt.", "queue")
REDELIVERIES = _counter("ziggurat_queue_redeliveries_total", "Deliveries of messages that had been delivered before.", "queue")
FENCED = _counter("ziggurat_queue_fenced_total", "Leases that went to another worker while an attempt held them.", "queue")
DEAD_LETTERS = _counter("ziggurat_queue_dead_letters_total", "Messages that the queue gave up.", "task")
QUEUE_OUTAGES = _counter("ziggurat_queue_outages_total", "Times that a process found its queue unavailable.")

_layer = "Workers"

ATTEMPTS_STARTED = _counter("ziggurat_worker_attempts_started_total", "Attempts begun.", "task")
ATTEMPTS_ENDED = _counter(
    "ziggurat_worker_attempts_ended_total",
    "Attempts ended, by the status of their outcome: completed, failed, timeout, crashed, cancelled.",
    "task",
    "status",
)
ATTEMPT_SECONDS = _histogram("ziggurat_worker_attempt_seconds", "Time that an attempt ran.", "task")
RELEASED = _counter("ziggurat_worker_messages_released_total", "Messages handed back to the queue.")
BUSY = _gauge("ziggurat_worker_busy", "Attempts under way or not settled yet.", "pool")
SLOTS = _gauge("ziggurat_worker_slots", "Attempts that may run at a time.", "pool")
ABANDONED = _gauge("ziggurat_worker_abandoned", "Attempts given up whose code runs on.", "pool")
POLL_AGE = _oldest("ziggurat_worker_poll_age_seconds", "Age of the last successful poll of the queue.", "pool")
POOL_WORKERS = _gauge(
    "ziggurat_pool_workers", "Worker processes of a pool, by state: starting, ready, draining.", "pool", "state"
)
POOL_ENDED = _counter(
    "ziggurat_pool_attempts_ended_total",
    "Attempts that ended in the worker processes of a pool, those that are gone included.",
    "pool",
)
POOL_SECONDS = _counter("ziggurat_pool_attempt_seconds_total", "Time that those attempts ran.", "pool")
POOL_WANTED = _gauge(
    "ziggurat_pool_wanted_workers", "Worker processes that a pool wants, and what bound the choice.", "pool", "constraint"
)

_layer = "Inference"

CALLS = _counter(
    "ziggurat_model_calls_total",
    'Calls of endpoints, by status: "ok", "unanswered" (it may have been billed), "stopped" (the reader left), or the error.',
    "endpoint",
    "model",
    "status",
)
CALL_SECONDS = _histogram(
    "ziggurat_model_call_seconds", "Time from a request to the last byte of its answer.", "endpoint", "model"
)
FIRST_TOKEN = _histogram(
    "ziggurat_model_first_token_seconds", "Time from a request to the first piece of a stream.", "endpoint", "model"
)
TOKENS = _counter(
    "ziggurat_model_tokens_total",
    "Tokens, by kind: input, output. Of these, again: cached (of input) and reasoning (of output).",
    "endpoint",
    "model",
    "kind",
)
COST = _counter("ziggurat_model_cost_dollars_total", "What calls cost, in US dollars.", "endpoint", "model")
MODEL_RETRIES = _counter(
    "ziggurat_model_retries_total", "Attempts at a route that had been tried before in the same call.", "alias"
)
FALLBACKS = _counter(
    "ziggurat_model_fallbacks_total", "Attempts at a route after another route of the same call had failed.", "alias"
)
HEDGES = _counter(
    "ziggurat_model_hedges_total",
    'Second requests of calls that took long: "won" answered first, "lost" did not, "failed" gave no answer.',
    "alias",
    "outcome",
)
BATCH_CALLS = _counter(
    "ziggurat_batch_calls_total",
    "Calls that may wait, by what became of them: placed; answered, again (in another batch), online (made as any other call: it failed "
    "in the batch), late and left (made so, for its deadline was near: before, or after, its batch was sent), dropped.",
    "endpoint",
    "outcome",
)
BATCHES = _counter(
    "ziggurat_batches_total",
    "Batches that ended, by how; and tries of theirs that were in vain (trouble, unreachable).",
    "endpoint",
    "outcome",
)
GATE_SECONDS = _histogram(
    "ziggurat_model_limit_wait_seconds", "Time that a call waited for the limits of its endpoint.", "endpoint"
)
MODEL_IN_FLIGHT = _gauge("ziggurat_model_calls_in_flight", "Calls under way.", "endpoint")
MODEL_WAITING = _gauge("ziggurat_model_calls_waiting", "Calls that wait for the limits of their endpoint.", "endpoint")
BREAKER = _gauge(
    "ziggurat_model_breaker_state", "0 closed (well), 1 half-open (being tried), 2 open (not called).", "endpoint", "model"
)

_layer = "Gateway"

GATEWAY_REQUESTS = _counter(
    "ziggurat_gateway_requests_total", 'Requests, by path and HTTP status; "gone": the client hung up first.', "path", "status"
)
GATEWAY_SECONDS = _histogram("ziggurat_gateway_request_seconds", "Time from a request's head to the end of its answer.", "path")
GATEWAY_IN_FLIGHT = _gauge("ziggurat_gateway_requests_in_flight", "Requests under way.")
GATEWAY_COST = _counter("ziggurat_gateway_key_cost_dollars_total", "What the calls of a virtual key cost, in US dollars.", "key")

_layer = "Process"

SPANS_LOST = _counter("ziggurat_spans_lost_total", "Spans that could not be exported.")
EVENTS = _counter("ziggurat_log_events_total", "Events of the catalogue of events, from warnings on.", "event")
_gauge("process_resident_memory_bytes", "Memory that the process uses.").watch(lambda: {(): float(resident_bytes())})
_counter("process_cpu_seconds_total", "Processor time that the process has used.").watch(lambda: {(): cpu_seconds()})
_gauge("process_start_time_seconds", "When the process began, in seconds since the epoch.").watch(lambda: {(): STARTED})
_gauge("process_open_fds", "Open file descriptors.").watch(
    lambda: {(): float(count)} if (count := open_files()) is not None else {}
)


def metrics_text() -> bytes:
    """Return this process's metrics as a page in the Prometheus text format 0.0.4, to be served as `CONTENT_TYPE`.

    For a door that has an HTTP server: answer `GET /metrics` with it. It takes a millisecond or so, asks the readers of other layers (some
    of which read the state file, at most every 15 s) and may be called from any thread; an async door calls it through
    `asyncio.to_thread`. Raises nothing.
    """
    return METRICS.text()


def metrics_reference() -> str:
    """Return the catalogue as Markdown: a table for each layer."""
    layers: dict[str, list[Counter | Histogram]] = {}
    for metric in METRICS.metrics.values():
        layers.setdefault(metric.layer, []).append(metric)
    parts = []
    for layer, metrics in layers.items():
        rows = [
            f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.label_names)} | {m.help.replace('|', chr(92) + '|')} |"
            for m in metrics
        ]
        parts.append("\n".join([f"## {layer}", "", "| Metric | Kind | Labels | Meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)
