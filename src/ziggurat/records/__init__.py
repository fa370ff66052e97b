"""The shared nouns: every record that crosses a layer, with a sentence for each field.

Records are frozen msgspec structs, encoded as JSON. Times are seconds since the epoch, UTC; durations are seconds; money is US
dollars. A payload (`Raw`) is JSON text as bytes, already encoded against its declared type by `ziggurat.codec`; layers below the program
carry it without looking inside.
"""

from __future__ import annotations

from ziggurat.records.common import (
    PRIORITY_HIGHEST,
    PRIORITY_LOWEST,
    PRIORITY_NORMAL,
    WIRE_VERSION,
    Allowance,
    CallRecord,
    ErrorInfo,
    MaybeRaw,
    Usage,
    encode,
)
from ziggurat.records.models import (
    ChatMessage,
    Chunk,
    Completion,
    EmbeddingPrompt,
    Embeddings,
    FinishReason,
    Prompt,
    Tool,
    ToolCall,
)
from ziggurat.records.runs import (
    ENDED,
    STOPPED,
    Awaited,
    Event,
    EventKind,
    Run,
    RunEvent,
    RunFilter,
    RunStatus,
    StartRequest,
    StepView,
)
from ziggurat.records.schedules import Overlap, Schedule
from ziggurat.records.work import (
    Concurrency,
    DeadLetter,
    Delivery,
    Depth,
    Lane,
    Message,
    Outcome,
    OutcomeStatus,
    Presence,
    Progress,
    Rate,
    message_id,
    outcome_of,
)

__all__ = [
    "ENDED",
    "PRIORITY_HIGHEST",
    "PRIORITY_LOWEST",
    "PRIORITY_NORMAL",
    "STOPPED",
    "WIRE_VERSION",
    "Allowance",
    "Awaited",
    "CallRecord",
    "ChatMessage",
    "Chunk",
    "Completion",
    "Concurrency",
    "DeadLetter",
    "Delivery",
    "Depth",
    "EmbeddingPrompt",
    "Embeddings",
    "ErrorInfo",
    "Event",
    "EventKind",
    "FinishReason",
    "Lane",
    "MaybeRaw",
    "Message",
    "Outcome",
    "OutcomeStatus",
    "Overlap",
    "Presence",
    "Progress",
    "Prompt",
    "Rate",
    "Run",
    "RunEvent",
    "RunFilter",
    "RunStatus",
    "Schedule",
    "StartRequest",
    "StepView",
    "Tool",
    "ToolCall",
    "Usage",
    "encode",
    "message_id",
    "outcome_of",
]
