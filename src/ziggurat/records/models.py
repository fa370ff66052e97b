"""Records of inference: what is asked of a model, and what it answers."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from ziggurat.records.common import CallRecord, Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]


class ToolCall(Struct, frozen=True, omit_defaults=True):
    """The model's wish to call a tool. `arguments` is the JSON text as the model wrote it, not yet validated."""

    id: str
    name: str
    arguments: str


class ChatMessage(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One message of a conversation. `content` is text, or a list of OpenAI-style content parts."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    name: str | None = None


class Tool(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A function that the model may ask for; `parameters` is the JSON schema of its arguments object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    #: The endpoint holds the arguments to the schema, where it can (OpenAI's strict functions).
    strict: bool = False


class Prompt(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request to a model, independent of the endpoint that will serve it."""

    messages: list[ChatMessage]
    #: The alias of [inference.models], resolved by the router.
    model: str = "default"
    tools: list[Tool] = []
    #: "auto", "none", "required", or a tool's name.
    tool_choice: str = "auto"
    #: The JSON schema that the answer must fit, and its name.
    schema: dict[str, Any] | None = None
    schema_name: str = "answer"
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: list[str] = []
    seed: int | None = None
    #: Seconds that the caller waits for the whole answer, all routes and retries included.
    timeout: float | None = None
    #: Seconds for which an equal request of the tenant may be given the same answer; None asks the model.
    cache: float | None = None
    #: The region that the call must stay in; empty for anywhere. And how good the model must be, from 1 to 5; 0 for any.
    region: str = ""
    quality: int = 0
    #: The moment (seconds since the epoch) by which the answer is wanted; None is at once. Until then the call may wait for what is
    #: cheaper, such as a batch.
    due: float | None = None
    #: Names what shares a prefix, so that a router can keep it on one replica.
    session: str = ""
    #: Endpoint-specific fields, sent as they are.
    extra: dict[str, Any] = {}


class Completion(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A model's whole answer."""

    text: str = ""
    tool_calls: list[ToolCall] = []
    finish: FinishReason = "stop"
    #: Text of a refusal, where the endpoint reports one.
    refusal: str = ""
    reasoning: str = ""
    usage: Usage = Usage()
    #: The alias, the endpoint and the upstream model that served it.
    model: str = ""
    endpoint: str = ""
    upstream: str = ""
    #: The ledger entry of the call.
    call: CallRecord | None = None


class EmbeddingPrompt(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A request for the embeddings of texts, independent of the endpoint that will serve it."""

    #: Texts, or texts as the token numbers of the model's own tokenizer.
    inputs: list[str | list[int]]
    model: str = "default"
    #: The length of the vectors, where the model lets one choose.
    dimensions: int | None = None
    #: Seconds that the caller waits, all routes and retries included.
    timeout: float | None = None
    #: Endpoint-specific fields, sent as they are.
    extra: dict[str, Any] = {}


class Embeddings(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The vectors of an EmbeddingPrompt's inputs, in their order."""

    vectors: list[list[float]] = []
    usage: Usage = Usage()
    #: The alias, the endpoint and the upstream model that served it.
    model: str = ""
    endpoint: str = ""
    upstream: str = ""
    #: The ledger entry of the call.
    call: CallRecord | None = None


class Chunk(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A piece of a streamed answer. The last one carries the finish reason and, where the endpoint sends it, the usage."""

    text: str = ""
    reasoning: str = ""
    #: Pieces of tool calls: (index, id or "", name or "", piece of the arguments).
    tool_calls: list[tuple[int, str, str, str]] = []
    finish: FinishReason | None = None
    usage: Usage | None = None
    #: The ledger entry of the call, with the last piece that the router yields.
    call: CallRecord | None = None
