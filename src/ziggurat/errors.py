"""Every error that a user can meet, drawn as one tree.

ZigguratError
├── ConfigurationError            exit 2: something written by a person is wrong
│   ├── SettingsError             ziggurat.toml or a ZIGGURAT_* variable
│   ├── DefinitionError           @task, @workflow or Retry used in a way that cannot work
│   ├── UnknownName               no workflow, task, model, run or step of that name
│   ├── InvalidData               a value does not fit its declared type
│   ├── Conflict                  the verb does not apply to the run as it stands
│   ├── MissingExtra              an optional part is not installed
│   ├── AccessDenied              the server wants an API key, or this one may not do that
│   └── KeyMissing                a payload is encrypted with a key that the settings do not hold
├── LayerUnreachable              exit 3: a layer cannot be used now
│   ├── StateLocked               another process owns the state file
│   ├── StateUnusable             the state file is corrupt, of a newer schema, or cannot be written
│   ├── QueueUnavailable          the queue's server is down or refuses us
│   └── ArtifactsUnreachable      the artifact store is down, full or refuses us; retryable
├── RunEnded                      exit 1: the result that was awaited does not exist
│   ├── RunFailed
│   ├── RunCancelled
│   └── RunParked
├── TaskError                     what an awaited task raises inside a workflow
│   ├── TaskTimeout               (also a TimeoutError)
│   ├── TaskCrashed               the process that ran the attempt died
│   └── DeadLettered              the queue gave the message up
├── ChildRunError                 what an awaited child run raises inside a workflow
├── SignalTimeout                 (also a TimeoutError) no signal came in time
├── PayloadTooLarge               a value is over the size limit
├── ArtifactError                 a stored payload or file cannot be had as it was saved
│   ├── ArtifactMissing           the store has no such object
│   └── ArtifactCorrupt           its checksum or its seal does not fit
├── Overloaded                    a bounded lane is full
└── InferenceError
    ├── EndpointUnreachable       no connection, or no answer in time; retryable
    ├── RateLimited               429; carries retry_after
    ├── EndpointFailed            5xx, a cut stream, nonsense where JSON was due; retryable
    ├── AuthenticationFailed      401 or 403
    ├── ModelNotFound             404, or no such alias
    ├── RequestRejected           400 or 422: the endpoint refuses this request
    │   └── ContextTooLong
    ├── OutputInvalid             the answer does not fit the schema after the re-ask
    ├── OutputRefused             the model declined
    ├── OutputTruncated           the answer hit max_tokens
    └── BudgetExceeded            a hard limit would be passed

Control (BaseException)           flow of the engine; `except Exception` in user code must not swallow it
├── ContinueAsNew
├── Deferred                      an attempt waits for an answer that comes later, and is made again then
└── NotDurable                    a workflow did something that a replay cannot repeat
"""

from __future__ import annotations

from typing import Any


class ZigguratError(Exception):
    """Root of all errors that Ziggurat raises on purpose. Its text is one sentence: the thing, the cause, the remedy."""

    #: The exit code of a command that ends with this error.
    exit_code = 1


# -- what a person wrote is wrong ------------------------------------------------------------------------------------


class ConfigurationError(ZigguratError):
    """Something that a person wrote, a setting, a name or a value, cannot be used."""

    exit_code = 2


class SettingsError(ConfigurationError):
    """ziggurat.toml or a ZIGGURAT_* environment variable is wrong."""


class DefinitionError(ConfigurationError):
    """A decorator or an option object was used in a way that cannot work."""


class UnknownName(ConfigurationError):
    """There is no workflow, task, model, run or step of that name."""


class InvalidData(ConfigurationError):
    """A value does not fit its declared type; the text lists the first misfits with their paths."""


class Conflict(ConfigurationError):
    """The verb does not apply to the run as it stands, for example resuming a completed run."""


class MissingExtra(ConfigurationError):
    """An optional part is not installed; the text holds the exact install command."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part. Install it with: pip install 'ziggurat-agents[{extra}]'")
        self.extra = extra


class AccessDenied(ConfigurationError):
    """The server does not let the caller do this: without an API key, or with one of another role or tenant."""


class KeyMissing(ConfigurationError):
    """A payload is encrypted with a key that [encryption.keys] does not hold. Nothing is lost; give the key and try again."""


# -- a layer cannot be used now --------------------------------------------------------------------------------------


class LayerUnreachable(ZigguratError):
    """A configured layer cannot be used now. Nothing that was recorded is lost."""

    exit_code = 3


class StateLocked(LayerUnreachable):
    """Another process owns the state file; the text names it."""


class StateUnusable(LayerUnreachable):
    """The state file is corrupt, was written by a newer Ziggurat, or cannot be written (disk full, read-only)."""


class QueueUnavailable(LayerUnreachable):
    """The queue's server is down, refuses our credentials or cannot take writes."""


class ArtifactsUnreachable(LayerUnreachable):
    """The artifact store is down, full, or refuses our credentials."""


# -- the awaited result does not exist -------------------------------------------------------------------------------


class RunEnded(ZigguratError):
    """A run ended without the awaited result. `run_id` names it; `error` is the recorded failure, if any."""

    def __init__(self, message: str, *, run_id: str = "", error: Any = None) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.error = error


class RunFailed(RunEnded):
    """The workflow raised."""


class RunCancelled(RunEnded):
    """The run was cancelled."""


class RunParked(RunEnded):
    """The engine stopped the run and says why; it can be resumed once the cause is mended."""


# -- what awaiting a step raises inside a workflow -------------------------------------------------------------------


class TaskError(ZigguratError):
    """A task failed for good: its attempts are used up or the failure is not retryable.

    Where the original exception's class is known to the process, the raised object is an instance of that class too, so
    that `except ValueError` works the same inside and outside a run.
    """

    def __init__(self, message: str = "", *, task: str = "", step: int = 0, attempt: int = 0, info: Any = None) -> None:
        super().__init__(message)
        self.task = task
        self.step = step
        self.attempt = attempt
        #: The recorded failure, a `records.ErrorInfo`: original type name, message and traceback text.
        self.info = info


class TaskTimeout(TaskError, TimeoutError):
    """An attempt, its heartbeat or the total deadline ran out of time."""


class TaskCrashed(TaskError):
    """The process that ran the attempt died, for example by running out of memory or calling os._exit."""


class DeadLettered(TaskError):
    """The queue delivered the message its maximum number of times and gave it up. It can be redriven."""


class ChildRunError(ZigguratError):
    """A child run failed, was cancelled or was parked for good."""

    def __init__(self, message: str = "", *, run_id: str = "", info: Any = None) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.info = info


class SignalTimeout(ZigguratError, TimeoutError):
    """No signal of that name came in time."""


class PayloadTooLarge(ConfigurationError):
    """A value's JSON is over the size limit."""


class ArtifactError(ZigguratError):
    """A stored payload or file cannot be had as it was saved. Another try will not help by itself."""

    retryable = False


class ArtifactMissing(ArtifactError):
    """The artifact store has no object of that key; the text names it."""


class ArtifactCorrupt(ArtifactError):
    """What is stored is not what was saved: its checksum does not fit, or its seal was broken or belongs to another run."""


class Overloaded(ZigguratError):
    """A bounded lane is full; send again later."""

    exit_code = 3


# -- inference -------------------------------------------------------------------------------------------------------


class InferenceError(ZigguratError):
    """A model call failed. `retryable` says whether the same call may succeed later; `retry_after` is in seconds."""

    retryable = False
    #: True when the request went out and no whole answer came back, so that the provider may bill it.
    sent = False

    def __init__(self, message: str = "", *, endpoint: str = "", model: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.endpoint = endpoint
        self.model = model
        self.retry_after = retry_after


class EndpointUnreachable(InferenceError):
    """No connection to the endpoint, or no answer in time."""

    retryable = True
    exit_code = 3


class RateLimited(InferenceError):
    """The endpoint answered 429; `retry_after` holds the seconds it asked for, if it did."""

    retryable = True
    exit_code = 3


class EndpointFailed(InferenceError):
    """The endpoint answered 5xx, cut the stream, or sent nonsense where JSON was due."""

    retryable = True


class AuthenticationFailed(InferenceError):
    """The endpoint refused the credentials (401 or 403)."""

    exit_code = 3


class ModelNotFound(InferenceError):
    """The endpoint does not serve the model (404), or no alias of that name is configured."""

    exit_code = 2


class RequestRejected(InferenceError):
    """The endpoint refuses this request as malformed or unsupported (400 or 422)."""


class ContextTooLong(RequestRejected):
    """The request does not fit the model's context window."""


class OutputInvalid(InferenceError):
    """The answer does not fit the schema, after one re-ask that showed the model its mistake."""


class OutputRefused(InferenceError):
    """The model declined to answer."""


class OutputTruncated(InferenceError):
    """The answer stopped at max_tokens before it was complete."""


class BudgetExceeded(InferenceError):
    """The call was not made, because it would pass a hard budget limit. A run that meets it is parked and can be resumed.

    `run_id` names the run whose budget it is; it is empty for a limit of the settings. `budget` names the budget: "run:ID", "call",
    "step", "day", "workflow:NAME" or "tenant:NAMESPACE".
    """

    run_id = ""
    budget = ""


# -- flow of the engine ----------------------------------------------------------------------------------------------


class Control(BaseException):
    """Control flow between a workflow and its engine. Derives from BaseException so that `except Exception` lets it by."""


class ContinueAsNew(Control):
    """Ends this generation of a run and starts the next with new arguments and an empty history."""

    def __init__(self, payload: bytes, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        super().__init__("continue as new")
        self.payload = payload
        self.args_ = args
        self.kwargs = kwargs or {}


class Deferred(Control):
    """Ends an attempt of a task: a model call of it is answered later. The attempt is made again after `retry_after` seconds, which is no
    failure; what it had bought by then is taken from the journal.
    """

    def __init__(self, why: str, *, seconds: float) -> None:
        super().__init__(f"It waits for {why}.")
        self.retry_after = seconds


class NotDurable(Control):
    """A workflow did something that a replay cannot repeat, such as reading the clock or opening a file."""
